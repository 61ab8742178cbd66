"""What the callers of an executor pass: checked against the program's inputs, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np

from packhorse.errors import ArgumentTypeError, ArgumentValueError, did_you_mean
from packhorse.graph._storage import Array, entry_dtype
from packhorse.graph.program import Entry
from packhorse.tensor import Tensor, TensorDevice

__all__ = ["Inputs", "Signature"]

Inputs: TypeAlias = Mapping[str, Any] | Sequence[Any]


class Signature:
    """The inputs of a program, or of several that make one model.

    Attributes
    ----------
    copied : dict of str to (str, int)
        Inputs that were given as tensors of another device -> that device, and the bytes copied.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = list(entries)
        self._types = {e.name: (entry_dtype(e), e.shape) for e in self._entries}
        self.copied: dict[str, tuple[str, int]] = {}

    def by_name(self, inputs: Inputs) -> Mapping[str, Any]:
        """The inputs by name, as many as the program takes.

        Raises
        ------
        ArgumentTypeError
            Neither a mapping nor a sequence.
        ArgumentValueError
            Another number of inputs, or other names.
        """
        if not isinstance(inputs, Mapping):
            inputs = self._paired(inputs)
        if len(inputs) != len(self._types):
            self.refuse_names(inputs)
        return inputs

    def _paired(self, inputs: Sequence[Any]) -> Mapping[str, Any]:
        if isinstance(inputs, np.ndarray) or not isinstance(inputs, Sequence):
            raise ArgumentTypeError(
                f"inputs must be a dict of arrays by name or a list of arrays, found "
                f"{type(inputs).__name__}; put a single array into a list"
            )
        if len(inputs) != len(self._types):
            raise ArgumentValueError(
                f"the program takes {len(self._types)} inputs, found {len(inputs)}; expected {self}"
            )
        return dict(zip(self._types, inputs, strict=True))

    def refuse_names(self, named: Mapping[str, Any]) -> NoReturn:
        """Say which name is unknown or missing."""
        unknown = [name for name in named if name not in self._types]
        if unknown:
            hint = did_you_mean(str(unknown[0]), list(self._types))
            message = f"there is no input '{unknown[0]}'{hint}"
        else:
            missing = next(name for name in self._types if name not in named)
            message = f"input '{missing}' is missing"
        raise ArgumentValueError(f"{message}; the program takes {self}")

    def accept(
        self, named: Mapping[str, Any], name: str, here: TensorDevice | None = None
    ) -> Array | Tensor:
        """One input as a C-contiguous host array of the right dtype and shape.

        A tensor that lies on the device ``here`` is returned as it is; one of any other device is
        copied to the host, and :attr:`copied` says so.

        Raises
        ------
        ArgumentTypeError
            Not an array, or of another dtype.
        ArgumentValueError
            It is missing, or of another shape.
        """
        if name not in named:
            self.refuse_names(named)
        given = named[name]
        if isinstance(given, Tensor):
            self._fits(name, given)
            if given.device is here:
                return given
            if given.on_device:
                self.copied[name] = given.device.name, given.nbytes
            given = given.numpy()
        if not isinstance(given, np.ndarray | np.generic) and not hasattr(given, "__array__"):
            raise ArgumentTypeError(
                f"input '{name}' must be an array, found {type(given).__name__}; pass "
                f"np.asarray(value, dtype='{self._types[name][0]}')"
            )
        array = np.asarray(given)
        self._fits(name, array)
        return np.ascontiguousarray(array).reshape(array.shape)

    def _fits(self, name: str, array: Array | Tensor) -> None:
        dtype, shape = self._types[name]
        if array.dtype != dtype:
            raise ArgumentTypeError(
                f"input '{name}' must be {dtype}, found {array.dtype}; convert it with "
                f"array.astype('{dtype}')"
            )
        if array.shape != shape:
            fix = "reshape it" if array.size == np.prod(shape) else "compile for that shape"
            raise ArgumentValueError(
                f"input '{name}' must have shape {shape}, found {array.shape}; {fix}"
            )

    def __str__(self) -> str:
        return ", ".join(f"'{e.name}' {e}" for e in self._entries)
