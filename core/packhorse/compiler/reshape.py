"""When a reshape needs no copy: as index arithmetic, or as other strides over the same memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from packhorse.kernel.expr import Affine, affine
from packhorse.kernel.kernel import Buffer, Dim, contiguous

__all__ = ["reshape_index", "reshape_strides"]


def _groups(
    old: Sequence[int], new: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:  # pairs of dimension numbers with equal products
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        size_left = old[i] if left else 1
        size_right = new[j] if right else 1
        i, j = i + len(left), j + len(right)
        while size_left != size_right:
            if size_left < size_right:
                left.append(i)
                size_left *= old[i]
                i += 1
            else:
                right.append(j)
                size_right *= new[j]
                j += 1
        yield left, right


def reshape_index(old: Sequence[int], new: Sequence[int]) -> list[Affine] | None:
    """Indices into the old shape for axes i0, i1, ... of the new one; None where that needs a
    division (dimensions merge)."""
    if 0 in old:
        return None
    index = [Affine()] * len(old)
    for left, right in _groups(old, new):
        left, right = [d for d in left if old[d] > 1], [d for d in right if new[d] > 1]
        if not left:
            continue
        if len(left) > 1:
            if [old[d] for d in left] != [new[d] for d in right]:
                return None
            for source, target in zip(left, right, strict=True):
                index[source] = affine(f"i{target}")
            continue
        step = 1
        for target in reversed(right):
            index[left[0]] = index[left[0]] + affine(f"i{target}") * step
            step *= new[target]
    return index


def reshape_strides(buffer: Buffer, new: Sequence[int]) -> Buffer | None:
    """The buffer under another shape (row-major element order), or None where it needs a copy."""
    old = buffer.shape
    if 0 in old:  # no element lies anywhere
        return replace(buffer, shape=tuple(new), dims=contiguous(new, buffer.dtype).dims)
    if any(d.block for d in buffer.dims):
        return None
    dims = [Dim(1)] * len(new)
    for left, right in _groups(old, new):
        left = [d for d in left if old[d] > 1]
        if not left:
            continue
        for outer, inner in itertools.pairwise(left):
            if buffer.dims[outer].step != buffer.dims[inner].step * old[inner]:
                return None
        step = buffer.dims[left[-1]].step
        for target in reversed(right):
            dims[target] = Dim(step)
            step *= new[target]
    return Buffer(
        tuple(new), buffer.dtype, tuple(dims), buffer.offset, buffer.size, buffer.constant
    )
