"""The device: a context, an in-order queue, a pool of buffers, and programs built for it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from packhorse.compiler.gpu_schedule import GpuSchedule, GpuTarget, gpu_schedule
from packhorse.device import BackendInfo, DeviceMixin, Memory, MemoryStats, check_range, check_size
from packhorse.errors import (
    ArgumentValueError,
    ArtifactError,
    DeviceError,
    DeviceMemoryError,
    DeviceUnavailable,
    PackhorseError,
)
from packhorse.kernel import Kernel
from packhorse.kernel.doubling import doubling_kernel
from packhorse.module_base import Module
from packhorse.module_kernel import check_symbols
from packhorse_opencl.driver import opencl, opencl_devices, out_of_memory, refused, typed_errors
from packhorse_opencl.library import KIND, ClLibrary
from packhorse_opencl.memory import ClMemory, Pool, Uploads, own, rounded
from packhorse_opencl.module import ClModule, build, read

__all__ = ["OpenClDevice"]

T = TypeVar("T")
M = TypeVar("M", bound=Module)
_STAGED = 1 << 20
"""Bytes up to which an upload copies the data, so that it needs not wait for the device."""


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
        self._target = _target(self.handle, options.get("max_group"))
        self._total = int(self.handle.global_mem_size)
        self._most = int(self.handle.max_mem_alloc_size)
        super().__init__(info, index, options)
        with typed_errors("open a context", self.name):
            self.context = self.cl.Context([self.handle])
            self.queue = self.cl.CommandQueue(self.context, self.handle)
        self._pool, self._uploads = Pool(_creator(self.cl, self.context)), Uploads()
        self._errors = (self.cl.Error, MemoryError)
        self._lost = ""
        self._modules: weakref.WeakSet[Module] = weakref.WeakSet()

    @cached_property
    def timing_queue(self) -> Any:
        """A queue whose events know when they ran. Keeping time makes every call 4 to 8 %
        dearer, so :attr:`queue` does not."""
        properties = self.cl.command_queue_properties.PROFILING_ENABLE
        return self.drive(
            "make a queue", lambda: self.cl.CommandQueue(self.context, self.handle, properties)
        )

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
        nbytes = check_size(nbytes)
        pool, size = self._pool, rounded(nbytes)
        if size > self._most or pool.used + size > self._total:
            raise DeviceMemoryError(
                f"{self.name}: could not allocate {nbytes} bytes ({pool.used} in use here, "
                f"the device has {self._total}, at most {self._most} in one block). Close tensors "
                "or executables, or use smaller inputs"
            )
        if pool.used + pool.cached + size > self._total:
            pool.trim()
        return self.drive(f"allocate {nbytes} bytes", lambda: ClMemory(pool, nbytes))

    def copy_from_host(self, memory: Memory, data: np.ndarray[Any, Any], offset: int = 0) -> None:
        """Copy a C-contiguous array to ``offset`` bytes into the block."""
        self.require_open()
        check_range(memory, data, offset)
        if not data.nbytes:
            return
        raw = data.reshape(-1).view(np.uint8)
        wait = raw.nbytes > _STAGED
        event = self.drive(
            f"copy {raw.nbytes} bytes to it",
            lambda: self.cl.enqueue_copy(
                self.queue, own(memory), raw if wait else raw.copy(),
                dst_offset=offset, is_blocking=wait,
            ),
        )  # fmt: skip
        if not wait:
            self._uploads.add(event, raw.nbytes)

    def copy_to_host(self, memory: Memory, data: np.ndarray[Any, Any], offset: int = 0) -> None:
        """Fill a C-contiguous array from ``offset`` bytes into the block, after queued work."""
        self.require_open()
        check_range(memory, data, offset, fill=True)
        if data.nbytes:
            raw = data.reshape(-1).view(np.uint8)
            self.drive(
                f"copy {raw.nbytes} bytes from it",
                lambda: self.cl.enqueue_copy(self.queue, raw, own(memory), src_offset=offset),
            )
            self._uploads.clear()

    def copy(self, source: Memory, target: Memory, nbytes: int) -> None:
        """Copy between two blocks of this device, after queued work; queued, not waited for.

        Raises
        ------
        ArgumentValueError
            One of them has fewer bytes.
        """
        self.require_open()
        if not 0 <= nbytes <= min(source.nbytes, target.nbytes):
            raise ArgumentValueError(
                f"{nbytes} bytes cannot be copied from a block of {source.nbytes} to one of "
                f"{target.nbytes}"
            )
        if nbytes:
            self.drive(
                f"copy {nbytes} bytes",
                lambda: self.cl.enqueue_copy(
                    self.queue, own(target), own(source), byte_count=nbytes
                ),
            )

    def synchronize(self) -> None:
        """Return when everything queued has been done."""
        self.require_open()
        self.drive("finish", self.queue.finish)
        self._uploads.clear()

    def memory(self) -> MemoryStats:
        """Counters of the blocks allocated from this device; ``cached`` is kept for reuse."""
        self.require_open()
        p = self._pool
        return MemoryStats(p.used, p.peak, p.live, p.allocations, p.cached, self._total)

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
        check_symbols(symbol for symbol, _, _ in functions)
        return self._kept(build(self, ClLibrary.of(functions)))

    def load(self, blob: bytes, kind: str) -> Module:
        """The module of a compiled library.

        Parameters
        ----------
        blob : bytes
            What ``Module.save_blob`` of a module of this backend gave, on any machine.
            Or what :func:`packhorse.module_blob.device_code_bytes` made of TVM's device code.
        kind : str
            ``"opencl-text"``, or for TVM's ``"opencl"``.

        Raises
        ------
        ArtifactError
            Another kind, or a damaged blob.
        CompileError
            A kernel needs what this device lacks, or the driver refused the text.
        """
        self.require_open()
        from packhorse_opencl import tvm_kernels as tvm  # libraries of TVM only

        readers: dict[str, Callable[[OpenClDevice, bytes], Module]]
        readers = {KIND: read, tvm.KIND: tvm.read_tvm}
        if kind not in readers:
            raise ArtifactError(
                f"{self.name} reads code of the kind {', '.join(readers)}; this is '{kind:.80}'. "
                "Compile the model for this device"
            )
        return self._kept(readers[kind](self, blob))

    def _kept(self, module: M) -> M:
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
        kernel = doubling_kernel()
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
        with suppress(*self._errors):  # who closes wants no more of it than to be rid of it
            self.queue.finish()
        self._free()

    def _free(self) -> None:
        self._uploads.clear()
        for module in list(self._modules):
            module.close()
        self._pool.close()

    # -- errors -----------------------------------------------------------------------------------

    def require_open(self) -> None:
        """Raise :class:`DeviceClosed` after :meth:`close`, :class:`DeviceUnavailable` when it was
        lost."""
        if self._closed and self._lost:
            raise DeviceUnavailable(self._lost)
        super().require_open()

    def drive(self, what: str, call: Callable[[], T]) -> T:
        """The result of a call into the driver; ``what`` completes "refused to ...".

        Raises
        ------
        DeviceMemoryError
            Memory ran out, also after the pool gave back what it kept.
        DeviceUnavailable
            The device was lost: it is closed from now on, and its name opens it anew.
        DeviceError
            The driver refused for another reason.
        """
        try:
            return call()
        except self._errors as error:
            return self.rescue(error, what, call)

    def rescue(self, error: Exception, what: str, call: Callable[[], T]) -> T:
        """What :meth:`drive` does about an error of a call; a result, if a second try has one."""
        if out_of_memory(error) and self._pool.trim():
            try:
                return call()
            except self._errors as again:
                error = again
        raise self._failed(error, what) from error

    def _failed(self, error: Exception, what: str) -> PackhorseError:
        """The typed error; a device that answers nothing any more is marked as lost."""
        self.require_open()  # it was closed meanwhile: that is the reason then
        found = refused(error, what, self.name)
        if isinstance(found, DeviceMemoryError) and out_of_memory(error):
            return found
        if not isinstance(found, DeviceUnavailable) and self._answers():
            return found
        self._lost = (
            f"{self.name}: the device was lost when it was to {what} ({error}); what lay in its "
            f"memory is gone. Open it again with packhorse.device('{self.name}'), then compile "
            "or load again"
        )
        self._closed = True
        self._free()
        return DeviceUnavailable(self._lost)

    def _answers(self) -> bool:
        """Whether the context still works: drivers say OUT_OF_RESOURCES for a call that needs too
        much, and of every call after a kernel crashed."""
        data = np.zeros(16, np.uint8)
        try:
            self.queue.finish()
            buffer = self.cl.Buffer(self.context, self.cl.mem_flags.READ_WRITE, data.nbytes)
            self.cl.enqueue_copy(self.queue, buffer, data)
            self.cl.enqueue_copy(self.queue, data, buffer)
            buffer.release()
        except self._errors as error:
            return out_of_memory(error)
        return True


def _creator(cl: Any, context: Any) -> Any:
    """Makes buffers; no method, which would keep the device alive in its pool."""
    flags = cl.mem_flags.READ_WRITE
    return lambda nbytes: cl.Buffer(context, flags, nbytes)


def _target(handle: Any, most: int | None) -> GpuTarget:
    limit = int(handle.max_work_group_size)
    versions = (handle.platform.version, handle.name, handle.driver_version, handle.version)
    return GpuTarget(
        dialect="opencl",
        name=" | ".join(versions),
        max_group=min(limit, most or limit),
        local_bytes=int(handle.local_mem_size),
        float64=bool(handle.double_fp_config),
        # a CPU's driver makes vectors of neighbouring work-items
        lanes=1 if handle.type & opencl().device_type.CPU else 4,
    )
