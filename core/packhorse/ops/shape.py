"""Operators that give the same elements another shape, and those that read shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from packhorse.errors import ModelError
from packhorse.graph.ir import TensorType
from packhorse.kernel.lowering import Lowered, Lowering
from packhorse.ops.cast import pass_on
from packhorse.ops.registry import Inference, operator
from packhorse.ops.rules import Array, labelled, normal_axes, whole

__all__ = [
    "flatten",
    "flattened",
    "reshape",
    "reshaped",
    "shape",
    "size",
    "squeeze",
    "squeezed",
    "unsqueeze",
    "unsqueezed",
]

Shape = tuple[int, ...]


def reshaped(old: Shape, target: Sequence[int], allowzero: bool = False) -> Shape:
    """The shape Reshape gives: ``0`` copies a dimension (unless ``allowzero``), ``-1`` fits.

    Raises
    ------
    ModelError
        The elements do not fit, or more than one ``-1``.
    """
    asked = list(target)
    if any(n < -1 for n in asked) or asked.count(-1) > 1:
        raise ModelError(f"target shape {asked} needs sizes of at least 0 and at most one -1")
    if allowzero and 0 in asked and -1 in asked:
        raise ModelError(f"target shape {asked} has both 0 and -1, which allowzero=1 forbids")
    if not allowzero:
        if any(n == 0 and d >= len(old) for d, n in enumerate(asked)):
            raise ModelError(f"target shape {asked} copies a dimension that {old} does not have")
        asked = [old[d] if n == 0 else n for d, n in enumerate(asked)]
    count = math.prod(old)
    if -1 in asked:
        rest = math.prod(n for n in asked if n != -1)
        fits = rest > 0 and count % rest == 0
        asked[asked.index(-1)] = count // rest if fits else 0
    if math.prod(asked) != count:
        raise ModelError(f"an input of shape {old} does not fit the target shape {list(target)}")
    return tuple(asked)


def flattened(old: Shape, axis: int) -> Shape:
    """The two dimensions Flatten gives; ``axis`` may equal the rank."""
    rank = len(old)
    if not -rank <= axis <= rank:
        raise ModelError(f"axis {axis} is outside [{-rank}, {rank}] for an input of rank {rank}")
    cut = axis + rank if axis < 0 else axis
    return math.prod(old[:cut]), math.prod(old[cut:])


def squeezed(old: Shape, axes: Sequence[int] | None) -> Shape:
    """``old`` without the named dimensions of size 1, or without all of them."""
    if axes is None:
        return tuple(n for n in old if n != 1)
    drop = normal_axes(axes, len(old))
    for d in drop:
        if old[d] != 1:
            raise ModelError(f"dimension {d} of shape {old} has size {old[d]}, only 1 is squeezed")
    return tuple(n for d, n in enumerate(old) if d not in drop)


def unsqueezed(old: Shape, axes: Sequence[int]) -> Shape:
    """``old`` with dimensions of size 1 put in, so that they end up at ``axes``."""
    rank = len(old) + len(axes)
    added = normal_axes(axes, rank)
    sizes = iter(old)
    return tuple(1 if d in added else next(sizes) for d in range(rank))


@labelled
def _reshape_rule(ctx: Inference) -> Sequence[TensorType]:
    target = whole(ctx.value(1), "the target shape")
    new = reshaped(ctx.shape(0), target, bool(ctx.attr("allowzero")))
    return [TensorType(ctx.type(0).dtype, new)]


@operator("Reshape", infer=_reshape_rule, lower=pass_on)
def reshape(x: Array, target: Array, *, allowzero: int = 0) -> Array:
    """The same elements in row-major order under another shape (ONNX Reshape-21)."""
    return x.reshape(reshaped(x.shape, whole(target, "the target shape"), bool(allowzero)))


@labelled
def _flatten_rule(ctx: Inference) -> Sequence[TensorType]:
    return [TensorType(ctx.type(0).dtype, flattened(ctx.shape(0), ctx.attr("axis")))]


@operator("Flatten", infer=_flatten_rule, lower=pass_on)
def flatten(x: Array, *, axis: int = 1) -> Array:
    """Two dimensions: those before ``axis`` and the rest (ONNX Flatten-21)."""
    return x.reshape(flattened(x.shape, axis))


def _axes(value: Array | None) -> list[int] | None:
    return None if value is None else whole(value, "axes")


@labelled
def _squeeze_rule(ctx: Inference) -> Sequence[TensorType]:
    axes = _axes(ctx.value(1) if ctx.has(1) else None)
    return [TensorType(ctx.type(0).dtype, squeezed(ctx.shape(0), axes))]


@operator("Squeeze", infer=_squeeze_rule, lower=pass_on)
def squeeze(x: Array, axes: Array | None = None) -> Array:
    """Remove dimensions of size 1 (ONNX Squeeze-21)."""
    return x.reshape(squeezed(x.shape, _axes(axes)))


@labelled
def _unsqueeze_rule(ctx: Inference) -> Sequence[TensorType]:
    new = unsqueezed(ctx.shape(0), whole(ctx.value(1), "axes"))
    return [TensorType(ctx.type(0).dtype, new)]


@operator("Unsqueeze", infer=_unsqueeze_rule, lower=pass_on)
def unsqueeze(x: Array, axes: Array) -> Array:
    """Insert dimensions of size 1 (ONNX Unsqueeze-21)."""
    return x.reshape(unsqueezed(x.shape, whole(axes, "axes")))


def _bounded(old: Shape, start: int, end: int | None) -> Shape:
    """Shape's start and end are clamped like Python slices."""
    return old[start:] if end is None else old[start:end]


@labelled
def _shape_rule(ctx: Inference) -> Sequence[TensorType]:
    part = _bounded(ctx.shape(0), ctx.attr("start"), ctx.attr("end"))
    return [TensorType(np.dtype(np.int64), (len(part),))]


def _lower_shape(ctx: Lowering) -> Lowered:
    part = _bounded(ctx[0].shape, ctx.attr("start"), ctx.attr("end"))
    return ctx.constant(np.array(part, np.int64))


@operator("Shape", infer=_shape_rule, lower=_lower_shape)
def shape(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    """Dimensions ``start`` to ``end`` of ``x`` as int64 (ONNX Shape-21)."""
    return np.array(_bounded(x.shape, start, end), np.int64)


@labelled
def _size_rule(ctx: Inference) -> Sequence[TensorType]:
    ctx.type(0)
    return [TensorType(np.dtype(np.int64), ())]


def _lower_size(ctx: Lowering) -> Lowered:
    return ctx.constant(np.array(math.prod(ctx[0].shape), np.int64))


@operator("Size", infer=_size_rule, lower=_lower_size)
def size(x: Array) -> Array:
    """Number of elements, an int64 scalar (ONNX Size-21)."""
    return np.array(x.size, np.int64)
