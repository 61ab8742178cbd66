"""Which neighbours in memory a work-item may read and write as one vector.

A vector is at most 16 bytes and at most four elements, and lies at a multiple of its size:
device memory starts aligned to 128 bytes, so it is enough that every other part of an address
is a multiple of the vector's length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from packhorse.compiler.access import Access, View
from packhorse.kernel.expr import Expr, Load, walk
from packhorse.kernel.kernel import Store
from packhorse.kernel.layout import numpy_dtype

__all__ = ["lanes", "load_is_vector", "store_is_vector", "widest"]

_BYTES, _MOST = 16, 4


def widest(dtype: str) -> int:
    """Elements of the longest vector of a dtype."""
    return max(1, min(_MOST, _BYTES // numpy_dtype(dtype).itemsize))


def load_is_vector(view: View, node: Load, axis: str, count: int) -> bool:
    """Whether ``count`` neighbours along an axis, from a multiple of it on, are one vector."""
    guarded = node.when is not None and axis in view.free(node.when)
    where = view.load(node)
    moved = any(axis in view.free(expr) for expr, _ in where.indirect)
    return not guarded and not moved and _is_vector(view, where, axis, count)


def store_is_vector(view: View, store: Store, axis: str, count: int) -> bool:
    """The same of a store."""
    return _is_vector(view, view.store(store), axis, count)


def _is_vector(view: View, where: Access, axis: str, count: int) -> bool:
    if count > widest(view.kernel.buffers[where.buffer].dtype) or where.linear.coef(axis) != 1:
        return False
    blocked = any(
        index.coef(axis) or dim.step % count or dim.block_step % count
        for index, dim in where.blocked
    )
    indirect = any(dim.block or dim.step % count for _, dim in where.indirect)
    return not blocked and not indirect and not _rest(where, axis, view.extents, count)


def _rest(where: Access, axis: str, extents: Mapping[str, int], count: int) -> bool:
    """Whether the part of an address without the axis may be no multiple of ``count``."""
    others = (c for n, c in where.linear.terms if n != axis and extents[n] > 1)
    return any(c % count for c in (where.linear.const, *others))


def lanes(
    view: View, values: Iterable[Expr], stores: Sequence[Store], axis: str, tail: bool = False
) -> int:
    """How many neighbours along an axis one work-item should compute; 1 for no vectors.

    Everything that moves with the axis must then be vectors: a strided access would be spread
    over more of memory than without. The number divides the extent, unless a ``tail`` is dealt
    with otherwise.
    """
    found = [n for v in values for n in walk(v) if isinstance(n, Load) and axis in view.free(n)]
    moving = [s for s in stores if axis in view.store(s).axes]
    if not found and not moving:
        return 1
    extent = view.extents[axis]
    for count in (4, 2):
        vectors = [load_is_vector(view, n, axis, count) for n in found]
        vectors += [store_is_vector(view, s, axis, count) for s in moving]
        if all(vectors) and extent >= count and (tail or extent % count == 0):
            return count
    return 1
