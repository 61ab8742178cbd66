"""Arguments of Relax functions: from what the caller gives to values of the machine, and a key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from packhorse.dtype import dtype_name
from packhorse.errors import ArgumentTypeError, ArgumentValueError, did_you_mean
from packhorse.graph.relax_signature import Parameter
from packhorse.graph.relax_values import Buffer, Source, View
from packhorse.native.memory import ALIGNMENT, address_of, aligned_array

__all__ = ["Bound", "bind", "constant_view", "describe", "fits", "order", "values"]

Array: TypeAlias = np.ndarray[Any, Any]
_ndarray = np.ndarray


@dataclass(slots=True)
class Bound:
    """Arguments of one run.

    Attributes
    ----------
    arrays : list of ndarray
        Every tensor, those in tuples too, C-contiguous.
    parts : list
        Per argument what decides which plan fits: dtype and shape of a tensor, else its value.
    """

    arrays: list[Array] = field(default_factory=list)
    parts: list[Any] = field(default_factory=list)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for arguments that one plan serves."""
        return tuple(self.parts)


def bind(parameters: Sequence[Parameter], given: Sequence[Any]) -> Bound:
    """Check the kind of each argument. Dtypes and shapes are the bytecode's business.

    Raises
    ------
    ArgumentTypeError
        An argument is of a kind the parameter cannot take.
    """
    bound = Bound()
    arrays, parts = bound.arrays, bound.parts
    for parameter, value in zip(parameters, given, strict=True):
        if (
            type(value) is _ndarray
            and parameter.kind in ("tensor", "any")
            and value.flags.c_contiguous
        ):
            arrays.append(value)
            parts.append((value.dtype, value.shape))
        else:
            parts.append(_part(parameter.name, parameter.kind, value, arrays))
    return bound


def fits(key: tuple[Any, ...], inputs: Any) -> bool:
    """Whether inputs are a list of contiguous arrays of exactly this key: the quick way in."""
    if type(inputs) is not list or len(inputs) != len(key):
        return False
    for array, part in zip(inputs, key, strict=True):
        if (
            type(array) is not _ndarray
            or (array.dtype, array.shape) != part
            or not array.flags.c_contiguous
        ):
            return False
    return True


def order(parameters: Sequence[Parameter], inputs: Any) -> Sequence[Any]:
    """Inputs given by name or in order, in order.

    Raises
    ------
    ArgumentTypeError
        They are neither a mapping nor a sequence.
    ArgumentValueError
        One is missing or unknown, or the count is wrong.
    """
    if isinstance(inputs, Mapping):
        names = [p.name for p in parameters]
        for name in inputs:
            if name not in names:
                hint = did_you_mean(str(name), names)
                raise ArgumentValueError(f"there is no input '{name}'{hint}; {_takes(parameters)}")
        for name in names:
            if name not in inputs:
                raise ArgumentValueError(f"input '{name}' is missing; {_takes(parameters)}")
        return [inputs[name] for name in names]
    if isinstance(inputs, np.ndarray | str | bytes) or not isinstance(inputs, Sequence):
        raise ArgumentTypeError(
            f"inputs must be a dict by name or a list, found {type(inputs).__name__}; put a "
            "single array into a list"
        )
    if len(inputs) != len(parameters):
        raise ArgumentValueError(f"{len(inputs)} inputs were given; {_takes(parameters)}")
    return inputs


def _takes(parameters: Sequence[Parameter]) -> str:
    return f"the function takes {', '.join(str(p) for p in parameters) or 'none'}"


# ---------------------------------------------------------------- the less usual kinds


def _part(name: str, kind: str, value: Any, arrays: list[Array]) -> Any:
    """Key part of an argument; its tensors are appended to ``arrays``."""
    if kind == "any":
        kind = _kind(value)
    if kind == "tensor":
        array = _tensor(name, value)
        arrays.append(array)
        return array.dtype, array.shape
    if isinstance(value, np.generic):
        value = value.item()
    if kind == "number" and isinstance(value, bool | int | float):
        return type(value), value  # 1, 1.0 and True are equal, but not the same argument
    sequence = isinstance(value, tuple | list)
    if kind == "shape" and sequence and all(type(d) is int and -1 < d < 1 << 63 for d in value):
        return "shape", tuple(value)
    if kind == "tuple" and sequence:
        parts = (_part(f"{name}[{i}]", "any", v, arrays) for i, v in enumerate(value))
        return "tuple", tuple(parts)
    raise _refused(name, kind, value)


def _kind(value: Any) -> str:
    if hasattr(value, "__dlpack__") or hasattr(value, "__array__"):
        return "tensor"
    if isinstance(value, bool | int | float):
        return "number"
    if isinstance(value, tuple) and all(type(d) is int for d in value):
        return "shape"
    return "tuple"


_WANTED = {
    "shape": "a tuple of non-negative ints",
    "number": "a number",
    "tuple": "an array, a number, a tuple of ints or a list of such",
    "function": "a function, which cannot be passed from here",
}


def _refused(name: str, kind: str, value: Any) -> ArgumentTypeError:
    return ArgumentTypeError(
        f"input '{name}' must be {_WANTED[kind]}, found {type(value).__name__} ({value!r:.60})"
    )


def _tensor(name: str, value: Any) -> Array:
    if not (hasattr(value, "__array__") or hasattr(value, "__dlpack__")):
        raise ArgumentTypeError(
            f"input '{name}' must be an array, found {type(value).__name__}; pass "
            "np.asarray(value, dtype=...)"
        )
    array = np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)
    return np.ascontiguousarray(array).reshape(array.shape)


def describe(part: Any) -> str:
    """A part of a key for people: ``float32[3, 4]``, ``shape(2, 3)``, ``7``."""
    head, rest = part
    if isinstance(head, np.dtype):
        return f"{head}[{', '.join(str(d) for d in rest)}]"
    if head == "tuple":
        return f"({', '.join(describe(item) for item in rest)})"
    return f"shape{rest}" if head == "shape" else repr(rest)


# ---------------------------------------------------------------- values of the machine


def values(bound: Bound) -> list[Any]:
    """The arguments as the machine takes them; tensors over aligned memory.

    Raises
    ------
    ArgumentTypeError
        An array has a dtype that compiled code does not know.
    """
    for number, array in enumerate(bound.arrays):
        try:
            dtype_name(array.dtype)
        except ArgumentTypeError as error:
            raise ArgumentTypeError(f"array {number} of the inputs: {error}") from None
    arrays = iter(enumerate(bound.arrays))
    return [_value(part, arrays) for part in bound.parts]


def _value(part: Any, arrays: Any) -> Any:
    head, rest = part
    if isinstance(head, np.dtype):
        number, array = next(arrays)
        return View(Buffer(_bytes(array), Source.INPUT, number), 0, array.shape, array.dtype)
    if head == "tuple":
        return [_value(item, arrays) for item in rest]
    return rest


def constant_view(array: Array) -> View:
    """A tensor that no run changes, over the array's memory if that is aligned."""
    return View(Buffer(_bytes(array), Source.CONSTANT), 0, array.shape, array.dtype)


def _bytes(array: Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if address_of(array) % ALIGNMENT:
        aligned = aligned_array(array.shape, array.dtype)
        np.copyto(aligned, array)
        array = aligned
    return array.reshape(-1).view(np.uint8)
