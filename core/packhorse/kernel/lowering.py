"""What an operator's ``lower`` function sees and returns.

``lower(ctx)`` turns one node into expressions. It stays purely logical: ONNX index order, no
layouts, no tiles, no packing, no fusion. The compiler decides which values become memory and
which are folded into their consumers, then lays them out and packs the constants.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from packhorse.kernel.expr import Affine, Axis, Expr, IndexLike, affine, substitute

__all__ = [
    "Lazy",
    "Lowered",
    "Lowering",
    "Operand",
    "Piece",
    "Pieces",
    "axes_of",
    "compute_dtype",
    "lazy",
]


def axes_of(rank: int) -> tuple[Affine, ...]:
    """The canonical output axes ``i0, i1, ...`` of a value of that rank, as indices."""
    return tuple(affine(f"i{d}") for d in range(rank))


def compute_dtype(dtype: str) -> str:
    """float16 and bfloat16 are computed in float32 and rounded when stored."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


@dataclass(frozen=True)
class Lazy:
    """A value not in memory yet: ``value`` is its element at (i0, i1, ...).

    ``dtype`` is the dtype it has when stored; ``value.dtype`` is ``compute_dtype(dtype)``.
    """

    shape: tuple[int, ...]
    dtype: str
    value: Expr

    def at(self, index: Sequence[IndexLike]) -> Expr:
        """The element at another index."""
        return substitute(self.value, {f"i{d}": i for d, i in enumerate(index)})


@dataclass(frozen=True)
class Piece:
    """Part of an output: ``output[index] = value`` where ``index`` is affine in the piece's own
    axes i0, i1, ... (an offset for Concat, a stride for a phase of ConvTranspose)."""

    value: Lazy
    index: tuple[Affine, ...]


@dataclass(frozen=True)
class Pieces:
    """An output written by several kernels that together cover it exactly once."""

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...]


class Operand(ABC):
    """An input of the node being lowered: in memory or still lazy, the operator need not know."""

    shape: tuple[int, ...]
    dtype: str
    constant: np.ndarray[Any, Any] | None
    """Its value when known at compile time (weights included)."""

    @abstractmethod
    def at(self, index: Sequence[IndexLike]) -> Expr:
        """Element at a logical index; dtype is ``compute_dtype(self.dtype)``.

        Use it when each element is read about once per output element or row.
        """

    @abstractmethod
    def stored(
        self, *, halo: Sequence[tuple[int, int]] | None = None, last: int | None = None
    ) -> Operand:
        """The same value in memory: for operands read many times (convolution, matmul).

        Parameters
        ----------
        halo : per dimension (before, after), optional
            Zeros that may be read outside the shape (padding of convolutions).
        last : int, optional
            The dimension that must be contiguous (vector loads along it).
        """

    @abstractmethod
    def reshape(self, shape: Sequence[int]) -> Operand:
        """The same elements in row-major order under another shape; free where possible."""

    def elementwise(self, shape: Sequence[int]) -> Expr:
        """Element at (i0, ...) of an output of ``shape``, with NumPy broadcasting."""
        index = axes_of(len(shape))[len(shape) - len(self.shape) :]
        return self.at([Affine() if n == 1 else i for n, i in zip(self.shape, index, strict=True)])


Lowered: TypeAlias = Lazy | Pieces | Operand


class Lowering(ABC):
    """The context of one ``lower`` call.

    Attributes
    ----------
    inputs : tuple of Operand or None
        None for elided optional inputs.
    output_types : tuple of (shape, dtype)
        What the operator's ``infer`` said, dtypes as NumPy names.
    """

    inputs: tuple[Operand | None, ...]
    output_types: tuple[tuple[tuple[int, ...], str], ...]

    @abstractmethod
    def attr(self, name: str) -> Any:
        """Attribute value, or the default of the reference function's keyword."""

    @abstractmethod
    def axis(self, extent: int) -> Axis:
        """A fresh reduce axis."""

    @abstractmethod
    def constant(self, array: np.ndarray[Any, Any]) -> Operand:
        """An array known at compile time (folded, split or rearranged weights) as an operand."""

    @abstractmethod
    def buffer(self, shape: Sequence[int], dtype: str) -> Operand:
        """Memory to be written by :meth:`kernel` (row-major)."""

    @abstractmethod
    def kernel(
        self,
        axes: Sequence[Axis],
        stores: Sequence[tuple[Operand, Sequence[Affine], Expr]],
        sequential: Sequence[str] = (),
    ) -> None:
        """Emit a kernel explicitly: for recurrences and several outputs at once."""

    def __getitem__(self, i: int) -> Operand:
        operand = self.inputs[i] if i < len(self.inputs) else None
        if operand is None:
            raise IndexError(f"input {i} was elided")
        return operand

    def has(self, i: int) -> bool:
        """True when optional input ``i`` is given."""
        return i < len(self.inputs) and self.inputs[i] is not None


def lazy(ctx: Lowering, value: Expr, output: int = 0) -> Lazy:
    """A :class:`Lazy` for output ``output`` with the shape and dtype that inference gave it."""
    shape, dtype = ctx.output_types[output]
    if value.dtype != compute_dtype(dtype):
        raise TypeError(f"value is {value.dtype}, output is computed as {compute_dtype(dtype)}")
    return Lazy(shape, dtype, value)


def elementwise(fn: Callable[..., Expr]) -> Callable[[Lowering], Lazy]:
    """``lower`` of a map operator from a function over scalar expressions."""

    def lower(ctx: Lowering) -> Lazy:
        shape, _ = ctx.output_types[0]
        return lazy(ctx, fn(*(x.elementwise(shape) for x in ctx.inputs if x is not None)))

    return lower
