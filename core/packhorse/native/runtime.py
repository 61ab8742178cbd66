"""The bridge between compiled code and Python: last errors, numbered objects, lookups.

A Python exception raised in a callback travels through C as a token beside the last-error text
and comes out again as itself. Functions and modules travel as numbers: a handle that outlived
its object is an error, never a dangling pointer.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, NoReturn, TypeAlias

from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    FunctionNotFound,
    PackhorseError,
)
from packhorse.native.cpus import thread_count

try:
    from packhorse.native._core import ffi, lib
except ImportError as error:
    error.add_note(
        "packhorse's C core is missing or was built for another Python. Reinstall packhorse, or "
        "in a checkout run: python -m packhorse.native.build"
    )
    raise

__all__ = [
    "ABI_NUMBER",
    "Abi",
    "collect_symbols",
    "ffi",
    "hold",
    "let_go",
    "lib",
    "new_context",
    "object_of",
    "raise_last_error",
    "runtime_addresses",
    "slot_addresses",
]

Abi: TypeAlias = Literal["legacy", "ffi"]
"""``legacy``: TVM 0.2 to 0.20 and packhorse itself; ``ffi``: TVM 0.21 and newer (tvm-ffi)."""

ABI_NUMBER: dict[str, int] = {"legacy": 0, "ffi": 1}
_ABIS: tuple[Abi, ...] = ("legacy", "ffi")

_SHARED = (
    "TVMBackendAllocWorkspace",
    "TVMBackendFreeWorkspace",
    "TVMBackendParallelLaunch",
    "TVMBackendParallelBarrier",
    "TVMBackendGetFuncFromEnv",
)
SLOTS: dict[str, tuple[str, ...]] = {
    "legacy": ("TVMAPISetLastError", "TVMFuncCall", *_SHARED),
    "ffi": (
        "TVMFFIErrorSetRaisedFromCStr",
        "TVMFFIErrorSetRaisedFromCStrParts",
        "TVMFFIFunctionCall",
        "TVMFFIEnvModLookupFromImports",
        "TVMFFIEnvLookupFromImports",
        "TVMFFIHandleInitOnce",
        "TVMFFIEnvGetStream",
        "TVMFFIEnvCheckSignals",
        *_SHARED,
    ),
}
"""Functions each ABI has slots for; the shared names need not have the same address."""
_IMPORTED: dict[str, tuple[str, ...]] = {
    "legacy": ("TVMBackendRegisterSystemLibSymbol",),
    "ffi": (
        "TVMBackendRegisterSystemLibSymbol",
        "TVMFFIEnvModRegisterSystemLibSymbol",
        "TVMFFIEnvRegisterSystemLibSymbol",
        "TVMBackendAnyListSetPackedArg",
        "TVMBackendAnyListMoveFromPackedReturn",
        "TVMBackendAnyListResetItem",
    ),
}
"""What libraries only import, never have slots for."""

SPIN_US = 60
"""How long a thread spins before it sleeps: waking one costs 10 us and more, a spin none."""

lib.ph_pool_configure(thread_count(), SPIN_US)

Lookup: TypeAlias = Callable[[str, Abi], int]

_PENDING_MAX = 64  # exceptions of errors that C code swallowed must not pile up
_pending: OrderedDict[int, BaseException] = OrderedDict()
_objects: dict[int, Any] = {}
_contexts: dict[int, Lookup] = {}
_ids = itertools.count(1)
_lock = threading.Lock()
_collecting = threading.local()

_KINDS: dict[str, type[PackhorseError]] = {
    "TypeError": ArgumentTypeError,
    "ValueError": ArgumentValueError,
}
"""Error kinds of the tvm-ffi ABI that say the caller is wrong."""


def slot_addresses(abi: Abi = "legacy") -> dict[str, int]:
    """Address of each function compiled code may call, by the name of the slot it is put in.

    ``{"__TVMBackendParallelLaunch": 0x7f..., ...}``: pointer variables of those names are filled
    when a library is loaded; a JIT fills them likewise.
    """
    return {f"__{name}": _address(name, abi) for name in SLOTS[abi]}


def runtime_addresses(abi: Abi = "legacy") -> dict[str, int]:
    """The same functions under their own names, for libraries that import them directly."""
    return {name: _address(name, abi) for name in (*SLOTS[abi], *_IMPORTED[abi])}


def _address(name: str, abi: Abi) -> int:
    found: int = lib.ph_runtime_address(name.encode(), ABI_NUMBER[abi])
    return found


# ---------------------------------------------------------------- numbered objects


def hold(value: object) -> int:
    """A number by which compiled code names a Python object, valid until :func:`let_go`."""
    number = next(_ids)
    _objects[number] = value
    return number


def let_go(number: int) -> None:
    """Forget the object; compiled code that still has its number gets an error."""
    _objects.pop(number, None)


def object_of(number: int) -> Any:
    """The object of a number.

    Raises
    ------
    PackhorseError
        It was let go: compiled code kept a function or module for longer than the call it was
        passed to.
    """
    found = _objects.get(number)
    if found is None:
        raise PackhorseError(
            "compiled code used a function or module after the call that it was passed to had "
            "ended; register the function with packhorse.register_func, which keeps it"
        )
    return found


def new_context(lookup: Lookup) -> int:
    """A module context: ``lookup(name, abi)`` returns a handle or raises FunctionNotFound."""
    number = next(_ids)
    _contexts[number] = lookup
    return number


def collect_symbols(array: int, count: int) -> dict[str, int]:
    """Run static constructors of a library; the symbols that they register, with addresses."""
    found: dict[str, int] = {}
    _collecting.found = found
    try:
        lib.ph_run_constructors(array, count)
    finally:
        _collecting.found = None
    return found


# ---------------------------------------------------------------- errors


def remember(error: BaseException) -> None:
    """Make ``error`` the calling thread's last error, to be raised again by whoever called C."""
    token = next(_ids)
    with _lock:
        _pending[token] = error
        while len(_pending) > _PENDING_MAX:
            _pending.popitem(last=False)
    lib.ph_error_set(f"{type(error).__name__}: {error}".encode("utf-8", "replace"), token)


def raise_last_error(what: str) -> NoReturn:
    """Raise the Python exception behind the last error, else one with its text.

    Parameters
    ----------
    what : str
        Subject of the message: ``"function 'myadd'"``.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        Compiled code of the tvm-ffi ABI refused an argument.
    PackhorseError
        Any other failure of compiled code.
    Exception
        What a Python function raised that compiled code had called.
    """
    token = lib.ph_error_token()
    text = ffi.string(lib.ph_error_text()).decode("utf-8", "replace").strip()
    kind = ffi.string(lib.ph_error_kind()).decode("utf-8", "replace")
    lib.ph_error_clear()
    with _lock:
        cause = _pending.pop(token, None) if token else None
    if cause is not None:
        raise cause
    text += _hint(text)
    prefix = "" if kind in ("", "RuntimeError", *_KINDS) else f"{kind}: "
    raise _KINDS.get(kind, PackhorseError)(
        f"{what} failed: {prefix}{text or 'it returned an error and gave no reason'}"
    )


def _hint(text: str) -> str:
    """How to mend what compiled code says of a tensor that lies elsewhere."""
    found = re.search(r"\.device_type on argument #\d+ .*expected (\w+)\s*$", text, re.S)
    if found is None:
        return ""
    if found[1] == "cpu":
        return "; pass tensor.numpy()"
    return f"; copy it there with packhorse.tensor(array, device='{found[1]}:0')"


# ---------------------------------------------------------------- called by C


@ffi.def_extern(error=-1)  # type: ignore[untyped-decorator]
def ph_py_lookup(context: int, name: Any, abi: int, handle: Any) -> int:
    """Compiled code asks for a function by name; it does so once per call site."""
    try:
        text = ffi.string(name).decode("utf-8", "replace")
        if context not in _contexts:
            raise FunctionNotFound(
                f"compiled code asked for '{text}' from a module packhorse did not load"
            )
        handle[0] = _contexts[context](text, _ABIS[abi])
    except BaseException as error:
        remember(error)
        return -1
    return 0


@ffi.def_extern(error=-1)  # type: ignore[untyped-decorator]
def ph_py_symbol(name: Any, address: int) -> int:
    """A static constructor registers a symbol of its system library."""
    found = getattr(_collecting, "found", None)
    if found is not None:
        found[ffi.string(name).decode("utf-8", "replace")] = address
    return 0


@ffi.def_extern(error=-1)  # type: ignore[untyped-decorator]
def ph_py_release(number: int) -> int:
    """The last reference to an object of the tvm-ffi ABI is gone."""
    let_go(number)
    return 0
