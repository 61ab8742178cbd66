"""What operators' ``lower`` functions read: constants, lazy values and values in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from packhorse.compiler.reshape import reshape_index, reshape_strides
from packhorse.kernel.expr import Affine, Expr, IndexLike, Load, cast, const, reduces, walk
from packhorse.kernel.expr import Call as _Call
from packhorse.kernel.kernel import Buffer, Dim
from packhorse.kernel.lowering import Lazy, Operand, axes_of, compute_dtype

__all__ = ["ConstOperand", "LazyOperand", "Memory", "Place", "StoredOperand", "is_view"]

Halo = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Place:
    """A view of memory. ``root`` names the storage, ``name`` this view of it (its ``buffer``)."""

    name: str
    root: str
    buffer: Buffer


class Constants(Protocol):
    """Where constants are registered."""

    def constant(self, array: np.ndarray[Any, Any]) -> ConstOperand:
        """Register an array as a constant."""


class Memory(Constants, Protocol):
    """What operands ask of the builder."""

    def place(
        self,
        value: Lazy,
        name: str,
        *,
        order: Sequence[int] | None = None,
        halo: Halo | None = None,
    ) -> Place:
        """Emit the kernel that computes a lazy value into memory."""

    def placed(self, operand: LazyOperand) -> StoredOperand:
        """The value of a lazy operand in memory, computed once for all its readers."""

    def view(self, place: Place, buffer: Buffer) -> Place:
        """Another view of the same memory."""

    def find(self, name: str) -> Place | None:
        """The memory of that name; None for constants."""

    def preferred_halo(self, name: str, wanted: Halo) -> Halo:
        """The halo wanted now, widened to what other readers of the value will want."""

    def inlined(self, operand: LazyOperand) -> bool:
        """Note that a lazy operand is about to be inlined; False if it must be placed."""


class ConstOperand(Operand):
    """A value known at compile time. float16 constants are kept as float32."""

    def __init__(
        self, constants: Constants, name: str, array: np.ndarray[Any, Any], dtype: str
    ) -> None:
        self.constants, self.name, self.dtype = constants, name, dtype
        self.constant = array
        self.shape = tuple(array.shape)

    def at(self, index: Sequence[IndexLike]) -> Expr:
        assert self.constant is not None
        dtype = compute_dtype(self.dtype)
        if self.constant.size == 1:
            return const(self.constant.item(), dtype)
        return Load(self.name, tuple(index), dtype)

    def stored(self, *, halo: Halo | None = None, last: int | None = None) -> Operand:
        assert self.constant is not None
        if halo is None or not any(map(any, halo)):
            return self
        padded = self.constants.constant(np.pad(self.constant, [(a, b) for a, b in halo]))
        return _Shifted(padded, self.shape, [a for a, _ in halo])

    def reshape(self, shape: Sequence[int]) -> Operand:
        assert self.constant is not None
        return self.constants.constant(self.constant.reshape(tuple(shape)))


class _Shifted(Operand):
    """A padded constant addressed by its unpadded indices."""

    def __init__(self, inner: ConstOperand, shape: tuple[int, ...], by: Sequence[int]) -> None:
        self.inner, self.shape, self.by = inner, shape, by
        self.dtype, self.constant = inner.dtype, None

    def at(self, index: Sequence[IndexLike]) -> Expr:
        moved = [
            i + b if isinstance(i, Affine) else i + const(b, "int64")
            for i, b in zip(index, self.by, strict=True)
        ]
        return self.inner.at(moved)

    def stored(self, *, halo: Halo | None = None, last: int | None = None) -> Operand:
        return self

    def reshape(self, shape: Sequence[int]) -> Operand:
        raise TypeError("a padded constant is not reshaped")


class StoredOperand(Operand):
    """A value in memory."""

    def __init__(self, memory: Memory, place: Place, dtype: str) -> None:
        self.memory, self.where, self.dtype = memory, place, dtype
        self.shape = place.buffer.shape
        self.constant = None

    def at(self, index: Sequence[IndexLike]) -> Expr:
        fixed = [
            Affine() if n == 1 and isinstance(i, Affine) and not i.const else i
            for n, i in zip(self.shape, index, strict=True)
        ]
        return cast(Load(self.where.name, tuple(fixed), self.dtype), compute_dtype(self.dtype))

    def stored(self, *, halo: Halo | None = None, last: int | None = None) -> Operand:
        buffer = self.where.buffer
        fits = halo is None or _halo_fits(buffer, halo)
        if fits and (last is None or buffer.dims[last].step == 1 or self.shape[last] == 1):
            return self
        order = _order(buffer)
        if last is not None:
            order = [d for d in order if d != last] + [last]
        wanted = self.memory.preferred_halo(self.where.name, halo) if halo is not None else None
        copy = Lazy(self.shape, self.dtype, self.at(axes_of(len(self.shape))))
        place = self.memory.place(copy, self.where.name, order=order, halo=wanted)
        return StoredOperand(self.memory, place, self.dtype)

    def reshape(self, shape: Sequence[int]) -> Operand:
        buffer = reshape_strides(self.where.buffer, tuple(shape))
        if buffer is None:
            copy = Lazy(self.shape, self.dtype, self.at(axes_of(len(self.shape))))
            rows = range(len(self.shape))
            place = self.memory.place(copy, self.where.name, order=rows)
            buffer = reshape_strides(place.buffer, tuple(shape))
            assert buffer is not None, "row-major memory always reshapes"
            return StoredOperand(self.memory, self.memory.view(place, buffer), self.dtype)
        return StoredOperand(self.memory, self.memory.view(self.where, buffer), self.dtype)


class LazyOperand(Operand):
    """A value that is still an expression; reading it inlines it or puts it into memory."""

    def __init__(self, memory: Memory, name: str, value: Lazy) -> None:
        self.memory, self.name, self.value = memory, name, value
        self.shape, self.dtype, self.constant = value.shape, value.dtype, None

    def at(self, index: Sequence[IndexLike]) -> Expr:
        simple = all(isinstance(i, Affine) for i in index)
        may = is_view(self.value) or (simple and self._may_inline(index))
        if may and self.memory.inlined(self):
            return self.value.at(index)
        return self.memory.placed(self).at(index)

    def _may_inline(self, index: Sequence[IndexLike]) -> bool:
        """Reductions are only renamed or shifted, so that their loops keep unit steps."""
        if not reduces(self.value.value):
            return True
        return all(
            isinstance(i, Affine) and len(i.terms) <= 1 and all(c == 1 for _, c in i.terms)
            for i in index
        )

    def stored(self, *, halo: Halo | None = None, last: int | None = None) -> Operand:
        if halo is None or not any(map(any, halo)):
            view = self._as_view()
            if view is not None and (last is None or view.where.buffer.dims[last].step == 1):
                return view
        return self.memory.placed(self).stored(halo=halo, last=last)

    def _as_view(self) -> StoredOperand | None:
        """A slice or transpose of something in memory, as other strides over it."""
        load = self.value.value
        if not isinstance(load, Load) or load.when is not None:
            return None
        source = self.memory.find(load.buffer)
        if source is None or any(d.block for d in source.buffer.dims):
            return None
        index = [i for i in load.index if isinstance(i, Affine)]
        if len(index) != len(load.index) or not self.memory.inlined(self):
            return None
        steps = [dim.step for dim in source.buffer.dims]
        dims = tuple(
            Dim(sum(i.coef(f"i{d}") * step for i, step in zip(index, steps, strict=True)))
            for d in range(len(self.shape))
        )
        start = sum(i.const * step for i, step in zip(index, steps, strict=True))
        offset = source.buffer.offset + start
        buffer = Buffer(self.shape, self.dtype, dims, offset, source.buffer.size)
        return StoredOperand(self.memory, self.memory.view(source, buffer), self.dtype)

    def reshape(self, shape: Sequence[int]) -> Operand:
        index = reshape_index(self.shape, tuple(shape))
        if index is not None and self.memory.inlined(self):
            moved = Lazy(tuple(shape), self.dtype, self.value.at(index))
            return LazyOperand(self.memory, self.name, moved)
        return self.memory.placed(self).reshape(shape)


def is_view(value: Lazy) -> bool:
    """True when the value only moves elements of something in memory: free to repeat."""
    return all(
        not isinstance(node, _Call) or node.op == "cast" or node.dtype == "int64"
        for node in walk(value.value)
    ) and not reduces(value.value)


def _order(buffer: Buffer) -> list[int]:
    """Dimensions from the outermost in memory to the innermost."""
    return sorted(range(len(buffer.shape)), key=lambda d: (-buffer.dims[d].step, d))


def _halo_fits(buffer: Buffer, halo: Halo) -> bool:
    """Whether the memory round the buffer holds that border of zeros.

    The border is recovered from the strides: a step of the next outer dimension spans the inner
    one with its borders.
    """
    have = halo_of(buffer)
    return all(h[0] >= w[0] and h[1] >= w[1] for h, w in zip(have, halo, strict=True))


def halo_of(buffer: Buffer) -> list[tuple[int, int]]:
    """The border of each dimension of a dense buffer made by ``kernel.contiguous``."""
    order = _order(buffer)
    found = [(0, 0)] * len(order)
    outer = buffer.size
    rest = buffer.offset
    for d in order:
        step = buffer.dims[d].step
        span = outer // step if step else buffer.shape[d]
        before = rest // step if step else 0
        rest -= before * step
        found[d] = (before, span - buffer.shape[d] - before)
        outer = step
    return found
