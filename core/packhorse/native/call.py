"""Calls in both directions: Python calls compiled code, compiled code calls Python."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from packhorse.dtype import dlpack_code, legacy_code
from packhorse.errors import ArgumentTypeError, MissingExtra
from packhorse.native import fast
from packhorse.native.codes import CODES
from packhorse.native.devices import OnDevice
from packhorse.native.marshal import (
    Packer,
    is_object,
    native_handles,
    owned_any,
    release_value,
    unpack,
)
from packhorse.native.memory import ALIGNMENT
from packhorse.native.runtime import (
    ABI_NUMBER,
    Abi,
    ffi,
    hold,
    lib,
    object_of,
    raise_last_error,
    remember,
)
from packhorse.native.signature import Signature

__all__ = ["FastCall", "NativeCall", "lookup_handle"]

_STEP, _CALLEE, _PARAMS, _ANY = (
    ffi.typeof(name) for name in ("ph_step *", "ph_callee *", "ph_param[]", "ph_any *")
)


def _finish(address: int, abi: int, what: str) -> Any:
    """The value of a result fast.c does not know."""
    result = ffi.cast(_ANY, address)
    name: Abi = "ffi" if abi else "legacy"
    try:
        return unpack(result.value, result.type_index, name, what, result.small_len)
    finally:
        release_value(result.value, result.type_index, name)


fast.setup(None, np.ndarray, _finish, raise_last_error)


class NativeCall:
    """A packed function with its arguments built: ``call()`` runs it, GIL released.

    Parameters
    ----------
    address : int
        A ``TVMBackendPackedCFunc``, or a ``TVMFFISafeCallType`` when abi is "ffi".
    args : sequence
        Packed values. Arrays are used where they are if they are contiguous and aligned, else
        copied before each call and back after it.
    what : str
        Subject of error messages.
    alignment : int
        What the code behind ``address`` assumes of tensor addresses.
    devices : collection of int
        DLPack types of the devices whose kernels it launches.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        An argument cannot be passed.
    """

    __slots__ = ("_copies", "_keep", "_run", "_step", "_where", "owner", "what")

    def __init__(
        self,
        address: int,
        args: Sequence[Any],
        what: str,
        alignment: int = ALIGNMENT,
        abi: Abi = "legacy",
        devices: Collection[int] = (),
    ) -> None:
        packer = Packer(args, abi, alignment, devices)
        step = ffi.new(_STEP)
        step.function, step.count, step.abi = address, len(args), ABI_NUMBER[abi]
        step.anys = packer.anys
        if abi == "legacy":
            step.values, step.codes = packer.values, packer.codes
        self._step, self._copies, self._keep = step, packer.copies, packer
        self._where = (packer.device, packer.blocks) if packer.device else None
        self._run = fast.make_bound(int(ffi.cast("uintptr_t", step)), what)
        self.what = what
        self.owner: object = None  # of the code: lives as long as the call

    @property
    def threads(self) -> int:
        """Limit of its parallel launches; 0 means all this process may use."""
        return self._step.threads  # type: ignore[no-any-return]

    @threads.setter
    def threads(self, count: int) -> None:
        self._step.threads = count

    def __call__(self) -> Any:
        """Run and return the result. Raises what a Python callee raised, or PackhorseError."""
        if not self._copies and self._where is None:
            return self._run()
        for outside, inside in self._copies:
            inside[...] = outside
        with OnDevice(*self._where) if self._where else nullcontext():
            result = self._run()
        for outside, inside in self._copies:
            if outside.flags.writeable:
                outside[...] = inside
        return result


class FastCall:
    """A function's fast path: ``call(*args)`` runs, or returns NotImplemented untouched.

    ``call`` is a C function. This object owns what it points to.
    """

    __slots__ = ("_callee", "_params", "call")

    def __init__(
        self, address: int, what: str, abi: Abi, alignment: int, signature: Signature | None
    ) -> None:
        self._callee, self._params = ffi.new(_CALLEE), _params(signature, abi)
        self._callee.function, self._callee.abi = address, ABI_NUMBER[abi]
        self._callee.alignment = alignment
        self._callee.count = -1 if signature is None else len(signature.params)
        self._callee.params = self._params
        self.call: Callable[..., Any] = fast.make_call(
            int(ffi.cast("uintptr_t", self._callee)), what
        )


def _params(signature: Signature | None, abi: Abi) -> Any:
    known = signature.params if signature else ()
    made = ffi.new(_PARAMS, max(1, len(known)))
    for c, param in zip(made, known, strict=False):
        c.is_tensor = param.kind == "pointer"
        if param.ndim is not None:
            c.has_ndim, c.ndim = True, param.ndim
        if param.dtype is not None:
            try:
                code = (dlpack_code if abi == "ffi" else legacy_code)(param.dtype)
            except (ArgumentTypeError, MissingExtra):
                continue  # a vector type, perhaps: left to the callee
            c.has_dtype, c.code, c.bits = True, code[0], code[1]
    return made


# ---------------------------------------------------------------- handles

_handle_lock = threading.Lock()


def lookup_handle(function: Any, abi: Abi) -> int:
    """What compiled code gets that looked ``function`` up by name; made once per function.

    Compiled code keeps it for good, so the function then lives with the process. Functions of
    the caller's own ABI are called directly, others through Python.
    """
    handles: dict[str, int] = function._handles
    with _handle_lock:
        if abi not in handles:
            direct = function.address if getattr(function, "abi", None) == abi else None
            handles[abi] = _new_handle(function, abi, direct or 0)
    return handles[abi]


def _new_handle(function: Any, abi: Abi, address: int) -> int:
    if abi == "ffi":
        made: int = lib.ph_ffi_function(address, hold(function), CODES["ffi"].function)
    elif address:
        made = lib.ph_handle_new(address, 0)
        native_handles[made] = function
    else:
        made = lib.ph_handle_new(0, hold(function))
    if not made:
        raise MemoryError("no memory for a function handle")
    return made


# ---------------------------------------------------------------- compiled code calls Python

_returned = threading.local()  # what a callback's returned pointer points to, until the next


def _who(function: Any) -> str:
    return f"compiled code that called '{getattr(function, 'name', function)}'"


@ffi.def_extern(error=-1)  # type: ignore[untyped-decorator]
def ph_py_call(
    number: int, values: Any, codes: Any, count: int, result: Any, result_code: Any
) -> int:
    """Compiled code of the legacy ABI calls a packed function.

    Tensor arguments are arrays over the caller's memory, valid only during the call.
    """
    try:
        function = object_of(number)
        what = _who(function)
        answer = function(*[unpack(values[i], codes[i], "legacy", what) for i in range(count)])
        if answer is None:
            return 0
        if isinstance(answer, np.ndarray) or hasattr(answer, "__packed_tensor__"):
            raise ArgumentTypeError(
                f"{what} cannot take a tensor as result; write into an output argument instead"
            )
        packer = Packer((answer,), "legacy", 1)
        result[0], result_code[0] = packer.values[0], packer.codes[0]
        _returned.keep = packer
    except BaseException as error:
        remember(error)
        return -1
    return 0


@ffi.def_extern(error=-1)  # type: ignore[untyped-decorator]
def ph_py_call_ffi(number: int, args: Any, count: int, result: Any) -> int:
    """Compiled code of the tvm-ffi ABI calls a packed function.

    Tensor arguments are arrays over the caller's memory, valid only during the call.
    """
    try:
        function = object_of(number)
        what = _who(function)
        given = [
            unpack(args[i].value, args[i].type_index, "ffi", what, args[i].small_len)
            for i in range(count)
        ]
        answer = function(*given)
        if is_object(answer):
            result.type_index, result.value.v_handle = owned_any(answer)
        else:
            result[0] = Packer((answer,), "ffi", 1).anys[0]
    except BaseException as error:
        remember(error)
        return -1
    return 0
