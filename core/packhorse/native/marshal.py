"""Packed-call values between Python and TVM's legacy C ABI (0.2 - 0.20).

Ints travel as int64, floats as double, host tensors as ``DLTensor*``. Compiled code assumes
aligned, contiguous memory, so an array that is not goes through an aligned copy and back.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from packhorse.dtype import dtype_name, from_dlpack_code, legacy_code
from packhorse.errors import ArgumentTypeError, ArgumentValueError
from packhorse.native.dlpack import CPU, array_of
from packhorse.native.memory import ALIGNMENT, address_of, aligned_array
from packhorse.native.plan import TENSOR, Slot
from packhorse.native.runtime import ffi, lib, python_handle, raise_last_error

__all__ = ["DLDevice", "Handle", "NativeCall", "TypeCode", "handle_of", "raw_call"]


class TypeCode(IntEnum):
    """Type codes of the legacy ABI (``TVMArgTypeCode``)."""

    INT = 0
    UINT = 1
    FLOAT = 2
    HANDLE = 3
    NULL = 4
    DTYPE = 5
    DEVICE = 6
    TENSOR = 7
    OBJECT = 8
    MODULE = 9
    FUNCTION = 10
    STR = 11
    BYTES = 12
    NDARRAY = 13
    RVALUE_REF = 14
    BOOL = 15


class Handle(int):
    """An opaque pointer from compiled code, to be passed back to it."""


class DLDevice(NamedTuple):
    """A device as the ABI names it: DLPack type and index."""

    device_type: int
    device_id: int

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """(DLDeviceType, index), as every Device has it."""
        return self.device_type, self.device_id


_VALUES, _CODES, _STEP = (ffi.typeof(name) for name in ("ph_value[]", "int[]", "ph_step *"))
_VALUE, _CODE = ffi.typeof("ph_value *"), ffi.typeof("int *")

_handles: dict[int, Any] = {}
_handles_lock = threading.Lock()
_returned = threading.local()  # what a callback's returned pointer points to, until the next


class _Packer:
    """Builds the values and codes of one call; ``keep`` owns what they point to."""

    def __init__(self, count: int, alignment: int) -> None:
        self.values = ffi.new(_VALUES, count or 1)
        self.codes = ffi.new(_CODES, count or 1)
        self.alignment = alignment
        self.keep: list[Any] = []
        self.copies: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []

    def put(self, i: int, arg: Any) -> None:
        """Store argument ``i``."""
        value = self.values[i]
        kind = type(arg)
        if kind is int or kind is bool or isinstance(arg, Handle):
            self._int(i, arg)
        elif kind is float:
            value.v_float64, self.codes[i] = arg, TypeCode.FLOAT
        elif arg is None:
            value.v_int64, self.codes[i] = 0, TypeCode.NULL
        elif kind is np.ndarray or isinstance(arg, np.ndarray):
            self._array(i, arg)
        elif hasattr(arg, "__packed_tensor__"):
            slot, array = arg.__packed_tensor__()
            if slot is None or slot.data % self.alignment:
                self._array(i, array)
            else:
                value.v_tensor, self.codes[i] = slot.pointer, TENSOR
                self.keep += (slot, array)
        elif kind is str or kind is bytes:
            self._text(i, arg)
        elif isinstance(arg, np.dtype):
            code = legacy_code(arg)
            value.v_type.code, value.v_type.bits, value.v_type.lanes = code
            self.codes[i] = TypeCode.DTYPE
        elif hasattr(arg, "__packed_handle__"):
            value.v_handle, self.codes[i] = arg.__packed_handle__(), TypeCode.FUNCTION
        elif hasattr(arg, "dlpack_device"):
            value.v_device.device_type, value.v_device.device_id = arg.dlpack_device
            self.codes[i] = TypeCode.DEVICE
        else:
            raise ArgumentTypeError(
                f"argument {i} is of type {kind.__name__}, which compiled code cannot take; pass "
                "None, bool, int, float, str, bytes, dtype, Device, Tensor, ndarray or a function"
            )

    def _int(self, i: int, arg: int) -> None:
        self.codes[i] = TypeCode.INT
        if isinstance(arg, Handle):
            self.values[i].v_handle, self.codes[i] = arg, TypeCode.HANDLE
            return
        if not -(2**63) <= arg < 2**63:
            raise ArgumentValueError(f"argument {i} is {arg}, which does not fit int64")
        self.values[i].v_int64 = arg

    def _text(self, i: int, arg: str | bytes) -> None:
        raw = arg.encode() if isinstance(arg, str) else arg
        chars = ffi.new("char[]", raw)  # adds the final zero
        self.keep.append(chars)
        if isinstance(arg, str):
            if "\0" in arg:
                raise ArgumentValueError(
                    f"argument {i} is a str with a NUL, which C strings cannot hold; pass bytes"
                )
            self.values[i].v_str, self.codes[i] = chars, TypeCode.STR
            return
        array = ffi.new("ph_bytes *", {"data": chars, "size": len(raw)})
        self.keep.append(array)
        self.values[i].v_handle = int(ffi.cast("uintptr_t", array))
        self.codes[i] = TypeCode.BYTES

    def _array(self, i: int, array: np.ndarray[Any, Any]) -> None:
        address = address_of(array)
        if address % self.alignment or not array.flags.c_contiguous:
            memory = aligned_array(array.shape, array.dtype)
            self.copies.append((array, memory))
            address = address_of(memory)
        slot = Slot(array.shape, dtype_name(array.dtype), address)
        self.keep += (slot, array)
        self.values[i].v_tensor, self.codes[i] = slot.pointer, TENSOR


class NativeCall:
    """A packed function with its arguments built: ``call()`` runs it, GIL released.

    Parameters
    ----------
    address : int
        A ``TVMBackendPackedCFunc``.
    args : sequence
        What :class:`TypeCode` has codes for, except Modules. Arrays are used where they are if
        they are contiguous and aligned, else copied before each call and back after it.
    what : str
        Subject of error messages.
    alignment : int
        What the code behind ``address`` assumes of tensor addresses.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        An argument cannot be passed.
    """

    __slots__ = ("_code", "_copies", "_keep", "_result", "_step", "owner", "threads", "what")

    def __init__(
        self, address: int, args: Sequence[Any], what: str, alignment: int = ALIGNMENT
    ) -> None:
        packer = _Packer(len(args), alignment)
        for i, arg in enumerate(args):
            packer.put(i, arg)
        self._step = ffi.new(_STEP)
        self._step.function, self._step.count = address, len(args)
        self._step.values, self._step.codes = packer.values, packer.codes
        self._copies = packer.copies
        self._keep = packer
        self._result, self._code = ffi.new(_VALUE), ffi.new(_CODE)
        self.threads, self.what = 0, what
        self.owner: object = None  # of the code: lives as long as the call

    def __call__(self) -> Any:
        """Run and return the result. Raises what a Python callee raised, or PackhorseError."""
        for outside, inside in self._copies:
            inside[...] = outside
        if lib.ph_call(self._step, self.threads, self._result, self._code):
            raise_last_error(self.what)
        for outside, inside in self._copies:
            if outside.flags.writeable:
                outside[...] = inside
        code = self._code[0]
        return None if code == TypeCode.NULL else _unpack(self._result, code, self.what)


def _unpack(value: Any, code: int, what: str) -> Any:
    """The Python value of a ``ph_value``. Tensors become arrays over the same memory."""
    if code in (TypeCode.INT, TypeCode.UINT):
        return value.v_int64
    if code == TypeCode.FLOAT:
        return value.v_float64
    if code == TypeCode.NULL:
        return None
    if code == TypeCode.BOOL:
        return bool(value.v_int64)
    if code == TypeCode.HANDLE:
        return Handle(value.v_handle)
    if code == TypeCode.STR:
        return ffi.string(value.v_str).decode("utf-8", "replace")
    if code == TypeCode.BYTES:
        array = ffi.cast("ph_bytes *", value.v_handle)
        return bytes(ffi.buffer(array.data, array.size))
    if code == TypeCode.DTYPE:
        return from_dlpack_code(value.v_type.code, value.v_type.bits, value.v_type.lanes)
    if code == TypeCode.DEVICE:
        return DLDevice(value.v_device.device_type, value.v_device.device_id)
    if code == TypeCode.TENSOR:
        return _tensor(value, what)
    if code == TypeCode.FUNCTION and value.v_handle in _handles:
        return _handles[value.v_handle]
    name = TypeCode(code).name.lower() if code in set(TypeCode) else "unknown"
    raise ArgumentTypeError(
        f"{what} passed a value of type code {code} ({name}), which packhorse cannot take from "
        "compiled code"
    )


def _tensor(value: Any, what: str) -> Any:
    tensor = value.v_tensor
    if tensor.device.device_type != CPU:
        raise ArgumentTypeError(
            f"{what} passed a tensor of device type {tensor.device.device_type}; only host "
            "tensors can be seen from Python here"
        )
    return array_of(tensor, None)


def handle_of(function: Any, raw: Any = None) -> int:
    """The handle of a packed function: made once, kept with the function for good.

    ``raw`` is the RawCall that runs it; default :func:`raw_call` of the function.
    """
    made = python_handle(raw or raw_call(function))
    return adopt_handle(made, function)


def adopt_handle(handle: int, function: Any) -> int:
    """Let compiled code that returns this handle return ``function``."""
    with _handles_lock:
        _handles[handle] = function
    return handle


def raw_call(function: Any) -> Any:
    """What runs a Python packed function for compiled code: converts arguments and result.

    Tensor arguments are arrays over the caller's memory, valid only during the call.
    """
    what = f"compiled code that called '{getattr(function, 'name', function)}'"

    def call(values: Any, codes: Any, count: int, result: Any, result_code: Any) -> None:
        args = [_unpack(values[i], codes[i], what) for i in range(count)]
        answer = function(*args)
        if answer is None:
            return
        if isinstance(answer, np.ndarray) or hasattr(answer, "__packed_tensor__"):
            raise ArgumentTypeError(
                f"{what} cannot take a tensor as result; write into an output argument instead"
            )
        packer = _Packer(1, 1)
        packer.put(0, answer)
        result[0], result_code[0] = packer.values[0], packer.codes[0]
        _returned.keep = packer

    return call
