"""Conversions between dtypes, and operators that pass their input on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import cast, const
from packhorse.kernel.lowering import Lazy, Lowered, Lowering, compute_dtype, lazy
from packhorse.ops.maps import expand, kind_of, widen
from packhorse.ops.registry import Inference, operator, same_as_first
from packhorse.ops.rules import Array, compiled, dtype_of_onnx, labelled

__all__ = ["convert", "pass_on"]


def convert(x: Array, dtype: np.dtype[Any], *, saturate: bool = True) -> Array:
    """``x`` in another dtype, as ONNX Cast defines it.

    Floats become integers by truncation, limited to the integer's range (NaN gives 0: ONNX leaves
    both undefined, this is what compiled kernels do). Anything becomes bool by ``!= 0``. Strings
    are object arrays. Small floats (float8...) take the largest finite value on overflow
    when ``saturate``.

    Raises
    ------
    ModelError
        A string that is not a number.
    """
    x = np.asarray(x)
    if dtype == np.object_ or x.dtype == np.object_:
        return _convert_text(x, dtype)
    if dtype == np.bool_:
        return np.asarray(x != 0)
    source, target = kind_of(x.dtype), kind_of(dtype)
    with np.errstate(all="ignore"):
        if source == "f" and target in "iu" and dtype.kind != "V":
            return _to_integer(x, dtype)
        if dtype.name.startswith("float8") and saturate:
            return _to_float8(x, dtype)
        if dtype.kind == "V" or x.dtype.kind == "V":
            x = x.astype(np.float32)
        return x.astype(dtype)


def _to_integer(x: Array, dtype: np.dtype[Any]) -> Array:
    info = np.iinfo(dtype)
    wide = np.trunc(np.nan_to_num(x.astype(np.float64), posinf=np.inf, neginf=-np.inf))
    inside = np.where((wide > float(info.min)) & (wide < float(info.max)), wide, 0.0)
    result = inside.astype(dtype)
    result = np.where(wide >= float(info.max), dtype.type(info.max), result)
    return np.where(wide <= float(info.min), dtype.type(info.min), result)


def _to_float8(x: Array, dtype: np.dtype[Any]) -> Array:
    import ml_dtypes

    most = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
    value = x.astype(np.float32)
    return np.where(np.isnan(value), value, np.clip(value, -most, most)).astype(dtype)


def _convert_text(x: Array, dtype: np.dtype[Any]) -> Array:
    if dtype == np.object_:
        if x.dtype == np.object_:
            return x.copy()
        words = widen(x).astype(str) if kind_of(x.dtype) != "b" else np.where(x, "1", "0")
        return np.asarray(words, dtype=object)
    words = np.array([_word(v) for v in x.reshape(-1)], dtype=str).reshape(x.shape)
    try:
        number = words.astype(np.float64 if kind_of(dtype) == "f" else np.int64)
    except ValueError as error:
        raise ModelError(f"Cast from string: {error}") from None
    return convert(number, dtype)


def _word(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@labelled
def _cast_rule(ctx: Inference) -> Sequence[TensorType]:
    return [TensorType(dtype_of_onnx(ctx.attr("to")), ctx.shape(0))]


@labelled
def _cast_like_rule(ctx: Inference) -> Sequence[TensorType]:
    return [TensorType(ctx.type(1).dtype, ctx.shape(0))]


@compiled
def _lower_cast(ctx: Lowering) -> Lazy:
    _, dtype = ctx.output_types[0]
    return lazy(ctx, cast(expand(ctx, 0), compute_dtype(dtype)))


@operator("Cast", infer=_cast_rule, lower=_lower_cast)
def cast_to(x: Array, *, to: int, saturate: int = 1) -> Array:
    """Convert to the ONNX data type numbered ``to`` (ONNX Cast-21); see :func:`convert`."""
    return convert(x, dtype_of_onnx(to), saturate=bool(saturate))


def _lower_cast_like(ctx: Lowering) -> Lazy:
    shape, dtype = ctx.output_types[0]
    return lazy(ctx, cast(ctx[0].elementwise(shape), compute_dtype(dtype)))


@operator("CastLike", infer=_cast_like_rule, lower=compiled(_lower_cast_like))
def cast_like(x: Array, like: Array, *, saturate: int = 1) -> Array:
    """Convert to the dtype of ``like`` (ONNX CastLike-19); see :func:`convert`."""
    return convert(x, np.asarray(like).dtype, saturate=bool(saturate))


def pass_on(ctx: Lowering) -> Lowered:
    """Lowering of operators that return input 0 unchanged, perhaps under another shape."""
    return ctx[0].reshape(ctx.output_types[0][0])


@operator("Identity", infer=labelled(same_as_first), lower=compiled(pass_on))
def identity(x: Array) -> Array:
    """``x`` itself (ONNX Identity-21)."""
    return x


@labelled
def _dropout_rule(ctx: Inference) -> Sequence[TensorType]:
    kind = ctx.type(0)
    return [kind, TensorType(np.dtype(bool), kind.shape)][: max(1, len(ctx.node.outputs))]


def _lower_dropout(ctx: Lowering) -> tuple[Lowered | None, ...]:
    ratio, training = (ctx[i].constant if ctx.has(i) else None for i in (1, 2))
    silent = ratio is not None and not ratio.any()
    if ctx.has(2) and not silent and (training is None or bool(training.any())):
        raise UnsupportedOperator("Dropout in training mode draws random numbers")
    mask = [Lazy(shape, "bool", const(True, "bool")) for shape, _ in ctx.output_types[1:]]
    return (pass_on(ctx), *mask)


@operator("Dropout", infer=_dropout_rule, lower=compiled(_lower_dropout))
def dropout(
    x: Array, ratio: Array | None = None, training_mode: Array | None = None
) -> tuple[Array, Array]:
    """Inference mode of ONNX Dropout-13: ``x`` and a mask of True.

    Raises
    ------
    UnsupportedOperator
        ``training_mode`` is set with a ratio above 0: the result would be random.
    """
    share = 0.5 if ratio is None else float(np.asarray(ratio))
    if training_mode is not None and bool(training_mode) and share > 0:
        raise UnsupportedOperator(
            "Dropout in training mode draws random numbers; export the model for inference"
        )
    return x, np.ones(np.shape(x), bool)
