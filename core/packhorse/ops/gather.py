"""Operators that read elements at indices held in tensors, or select them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packhorse.errors import ModelError
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Affine, Index, IndexLike, call, cast, select
from packhorse.kernel.lowering import Lazy, Lowering, Operand, axes_of, lazy
from packhorse.ops._indices import (
    along,
    check_elements,
    check_integers,
    depth,
    safe_index,
    tuples,
    wrapped,
)
from packhorse.ops.maps import widen
from packhorse.ops.registry import Inference, operator
from packhorse.ops.rules import (
    Array,
    compiled,
    data_dependent,
    known,
    labelled,
    normal_axis,
)

__all__ = [
    "compress",
    "gather",
    "gather_elements",
    "gather_nd",
    "non_zero",
    "one_hot",
    "unique",
]


def _position(ctx: Lowering, indices: Operand, at: Sequence[Affine], extent: int) -> IndexLike:
    """Where to read: affine when the indices are known and evenly spaced along one axis."""
    if indices.constant is None:
        return safe_index(indices.at(at), extent)
    values = wrapped(indices.constant, extent, "Gather")
    if values.size == 1:
        return Affine((), int(values.reshape(())))
    if values.ndim == 1 and values.size:
        step = int(values[1] - values[0])
        if np.array_equal(values, values[0] + step * np.arange(len(values))):
            return at[0] * step + int(values[0])
    return ctx.constant(values).at(at)


# Gather


@labelled
def _gather_rule(ctx: Inference) -> Sequence[TensorType]:
    check_integers(ctx, 1)
    old = ctx.shape(0)
    axis = normal_axis(ctx.attr("axis"), len(old))
    return [TensorType(ctx.type(0).dtype, (*old[:axis], *ctx.shape(1), *old[axis + 1 :]))]


@compiled
def _lower_gather(ctx: Lowering) -> Lazy:
    x, indices = ctx[0], ctx[1]
    shape, _ = ctx.output_types[0]
    axis = normal_axis(ctx.attr("axis"), len(x.shape))
    out, rank = axes_of(len(shape)), len(indices.shape)
    position = _position(ctx, indices, out[axis : axis + rank], x.shape[axis])
    return lazy(ctx, x.at([*out[:axis], position, *out[axis + rank :]]))


@operator("Gather", infer=_gather_rule, lower=_lower_gather)
def gather(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """Slices of ``x`` at ``indices`` along ``axis`` (ONNX Gather-13).

    Raises
    ------
    ModelError
        An index outside ``[-n, n-1]``.
    """
    axis = normal_axis(axis, x.ndim)
    return np.take(x, wrapped(indices, x.shape[axis], "Gather"), axis)


# GatherElements


@labelled
def _gather_elements_rule(ctx: Inference) -> Sequence[TensorType]:
    return [TensorType(ctx.type(0).dtype, check_elements(ctx))]


@compiled
def _lower_gather_elements(ctx: Lowering) -> Lazy:
    x, out = ctx[0], axes_of(len(ctx[0].shape))
    axis = normal_axis(ctx.attr("axis"), len(x.shape))
    where = safe_index(ctx[1].at(out), x.shape[axis])
    return lazy(ctx, x.at([*out[:axis], where, *out[axis + 1 :]]))


@operator("GatherElements", infer=_gather_elements_rule, lower=_lower_gather_elements)
def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """``out[i][j] = x[indices[i][j]][j]`` for axis 0, and so on (ONNX GatherElements-13)."""
    axis = normal_axis(axis, x.ndim)
    position = wrapped(indices, x.shape[axis], "GatherElements")
    return np.asarray(x[along(indices.shape, axis, position)])


# GatherND


@labelled
def _gather_nd_rule(ctx: Inference) -> Sequence[TensorType]:
    check_integers(ctx, 1)
    old, batch = ctx.shape(0), ctx.attr("batch_dims")
    count = depth(old, ctx.shape(1), batch)
    return [TensorType(ctx.type(0).dtype, (*ctx.shape(1)[:-1], *old[batch + count :]))]


@compiled
def _lower_gather_nd(ctx: Lowering) -> Lazy:
    x, indices, batch = ctx[0], ctx[1], int(ctx.attr("batch_dims"))
    out, rank = axes_of(len(ctx.output_types[0][0])), len(indices.shape)
    count = depth(x.shape, indices.shape, batch)
    named = [
        safe_index(indices.at([*out[: rank - 1], Affine((), k)]), x.shape[batch + k])
        for k in range(count)
    ]
    return lazy(ctx, x.at([*out[:batch], *named, *out[rank - 1 :]]))


@operator("GatherND", infer=_gather_nd_rule, lower=_lower_gather_nd)
def gather_nd(x: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """Slices of ``x`` at index tuples in the last dimension (ONNX GatherND-13)."""
    return np.asarray(x[tuples(x, indices, batch_dims, "GatherND")])


# OneHot


def _one_hot_axis(ctx: Inference | Lowering, rank: int) -> int:
    return normal_axis(ctx.attr("axis"), rank + 1)


def _classes(value: Array) -> int:
    if value.size != 1 or int(value.reshape(())) < 0:
        raise ModelError(f"depth must be one number of at least 0, found {value.tolist()}")
    return int(value.reshape(()))


@labelled
def _one_hot_rule(ctx: Inference) -> Sequence[TensorType]:
    old, depth = ctx.shape(0), _classes(ctx.value(1))
    axis = _one_hot_axis(ctx, len(old))
    if ctx.shape(2) != (2,):
        raise ModelError(f"values must hold (off, on), found shape {ctx.shape(2)}")
    return [TensorType(ctx.type(2).dtype, (*old[:axis], depth, *old[axis:]))]


@compiled
def _lower_one_hot(ctx: Lowering) -> Lazy:
    shape, _ = ctx.output_types[0]
    axis, depth = _one_hot_axis(ctx, len(shape) - 1), _classes(known(ctx, 1, "depth"))
    out = axes_of(len(shape))
    index = cast(ctx[0].at([*out[:axis], *out[axis + 1 :]]), "int64")
    index = select(call("lt", index, 0), index + depth, index)
    off, on = (ctx[2].at([Affine((), k)]) for k in (0, 1))
    return lazy(ctx, select(call("eq", index, Index(out[axis])), on, off))


@operator("OneHot", infer=_one_hot_rule, lower=_lower_one_hot)
def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    """``values[1]`` where the new ``axis`` equals the index, else ``values[0]`` (ONNX OneHot-11).

    Indices outside ``[-depth, depth)`` have no such place.
    """
    count = _classes(np.asarray(depth))
    axis = normal_axis(axis, indices.ndim + 1)
    index = np.asarray(indices).astype(np.int64)
    index = np.where(index < 0, index + count, index)
    place = np.arange(count).reshape([count if d == axis else 1 for d in range(index.ndim + 1)])
    return np.asarray(np.where(np.expand_dims(index, axis) == place, values[1], values[0]))


# Selections whose size depends on the data: never static, so host only


@operator("NonZero", infer=data_dependent)
def non_zero(x: Array) -> Array:
    """Indices of the elements that are not zero, int64 of shape (rank, count) (ONNX NonZero-13)."""
    found = np.nonzero(np.atleast_1d(x))
    return np.array(found[: x.ndim], np.int64).reshape(x.ndim, len(found[0]))


@operator("Unique", infer=data_dependent)
def unique(
    x: Array, *, axis: int | None = None, sorted: int = 1
) -> tuple[Array, Array, Array, Array]:
    """The distinct elements, or slices along ``axis`` (ONNX Unique-11).

    Parameters
    ----------
    x : array of any dtype, float16 and bfloat16 included
    axis : int, optional
        Default: ``x`` is flattened.
    sorted : int
        0 keeps them in the order of their first appearance.

    Returns
    -------
    array, int64 (count,) first appearances, int64 positions of each element (slice) of ``x`` among
    them, int64 (count,) number of appearances

    Raises
    ------
    ModelError
        An axis out of range.
    """
    d = None if axis is None else normal_axis(axis, x.ndim)
    found, first, inverse, counts = np.unique(
        widen(x), return_index=True, return_inverse=True, return_counts=True, axis=d
    )
    inverse = inverse.reshape(-1)
    if not sorted:
        order = np.argsort(first)
        found = np.take(found, order, axis=0 if d is None else d)
        first, counts = first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    whole = (first, inverse, counts)
    return found.astype(x.dtype), *(n.astype(np.int64) for n in whole)  # type: ignore[return-value]


@operator("Compress", infer=data_dependent)
def compress(x: Array, condition: Array, *, axis: int | None = None) -> Array:
    """The slices of ``x`` where the condition holds (ONNX Compress-11)."""
    if axis is None:
        return np.compress(condition, x.reshape(-1))
    return np.compress(condition, x, normal_axis(axis, x.ndim))
