"""Programs as modules: built from text or from the cache on disk, and called with buffers."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import packhorse.compiler.lower_gpu as _lowering
from packhorse.compiler.gpu_schedule import GpuSchedule
from packhorse.compiler.lower_gpu import c_name, gpu_program
from packhorse.device import Memory
from packhorse.disk_cache import DiskCache
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    CompileError,
    DeviceClosed,
)
from packhorse.function import PackedFunction, add_value_type
from packhorse.kernel import Buffer, Kernel
from packhorse.kernel.layout import numpy_dtype
from packhorse.module_base import Module
from packhorse.tensor import Tensor
from packhorse_opencl.driver import typed_errors
from packhorse_opencl.memory import ClMemory

if TYPE_CHECKING:
    from packhorse_opencl.device import OpenClDevice

__all__ = ["ClFunction", "ClModule", "build"]

Function = tuple[str, Kernel, GpuSchedule]
_OPTIONS = "-cl-std=CL1.2"
_CACHE = DiskCache("opencl")


def build(device: OpenClDevice, functions: Sequence[Function]) -> ClModule:
    """Compile kernels into one program, or fetch it from the cache.

    Raises
    ------
    CompileError
        A kernel needs what the device lacks, or the driver refused the text.
    """
    _check_device(device, functions)
    text = gpu_program(functions, device.target.dialect) if functions else ""
    program = _program(device, text) if text else None
    return ClModule(device, program, functions, text)


def _check_device(device: OpenClDevice, functions: Sequence[Function]) -> None:
    target = device.target
    for symbol, kernel, plan in functions:
        if plan.group > target.max_group:
            raise CompileError(
                f"kernel '{symbol}' wants work-groups of {plan.group}, {device.name} has at most "
                f"{target.max_group}. Give it a schedule with a smaller group"
            )
        kinds = {n.dtype for n in _lowering.nodes(kernel)}
        if "float64" in kinds and not target.float64:
            raise CompileError(
                f"kernel '{symbol}' computes in float64, which {device.name} does not have. "
                "Run this model on another device, or convert it to float32"
            )


def _program(device: OpenClDevice, text: str) -> Any:
    key = hashlib.sha256(f"{device.target!r} {_OPTIONS} {text}".encode()).hexdigest()
    found = _CACHE.get(key)
    if found is not None:
        try:
            return _built(device, device.cl.Program(device.context, [device.handle], [found]))
        except device.cl.Error:  # another driver's binary under the same name: build it again
            pass
    try:
        program = _built(device, device.cl.Program(device.context, text))
    except device.cl.Error as error:
        raise CompileError(
            f"{device.name}: the OpenCL driver refused the generated kernels", f"{error}"
        ) from error
    _CACHE.put(key, bytes(program.get_info(device.cl.program_info.BINARIES)[0]))
    return program


def _built(device: OpenClDevice, program: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyopencl turns a compiler's remarks into warnings
        return program.build(options=_OPTIONS, cache_dir=False)


class ClFunction(PackedFunction):
    """One kernel as a packed function over tensors of its device, in argument order.

    Calls are queued: read a result with ``tensor.numpy()``, which waits for it.
    """

    __slots__ = ("_device", "_kernel", "_launch", "_program", "_symbol")

    def __init__(
        self, device: OpenClDevice, program: Any, symbol: str, kernel: Kernel, plan: GpuSchedule
    ) -> None:
        super().__init__(self._run, symbol)
        self._device, self._program, self._symbol = device, program, symbol
        self._kernel, self._launch = kernel, plan.launch(kernel)

    def bind(self, *args: Any) -> Callable[[], Any]:
        """Check tensors now; the call returned only enqueues.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            Not the tensors the kernel takes.
        """
        names = self._kernel.arguments
        if len(args) != len(names):
            raise ArgumentValueError(
                f"'{self.name}' takes {len(names)} tensors, {len(args)} were given"
            )
        for i, (arg, name) in enumerate(zip(args, names, strict=True)):
            self._check(i, arg, self._kernel.buffers[name])
        return self.bind_memory([arg._open_block().memory for arg in args])

    def bind_memory(self, blocks: Sequence[Memory]) -> Callable[[], Any]:
        """The same for bare blocks of device memory; the caller answers for what they hold.

        Returns
        -------
        callable
            Enqueues the kernel and returns its ``pyopencl.Event``.
        """
        cl, device = self._device.cl, self._device
        device.require_open()
        for name, block in zip(self._kernel.arguments, blocks, strict=True):
            needed = self._bytes(self._kernel.buffers[name])
            if not isinstance(block, ClMemory) or block.nbytes < needed:
                raise ArgumentValueError(
                    f"'{self.name}' needs {needed} bytes of {device.name} for '{name}', found "
                    f"{type(block).__name__} of {block.nbytes}"
                )
        with typed_errors(f"prepare kernel '{self.name}'", device.name):
            kernel = cl.Kernel(self._program, c_name(self._symbol))
            kernel.set_args(*(block.buffer for block in blocks if isinstance(block, ClMemory)))
        total, group = self._launch
        enqueue = functools.partial(
            cl.enqueue_nd_range_kernel, device.queue, kernel, (total,), (group,)
        )
        return functools.partial(_enqueue, device, self._symbol, enqueue)

    def _run(self, *args: Any) -> None:
        self.bind(*args)()

    def _check(self, i: int, arg: Any, buffer: Buffer) -> None:
        what = f"argument {i} of '{self.name}'"
        if not isinstance(arg, Tensor) or arg.device is not self._device:
            where = arg.device.name if isinstance(arg, Tensor) else type(arg).__name__
            raise ArgumentTypeError(
                f"{what} must be a tensor on {self._device.name}, found one of {where}; copy it "
                f"there with packhorse.tensor(array, device='{self._device.name}')"
            )
        if arg.dtype != numpy_dtype(buffer.dtype):
            raise ArgumentTypeError(f"{what} must be {buffer.dtype}, found {arg.dtype}")
        if arg.shape != buffer.shape and arg.size != buffer.size:
            raise ArgumentValueError(
                f"{what} must have shape {buffer.shape} or {buffer.size} elements, found "
                f"{arg.shape}"
            )

    @staticmethod
    def _bytes(buffer: Buffer) -> int:
        return buffer.size * numpy_dtype(buffer.dtype).itemsize


def _enqueue(device: OpenClDevice, name: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except device.cl.Error:
        with typed_errors(f"run kernel '{name}'", device.name):
            device.require_open()
            raise


class ClModule(Module):
    """Packed functions compiled for one device.

    Attributes
    ----------
    source : str
        The OpenCL C text.
    """

    kind = "opencl"
    is_device_code = True

    def __init__(
        self, device: OpenClDevice, program: Any, functions: Sequence[Function], source: str
    ) -> None:
        super().__init__("opencl")
        self._device, self._program, self.source = device, program, source
        self._table = {symbol: (kernel, plan) for symbol, kernel, plan in functions}

    def function(self, name: str) -> ClFunction:
        """The function of that name. Raises as :meth:`get_function`."""
        found = self.get_function(name)
        assert isinstance(found, ClFunction)
        return found

    def export_library(self, path: Path, data: object = None) -> Path:
        """Not offered.

        Raises
        ------
        CompileError
            Always: an OpenCL program is no shared library.
        """
        raise CompileError(
            f"nothing was saved: OpenCL programs of {self._device.name} fit its driver only, and "
            "are cached there anyway. Save the model compiled for 'llvm-cpu', and keep the model "
            "file for OpenCL"
        )

    def _names(self) -> list[str]:
        return list(self._table)

    def _find(self, name: str) -> ClFunction | None:
        if name not in self._table:
            return None
        if self._program is None:
            raise DeviceClosed(f"module '{self.name}' was closed")
        kernel, plan = self._table[name]
        return ClFunction(self._device, self._program, name, kernel, plan)

    def _release(self) -> None:
        self._program = None


add_value_type(ClModule)
