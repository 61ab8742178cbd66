"""Programs as modules: built from text or from the cache on disk, and called with buffers."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from packhorse.device import Memory
from packhorse.disk_cache import DiskCache
from packhorse.dtype import dtype as as_dtype
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    CompileError,
)
from packhorse.function import PackedFunction, add_value_type
from packhorse.module_base import Module
from packhorse.tensor import Tensor
from packhorse_opencl.call import ClCall
from packhorse_opencl.driver import typed_errors
from packhorse_opencl.library import KIND, ClArgument, ClKernel, ClLibrary
from packhorse_opencl.memory import ClMemory

if TYPE_CHECKING:
    from packhorse_opencl.device import OpenClDevice

__all__ = ["ClFunction", "ClModule", "build", "built", "program_of", "read"]

_OPTIONS = "-cl-std=CL1.2 -w"  # drivers write remarks about generated text to stderr
_CACHE = DiskCache("opencl")


def build(device: OpenClDevice, library: ClLibrary) -> ClModule:
    """Make a program of a library's text, or fetch it from the cache.

    Raises
    ------
    CompileError
        A kernel needs what the device lacks, or the driver refused the text; ``log`` says why.
    """
    for kernel in library.kernels:
        _check_limits(device, kernel)
    return ClModule(device, program_of(device, library.text) if library.text else None, library)


def read(device: OpenClDevice, blob: bytes) -> ClModule:
    """Make a program of what an artifact holds.

    Raises
    ------
    ArtifactError
        The blob is damaged, or its table names kernels that its text does not have.
    CompileError
        As :func:`build`.
    """
    library = ClLibrary.read(blob)
    module = build(device, library)
    names = set() if module.program is None else _kernel_names(device, module.program)
    lost = [kernel.function for kernel in library.kernels if kernel.function not in names]
    if lost:
        raise ArtifactError(f"the text of the OpenCL library has no kernel '{lost[0]}'")
    return module


def _check_limits(device: OpenClDevice, kernel: ClKernel) -> None:
    target = device.target
    if kernel.group > target.max_group:
        raise CompileError(
            f"kernel '{kernel.symbol}' wants work-groups of {kernel.group}, {device.name} has at "
            f"most {target.max_group}. Give it a schedule with a smaller group: compile the model "
            "for this device"
        )
    if kernel.float64 and not target.float64:
        raise CompileError(
            f"kernel '{kernel.symbol}' computes in float64, which {device.name} does not have. "
            "Run this model on another device, or convert it to float32"
        )


def program_of(
    device: OpenClDevice, text: str, options: str = _OPTIONS, what: str = "the generated kernels"
) -> Any:
    """The program built from OpenCL C, or fetched from the cache; ``what`` is for errors.

    Raises
    ------
    CompileError
        The driver refused the text; ``log`` says why.
    """
    key = hashlib.sha256(f"{device.target!r} {options} {text}".encode()).hexdigest()
    found = _CACHE.get(key)
    if found is not None:
        try:
            binary = device.cl.Program(device.context, [device.handle], [found])
            return built(binary, options)
        except device.cl.Error:  # another driver's binary under the same name: build it again
            pass
    try:
        program = built(device.cl.Program(device.context, text), options)
    except device.cl.Error as error:
        raise CompileError(
            f"{device.name}: the OpenCL driver refused {what}", f"{error}"
        ) from error
    _CACHE.put(key, bytes(program.get_info(device.cl.program_info.BINARIES)[0]))
    return program


def built(program: Any, options: str = _OPTIONS) -> Any:
    """The program, built. Raises pyopencl's errors, with the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyopencl turns a compiler's remarks into warnings
        return program.build(options=options, cache_dir=False)


def _kernel_names(device: OpenClDevice, program: Any) -> set[str]:
    with typed_errors("list the kernels of a program", device.name):
        names: str = program.get_info(device.cl.program_info.KERNEL_NAMES)
    return set(names.split(";"))


class ClFunction(PackedFunction):
    """One kernel as a packed function over tensors of its device, in argument order.

    Calls are queued: read a result with ``tensor.numpy()``, which waits for it.
    """

    __slots__ = ("_device", "_direct", "_kernel", "_lock", "_program")

    def __init__(self, device: OpenClDevice, program: Any, kernel: ClKernel) -> None:
        super().__init__(self._run, kernel.symbol)
        self._device, self._program, self._kernel = device, program, kernel
        self._lock = threading.Lock()
        self._direct: ClCall | None = None

    def bind(self, *args: Any) -> ClCall:
        """Check tensors now; the call returned only enqueues.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            Not the tensors the kernel takes.
        """
        return self._bound(self._blocks(args), args)

    def bind_memory(self, blocks: Sequence[Memory]) -> ClCall:
        """The same for bare blocks of device memory; the caller answers for what they hold, and
        closes none while the call is in use.

        Raises
        ------
        ArgumentValueError
            Another number of blocks, one that is too small or not this device's.
        CompileError
            The driver made a kernel of the text that this device cannot run.
        """
        self._count(blocks, "blocks of memory")
        return self._bound(blocks, tuple(blocks))

    def _bound(self, blocks: Sequence[Memory], held: object) -> ClCall:
        buffers = self._buffers(blocks)
        call = self._made(held)
        self._set(call.kernel, buffers)
        return call

    def _run(self, *args: Any) -> None:
        buffers = self._buffers(self._blocks(args))
        with self._lock:  # arguments are the kernel's state until it is queued
            if self._direct is None:  # drivers take 0.1 ms to make a kernel
                self._direct = self._made(None)
            self._set(self._direct.kernel, buffers)
            self._direct()

    def _made(self, held: object) -> ClCall:
        """A call with a kernel of its own, whose arguments are not set yet."""
        wanted = self._kernel
        kernel = self._device.drive(
            f"prepare kernel '{self.name}'",
            lambda: self._device.cl.Kernel(self._program, wanted.function),
        )
        self._fits(kernel)
        return ClCall(self._device, wanted.symbol, kernel, wanted.total, wanted.group, held)

    def _set(self, kernel: Any, buffers: Sequence[Any]) -> None:
        self._device.drive(f"pass memory to '{self.name}'", lambda: kernel.set_args(*buffers))

    def _blocks(self, args: Sequence[Any]) -> list[Memory]:
        """The memory of tensors, which are checked."""
        self._count(args, "tensors")
        for i, (arg, wanted) in enumerate(zip(args, self._kernel.arguments, strict=True)):
            self._check(i, arg, wanted)
        return [arg._open_block().memory for arg in args]

    def _buffers(self, blocks: Sequence[Memory]) -> list[Any]:
        """The buffers of blocks, which are checked."""
        self._device.require_open()
        found = []
        for argument, block in zip(self._kernel.arguments, blocks, strict=True):
            if not isinstance(block, ClMemory) or block.nbytes < argument.nbytes:
                raise ArgumentValueError(
                    f"'{self.name}' needs {argument.nbytes} bytes of {self._device.name} for "
                    f"'{argument.name}', found {type(block).__name__} of {block.nbytes}"
                )
            found.append(block.buffer)
        return found

    def _count(self, given: Sequence[Any], what: str) -> None:
        count = len(self._kernel.arguments)
        if len(given) != count:
            raise ArgumentValueError(f"'{self.name}' takes {count} {what}, {len(given)} were given")

    def _fits(self, kernel: Any) -> None:
        """Compare what the driver made with what the table says and the device has."""
        cl, device, wanted = self._device.cl, self._device, self._kernel
        if kernel.num_args != len(wanted.arguments):
            raise ArtifactError(
                f"kernel '{self.name}' takes {kernel.num_args} arguments in the text of its "
                f"library, {len(wanted.arguments)} in its table"
            )
        info = cl.kernel_work_group_info
        most = kernel.get_work_group_info(info.WORK_GROUP_SIZE, device.handle)
        shared = kernel.get_work_group_info(info.LOCAL_MEM_SIZE, device.handle)
        if wanted.group > most or shared > device.target.local_bytes:
            raise CompileError(
                f"kernel '{self.name}' wants work-groups of {wanted.group} that share {shared} "
                f"bytes; {device.name} runs it in groups of up to {most} and shares "
                f"{device.target.local_bytes} bytes. Compile the model for this device"
            )

    def _check(self, i: int, arg: Any, wanted: ClArgument) -> None:
        what = f"argument {i} of '{self.name}'"
        if not isinstance(arg, Tensor) or arg.device is not self._device:
            where = arg.device.name if isinstance(arg, Tensor) else type(arg).__name__
            raise ArgumentTypeError(
                f"{what} must be a tensor on {self._device.name}, found one of {where}; copy it "
                f"there with packhorse.tensor(array, device='{self._device.name}')"
            )
        if arg.dtype != as_dtype(wanted.dtype):
            raise ArgumentTypeError(f"{what} must be {wanted.dtype}, found {arg.dtype}")
        if arg.shape != wanted.shape and arg.size != wanted.size:
            raise ArgumentValueError(
                f"{what} must have shape {wanted.shape} or {wanted.size} elements, found "
                f"{arg.shape}"
            )


class ClModule(Module):
    """Packed functions compiled for one device.

    Attributes
    ----------
    library : ClLibrary
        The OpenCL C text and the table of its kernels.
    program : pyopencl.Program or None
        What the driver made of it; None for no kernels, and after :meth:`close`.
    """

    kind = "opencl"
    is_device_code = True

    def __init__(self, device: OpenClDevice, program: Any, library: ClLibrary) -> None:
        super().__init__("opencl")
        self._device, self.program, self.library = device, program, library

    @property
    def source(self) -> str:
        """The OpenCL C text."""
        return self.library.text

    def function(self, name: str) -> ClFunction:
        """The function of that name. Raises as :meth:`get_function`."""
        found = self.get_function(name)
        assert isinstance(found, ClFunction)
        return found

    def save_blob(self) -> tuple[str, bytes]:
        """Text and table: they fit every driver."""
        self._require_open()
        return KIND, self.library.blob()

    def _names(self) -> list[str]:
        return list(self.library.table)

    def _find(self, name: str) -> ClFunction | None:
        kernel = self.library.table.get(name)
        return None if kernel is None else ClFunction(self._device, self.program, kernel)

    def _release(self) -> None:
        self.program = None


add_value_type(ClModule)
