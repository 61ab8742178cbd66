"""The bridge between compiled code and Python: last errors, function handles, lookups.

Compiled code sees handles and contexts as opaque pointers and keeps them for the life of its
library, so neither is ever freed. A Python exception raised in a callback travels through C as
a token beside the last-error text and comes out again as itself.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from packhorse.errors import FunctionNotFound, PackhorseError
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
    "RawCall",
    "ffi",
    "lib",
    "native_handle",
    "new_context",
    "python_handle",
    "raise_last_error",
    "slot_addresses",
]

RawCall: TypeAlias = Callable[[Any, Any, int, Any, Any], None]
"""``(ph_value *values, int *codes, count, ph_value *result, int *result_code)``; raises to fail."""

SLOTS = (
    "TVMAPISetLastError",
    "TVMBackendAllocWorkspace",
    "TVMBackendFreeWorkspace",
    "TVMBackendParallelLaunch",
    "TVMBackendParallelBarrier",
    "TVMFuncCall",
    "TVMBackendGetFuncFromEnv",
)
SPIN_US = 60
"""How long a thread spins before it sleeps: waking one costs 10 us and more, a spin none."""

lib.ph_pool_configure(thread_count(), SPIN_US)

_PENDING_MAX = 64  # exceptions of errors that C code swallowed must not pile up
_pending: OrderedDict[int, BaseException] = OrderedDict()
_calls: dict[int, RawCall] = {}
_contexts: dict[int, Callable[[str], int]] = {}
_ids = itertools.count(1)
_lock = threading.Lock()


def slot_addresses() -> dict[str, int]:
    """Address of each function compiled code may call, by the name of the slot it is put in.

    ``{"__TVMBackendParallelLaunch": 0x7f..., ...}``: pointer variables of those names are filled
    when a library is loaded; a JIT fills them likewise.
    """
    return {f"__{name}": lib.ph_runtime_address(name.encode()) for name in SLOTS}


def runtime_addresses() -> dict[str, int]:
    """The same functions under their own names, for libraries that import them directly."""
    return {name: lib.ph_runtime_address(name.encode()) for name in SLOTS}


def python_handle(call: RawCall) -> int:
    """A handle compiled code can pass to TVMFuncCall; it and ``call`` live with the process."""
    number = next(_ids)
    _calls[number] = call
    return _new_handle(0, number)


def native_handle(function: int) -> int:
    """The same for the address of a packed function: called without Python."""
    return _new_handle(function, 0)


def _new_handle(function: int, number: int) -> int:
    made: int = lib.ph_handle_new(function, number)
    if not made:
        raise MemoryError("no memory for a function handle")
    return made


def new_context(lookup: Callable[[str], int]) -> int:
    """A module context: ``lookup(name)`` returns a handle or raises FunctionNotFound."""
    number = next(_ids)
    _contexts[number] = lookup
    return number


def remember(error: BaseException) -> None:
    """Make ``error`` the calling thread's last error, to be raised again by whoever called C."""
    token = next(_ids)
    with _lock:
        _pending[token] = error
        while len(_pending) > _PENDING_MAX:
            _pending.popitem(last=False)
    lib.ph_error_set(f"{type(error).__name__}: {error}".encode("utf-8", "replace"), token)


def raise_last_error(what: str) -> NoReturn:
    """Raise the Python exception behind the last error, else PackhorseError with its text.

    Parameters
    ----------
    what : str
        Subject of the message: ``"function 'myadd'"``.
    """
    token = lib.ph_error_token()
    text = ffi.string(lib.ph_error_text()).decode("utf-8", "replace").strip()
    lib.ph_error_clear()
    with _lock:
        cause = _pending.pop(token, None) if token else None
    if cause is not None:
        raise cause
    raise PackhorseError(f"{what} failed: {text or 'it returned an error and gave no reason'}")


@ffi.def_extern(error=-1)  # type: ignore[untyped-decorator]
def ph_py_call(
    number: int, values: Any, codes: Any, count: int, result: Any, result_code: Any
) -> int:
    """Compiled code calls a Python packed function."""
    try:
        _calls[number](values, codes, count, result, result_code)
    except BaseException as error:
        remember(error)
        return -1
    return 0


@ffi.def_extern(error=-1)  # type: ignore[untyped-decorator]
def ph_py_lookup(context: int, name: Any, handle: Any) -> int:
    """Compiled code asks for a function by name; it does so once per call site."""
    try:
        text = ffi.string(name).decode("utf-8", "replace")
        if context not in _contexts:
            raise FunctionNotFound(
                f"compiled code asked for '{text}' from a module packhorse did not load"
            )
        handle[0] = _contexts[context](text)
    except BaseException as error:
        remember(error)
        return -1
    return 0
