"""Packed-call values between Python and the two ABIs: TVM's legacy one and tvm-ffi's.

Ints travel as int64, floats as double, host tensors as ``DLTensor*``, in both; only the type
codes differ, and who owns what is returned. Compiled code assumes aligned, contiguous memory, so
an array that is not goes through an aligned copy and back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from packhorse.dtype import dlpack_code, dtype_name, from_dlpack_code, legacy_code
from packhorse.errors import ArgumentTypeError, ArgumentValueError
from packhorse.native.codes import CODES, KINDS, DLDevice, Handle
from packhorse.native.devices import require_same
from packhorse.native.dlpack import CPU, array_of
from packhorse.native.memory import address_of, aligned_array
from packhorse.native.plan import Slot
from packhorse.native.runtime import Abi, ffi, hold, let_go, lib, object_of

if TYPE_CHECKING:
    from packhorse.device import Device, Memory

__all__ = [
    "Packer",
    "is_object",
    "native_handles",
    "owned_any",
    "release_value",
    "unpack",
]


_HEAP = 64  # type indices of tvm-ffi from here on are references to objects
_HEAD_BYTES = 24  # of a tvm-ffi object: what follows is the value
_HEAP_STR, _HEAP_BYTES, _HEAP_TENSOR = 65, 66, 70

_ANYS, _VALUES, _CODES_TYPE = (ffi.typeof(t) for t in ("ph_any[]", "ph_value[]", "int[]"))


class Packer:
    """Builds the arguments of one call; holds what they point to for as long as it lives.

    Parameters
    ----------
    args : sequence
        Packed values.
    abi : str
    alignment : int
        What the callee assumes of tensor addresses.
    devices : collection of int
        DLPack types of the devices whose kernels the callee launches.

    Attributes
    ----------
    device : Device or None
        Where the tensors lie that are not on the host.
    blocks : dict of int to Memory
        Their memory, by address.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        An argument cannot be passed.
    """

    def __init__(
        self, args: Sequence[Any], abi: Abi, alignment: int, devices: Collection[int] = ()
    ) -> None:
        self.anys = ffi.new(_ANYS, len(args) or 1)
        self.abi, self.alignment, self._devices = abi, alignment, devices
        self.device: Device | None = None
        self.blocks: dict[int, Memory] = {}
        self.keep: list[Any] = []
        self.copies: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self._numbers: list[int] = []
        self._objects: list[int] = []
        self._codes = CODES[abi]
        for i, arg in enumerate(args):
            self._put(i, arg)
        if abi == "legacy":
            self.values = ffi.new(_VALUES, [any_.value for any_ in self.anys])
            self.codes = ffi.new(_CODES_TYPE, [any_.type_index for any_ in self.anys])

    def _store(self, i: int, code: int, field: str, value: Any) -> None:
        self.anys[i].type_index = code
        setattr(self.anys[i].value, field, value)

    def _put(self, i: int, arg: Any) -> None:
        known, kind = self._codes, type(arg)
        if isinstance(arg, Handle):
            self._store(i, known.handle, "v_handle", arg)
        elif isinstance(arg, int):
            if not -(2**63) <= arg < 2**63:
                raise ArgumentValueError(f"argument {i} is {arg}, which does not fit int64")
            self._store(i, known.boolean if kind is bool else known.integer, "v_int64", arg)
        elif isinstance(arg, float):
            self._store(i, known.real, "v_float64", arg)
        elif arg is None:
            self._store(i, known.none, "v_int64", 0)
        elif isinstance(arg, np.ndarray):
            self._array(i, arg)
        elif hasattr(arg, "__packed_tensor__"):
            self._tensor(i, arg)
        elif isinstance(arg, str | bytes):
            self._text(i, arg)
        elif isinstance(arg, np.dtype):
            code = dlpack_code(arg) if self.abi == "ffi" else legacy_code(arg)
            self._store(i, known.dtype, "v_type", code)
        elif hasattr(arg, "__packed_kind__"):
            self._object(i, arg, arg.__packed_kind__)
        elif hasattr(arg, "dlpack_device"):
            self._store(i, known.device, "v_device", arg.dlpack_device)
        else:
            raise ArgumentTypeError(
                f"argument {i} is of type {kind.__name__}, which compiled code cannot take; pass "
                "None, bool, int, float, str, bytes, dtype, Device, Tensor, ndarray, Module or a "
                "function"
            )

    def _text(self, i: int, arg: str | bytes) -> None:
        raw = arg.encode() if isinstance(arg, str) else arg
        chars = ffi.new("char[]", raw)  # adds the final zero
        self.keep.append(chars)
        if isinstance(arg, str):
            if "\0" in arg:
                raise ArgumentValueError(
                    f"argument {i} is a str with a NUL, which C strings cannot hold; pass bytes"
                )
            self._store(i, self._codes.text, "v_str", chars)
            return
        array = ffi.new("ph_bytes *", {"data": chars, "size": len(raw)})
        self.keep.append(array)
        self._store(i, self._codes.blob, "v_handle", int(ffi.cast("uintptr_t", array)))

    def _tensor(self, i: int, arg: Any) -> None:
        if arg.device.dlpack_device[0] in self._devices:
            self._device_tensor(i, arg)
            return
        try:
            slot, array = arg.__packed_tensor__()
        except ArgumentTypeError as error:  # it lies on a device
            raise ArgumentTypeError(f"argument {i}: {error}") from None
        if slot is None or slot.data % self.alignment or self.abi == "ffi":
            self._array(i, array)
            return
        self._store(i, self._codes.tensor, "v_tensor", slot.pointer)
        self.keep += (slot, array)

    def _device_tensor(self, i: int, arg: Any) -> None:
        slot, block = arg.__packed_block__(self.abi)
        self.device = require_same(self.device, block.device, f"argument {i}")
        self._store(i, self._codes.tensor, "v_tensor", slot.pointer)
        self.blocks[slot.data] = block.memory
        self.keep += (slot, block)

    def _array(self, i: int, array: np.ndarray[Any, Any]) -> None:
        try:
            dtype = dtype_name(array.dtype)  # before anything is copied: objects cannot be
        except ArgumentTypeError as error:
            raise ArgumentTypeError(f"argument {i}: {error}") from None
        address = address_of(array)
        if not address and array.size:
            raise ArgumentValueError(
                f"argument {i} has {array.size} elements at address NULL; pass an array with memory"
            )
        if address % self.alignment or not array.flags.c_contiguous:
            memory = aligned_array(array.shape, array.dtype)
            self.copies.append((array, memory))
            address = address_of(memory)
        slot = Slot(array.shape, dtype, address, abi=self.abi)
        self.keep += (slot, array)
        self._store(i, self._codes.tensor, "v_tensor", slot.pointer)

    def _object(self, i: int, arg: Any, kind: str) -> None:
        code = self._codes.module if kind == "module" else self._codes.function
        number = hold(arg)
        if self.abi == "legacy":
            self._numbers.append(number)
            self._store(i, code, "v_handle", lib.ph_handle_new(0, number))
            return
        made = _checked(lib.ph_ffi_function(0, number, code))
        self._objects.append(made)
        self._store(i, code, "v_handle", made)

    # Bound early: when the interpreter ends, the module's globals may be gone before this object.
    def __del__(
        self, let_go: Any = let_go, release: Any = lib.ph_ffi_release, getattr: Any = getattr
    ) -> None:
        for number in getattr(self, "_numbers", ()):
            let_go(number)
        for made in getattr(self, "_objects", ()):
            release(made)


def _checked(made: int) -> int:
    if not made:
        raise MemoryError("no memory for a value to pass to compiled code")
    return made


# ---------------------------------------------------------------- from compiled code


def unpack(value: Any, code: int, abi: Abi, what: str, small: int = 0) -> Any:
    """The Python value of a ``ph_value``. Tensors become arrays over the same memory.

    Parameters
    ----------
    small : int
        Length of text that lies in the value itself.

    Raises
    ------
    ArgumentTypeError
        A kind of value packhorse cannot take, such as an object of TVM's own.
    """
    kind = KINDS[abi].get(code, "unknown")
    if kind == "small str" or kind == "small bytes":
        raw = bytes(ffi.buffer(value.v_bytes, min(small, 7)))
        return raw.decode("utf-8", "replace") if kind == "small str" else raw
    read = _READERS.get(kind)
    if read is None:
        raise ArgumentTypeError(
            f"{what} passed a value of type code {code} ({kind}), which packhorse cannot take "
            "from compiled code"
        )
    return read(value, what)


def release_value(value: Any, code: int, abi: Abi) -> None:
    """Give back a value compiled code returned, once it was read."""
    if abi == "ffi" and code >= _HEAP:
        lib.ph_ffi_release(value.v_handle)


def _dtype(value: Any, what: str) -> Any:
    return from_dlpack_code(value.v_type.code, value.v_type.bits, value.v_type.lanes)


def _bytes_at(address: int) -> bytes:
    array = ffi.cast("ph_bytes *", address)
    return bytes(ffi.buffer(array.data, array.size)) if array.size else b""


def _tensor(value: Any, what: str, pointer: Any = None, owner: object = None) -> Any:
    tensor = value.v_tensor if pointer is None else pointer
    if tensor == ffi.NULL:
        return None
    if tensor.device.device_type != CPU:
        raise ArgumentTypeError(
            f"{what} passed a tensor of device type {tensor.device.device_type}; only host "
            "tensors can be seen from Python here"
        )
    return array_of(tensor, owner)


def _heap_tensor(value: Any, what: str) -> Any:
    """The array keeps a reference of its own to the object."""
    address = value.v_handle
    lib.ph_ffi_retain(address)
    owner = ffi.gc(ffi.cast("char *", address), lambda p: lib.ph_ffi_release(address))
    return _tensor(value, what, ffi.cast("ph_tensor *", address + _HEAD_BYTES), owner)


def _handle_object(value: Any, what: str) -> Any:
    number = lib.ph_handle_id(value.v_handle)
    if number:
        return object_of(number)
    found = native_handles.get(value.v_handle)
    if found is None:
        raise ArgumentTypeError(f"{what} passed a function handle that packhorse did not make")
    return found


def _ffi_object(value: Any, what: str) -> Any:
    number = lib.ph_ffi_id(value.v_handle)
    if not number:
        raise ArgumentTypeError(
            f"{what} passed a function or module of another runtime, which packhorse cannot take "
            "from compiled code"
        )
    return object_of(number)


native_handles: dict[int, Any] = {}
"""Handles of native functions that compiled code looked up, with the functions."""

_READERS: dict[str, Callable[[Any, str], Any]] = {
    "null": lambda value, what: None,
    "int": lambda value, what: value.v_int64,
    "uint": lambda value, what: value.v_int64,
    "bool": lambda value, what: bool(value.v_int64),
    "float": lambda value, what: value.v_float64,
    "handle": lambda value, what: Handle(value.v_handle),
    "dtype": _dtype,
    "device": lambda value, what: DLDevice(value.v_device.device_type, value.v_device.device_id),
    "tensor": _tensor,
    "str": lambda value, what: ffi.string(value.v_str).decode("utf-8", "replace"),
    "bytes": lambda value, what: _bytes_at(value.v_handle),
    "heap str": lambda value, what: _bytes_at(value.v_handle + _HEAD_BYTES).decode(
        "utf-8", "replace"
    ),
    "heap bytes": lambda value, what: _bytes_at(value.v_handle + _HEAD_BYTES),
    "heap tensor": _heap_tensor,
    "function": _handle_object,
    "module": _handle_object,
    "object function": _ffi_object,
    "object module": _ffi_object,
}


# ---------------------------------------------------------------- results for compiled code


def owned_any(answer: Any) -> tuple[int, int]:
    """(type index, object) of a result that its receiver owns, for the tvm-ffi ABI.

    Strings, bytes, tensors, functions and modules only: other values are not objects.
    """
    if isinstance(answer, str | bytes):
        raw = answer.encode() if isinstance(answer, str) else answer
        index = _HEAP_STR if isinstance(answer, str) else _HEAP_BYTES
        return index, _checked(lib.ph_ffi_text(raw, len(raw), index))
    if hasattr(answer, "__packed_kind__"):
        codes = CODES["ffi"]
        index = codes.module if answer.__packed_kind__ == "module" else codes.function
        return index, _checked(lib.ph_ffi_function(0, hold(answer), index))
    array = answer.__packed_tensor__()[1] if hasattr(answer, "__packed_tensor__") else answer
    if not array.flags.c_contiguous or address_of(array) % 64:
        inside = aligned_array(array.shape, array.dtype)
        inside[...] = array
        array = inside
    slot = Slot(array.shape, dtype_name(array.dtype), address_of(array), abi="ffi")
    return _HEAP_TENSOR, _checked(lib.ph_ffi_tensor(slot.pointer, hold(array)))


def is_object(answer: Any) -> bool:
    """Whether a result must be an object in the tvm-ffi ABI."""
    return (
        isinstance(answer, str | bytes | np.ndarray)
        or hasattr(answer, "__packed_kind__")
        or (hasattr(answer, "__packed_tensor__"))
    )
