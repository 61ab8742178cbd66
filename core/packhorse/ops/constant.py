"""Values made from attributes and shapes: Constant, ConstantOfShape, Range, EyeLike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from packhorse.errors import ModelError
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Expr, Index, call, cast, const
from packhorse.kernel.lowering import Lazy, Lowered, Lowering, axes_of, compute_dtype, lazy
from packhorse.ops.maps import expand
from packhorse.ops.registry import Inference, operator
from packhorse.ops.rules import Array, compiled, dtype_of_onnx, labelled, same_dtype, whole

__all__ = ["constant", "constant_of_shape", "eye_like", "range_"]

_CONSTANTS: dict[str, Any] = {
    "value": None,
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_string": np.object_,
    "value_strings": np.object_,
}
"""Attributes Constant may carry and their dtypes (None: the tensor's own)."""


def _constant(attrs: dict[str, Any]) -> Array:
    given = {k: v for k, v in attrs.items() if v is not None}
    if len(given) != 1:
        raise ModelError(
            f"Constant needs exactly one of {', '.join(_CONSTANTS)}; found "
            f"{', '.join(given) or 'none'}"
        )
    ((name, value),) = given.items()
    return np.asarray(value, dtype=_CONSTANTS[name])


@labelled
def _constant_rule(ctx: Inference) -> Sequence[TensorType]:
    value = _constant({name: ctx.node.attrs.get(name) for name in _CONSTANTS})
    return [TensorType(value.dtype, value.shape)]


def _lower_constant(ctx: Lowering) -> Lowered:
    return ctx.constant(_constant({name: ctx.attr(name) for name in _CONSTANTS}))


@operator("Constant", infer=_constant_rule, lower=compiled(_lower_constant))
def constant(
    *,
    value: Array | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
) -> Array:
    """The one attribute that is given, as an array (ONNX Constant-21)."""
    given = (value, value_float, value_floats, value_int, value_ints, value_string, value_strings)
    return _constant(dict(zip(_CONSTANTS, given, strict=True)))


def _fill(value: Array | None) -> Array:
    found = np.zeros(1, np.float32) if value is None else np.asarray(value)
    if found.size != 1:
        raise ModelError(f"value must hold one element, found shape {found.shape}")
    return found.reshape(())


def _sizes(value: Array) -> tuple[int, ...]:
    found = whole(value, "the shape")
    if any(n < 0 for n in found):
        raise ModelError(f"shape {found} has a negative size")
    return tuple(found)


@labelled
def _constant_of_shape_rule(ctx: Inference) -> Sequence[TensorType]:
    return [TensorType(_fill(ctx.attr("value")).dtype, _sizes(ctx.value(0)))]


@compiled
def _lower_constant_of_shape(ctx: Lowering) -> Lazy:
    _, dtype = ctx.output_types[0]
    return lazy(ctx, const(_fill(ctx.attr("value")).item(), compute_dtype(dtype)))


@operator("ConstantOfShape", infer=_constant_of_shape_rule, lower=_lower_constant_of_shape)
def constant_of_shape(shape: Array, *, value: Array | None = None) -> Array:
    """An array of that shape filled with ``value``, default float32 0 (ONNX ConstantOfShape-21)."""
    return np.full(_sizes(shape), _fill(value))


def _count(start: Array, limit: Array, delta: Array) -> int:
    bounds: list[float] = [np.asarray(x).reshape(()).item() for x in (start, limit, delta)]
    first, end, step = bounds
    if step == 0:
        raise ModelError("the step of a Range is 0")
    return max(0, math.ceil((end - first) / step))


@labelled
def _range_rule(ctx: Inference) -> Sequence[TensorType]:
    dtype = same_dtype(ctx)
    count = _count(ctx.value(0), ctx.value(1), ctx.value(2))
    return [TensorType(dtype, (count,))]


@compiled
def _lower_range(ctx: Lowering) -> Lazy:
    place = cast(Index(axes_of(1)[0]), compute_dtype(ctx.output_types[0][1]))
    return lazy(ctx, expand(ctx, 0) + place * expand(ctx, 2))


@operator("Range", infer=_range_rule, lower=_lower_range)
def range_(start: Array, limit: Array, delta: Array) -> Array:
    """``start, start + delta, ...`` before ``limit``, in their dtype (ONNX Range-11)."""
    dtype = np.asarray(start).dtype
    places = np.arange(_count(start, limit, delta)).astype(dtype)
    first, step = np.asarray(start).reshape(()), np.asarray(delta).reshape(())
    return np.asarray(first + places * step).astype(dtype)


@labelled
def _eye_rule(ctx: Inference) -> Sequence[TensorType]:
    if len(ctx.shape(0)) != 2:
        raise ModelError(f"the input must have 2 dimensions, found {ctx.shape(0)}")
    code = ctx.attr("dtype")
    return [TensorType(dtype_of_onnx(code) if code else ctx.type(0).dtype, ctx.shape(0))]


@compiled
def _lower_eye(ctx: Lowering) -> Lazy:
    row, column = axes_of(2)
    on: Expr = call("eq", Index(column - row), int(ctx.attr("k")))
    return lazy(ctx, cast(on, compute_dtype(ctx.output_types[0][1])))


@operator("EyeLike", infer=_eye_rule, lower=_lower_eye)
def eye_like(x: Array, *, dtype: int | None = None, k: int = 0) -> Array:
    """Ones on diagonal ``k`` of an array shaped like ``x`` (ONNX EyeLike-9)."""
    made = np.eye(x.shape[0], x.shape[1], k=k)
    return made.astype(dtype_of_onnx(dtype) if dtype else x.dtype)
