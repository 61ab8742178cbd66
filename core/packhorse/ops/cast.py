"""Conversions between dtypes, and operators that pass their input on or say that there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Expr, bitcast, cast, const, select
from packhorse.kernel.lowering import Lazy, Lowered, Lowering, compute_dtype, lazy
from packhorse.ops.maps import expand, kind_of, widen
from packhorse.ops.registry import Inference, operator, same_as_first
from packhorse.ops.rules import Array, compiled, dtype_of_onnx, known, labelled, text

__all__ = ["convert", "pass_on"]


def convert(
    x: Array, dtype: np.dtype[Any], *, saturate: bool = True, round_mode: str = "up"
) -> Array:
    """``x`` in another dtype, as ONNX Cast defines it.

    Floats become integers by truncation, limited to the integer's range (NaN gives 0: ONNX leaves
    both undefined, this is what compiled kernels do). Anything becomes bool by ``!= 0``. Strings
    are object arrays. Small floats (float8...) take the largest finite value on overflow
    when ``saturate``. float8_e8m0fnu, powers of two, rounds as ``round_mode`` says.

    Raises
    ------
    ModelError
        A string that is not a number, an unknown ``round_mode``.
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
        if dtype.name == "float8_e8m0fnu":
            return _to_power(x, dtype, saturate, text(round_mode))
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


_UP_FROM: dict[str, float] = {"up": np.nextafter(0.5, 1), "nearest": 0.75, "down": 1.0}
"""round_mode: the next power of two is taken from this mantissa (0.5 to below 1) on."""
_MOST = 127
"""Greatest exponent of float8_e8m0fnu, and minus the least."""


def _to_power(x: Array, dtype: np.dtype[Any], saturate: bool, round_mode: str) -> Array:
    """The power of two near the size of ``x``; the table of ONNX Cast-24 for special values."""
    if round_mode not in _UP_FROM:
        raise ModelError(f"round_mode is '{round_mode}', expected {', '.join(_UP_FROM)}")
    size = np.abs(x.astype(np.float64))
    mantissa, exponent = np.frexp(size)
    exponent = np.where(mantissa >= _UP_FROM[round_mode], exponent, exponent - 1)
    exponent = np.where(np.isinf(size), _MOST + 1, np.where(size == 0, -_MOST - 1, exponent))
    undefined = np.isnan(size)
    if not saturate:
        undefined |= np.abs(exponent) > _MOST
    bits = np.clip(exponent, -_MOST, _MOST) + _MOST
    return np.where(undefined, 255, bits).astype(np.uint8).view(dtype)


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
def cast_to(x: Array, *, to: int, saturate: int = 1, round_mode: str = "up") -> Array:
    """Convert to the ONNX data type numbered ``to`` (ONNX Cast-24); see :func:`convert`."""
    return convert(x, dtype_of_onnx(to), saturate=bool(saturate), round_mode=round_mode)


def _lower_cast_like(ctx: Lowering) -> Lazy:
    shape, dtype = ctx.output_types[0]
    return lazy(ctx, cast(ctx[0].elementwise(shape), compute_dtype(dtype)))


@operator("CastLike", infer=_cast_like_rule, lower=compiled(_lower_cast_like))
def cast_like(x: Array, like: Array, *, saturate: int = 1, round_mode: str = "up") -> Array:
    """Convert to the dtype of ``like`` (ONNX CastLike-24); see :func:`convert`."""
    return convert(x, np.asarray(like).dtype, saturate=bool(saturate), round_mode=round_mode)


def _bits(dtype: np.dtype[Any]) -> int:
    """Bits of an element; the integers and floats below 8 lie in a byte each."""
    small = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}
    return small.get(dtype.name, 8 * dtype.itemsize)


@labelled
def _bitcast_rule(ctx: Inference) -> Sequence[TensorType]:
    source, target = ctx.type(0), dtype_of_onnx(ctx.attr("to"))
    if "O" in (source.dtype.kind, target.kind) or _bits(source.dtype) != _bits(target):
        raise ModelError(
            f"the bits of {source.dtype} cannot be taken for {target}: both must be numbers of "
            "one size. Use Cast to convert values"
        )
    return [TensorType(target, source.dims)]


@compiled
def _lower_bitcast(ctx: Lowering) -> Lazy:
    shape, dtype = ctx.output_types[0]
    value = ctx[0].elementwise(shape)
    if "bool" in (value.dtype, dtype):  # a byte in memory, 0 or 1
        return lazy(ctx, cast(value, dtype))
    if value.dtype != ctx[0].dtype or compute_dtype(dtype) != dtype:
        raise UnsupportedOperator("kernels hold halves as float32, which would change NaNs")
    return lazy(ctx, bitcast(value, dtype))


@operator("BitCast", infer=_bitcast_rule, lower=_lower_bitcast)
def bit_cast(x: Array, *, to: int) -> Array:
    """The same bits as another dtype of that size, numbered ``to`` (ONNX BitCast-26)."""
    return np.ascontiguousarray(x).view(dtype_of_onnx(to)).reshape(np.shape(x))


def pass_on(ctx: Lowering) -> Lowered:
    """Lowering of operators that return input 0 unchanged, perhaps under another shape."""
    return ctx[0].reshape(ctx.output_types[0][0])


@operator("Identity", infer=labelled(same_as_first), lower=compiled(pass_on))
def identity(x: Array) -> Array:
    """``x`` itself (ONNX Identity-21)."""
    return x


@operator("OptionalGetElement", infer=labelled(same_as_first), lower=compiled(pass_on))
def optional_get_element(x: Array) -> Array:
    """``x`` itself: a tensor is an optional that is there (ONNX OptionalGetElement-18)."""
    return x


@labelled
def _has_element_rule(ctx: Inference) -> Sequence[TensorType]:
    return [TensorType(np.dtype(bool), ())]


def _lower_has_element(ctx: Lowering) -> Lazy:
    return lazy(ctx, const(ctx.has(0), "bool"))


@operator("OptionalHasElement", infer=_has_element_rule, lower=_lower_has_element)
def optional_has_element(x: Array | None = None) -> Array:
    """Whether an input is given, a bool scalar (ONNX OptionalHasElement-18)."""
    return np.array(x is not None)


@labelled
def _dropout_rule(ctx: Inference) -> Sequence[TensorType]:
    kind = ctx.type(0)
    return [kind, TensorType(np.dtype(bool), kind.shape)][: max(1, len(ctx.node.outputs))]


def _keep(
    shape: Sequence[int], ratio: Array | None, training: Array | None, seed: int | None
) -> Array | None:
    """Which elements Dropout keeps; None for all. The share of the others is ``ratio``."""
    share = _share(ratio)
    if training is None or not np.any(training) or share == 0:
        return None
    if seed is None:
        raise UnsupportedOperator(
            "Dropout in training mode without a seed draws other numbers in every run; give the "
            "node a seed, or export the model for inference"
        )
    return np.asarray(np.random.RandomState(seed).uniform(0, 1, tuple(shape)) >= share)


def _share(ratio: Array | None) -> float:
    return 0.5 if ratio is None else float(np.asarray(ratio).reshape(()))


def _lower_dropout(ctx: Lowering) -> tuple[Lowered | None, ...]:
    ratio, training = (ctx[i].constant if ctx.has(i) else None for i in (1, 2))
    if ctx.has(2) and not (ratio is not None and not ratio.any()):
        training = known(ctx, 2, "training_mode")
        if training.any() and ctx.has(1):
            ratio = known(ctx, 1, "ratio")
    keep = _keep(ctx[0].shape, ratio, training, ctx.attr("seed"))
    if keep is None:
        mask = [Lazy(shape, "bool", const(True, "bool")) for shape, _ in ctx.output_types[1:]]
        return (pass_on(ctx), *mask)
    kept = ctx.constant(keep).elementwise(keep.shape)
    x: Expr = expand(ctx, 0)
    y = lazy(ctx, select(kept, x * (1 / (1 - _share(ratio))), const(0, x.dtype)))
    return (y, *(lazy(ctx, kept, 1) for _ in ctx.output_types[1:]))


@operator("Dropout", infer=_dropout_rule, lower=compiled(_lower_dropout))
def dropout(
    x: Array,
    ratio: Array | None = None,
    training_mode: Array | None = None,
    *,
    seed: int | None = None,
) -> tuple[Array, Array]:
    """ONNX Dropout-13: ``x`` and a mask of True, unless ``training_mode`` is set.

    Then the share ``ratio`` (default 0.5) of the elements is 0, the others grow by
    ``1 / (1 - ratio)``. What is dropped is what ONNX's reference implementation drops for that
    ``seed``, the same in every run.

    Raises
    ------
    UnsupportedOperator
        ``training_mode`` with a ratio above 0 and without a seed: every run would differ.
    """
    keep = _keep(np.shape(x), ratio, training_mode, seed)
    if keep is None:
        return x, np.ones(np.shape(x), bool)
    wide = widen(x)
    kept = np.where(keep, wide * wide.dtype.type(1 / (1 - _share(ratio))), wide.dtype.type(0))
    return kept.astype(x.dtype, copy=False), keep
