"""What a caller passes to a model, by position and by name, as arrays in the model's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from packhorse.errors import ArgumentTypeError, ArgumentValueError, did_you_mean
from packhorse.tensor import Tensor

__all__ = ["Array", "Feeds", "as_array", "bind", "no_such_input"]

Array: TypeAlias = np.ndarray[Any, Any]
Feeds: TypeAlias = "dict[str, Array | Tensor]"


def bind(names: Sequence[str], args: Sequence[Any], inputs: Mapping[str, Any]) -> Feeds:
    """Positional and named inputs as arrays, by name in the model's order.

    Raises
    ------
    ArgumentValueError
        Too many, unknown, repeated or missing inputs.
    ArgumentTypeError
        Something that is no array.
    """
    if len(args) > len(names):
        raise ArgumentValueError(
            f"{len(args)} inputs were given, the model takes {len(names)}: {', '.join(names)}"
        )
    feeds: Feeds = {}
    for name, value in zip(names, args, strict=False):
        feeds[name] = value if type(value) is np.ndarray else as_array(name, value)
    if not inputs and len(feeds) == len(names):
        return feeds
    for name, value in inputs.items():
        if name not in names:
            raise ArgumentValueError(no_such_input(name, names))
        if name in feeds:
            raise ArgumentValueError(f"input '{name}' was given twice, by position and by name")
        feeds[name] = value if type(value) is np.ndarray else as_array(name, value)
    missing = [name for name in names if name not in feeds]
    if missing:
        raise ArgumentValueError(
            f"input '{missing[0]}' is missing; the model takes {', '.join(names)}"
        )
    return {name: feeds[name] for name in names}


def as_array(name: str, value: Any) -> Array | Tensor:
    """One input as a NumPy array, without a copy where it is host memory already.

    Tensors in the memory of a device stay as they are: the executor knows whether it is its own.
    """
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if isinstance(value, Tensor):
        return value if value.on_device else value.numpy()
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    try:
        found = np.asarray(value)
    except ValueError as error:  # nested lists of different lengths
        raise ArgumentTypeError(f"input '{name}' cannot be made an array: {error}") from None
    if found.dtype.kind not in "biufcV":  # V: bfloat16 and its like
        raise ArgumentTypeError(
            f"input '{name}' is {type(value).__name__}; give a NumPy array, a Tensor or an "
            "object with __dlpack__"
        )
    return found


def no_such_input(name: str, names: Sequence[str]) -> str:
    """What to say about an unknown input name."""
    return (
        f"there is no input '{name}'{did_you_mean(name, names)}; "
        f"the model takes {', '.join(names) or 'none'}"
    )
