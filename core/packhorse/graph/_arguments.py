"""What a graph module's tensors may be set to: one row per input, param and output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import numpy as np

from packhorse.errors import ArgumentTypeError, ArgumentValueError, did_you_mean
from packhorse.graph._storage import ALIGNMENT, Array
from packhorse.graph.program import Program
from packhorse.native.memory import address_of
from packhorse.tensor import Tensor, from_dlpack

__all__ = ["Argument", "Arguments", "alignment_of", "check_aligned", "host_array"]

Key: TypeAlias = int | str
_HOST = 1  # DLPack's device type


@dataclass(slots=True)
class Argument:
    """One input, param or output.

    Attributes
    ----------
    name : str
    number : int
        Its entry in the program.
    dtype, shape
        What it must be set to.
    replaceable : bool
        Its memory may be the caller's: nothing else lies in that storage.
    view : ndarray or Tensor
        Where its elements are now: a Tensor on devices of their own memory.
    own : ndarray or Tensor
        Where they are unless the caller gave other memory.
    """

    name: str
    number: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    replaceable: bool
    view: Any
    own: Any = field(init=False)

    def __post_init__(self) -> None:
        self.own = self.view

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"'{self.name}' {self.dtype}{list(self.shape)}"


class Arguments:
    """Rows by position and by name. ``kind`` is what errors call one of them."""

    def __init__(self, kind: str, rows: Sequence[Argument]) -> None:
        self.kind, self.rows = kind, list(rows)
        self.index: Mapping[str, int] = {row.name: i for i, row in enumerate(self.rows)}

    def find(self, key: Any) -> Argument:
        """The row of a name or position.

        Raises
        ------
        ArgumentValueError
            There is none; the closest name is suggested.
        ArgumentTypeError
            ``key`` is neither a name nor a position.
        """
        if type(key) is str:
            at = self.index.get(key)
            if at is not None:
                return self.rows[at]
        elif isinstance(key, int | np.integer) and not isinstance(key, bool):
            if 0 <= key < len(self.rows):
                return self.rows[key]
        elif not isinstance(key, str):
            raise ArgumentTypeError(
                f"an {self.kind} is named by a str or by its position, not by a "
                f"{type(key).__name__}"
            )
        return self._refuse(key)

    def _refuse(self, key: Key) -> NoReturn:
        if isinstance(key, str):
            what = f"there is no {self.kind} '{key:.80}'{did_you_mean(key, self.index)}"
        else:
            what = f"there is no {self.kind} {key}"
        shown = ", ".join(map(str, self.rows[:8])) + (", ..." if len(self.rows) > 8 else "")
        raise ArgumentValueError(f"{what}; the graph has {len(self.rows)}: {shown or 'none'}")

    def accept(self, row: Argument, value: Any, *, exact: bool = False) -> Array:
        """``value`` as an array of the row's dtype and shape.

        Parameters
        ----------
        exact : bool
            The array itself is wanted: C-contiguous host memory, no copy of it.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            Not an array, another dtype or shape, or (exact) memory that cannot be used.
        """
        what = f"{self.kind} '{row.name}'"
        if exact and isinstance(value, Tensor) and value.device.dlpack_device[0] != _HOST:
            raise ArgumentTypeError(
                f"{what} lies on {value.device.name} and the graph runs on the host; zero copy "
                "needs host memory: pass tensor.numpy()"
            )
        array = value if type(value) is np.ndarray else host_array(what, value)
        self.check(row, array)
        if exact and not array.flags.c_contiguous:
            raise ArgumentValueError(
                f"the memory of {what} is strided; zero copy needs a C-contiguous array: pass "
                "numpy.ascontiguousarray(array)"
            )
        return array

    def check(self, row: Argument, array: Array | Tensor) -> None:
        """Refuse another dtype or shape than the row's. Raises as :meth:`accept`."""
        what = f"{self.kind} '{row.name}'"
        if array.dtype != row.dtype:
            raise ArgumentTypeError(
                f"{what} must be {row.dtype}, found {array.dtype}; convert it "
                f"with array.astype('{row.dtype}')"
            )
        if array.shape != row.shape:
            fix = "reshape it" if array.size == math.prod(row.shape) else "compile for that shape"
            raise ArgumentValueError(
                f"{what} must have shape {row.shape}, found {array.shape}; {fix}"
            )


def host_array(what: str, value: Any) -> Array:
    """An array, Tensor, DLPack object or object with ``__array__`` as an ndarray."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        return from_dlpack(value).numpy()
    if hasattr(value, "__array__"):
        return np.asarray(value)
    raise ArgumentTypeError(
        f"{what} must be an array or a Tensor, found {type(value).__name__}; pass "
        "packhorse.tensor(value)"
    )


def check_aligned(what: str, array: Array, alignment: int, instead: str) -> None:
    """Refuse memory that compiled code would fault on.

    Raises
    ------
    ArgumentValueError
        The address is not a multiple of ``alignment``.
    """
    off = address_of(array) % alignment if array.size else 0
    if off:
        raise ArgumentValueError(
            f"the memory of {what} is {off} bytes past a multiple of {alignment}, which the "
            f"compiled code needs; allocate it with packhorse.empty, or use {instead}, which copies"
        )


def alignment_of(program: Program, dtype: np.dtype[Any]) -> int:
    """What compiled code assumes of tensor addresses: TVM's 128, or the element's own."""
    return ALIGNMENT if program.metadata.get("alignment") == "strict" else dtype.alignment
