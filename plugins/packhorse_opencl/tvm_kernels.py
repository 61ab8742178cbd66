"""Kernels that TVM compiled for OpenCL: programs built from its text, launched with its sizes.

TVM writes one OpenCL C text per module, the kernels after one another, each under a line
``// Function: name`` (since 0.7) with whatever it needs repeated. So each is a program of its own,
built when it is first called, as in TVM. Source: TVM's src/runtime/opencl/opencl_module.cc.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from packhorse.dtype import dtype as as_dtype
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    CompileError,
    DeviceClosed,
    DeviceError,
    MissingExtra,
)
from packhorse.function import PackedFunction, add_value_type
from packhorse.module_base import Module
from packhorse.module_blob import DeviceCode, FunctionInfo, read_device_code
from packhorse_opencl.memory import ClMemory
from packhorse_opencl.module import built, program_of

if TYPE_CHECKING:
    from packhorse_opencl.device import OpenClDevice

__all__ = ["KIND", "TvmKernel", "TvmModule", "read_tvm"]

KIND = "opencl"
"""TVM's name of such modules, and what ``Device.load`` calls their code."""
_OPTIONS = "-w"  # whichever OpenCL C the driver takes, as TVM does; no remarks on stderr
_MARK = re.compile(r"^// Function: (\S+)[ \t]*$", re.M)


def read_tvm(device: OpenClDevice, blob: bytes) -> TvmModule:
    """The kernels in device code of TVM.

    Raises
    ------
    ArtifactError
        Damaged, or of a format that OpenCL does not have.
    """
    return TvmModule(device, read_device_code(KIND, blob))


class TvmModule(Module):
    """Kernels of TVM for one device.

    Attributes
    ----------
    payload : DeviceCode
    """

    kind = KIND
    is_device_code = True

    def __init__(self, device: OpenClDevice, payload: DeviceCode) -> None:
        super().__init__(KIND)
        self._device, self.payload = device, payload
        self._source = _Source(device, payload)

    def _names(self) -> list[str]:
        return list(self.payload.functions)

    def _find(self, name: str) -> TvmKernel | None:
        info = self.payload.functions.get(name)
        return None if info is None else TvmKernel(self._device, self._source, info)

    def _release(self) -> None:
        self._source.close()


class _Source:
    """Programs by kernel, built from the one text (or binary) that holds them all."""

    def __init__(self, device: OpenClDevice, payload: DeviceCode) -> None:
        self._device, self.format = device, payload.format
        self._code = payload.code
        self._lock = threading.Lock()
        self._programs: dict[str, Any] = {}
        self._texts = _split(payload.code) if payload.format == "cl" else {}
        self._closed = False

    def close(self) -> None:
        self._closed = True
        self._programs = {}

    def kernel(self, name: str) -> Any:
        """A ``pyopencl.Kernel`` of its own: arguments are set in it."""
        device = self._device
        program = self._program(name)
        what = f"make kernel '{name}'"
        key = device.cl.program_info.KERNEL_NAMES
        names = device.drive(what, lambda: program.get_info(key)).split(";")
        if name not in names:
            raise ArtifactError(
                f"the OpenCL code has no kernel '{name}', which the library's table lists; it has "
                f"{', '.join(filter(None, names)) or 'none'}. Build the library again"
            )
        return device.drive(what, lambda: device.cl.Kernel(program, name))

    def _program(self, name: str) -> Any:
        with self._lock:
            if self._closed:
                raise DeviceClosed(f"kernel '{name}' was used after its device was closed")
            part = name if name in self._texts else ""
            if part not in self._programs:
                self._programs[part] = self._build(name, part)
            return self._programs[part]

    def _build(self, name: str, part: str) -> Any:
        device, what = self._device, f"kernel '{name}' that TVM compiled"
        if self.format == "cl":
            text = self._texts.get(part)
            if text is None:
                raise ArtifactError(
                    f"the OpenCL text has no kernel '{name}', which the library's table lists; it "
                    f"has {', '.join(self._texts)}. Build the library again"
                )
            return program_of(device, text, _OPTIONS, what)
        cl = device.cl
        try:
            if self.format == "clbin":
                return built(cl.Program(device.context, [device.handle], [self._code]), _OPTIONS)
            if self.format == "spv" and _takes_spirv(device):
                return built(cl.create_program_with_il(device.context, self._code), _OPTIONS)
        except (cl.Error, ValueError) as error:
            raise CompileError(
                f"{device.name}: the OpenCL driver refused {what} (format '{self.format}')",
                f"{error}",
            ) from error
        raise ArtifactError(
            f"{what} is in the format '{self.format:.20}', which {device.name} does not take; "
            "compile the model for OpenCL C (format 'cl')"
        )


def _takes_spirv(device: OpenClDevice) -> bool:
    try:
        return bool(device.handle.il_version)
    except (device.cl.Error, AttributeError):  # OpenCL before 2.1
        return False


def _split(code: bytes) -> dict[str, str]:
    """Kernel -> its text; one text under no name where TVM did not mark them."""
    try:
        text = code.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(
            f"the OpenCL text of the library is not UTF-8 at byte {error.start}; it is damaged"
        ) from None
    if "\0" in text:
        raise ArtifactError("the OpenCL text of the library holds zero bytes; it is damaged")
    marks = list(_MARK.finditer(text))
    if not marks:
        return {"": text}
    ends = [*(m.start() for m in marks[1:]), len(text)]
    return {m[1]: text[m.start() : end] for m, end in zip(marks, ends, strict=True)}


class TvmKernel(PackedFunction):
    """One kernel. The host code that calls it is compiled; it launches through :meth:`launch`."""

    __slots__ = (
        *("_device", "_floats", "_info", "_kernel", "_last", "_lock", "_most", "_source"),
        "_types",
    )

    def __init__(self, device: OpenClDevice, source: _Source, info: FunctionInfo) -> None:
        super().__init__(TvmKernel, info.name)  # not a method of self: a cycle delays freeing
        self._device, self._source, self._info = device, source, info
        self._types = [_scalar_type(info.name, name) for name in info.arg_types]
        self._floats = any(kind is not None and kind.kind == "f" for kind in self._types)
        self._lock = threading.Lock()  # from the first argument set to the kernel queued
        self._kernel: Any = None
        self._last: list[Any] = []  # what it is set to
        self._most = 0

    def __call__(self, *args: Any) -> None:
        """Not offered: calls come from the host code of a library, or through a
        :class:`packhorse.module_device.DeviceModule`."""
        raise ArgumentTypeError(
            f"kernel '{self.name}' is called by the code of its library; call the function of the "
            "library, or load the kernels with packhorse.load_module"
        )

    def launch(
        self, args: Sequence[Any], grid: Sequence[int], block: Sequence[int], shared: int
    ) -> None:
        """Queue it: see :class:`packhorse.module_device.KernelOnDevice`.

        Raises
        ------
        DeviceClosed, DeviceMemoryError, DeviceError
            The device was closed, has no resources left, or refused it.
        ArgumentTypeError, ArgumentValueError
            Memory of another device, or a number that does not fit.
        ArtifactError, CompileError
            The program lacks the kernel, or the driver refused it: ``log`` says why.
        """
        device, cl = self._device, self._device.cl
        device.require_open()
        if shared:
            raise ArtifactError(
                f"kernel '{self.name}' wants {shared} bytes of local memory at launch, which "
                "OpenCL text of TVM has no argument for; compile the model again"
            )
        total = [g * b for g, b in zip(grid, block, strict=True)]
        if not all(total):
            return  # an empty loop
        given = [
            arg if kind is not None else self._buffer(i, arg)
            for i, (arg, kind) in enumerate(zip(args, self._types, strict=True))
        ]
        dims = 3 if total[2] > 1 else 2 if total[1] > 1 else 1
        with self._lock:
            kernel = self._kernel or self._make()
            self._check_group(block)
            queue = partial(self._queue, kernel, given, total[:dims], block[:dims])
            try:
                queue()
            except (cl.Error, MemoryError) as error:
                device.rescue(error, f"run kernel '{self.name}'", queue)

    def _queue(self, kernel: Any, given: list[Any], total: list[int], group: Sequence[int]) -> None:
        """Both steps: a second try must not run with what the first left set."""
        self._set(kernel, given)
        self._device.cl.enqueue_nd_range_kernel(self._device.queue, kernel, total, group)

    def _set(self, kernel: Any, given: list[Any]) -> None:
        """Set the arguments, which takes longer than all else, unless they are set already: a
        graph calls its kernels with the same ones in every run."""
        if not self._floats and len(self._last) == len(given):  # 0.0 and -0.0 are equal
            for known, arg, kind in zip(self._last, given, self._types, strict=True):
                if known is not arg and (kind is None or known != arg):
                    break
            else:
                return
        self._last = []
        numbers = enumerate(zip(given, self._types, strict=True))
        kernel.set_args(*(a if k is None else self._number(i, a, k) for i, (a, k) in numbers))
        self._last = given

    def _make(self) -> Any:
        device, kernel = self._device, self._source.kernel(self.name)
        if kernel.num_args != len(self._types):
            raise ArtifactError(
                f"kernel '{self.name}' takes {kernel.num_args} arguments in the library's text and "
                f"{len(self._types)} in its table. Build the library again"
            )
        info = device.cl.kernel_work_group_info
        self._most = kernel.get_work_group_info(info.WORK_GROUP_SIZE, device.handle)
        shared = kernel.get_work_group_info(info.LOCAL_MEM_SIZE, device.handle)
        if shared > device.target.local_bytes:
            raise DeviceError(
                f"kernel '{self.name}' shares {shared} bytes in a work-group, {device.name} has "
                f"{device.target.local_bytes}; compile the model for this device"
            )
        self._kernel = kernel
        return kernel

    def _check_group(self, block: Sequence[int]) -> None:
        group = block[0] * block[1] * block[2]
        if group > self._most:
            raise DeviceError(
                f"kernel '{self.name}' wants work-groups of {group}, {self._device.name} has at "
                f"most {self._most} for it; compile the model for this device "
                f"(TVM: opencl -max_num_threads={self._most})"
            )

    def _buffer(self, i: int, arg: Any) -> Any:
        if not isinstance(arg, ClMemory):
            raise ArgumentTypeError(
                f"argument {i} of kernel '{self.name}' must be memory of {self._device.name}, "
                f"found {type(arg).__name__}"
            )
        return arg.buffer

    def _number(self, i: int, arg: Any, kind: Any) -> Any:
        try:
            return kind.type(arg)
        except (OverflowError, TypeError, ValueError):
            raise ArgumentValueError(
                f"argument {i} of kernel '{self.name}' must be {kind}, found {arg!r:.40}"
            ) from None


def _scalar_type(kernel: str, name: str) -> np.dtype[Any] | None:
    """The dtype of an argument; None for buffers."""
    if name == "handle":
        return None
    try:
        found = as_dtype(name)
    except (ArgumentTypeError, MissingExtra):
        found = np.dtype(object)
    if found.kind not in "iuf":
        raise ArtifactError(
            f"kernel '{kernel}' takes an argument of type '{name}', which OpenCL kernels cannot; "
            "build the library again"
        )
    return found


add_value_type(TvmModule)
add_value_type(TvmKernel)
