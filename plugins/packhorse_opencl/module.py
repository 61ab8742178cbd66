"""Programs as modules: built from text or from the cache on disk, and called with buffers."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packhorse.device import Memory
from packhorse.disk_cache import DiskCache
from packhorse.errors import ArtifactError, CompileError
from packhorse.function import add_value_type
from packhorse.module_base import Module
from packhorse.module_kernel import KernelFunction
from packhorse_opencl.call import ClCall
from packhorse_opencl.driver import of_device
from packhorse_opencl.library import KIND, ClArgument, ClKernel, ClLibrary
from packhorse_opencl.memory import own

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
    text, options = library.text, _options(device)
    return ClModule(device, program_of(device, text, options) if text else None, library)


def _options(device: OpenClDevice) -> str:
    """With exact division and square roots where the device offers them: what is quantised or
    resized hangs on the last bit."""
    offered = device.handle.single_fp_config
    exact = offered & device.cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT
    return _OPTIONS + " -cl-fp32-correctly-rounded-divide-sqrt" * bool(exact)


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
    device: OpenClDevice, text: str, options: str, what: str = "the generated kernels"
) -> Any:
    """The program built from OpenCL C, or fetched from the cache; ``what`` is for errors.

    Raises
    ------
    CompileError
        The driver refused the text; ``log`` says why.
    DeviceError
        The device was lost, or has no memory left for it.
    """
    key = hashlib.sha256(f"{device.target!r} {options} {text}".encode()).hexdigest()
    found = _CACHE.get(key)
    if found is not None:
        try:
            binary = device.cl.Program(device.context, [device.handle], [found])
            return built(binary, options)
        except device.cl.Error:  # another driver's binary under the same name: build it again
            pass
    program = device.drive(f"build {what}", lambda: _fresh(device, text, options, what))
    _CACHE.put(key, bytes(program.get_info(device.cl.program_info.BINARIES)[0]))
    return program


def _fresh(device: OpenClDevice, text: str, options: str, what: str) -> Any:
    try:
        return built(device.cl.Program(device.context, text), options)
    except device.cl.Error as error:
        if of_device(error):
            raise
        raise CompileError(
            f"{device.name}: the OpenCL driver refused {what}", f"{error}"
        ) from error


def built(program: Any, options: str) -> Any:
    """The program, built. Raises pyopencl's errors, with the log."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pyopencl turns a compiler's remarks into warnings
        return program.build(options=options, cache_dir=False)


def _kernel_names(device: OpenClDevice, program: Any) -> set[str]:
    names: str = device.drive(
        "list the kernels of a program",
        lambda: program.get_info(device.cl.program_info.KERNEL_NAMES),
    )
    return set(names.split(";"))


@dataclass(frozen=True)
class _Arguments:
    """A kernel's row of the table as :class:`KernelFunction` reads it."""

    arguments: tuple[str, ...]
    buffers: Mapping[str, ClArgument]


class ClFunction(KernelFunction):
    """One kernel as a packed function over tensors of its device, in argument order.

    Calls are queued: read a result with ``tensor.numpy()``, which waits for it.
    """

    __slots__ = ("_direct", "_lock", "_opencl", "_program", "_row")

    def __init__(self, device: OpenClDevice, program: Any, row: ClKernel) -> None:
        names = tuple(argument.name for argument in row.arguments)
        found = _Arguments(names, dict(zip(names, row.arguments, strict=True)))
        super().__init__(device, found, row.symbol)
        self._opencl, self._program, self._row = device, program, row
        self._lock = threading.Lock()
        self._direct: ClCall | None = None

    def __call__(self, *args: Any) -> None:
        """Queue it on tensors of its device. Raises as :meth:`bind`."""
        blocks = self._memory_of(args)
        with self._lock:  # arguments are the kernel's state until it is queued
            if self._direct is None:  # drivers take 0.1 ms to make a kernel
                self._direct = self._call_of(None)
            self._set(self._direct, blocks)
            self._direct()

    def bind(self, *args: Any) -> ClCall:
        """Check tensors now; the call returned only queues, and keeps the tensors.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            Not the tensors the kernel takes.
        CompileError
            The driver made a kernel of the text that this device cannot run.
        """
        blocks = self._memory_of(args)
        return self._set(self._call_of(args), blocks)

    def prepare(self, blocks: Sequence[Memory]) -> ClCall:
        """A call that queues the kernel on these blocks, none of which may be closed before.

        Raises
        ------
        ArgumentTypeError
            A block is not OpenCL memory.
        CompileError
            As :meth:`bind`.
        """
        return self._set(self._call_of(tuple(blocks)), blocks)

    def _check_blocks(self, blocks: Sequence[Memory]) -> None:
        self._opencl.require_open()  # says so when the device was lost
        super()._check_blocks(blocks)

    def _call_of(self, held: object) -> ClCall:
        """A call with a kernel of its own, whose arguments are not set yet."""
        row, device = self._row, self._opencl
        kernel = device.drive(
            f"prepare kernel '{self.name}'", lambda: device.cl.Kernel(self._program, row.function)
        )
        self._fits(kernel)
        return ClCall(device, row.symbol, kernel, row.total, row.group, held)

    def _set(self, call: ClCall, blocks: Sequence[Memory]) -> ClCall:
        buffers = [own(block) for block in blocks]
        self._opencl.drive(
            f"pass memory to kernel '{self.name}'", lambda: call.kernel.set_args(*buffers)
        )
        return call

    def _fits(self, kernel: Any) -> None:
        """Compare what the driver made with what the table says and the device has."""
        device, row = self._opencl, self._row
        if kernel.num_args != len(row.arguments):
            raise ArtifactError(
                f"kernel '{self.name}' takes {kernel.num_args} arguments in the text of its "
                f"library, {len(row.arguments)} in its table"
            )
        info = device.cl.kernel_work_group_info
        most = kernel.get_work_group_info(info.WORK_GROUP_SIZE, device.handle)
        shared = kernel.get_work_group_info(info.LOCAL_MEM_SIZE, device.handle)
        if row.group > most or shared > device.target.local_bytes:
            raise CompileError(
                f"kernel '{self.name}' wants work-groups of {row.group} that share {shared} "
                f"bytes; {device.name} runs it in groups of up to {most} and shares "
                f"{device.target.local_bytes} bytes. Compile the model for this device with "
                f"smaller groups: '{device.info.name}:{device.index}?max_group={max(1, most)}'"
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
