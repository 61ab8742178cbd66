"""Operators that move elements by affine index: Transpose, Concat, Split, Slice, Expand, Tile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packhorse.errors import ModelError
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Affine, Index, IndexLike, call
from packhorse.kernel.lowering import Lazy, Lowered, Lowering, Piece, Pieces, axes_of, lazy
from packhorse.ops.registry import Inference, operator
from packhorse.ops.rules import (
    Array,
    broadcast,
    compiled,
    known,
    labelled,
    normal_axes,
    normal_axis,
    same_dtype,
    whole,
)

__all__ = ["Span", "concat", "expand", "parts", "slice_", "slices", "split", "tile", "transpose"]

Shape = tuple[int, ...]
Span = tuple[int, int, int]
"""First element, step and number of elements taken of one dimension."""


# Transpose


def _order(perm: Sequence[int] | None, rank: int) -> Shape:
    if perm is None:
        return tuple(reversed(range(rank)))
    if len(perm) != rank:
        raise ModelError(f"perm {list(perm)} must name the {rank} dimensions of the input")
    return normal_axes(perm, rank)


@labelled
def _transpose_rule(ctx: Inference) -> Sequence[TensorType]:
    old = ctx.shape(0)
    order = _order(ctx.attr("perm"), len(old))
    return [TensorType(ctx.type(0).dtype, tuple(old[d] for d in order))]


@compiled
def _lower_transpose(ctx: Lowering) -> Lazy:
    rank = len(ctx[0].shape)
    index = [Affine()] * rank
    for d, axis in zip(_order(ctx.attr("perm"), rank), axes_of(rank), strict=True):
        index[d] = axis
    return lazy(ctx, ctx[0].at(index))


@operator("Transpose", infer=_transpose_rule, lower=_lower_transpose)
def transpose(x: Array, *, perm: Sequence[int] | None = None) -> Array:
    """Dimensions in the order ``perm``, default reversed (ONNX Transpose-21)."""
    return x.transpose(_order(perm, x.ndim))


# Concat and Split


@labelled
def _concat_rule(ctx: Inference) -> Sequence[TensorType]:
    dtype = same_dtype(ctx)
    shapes = [ctx.shape(i) for i in range(len(ctx.inputs))]
    axis = normal_axis(ctx.attr("axis"), len(shapes[0]))
    rests = {(*s[:axis], *s[axis + 1 :]) for s in shapes}
    if len(rests) > 1 or len({len(s) for s in shapes}) > 1:
        listed = ", ".join(map(str, shapes))
        raise ModelError(f"inputs may differ in dimension {axis} only, found shapes {listed}")
    total = sum(s[axis] for s in shapes)
    return [TensorType(dtype, (*shapes[0][:axis], total, *shapes[0][axis + 1 :]))]


@compiled
def _lower_concat(ctx: Lowering) -> Lowered:
    shape, dtype = ctx.output_types[0]
    operands = [ctx[i] for i in range(len(ctx.inputs))]
    if len(operands) == 1:
        return operands[0].reshape(shape)
    axis = normal_axis(ctx.attr("axis"), len(shape))
    pieces, start = [], 0
    for x in operands:
        index = axes_of(len(shape))
        if all(x.shape):
            moved = (*index[:axis], index[axis] + start, *index[axis + 1 :])
            pieces.append(Piece(Lazy(x.shape, dtype, x.at(index)), moved))
        start += x.shape[axis]
    return Pieces(shape, dtype, tuple(pieces))


@operator("Concat", infer=_concat_rule, lower=_lower_concat)
def concat(*inputs: Array, axis: int) -> Array:
    """The inputs one after another along ``axis`` (ONNX Concat-13)."""
    return np.concatenate(inputs, normal_axis(axis, inputs[0].ndim))


def parts(extent: int, sizes: Sequence[int] | None, count: int | None) -> list[int]:
    """Sizes Split cuts a dimension of ``extent`` into: as given, or ``count`` equal ones.

    When ``count`` does not divide the extent the last part is smaller.
    """
    if sizes is not None:
        if sum(sizes) != extent or any(n < 0 for n in sizes):
            raise ModelError(f"split {list(sizes)} does not add up to the dimension's {extent}")
        return list(sizes)
    if not count or count < 0:
        raise ModelError("neither split nor num_outputs says how many parts to make")
    step = -(-extent // count)
    found = [max(0, min(step, extent - i * step)) for i in range(count)]
    if found[-1] == 0 and extent:
        raise ModelError(f"a dimension of {extent} cannot be cut into {count} parts")
    return found


@labelled
def _split_rule(ctx: Inference) -> Sequence[TensorType]:
    old = ctx.shape(0)
    axis = normal_axis(ctx.attr("axis"), len(old))
    sizes = whole(ctx.value(1), "split") if ctx.has(1) else None
    count = ctx.attr("num_outputs") or len(ctx.node.outputs)
    found = parts(old[axis], sizes, count)
    if len(found) != len(ctx.node.outputs):
        raise ModelError(f"makes {len(found)} parts but has {len(ctx.node.outputs)} outputs")
    dtype = ctx.type(0).dtype
    return [TensorType(dtype, (*old[:axis], n, *old[axis + 1 :])) for n in found]


@compiled
def _lower_split(ctx: Lowering) -> tuple[Lowered | None, ...]:
    axis = normal_axis(ctx.attr("axis"), len(ctx[0].shape))
    made, start = [], 0
    for i, (shape, _) in enumerate(ctx.output_types):
        index = axes_of(len(shape))
        moved = (*index[:axis], index[axis] + start, *index[axis + 1 :])
        made.append(lazy(ctx, ctx[0].at(moved), i))
        start += shape[axis]
    return tuple(made)


@operator("Split", infer=_split_rule, lower=_lower_split)
def split(
    x: Array, split: Array | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> tuple[Array, ...]:
    """Parts of ``x`` along ``axis`` (ONNX Split-18)."""
    axis = normal_axis(axis, x.ndim)
    sizes = parts(x.shape[axis], None if split is None else whole(split, "split"), num_outputs)
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))


# Slice


def slices(
    shape: Shape,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> list[Span]:
    """What Slice takes of every dimension, its bounds clamped as ONNX Slice-13 says."""
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        found = f"{len(starts)}, {len(ends)}, {len(axes)} and {len(steps)}"
        raise ModelError(f"starts, ends, axes and steps must be equally long, found {found}")
    ranges = [(0, 1, n) for n in shape]
    for axis, start, end, step in zip(
        normal_axes(list(axes), len(shape)), starts, ends, steps, strict=True
    ):
        if step == 0:
            raise ModelError(f"the step of axis {axis} is 0")
        n = shape[axis]
        first = min(max(start + n if start < 0 else start, 0), n if step > 0 else n - 1)
        last = end + n if end < 0 else end
        last = min(max(last, 0), n) if step > 0 else min(max(last, -1), n - 1)
        ranges[axis] = (first, step, max(0, -((first - last) // step)))
    return ranges


_Optional = Array | None


def _slice_ranges(
    shape: Shape, starts: Array, ends: Array, axes: _Optional, steps: _Optional
) -> list[Span]:
    return slices(
        shape,
        whole(starts, "starts"),
        whole(ends, "ends"),
        None if axes is None else whole(axes, "axes"),
        None if steps is None else whole(steps, "steps"),
    )


@labelled
def _slice_rule(ctx: Inference) -> Sequence[TensorType]:
    bounds = [ctx.value(i) if ctx.has(i) else None for i in (3, 4)]
    ranges = _slice_ranges(ctx.shape(0), ctx.value(1), ctx.value(2), *bounds)
    return [TensorType(ctx.type(0).dtype, tuple(count for _, _, count in ranges))]


@compiled
def _lower_slice(ctx: Lowering) -> Lazy:
    names = ("starts", "ends", "axes", "steps")
    values = [known(ctx, i, n) if i < 3 or ctx.has(i) else None for i, n in enumerate(names, 1)]
    starts, ends, axes, steps = values
    assert starts is not None
    assert ends is not None
    ranges = _slice_ranges(ctx[0].shape, starts, ends, axes, steps)
    index = [
        axis * step + first if count > 1 else Affine((), first)
        for axis, (first, step, count) in zip(axes_of(len(ranges)), ranges, strict=True)
    ]
    return lazy(ctx, ctx[0].at(index))


@operator("Slice", infer=_slice_rule, lower=_lower_slice)
def slice_(
    x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    """Every ``steps``-th element from ``starts`` to before ``ends`` (ONNX Slice-13)."""
    taken = []
    for first, step, count in _slice_ranges(x.shape, starts, ends, axes, steps):
        last = first + step * count
        taken.append(slice(first, None if last < 0 else last, step) if count else slice(0, 0))
    return x[tuple(taken)]


# Expand and Tile


@labelled
def _expand_rule(ctx: Inference) -> Sequence[TensorType]:
    target = tuple(whole(ctx.value(1), "the shape"))
    return [TensorType(ctx.type(0).dtype, broadcast(ctx.shape(0), target))]


@compiled
def _lower_expand(ctx: Lowering) -> Lazy:
    return lazy(ctx, ctx[0].elementwise(ctx.output_types[0][0]))


@operator("Expand", infer=_expand_rule, lower=_lower_expand)
def expand(x: Array, shape: Array) -> Array:
    """Broadcast both ways: sizes of 1 in ``shape`` keep those of ``x`` (ONNX Expand-13)."""
    target = tuple(whole(shape, "the shape"))
    return np.array(np.broadcast_to(x, broadcast(x.shape, target)))


def _repeats(value: Array, rank: int) -> list[int]:
    found = whole(value, "repeats")
    if len(found) != rank or any(n < 0 for n in found):
        raise ModelError(f"repeats {found} must hold {rank} counts, one per dimension")
    return found


@labelled
def _tile_rule(ctx: Inference) -> Sequence[TensorType]:
    old = ctx.shape(0)
    repeats = _repeats(ctx.value(1), len(old))
    new = tuple(n * r for n, r in zip(old, repeats, strict=True))
    return [TensorType(ctx.type(0).dtype, new)]


@compiled
def _lower_tile(ctx: Lowering) -> Lazy:
    shape, _ = ctx.output_types[0]
    index: list[IndexLike] = []
    for axis, old, new in zip(axes_of(len(shape)), ctx[0].shape, shape, strict=True):
        if old == 1:
            index.append(Affine())
        else:
            index.append(axis if old == new else call("mod", Index(axis), old))
    return lazy(ctx, ctx[0].at(index))


@operator("Tile", infer=_tile_rule, lower=_lower_tile)
def tile(x: Array, repeats: Array) -> Array:
    """``x`` repeated that often along each dimension (ONNX Tile-13)."""
    return np.tile(x, _repeats(repeats, x.ndim))
