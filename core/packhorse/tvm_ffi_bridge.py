"""Sharing functions and tensors with apache-tvm-ffi, when it is installed: nothing is copied.

>>> scale = ph.from_tvm_ffi(tvm_ffi.load_module("kernels.so")["scale"])  # doctest: +SKIP
>>> tvm_ffi.register_global_func("mine", function.as_tvm_ffi())          # doctest: +SKIP

Either side may be imported first. Values cross as follows: None, bool, int, float, str and bytes
as they are; tensors (and ``numpy.ndarray``) by DLPack; dtypes, devices and functions each as the
other side's own. A Python exception keeps its type if it is a built-in one or ours.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from packhorse.dtype import dtype, dtype_name
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    FunctionNotFound,
    MissingExtra,
    PackhorseError,
)
from packhorse.function import DLDevice, PackedFunction
from packhorse.native.library import Library

if TYPE_CHECKING:
    from packhorse.tensor import Tensor

__all__ = ["as_tvm_ffi", "from_tvm_ffi"]

_SAME = {type(None), bool, int, float, str, bytes}
_MARK = "__packhorse_abi"
"""What libraries of ours export: their tvm-ffi functions report errors to whoever called."""


def from_tvm_ffi(value: Any) -> PackedFunction | Tensor:
    """A function or a tensor of tvm-ffi as ours.

    Parameters
    ----------
    value : tvm_ffi.Function or tvm_ffi.Tensor
        A tensor in host memory; it and the result are one memory.

    Raises
    ------
    ArgumentTypeError
        Something else, or a tensor in device memory.
    MissingExtra
        apache-tvm-ffi is not installed.
    """
    made = _ours(_tvm_ffi(), value)
    if made is value or isinstance(made, np.dtype | DLDevice):
        raise ArgumentTypeError(
            f"from_tvm_ffi takes a tvm_ffi.Function or a tvm_ffi.Tensor, not {type(value).__name__}"
        )
    return made  # type: ignore[no-any-return]


def as_tvm_ffi(function: PackedFunction) -> Any:
    """A packed function as a ``tvm_ffi.Function``.

    A compiled function of a library that packhorse wrote is called directly, without Python.

    Raises
    ------
    MissingExtra
        apache-tvm-ffi is not installed.
    """
    tvm_ffi = _tvm_ffi()
    if isinstance(function._call, _Theirs):  # it came from there
        return function._call.function
    address = _direct(function)
    if address:
        return tvm_ffi.Function.__from_extern_c__(address, keep_alive_object=function)

    _register_errors(tvm_ffi)

    def call(*args: Any) -> Any:
        return _theirs(tvm_ffi, function(*(_ours(tvm_ffi, arg) for arg in args)))

    return tvm_ffi.convert_func(call)


@functools.cache
def _register_errors(tvm_ffi: Any) -> None:
    """Let our exceptions come out of their calls as themselves."""
    for kind in (PackhorseError, ArgumentTypeError, ArgumentValueError, FunctionNotFound):
        tvm_ffi.register_error(kind.__name__, kind)


class _Theirs:
    """Calls a function of tvm-ffi with our values."""

    def __init__(self, tvm_ffi: Any, function: Any) -> None:
        self.tvm_ffi, self.function = tvm_ffi, function

    def __call__(self, *args: Any) -> Any:
        given = (_theirs(self.tvm_ffi, arg) for arg in args)
        return _ours(self.tvm_ffi, self.function(*given))


def _tvm_ffi() -> Any:
    try:
        return import_module("tvm_ffi")
    except ImportError as error:
        raise MissingExtra("apache-tvm-ffi", "tvm-ffi", "sharing with tvm-ffi") from error


def _direct(function: PackedFunction) -> int | None:
    """Address of the tvm-ffi form of a compiled function; None when it has none of ours."""
    library = getattr(getattr(function, "_keepalive", None), "library", None)
    if not isinstance(library, Library) or library.symbol(_MARK) is None:
        return None
    return library.symbol(f"__tvm_ffi_{function.name}")


def _ours(tvm_ffi: Any, value: Any) -> Any:
    """A value of theirs as one of ours; what needs no change comes back itself."""
    if type(value) in _SAME:
        return value
    if isinstance(value, tvm_ffi.Tensor):
        return _imported(value)
    if isinstance(value, tvm_ffi.Function):
        return PackedFunction(_Theirs(tvm_ffi, value), "tvm_ffi.Function")
    if isinstance(value, tvm_ffi.dtype):
        return dtype(str(value))
    if isinstance(value, tvm_ffi.Device):
        return DLDevice(value.dlpack_device_type(), value.index)
    return value


@functools.cache
def _tensors() -> Any:
    return import_module("packhorse.tensor")  # a layer above this one


def _imported(value: Any) -> Tensor:
    """By way of NumPy, which is ten times as fast, where it knows the dtype and may write."""
    try:
        array = np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError):
        array = None
    if array is None or not array.flags.writeable:
        return _tensors().from_dlpack(value)  # type: ignore[no-any-return]
    return _tensors().Tensor(array)  # type: ignore[no-any-return]


def _exported(tvm_ffi: Any, value: Any) -> Any:
    """Likewise."""
    array = value if isinstance(value, np.ndarray) else value.__packed_tensor__()[1]
    try:
        return tvm_ffi.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError):
        return tvm_ffi.from_dlpack(_tensors().Tensor(array))


def _theirs(tvm_ffi: Any, value: Any) -> Any:
    """A value of ours as one of theirs."""
    if type(value) in _SAME:
        return value
    if isinstance(value, PackedFunction):
        return as_tvm_ffi(value)
    if isinstance(value, np.ndarray) or hasattr(value, "__packed_tensor__"):
        return _exported(tvm_ffi, value)
    if isinstance(value, np.dtype):
        return tvm_ffi.dtype(dtype_name(value))
    if hasattr(value, "dlpack_device"):
        kind, index = value.dlpack_device
        return tvm_ffi.device(kind, index)
    return value
