"""Python functions written in C (fast.c): calls whose arguments need no conversion."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from packhorse.native.runtime import lib

__all__ = ["make_bound", "make_call", "make_tensor", "setup"]

setup: Callable[[type | None, type | None, Any, Any], None]
"""``(Tensor, ndarray, finish, fail)``, each None when it stays as it is.

``finish(address of a ph_any, abi, what)`` makes the value of an unusual result; ``fail(what)``
raises the last error.
"""
make_call: Callable[[int, str], Callable[..., Any]]
"""``(address of a ph_callee, what)``: a function that returns NotImplemented, before anything
ran, when the arguments are more than it can pass on."""
make_bound: Callable[[int, str], Callable[[], Any]]
"""``(address of a ph_step, what)``: a function without arguments."""
make_tensor: Callable[[int, int, int, object], object]
"""``(address of a ph_tensor, dtype code and bits of the tvm-ffi ABI, owner)``: a capsule."""

setup, make_call, make_bound, make_tensor = ctypes.PYFUNCTYPE(ctypes.py_object)(
    lib.ph_fast_functions()
)()
