"""Packed functions: callables over a small set of values, and the global registry of them.

A packed function takes any mix of None, bool, int, float, str, bytes, dtype, Device, Tensor (or
``numpy.ndarray``), Module and PackedFunction, and returns one of those. It is written in Python
(:class:`PackedFunction`) or compiled (:class:`NativeFunction`); the caller need not know.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeVar, overload

import numpy as np

from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    FunctionExists,
    FunctionNotFound,
    did_you_mean,
)
from packhorse.native.call import FastCall, NativeCall
from packhorse.native.codes import DLDevice, Handle, TypeCode
from packhorse.native.memory import ALIGNMENT
from packhorse.native.runtime import Abi
from packhorse.native.signature import Signature

__all__ = [
    "DLDevice",
    "Handle",
    "NativeFunction",
    "PackedFunction",
    "TypeCode",
    "convert",
    "get_global_func",
    "list_global_func_names",
    "register_func",
    "remove_global_func",
]

F = TypeVar("F", bound=Callable[..., Any])


class PackedFunction:
    """A packed function around a Python callable.

    Parameters
    ----------
    call : callable
        Takes and returns packed values.
    name : str, optional
        What errors call it; default the callable's own name.
    """

    __slots__ = ("__weakref__", "_call", "_handles", "name")

    __packed_kind__ = "function"

    def __init__(self, call: Callable[..., Any], name: str | None = None) -> None:
        self._call = call
        self._handles: dict[str, int] = {}  # by ABI: what compiled code got that looked it up
        self.name = str(name or getattr(call, "__name__", type(call).__name__))

    @property
    def address(self) -> int | None:
        """Address of the compiled code, for native plans; None when it is Python."""
        return None

    def __call__(self, *args: Any) -> Any:
        """Call it.

        Raises
        ------
        ArgumentTypeError
            An argument, or the result, is not a packed value.
        PackhorseError
            Compiled code failed.
        Exception
            Whatever the Python callable raises, unchanged.
        """
        for arg in args:
            if type(arg) not in _PLAIN:
                args = self._accept(args)
                break
        result = self._call(*args)
        return result if type(result) in _PLAIN else _packed(result, self, "result")

    def bind(self, *args: Any) -> Callable[[], Any]:
        """Check the arguments now; returns a call without arguments. Raises as calling does."""
        return partial(self, *self._accept(args))

    def as_tvm_ffi(self) -> Any:
        """This function as a ``tvm_ffi.Function``; see :mod:`packhorse.tvm_ffi_bridge`.

        Raises
        ------
        MissingExtra
            apache-tvm-ffi is not installed.
        """
        from packhorse.tvm_ffi_bridge import as_tvm_ffi

        return as_tvm_ffi(self)

    def _accept(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(_packed(arg, self, f"argument {i}") for i, arg in enumerate(args))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class NativeFunction(PackedFunction):
    """A compiled packed function.

    Calls release the GIL. Arguments are checked against what the library says of its function:
    TVM writes it into libraries with assertions, and newer compiled code checks by itself. What
    nobody checks is the caller's business. Arrays that are not contiguous or not aligned go
    through a copy and back.

    Parameters
    ----------
    address : int
        A ``TVMBackendPackedCFunc`` (the shorter signatures of TVM before 0.7 work too), or a
        ``TVMFFISafeCallType`` when ``abi`` is "ffi".
    name : str
    keepalive : object
        Owner of the code, held as long as the function lives.
    alignment : int
        What the code assumes of tensor addresses.
    abi : str
    signature : callable, optional
        Returns the Signature, or None; asked at the first call.
    devices : collection of int
        DLPack types of the devices whose kernels the code launches: tensors there are passed as
        they are. Others, and code without any, take host memory only.
    """

    __slots__ = ("_address", "_alignment", "_ask", "_fast", "_keepalive", "_owner", "abi",
                 "devices")  # fmt: skip

    def __init__(
        self,
        address: int,
        name: str,
        keepalive: object = None,
        *,
        alignment: int = ALIGNMENT,
        abi: Abi = "legacy",
        signature: Callable[[], Signature | None] | None = None,
        devices: Collection[int] = (),
    ) -> None:
        if address <= 0:
            raise ArgumentValueError(f"function '{name}' has no address ({address})")
        super().__init__(NativeCall, name)  # not a method of self: a cycle would delay freeing
        self._address, self._keepalive, self._alignment = address, keepalive, alignment
        self.abi, self._ask, self.devices = abi, signature, devices
        self._fast: Callable[..., Any] | None = None
        self._owner: FastCall | None = None  # of what _fast points to

    @property
    def address(self) -> int:
        """Address of the compiled code."""
        return self._address

    @property
    def signature(self) -> Signature | None:
        """What it takes; None where the library does not say."""
        return self._ask() if self._ask else None

    def __call__(self, *args: Any) -> Any:
        """Pack the arguments and run. Raises as :meth:`PackedFunction.__call__`, and

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            The arguments are not those the function was compiled for.
        """
        result = (self._fast or self._prepare())(*args)
        return self.bind(*args)() if result is NotImplemented else result

    def _prepare(self) -> Callable[..., Any]:
        what = f"function '{self.name}'"
        self._owner = FastCall(self._address, what, self.abi, self._alignment, self.signature)
        self._fast = self._owner.call
        return self._fast

    def bind(self, *args: Any) -> NativeCall:
        """Pack the arguments once; the returned call runs without packing.

        Set its ``threads`` to limit parallel launches (0: all this process may use).
        """
        for arg in args:
            if type(arg) not in _PLAIN:
                args = self._accept(args)
                break
        what, signature = f"function '{self.name}'", self.signature
        if signature is not None:
            signature.check(args, what)
        call = NativeCall(self._address, args, what, self._alignment, self.abi, self.devices)
        call.owner = self
        return call


_PLAIN: set[type] = {
    *(type(None), bool, int, float, str, bytes, np.ndarray),
    *(Handle, DLDevice, PackedFunction, NativeFunction),
}
"""Types that need no look: tensor and module add theirs with :func:`add_value_type`."""


def add_value_type(kind: type) -> None:
    """Let objects of this type pass as packed values."""
    _PLAIN.add(kind)


def _packed(value: Any, function: PackedFunction, what: str) -> Any:
    """The packed value an unusual object stands for."""
    if type(value) in _PLAIN or isinstance(value, (*_PLAIN, np.dtype)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if hasattr(value, "dlpack_device"):
        return value
    if isinstance(value, type) and issubclass(value, np.generic):
        return np.dtype(value)
    if callable(value):
        return convert(value)
    hint = "wrap it with packhorse.tensor" if isinstance(value, list | tuple) else "pass a value"
    raise ArgumentTypeError(
        f"{what} of function '{function.name}' is of type {type(value).__name__}; {hint} of type "
        "None, bool, int, float, str, bytes, dtype, Device, Tensor, Module or PackedFunction"
    )


def convert(value: Callable[..., Any]) -> PackedFunction:
    """The packed function of a callable; a packed function is returned as it is.

    Raises
    ------
    ArgumentTypeError
        ``value`` cannot be called.
    """
    if isinstance(value, PackedFunction):
        return value
    if not callable(value):
        raise ArgumentTypeError(
            f"{type(value).__name__} cannot be called; pass a function or another callable"
        )
    return PackedFunction(value)


class _Lazy:
    """A function of a module that is imported at the first call."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._found: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self._found is None:
            module, _, name = self._place.partition(":")
            self._found = getattr(importlib.import_module(module), name)
        return self._found(*args)


_CONTRIB = "packhorse.function_contrib"
_GRAPH = "packhorse.graph.runtime_functions"
_BUILT_IN = {
    **{
        f"tvm.contrib.{name}": f"{_CONTRIB}:{name.rpartition('.')[2]}"
        for name in (
            *("sort.argsort", "sort.argsort_nms", "sort.sort", "sort.topk"),
            *("random.uniform", "random.normal", "random.randint", "random.seed"),
            *("cblas.matmul", "cblas.batch_matmul"),
        )
    },
    "__tvm_set_device": "packhorse.native.devices:set_device",
    **dict.fromkeys(("tvm.graph_executor.create", "tvm.graph_runtime.create"), f"{_GRAPH}:create"),
    **dict.fromkeys(
        ("tvm.graph_executor_debug.create", "tvm.graph_runtime_debug.create"),
        f"{_GRAPH}:create_debug",
    ),
    "tvm.graph_executor_cuda_graph.create": f"{_GRAPH}:create_cuda_graph",
    "tvm.graph_executor_factory.create": "packhorse.graph.factory:create_factory",
}
"""Global functions that compiled code and TVM's users expect of the runtime, and where they are
written: strings, because some lie in layers above this one."""

_registry: dict[str, PackedFunction] = {
    name: PackedFunction(_Lazy(place), name) for name, place in _BUILT_IN.items()
}
_registry_lock = threading.Lock()


@overload
def register_func(name_or_fn: F) -> F: ...
@overload
def register_func(name_or_fn: str, fn: F, *, override: bool = False) -> F: ...
@overload
def register_func(
    name_or_fn: str | None = None, fn: None = None, *, override: bool = False
) -> Callable[[F], F]: ...
def register_func(name_or_fn: Any = None, fn: Any = None, *, override: bool = False) -> Any:
    """Register a global packed function: called directly or as a decorator, with or without name.

    >>> @register_func("demo.add_one")
    ... def add_one(x):
    ...     return x + 1
    >>> get_global_func("demo.add_one")(41)
    42
    >>> remove_global_func("demo.add_one")

    Parameters
    ----------
    name_or_fn : str or callable
        The name; without one the function's ``__name__`` is used.
    fn : callable, optional
        The function; without it a decorator is returned.
    override : bool
        Replace a function of that name.

    Returns
    -------
    The function itself, unchanged, or a decorator.

    Raises
    ------
    FunctionExists
        The name is taken and ``override`` was not given.
    ArgumentTypeError
        Not a callable.
    """
    if fn is None and not callable(name_or_fn):
        return lambda found: register_func(name_or_fn or found.__name__, found, override=override)
    if callable(name_or_fn):
        name_or_fn, fn = getattr(name_or_fn, "__name__", type(name_or_fn).__name__), name_or_fn
    if not isinstance(name_or_fn, str):
        raise ArgumentTypeError(f"a function's name must be a str, not {type(name_or_fn).__name__}")
    packed = convert(fn)
    if packed is not fn:
        packed.name = name_or_fn
    with _registry_lock:
        if name_or_fn in _registry and not override:
            raise FunctionExists(
                f"a global function '{name_or_fn}' is registered already; pass override=True to "
                "replace it, or register yours under another name"
            )
        _registry[name_or_fn] = packed
    return fn


@overload
def get_global_func(name: str) -> PackedFunction: ...
@overload
def get_global_func(name: str, allow_missing: bool) -> PackedFunction | None: ...
def get_global_func(name: str, allow_missing: bool = False) -> PackedFunction | None:
    """The global function of that name.

    Raises
    ------
    FunctionNotFound
        There is none, and ``allow_missing`` is False (else None is returned).
    """
    found = _registry.get(name)
    if found is None:
        _ask_plugins()
        found = _registry.get(name)
    if found is None and not allow_missing:
        raise FunctionNotFound(_missing(name))
    return found


def _ask_plugins() -> None:
    """Register the functions of plugins; those loaded since the last time are asked."""
    from packhorse.plugin import default_manager

    default_manager().extend("packhorse_functions", lambda offer: register_func(*offer))


def list_global_func_names() -> list[str]:
    """Names of all global functions, those of plugins included, sorted."""
    _ask_plugins()
    with _registry_lock:
        return sorted(_registry)


def remove_global_func(name: str) -> None:
    """Remove a global function; compiled code that looked it up before keeps it.

    Raises
    ------
    FunctionNotFound
        There is none of that name.
    """
    with _registry_lock:
        if _registry.pop(name, None) is None:
            raise FunctionNotFound(_missing(name))


def _missing(name: str) -> str:
    return (
        f"there is no global function '{name}'{did_you_mean(name, tuple(_registry))}; "
        f"{len(_registry)} are registered, packhorse.list_global_func_names() lists them"
    )
