"""The device: a context, an in-order queue, a pool of buffers, and programs built for it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from packhorse.compiler.gpu_schedule import GpuSchedule, GpuTarget, gpu_schedule
from packhorse.device import BackendInfo, DeviceMixin, Memory, MemoryStats, check_range
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    CompileError,
    DeviceError,
    DeviceMemoryError,
    DeviceUnavailable,
)
from packhorse.kernel import Affine, Kernel, Store, contiguous
from packhorse.kernel.expr import Load
from packhorse_opencl.driver import opencl, opencl_devices, typed_errors
from packhorse_opencl.library import KIND, ClLibrary
from packhorse_opencl.memory import ClMemory, Pool
from packhorse_opencl.module import ClModule, build, read

__all__ = ["OpenClDevice"]


class OpenClDevice(DeviceMixin):
    """``opencl:N``: the N-th OpenCL device, GPUs first."""

    def __init__(self, info: BackendInfo, index: int, options: Mapping[str, Any]) -> None:
        found = opencl_devices()
        if not 0 <= index < len(found):
            listed = ", ".join(f"{info.name}:{i} {d.name}" for i, d in enumerate(found))
            raise DeviceUnavailable(
                f"{info.name}:{index} does not exist; there are {len(found)}: {listed}"
            )
        self.cl, self.handle = opencl(), found[index]
        self._target = _target(self.handle)
        super().__init__(info, index, options)
        with typed_errors("open a context", self.name):
            self.context = self.cl.Context([self.handle])
            properties = self.cl.command_queue_properties.PROFILING_ENABLE
            self.queue = self.cl.CommandQueue(self.context, self.handle, properties)
        self._pool = Pool(_creator(self.cl, self.context))
        self._modules: weakref.WeakSet[ClModule] = weakref.WeakSet()

    @property
    def target(self) -> GpuTarget:
        """What schedules and code are made for."""
        return self._target

    # -- memory -----------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> ClMemory:
        """Uninitialised device memory.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            ``nbytes`` is not a whole number, or negative.
        DeviceMemoryError
            The device has not enough.
        """
        self.require_open()
        if isinstance(nbytes, bool) or not isinstance(nbytes, (int, np.integer)):
            raise ArgumentTypeError(f"nbytes must be an int, not {type(nbytes).__name__}")
        if nbytes < 0:
            raise ArgumentValueError(f"nbytes must not be negative, got {nbytes}")
        total, most = self.handle.global_mem_size, self.handle.max_mem_alloc_size
        if nbytes > most or self._pool.used + nbytes > total:
            raise DeviceMemoryError(
                f"{self.name}: could not allocate {nbytes} bytes ({self._pool.used} in use here, "
                f"the device has {total}, at most {most} in one block). Close tensors or "
                "executables, or use smaller inputs"
            )
        with typed_errors(f"allocate {nbytes} bytes", self.name):
            return ClMemory(self._pool, int(nbytes))

    def copy_from_host(self, memory: Memory, data: np.ndarray[Any, Any], offset: int = 0) -> None:
        """Copy a C-contiguous array to ``offset`` bytes into the block."""
        self.require_open()
        check_range(memory, data, offset)
        if data.nbytes:
            raw = data.reshape(-1).view(np.uint8)
            with typed_errors(f"copy {data.nbytes} bytes", self.name):
                self.cl.enqueue_copy(self.queue, own(memory), raw, dst_offset=offset)

    def copy_to_host(self, memory: Memory, data: np.ndarray[Any, Any], offset: int = 0) -> None:
        """Fill a C-contiguous array from ``offset`` bytes into the block, after queued work."""
        self.require_open()
        check_range(memory, data, offset, fill=True)
        if data.nbytes:
            raw = data.reshape(-1).view(np.uint8)
            with typed_errors(f"copy {data.nbytes} bytes", self.name):
                self.cl.enqueue_copy(self.queue, raw, own(memory), src_offset=offset)

    def synchronize(self) -> None:
        """Return when everything queued has been done."""
        self.require_open()
        with typed_errors("finish", self.name):
            self.queue.finish()

    def memory(self) -> MemoryStats:
        """Counters of the blocks allocated from this device; ``cached`` is kept for reuse."""
        self.require_open()
        p = self._pool
        total = int(self.handle.global_mem_size)
        return MemoryStats(p.used, p.peak, p.live, p.allocations, p.cached, total)

    def trim(self) -> int:
        """Release the memory kept for reuse; returns its bytes."""
        self.require_open()
        return self._pool.trim()

    # -- code -------------------------------------------------------------------------------------

    def compile(self, functions: Sequence[tuple[str, Kernel, GpuSchedule]]) -> ClModule:
        """Compile kernels into a module of packed functions over tensors of this device.

        Parameters
        ----------
        functions : sequence of (symbol, Kernel, GpuSchedule)
            Symbols must be distinct; constants must lie as the kernels' buffers say.

        Raises
        ------
        CompileError
            A kernel cannot be compiled, or two symbols are equal; ``log`` holds the build log.
        """
        self.require_open()
        names = [symbol for symbol, _, _ in functions]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise CompileError(f"symbol '{twice[0]}' names two kernels. Give each its own name")
        return self._kept(build(self, ClLibrary.of(functions)))

    def load(self, blob: bytes, kind: str) -> ClModule:
        """The module of a compiled library.

        Parameters
        ----------
        blob : bytes
            What ``Module.save_blob`` of a module of this backend gave, on any machine.
        kind : str
            ``"opencl-text"``.

        Raises
        ------
        ArtifactError
            Another kind, or a damaged blob.
        CompileError
            A kernel needs what this device lacks, or the driver refused the text.
        """
        self.require_open()
        readers = {KIND: read}
        if kind not in readers:
            raise ArtifactError(
                f"{self.name} reads code of the kind {', '.join(readers)}; this is '{kind:.80}'. "
                "Compile the model for this device"
            )
        return self._kept(readers[kind](self, blob))

    def _kept(self, module: ClModule) -> ClModule:
        """Closed with the device, at the latest."""
        self._modules.add(module)
        return module

    def check(self) -> None:
        """Compile and run ``y = x + x`` on three floats.

        Raises
        ------
        DeviceError
            The result is wrong.
        """
        i = Affine((("i", 1),))
        x = Load("x", (i,), "float32")
        buffers = {n: contiguous((3,), "float32") for n in ("x", "y")}
        kernel = Kernel("check", (("i", 3),), (Store("y", (i,), x + x),), buffers)
        source, result = np.array([1, 2, 3], np.float32), np.empty(3, np.float32)
        a, b = self.allocate(12), self.allocate(12)
        try:
            self.copy_from_host(a, source)
            with self.compile([("ph_check", kernel, gpu_schedule(kernel, self.target))]) as module:
                module.function("ph_check").bind_memory([a, b])()
                self.copy_to_host(b, result)
        finally:
            a.close()
            b.close()
        if result.tolist() != [2.0, 4.0, 6.0]:
            raise DeviceError(f"{self.name}: [1, 2, 3] + [1, 2, 3] gave {result.tolist()}")

    def _release(self) -> None:
        for module in list(self._modules):
            module.close()
        self.queue.finish()
        self._pool.close()


def own(memory: Memory) -> Any:
    """The OpenCL buffer of a block.

    Raises
    ------
    ArgumentTypeError
        The block is another device's.
    """
    if not isinstance(memory, ClMemory):
        raise ArgumentTypeError(
            f"this block is {type(memory).__name__}, not OpenCL memory; copy it with its own device"
        )
    return memory.buffer


def _creator(cl: Any, context: Any) -> Any:
    """Makes buffers; no method, which would keep the device alive in its pool."""
    flags = cl.mem_flags.READ_WRITE
    return lambda nbytes: cl.Buffer(context, flags, nbytes)


def _target(handle: Any) -> GpuTarget:
    versions = (handle.platform.version, handle.name, handle.driver_version, handle.version)
    return GpuTarget(
        dialect="opencl",
        name=" | ".join(versions),
        max_group=int(handle.max_work_group_size),
        local_bytes=int(handle.local_mem_size),
        float64=bool(handle.double_fp_config),
    )
