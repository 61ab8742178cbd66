"""Kernels for devices, within libraries or in files of their own, as packed functions.

The host code of a library looks a kernel up by name and calls it with handles of buffers, scalars
and launch sizes. The kernel then runs on the device those buffers belong to: the program is loaded
there at the first call, by the device's ``load(code, kind)``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    DeviceUnavailable,
)
from packhorse.function import PackedFunction, add_value_type
from packhorse.module_base import Module
from packhorse.module_blob import DeviceCode, device_code_bytes
from packhorse.module_blob_reader import FunctionInfo
from packhorse.native.devices import HOST, active_device, memory_at, require_same
from packhorse.tensor import Tensor

if TYPE_CHECKING:
    from packhorse.device import Device

__all__ = ["CODE_SUFFIXES", "DEVICE_TYPES", "DeviceModule", "KernelOnDevice",
           "device_types", "load_code"]  # fmt: skip

DEVICE_TYPES = {
    "opencl": 4,
    "cuda": 2,
    **dict.fromkeys(("rocm", "hip", "hsaco"), 10),
    "metal": 8,
    "vulkan": 7,
    "webgpu": 15,
    "hexagon": 16,
}
"""Kind of module -> DLPack type of the devices its kernels run on."""

CODE_SUFFIXES = {
    **dict.fromkeys((".cl", ".clbin", ".spv"), "opencl"),
    **dict.fromkeys((".cuda", ".ptx", ".cubin", ".fatbin"), "cuda"),
    **dict.fromkeys((".hip", ".hsaco"), "rocm"),
    ".metal": "metal",
}
"""Files of device code that TVM saves beside ``<name>.tvm_meta.json`` -> kind."""
_TABLE = ".tvm_meta.json"


class DeviceModule(Module):
    """Kernels for a kind of device.

    Each is a packed function over buffers (tensors of the device, or their handles), scalars, and
    one integer per launch tag, as :attr:`payload` lists them. Calls are queued on the device.

    Parameters
    ----------
    kind : str
        One of :data:`DEVICE_TYPES`.
    payload : DeviceCode
    """

    is_device_code = True

    def __init__(self, kind: str, payload: DeviceCode, imports: Sequence[Module] = ()) -> None:
        super().__init__(kind, imports)
        self.kind, self.payload = kind, payload
        self._programs = _Programs(kind, payload)

    def _names(self) -> list[str]:
        return list(self.payload.functions)

    def _find(self, name: str) -> PackedFunction | None:
        return _Launch(self._programs, name) if name in self.payload.functions else None

    def _title(self, name: str) -> str:
        info = self.payload.functions[name]
        return f"{name}({', '.join((*info.arg_types, *info.launch_tags))})"


def device_types(modules: Iterable[Module]) -> set[int]:
    """DLPack types of the devices that these modules, and those they import, have kernels for."""
    found: set[int] = set()
    for module in modules:
        if isinstance(module, DeviceModule):
            found.add(DEVICE_TYPES[module.kind])
        found |= device_types(module.imports)
    return found


class _Programs:
    """Device code, loaded once on each device; compiled code keeps its functions for good."""

    def __init__(self, kind: str, code: DeviceCode) -> None:
        self.kind, self.code = kind, code
        self._lock = threading.Lock()
        self._loaded: dict[Device, Module] = {}

    def on(self, device: Device) -> Module:
        """The module on a device."""
        with self._lock:
            if device not in self._loaded:
                for gone in [known for known in self._loaded if known.closed]:
                    del self._loaded[gone]
                self._loaded[device] = self._load(device)
            return self._loaded[device]

    def _load(self, device: Device) -> Module:
        if device.dlpack_device[0] != DEVICE_TYPES[self.kind]:
            raise ArgumentTypeError(
                f"these kernels are for a device '{self.kind}', and the tensors lie on "
                f"'{device.name}'; copy them with packhorse.tensor(t.numpy(), "
                f"device='{self.kind}:0')"
            )
        if "load" not in device.capabilities:
            raise DeviceUnavailable(
                f"'{device.name}' cannot load kernels of kind '{self.kind}': its backend has no "
                "load(code, kind); update the plugin, or compile the model anew with packhorse"
            )
        found: Module = device.load(device_code_bytes(self.code), self.kind)  # type: ignore[attr-defined]
        return found


class KernelOnDevice(Protocol):
    """What ``get_function`` of the module that ``Device.load`` makes of such code gives."""

    def launch(
        self, args: Sequence[Any], grid: Sequence[int], block: Sequence[int], shared: int
    ) -> None:
        """Queue the kernel.

        Parameters
        ----------
        args : sequence
            As many as the table says: Memory of this device for each ``handle``, numbers for the
            rest.
        grid, block : three ints
            Groups, and items of a group, along x, y and z.
        shared : int
            Bytes of memory that a group shares besides what the code declares.
        """


class _Launch(PackedFunction):
    """A kernel, on whatever device its buffers belong to."""

    __slots__ = ("_info", "_known", "_programs")

    def __init__(self, programs: _Programs, name: str) -> None:
        super().__init__(_Launch, name)  # not a method of self: a cycle would delay freeing
        self._programs, self._info = programs, programs.code.functions[name]
        self._known: tuple[Device | None, Any] = (None, None)

    def __call__(self, *args: Any) -> None:
        """Queue the kernel.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            Another number of arguments; a buffer that lies elsewhere.
        DeviceClosed, DeviceUnavailable, ArtifactError, CompileError
            The device was closed, cannot load such kernels, or they are damaged.
        """
        types, tags = self._info.arg_types, self._info.launch_tags
        if len(args) != len(types) + len(tags):
            raise ArgumentValueError(
                f"kernel '{self.name}' takes {len(types)} arguments and {len(tags)} launch sizes "
                f"({', '.join((*types, *tags))}), found {len(args)}"
            )
        device, values = self._values(args[: len(types)])
        sizes = _launch_sizes(self.name, tags, args[len(types) :])
        known, kernel = self._known
        if known is not device:
            kernel = self._programs.on(device).get_function(self.name)
            self._known = device, kernel
        kernel.launch(values, *sizes)

    def _values(self, args: Sequence[Any]) -> tuple[Device, list[Any]]:
        """The arguments with memory in the place of handles, and its device."""
        device = active_device()
        if device is None or Tensor in map(type, args):
            return self._tensors(args)
        values: list[Any] = []
        for kind, arg in zip(self._info.arg_types, args, strict=True):
            found = arg if kind != "handle" else memory_at(arg)
            if found is None or (kind != "handle" and not isinstance(arg, int | float)):
                raise self._refused(len(values), arg, device)
            values.append(found)
        return device, values

    def _tensors(self, args: Sequence[Any]) -> tuple[Device, list[Any]]:
        """The same with memory in the place of tensors, for calls from Python."""
        device, values = None, list[Any]()
        for i, (kind, arg) in enumerate(zip(self._info.arg_types, args, strict=True)):
            if kind != "handle" and isinstance(arg, int | float):
                values.append(arg)
            elif kind == "handle" and type(arg) is Tensor and arg.device.dlpack_device[0] != HOST:
                block = arg.__packed_block__("ffi")[1]
                what = f"argument {i} of kernel '{self.name}'"
                device = require_same(device, block.device, what)
                values.append(block.memory)
            else:
                raise self._refused(i, arg, None)
        if device is None:
            raise self._refused(0, None, None)
        return device, values

    def _refused(self, i: int, arg: Any, device: Device | None) -> ArgumentTypeError:
        kind, what = self._info.arg_types[i : i + 1], f"argument {i} of kernel '{self.name}'"
        if kind and kind[0] != "handle":
            return ArgumentTypeError(f"{what} must be {kind[0]}, found {type(arg).__name__}")
        name = device.name if device else f"{self._programs.kind}:0"
        at = f" (address {arg:#x})" if isinstance(arg, int) else ""
        wanted = f"'{name}' that was passed to this call" if device else f"a device '{name[:-2]}'"
        return ArgumentTypeError(
            f"{what} is no memory of {wanted}{at}; copy arrays of the host there with "
            f"packhorse.tensor(array, device='{name}')"
        )


def _launch_sizes(
    name: str, tags: Sequence[str], values: Sequence[Any]
) -> tuple[list[int], list[int], int]:
    """Grid, block and bytes of shared memory."""
    sizes = {"blockIdx": [1, 1, 1], "threadIdx": [1, 1, 1]}
    shared = 0
    for tag, value in zip(tags, values, strict=True):
        if not isinstance(value, int) or not 0 <= value < 1 << 48:
            raise ArgumentValueError(
                f"{tag} of kernel '{name}' must be a size, found {value!r:.40}"
            )
        word, _, axis = tag.partition(".")
        if word in sizes and axis in ("x", "y", "z"):
            sizes[word]["xyz".index(axis)] = value
        elif tag == "tir.use_dyn_shared_memory":
            shared = value
        else:
            raise ArtifactError(
                f"kernel '{name}' has the launch tag '{tag:.60}', which nobody knows; known are "
                "blockIdx and threadIdx with .x, .y, .z, and tir.use_dyn_shared_memory"
            )
    return sizes["blockIdx"], sizes["threadIdx"], shared


add_value_type(DeviceModule)
add_value_type(_Launch)


# ---------------------------------------------------------------- files


def load_code(path: Path, suffix: str) -> DeviceModule:
    """Kernels that TVM saved in a file of their own, with their table in ``<name>.tvm_meta.json``.

    Parameters
    ----------
    path : Path
        ``kernels.cl``, ``kernels.ptx`` ...
    suffix : str
        One of :data:`CODE_SUFFIXES`: what it holds.

    Raises
    ------
    ArtifactError
        One of the two files is missing or damaged.
    """
    table = path.with_name(path.name.removesuffix(path.suffix) + _TABLE)
    try:
        code, text = path.read_bytes(), table.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"'{path}' cannot be used: {error.strerror or error}: '{error.filename}'. Kernels are "
            f"read from a file and the {table.name} that TVM saved beside it"
        ) from error
    try:
        functions = _functions(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            f"'{table}' is not a table of kernels as TVM saves it: {error!r:.200}. Save it again"
        ) from None
    return DeviceModule(CODE_SUFFIXES[suffix], DeviceCode(suffix[1:], functions, code))


def _functions(document: Any) -> dict[str, FunctionInfo]:
    found = {}
    for name, row in document["func_info"].items():
        tags = row["launch_param_tags"] if "launch_param_tags" in row else row["thread_axis_tags"]
        found[name] = FunctionInfo(row["name"] or name, _texts(row["arg_types"]), _texts(tags))
    return found


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ArgumentValueError(f"{values!r:.80} is not a list of str")
    return tuple(values)
