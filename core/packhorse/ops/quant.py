"""Quantisation: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear.

The products of quantised operands are in ``_quant_products`` and ``_quant_linear``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Affine, Expr, Index, IndexLike, Reduce, affine, call, cast
from packhorse.kernel.lowering import Lazy, Lowering, Operand, axes_of, compute_dtype, lazy
from packhorse.ops import _quant_linear, _quant_products  # noqa: F401 (they register operators)
from packhorse.ops._window import narrow, wide
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import compiled, dtype_of_onnx, labelled, normal_axis

__all__ = [
    "dequantize_linear",
    "dynamic_quantize_linear",
    "quantize_linear",
]

_SMALL = {
    "int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3),
    "float8_e4m3fn": (-448, 448), "float8_e4m3fnuz": (-240, 240),
    "float8_e5m2": (-57344, 57344), "float8_e5m2fnuz": (-57344, 57344),
    "float4_e2m1fn": (-6, 6),
}  # fmt: skip
"""Least and greatest value of the dtypes NumPy does not know itself."""


def limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Least and greatest finite value of a quantised dtype; ModelError for other dtypes."""
    if dtype.name in _SMALL:
        return _SMALL[dtype.name]
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return int(info.min), int(info.max)
    raise ModelError(
        f"{dtype} is no dtype to quantise to; use an integer of 4 to 16 bits or float8"
    )


def spread(shape: Sequence[int], scale: Sequence[int], axis: int, block: int) -> tuple[int, ...]:
    """Check a scale against data of ``shape``; the shape it has when aligned with the data.

    A scale holds one number, one per element of ``axis``, or one per block along ``axis``.
    """
    if math.prod(scale) == 1 and len(scale) <= 1:
        return (1,) * len(shape)
    axis = normal_axis(axis, len(shape))
    if block:
        wanted = (*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :])
        if tuple(scale) == wanted:
            return wanted
        expected = f"{wanted}, one number per block of {block} along axis {axis}"
    else:
        if tuple(scale) == (shape[axis],):
            return tuple(n if d == axis else 1 for d, n in enumerate(shape))
        expected = f"(), or ({shape[axis]},), one number per element of axis {axis}"
    raise ModelError(f"the scale has shape {tuple(scale)}, expected {expected}")


def aligned(value: Array, shape: Sequence[int], axis: int, block: int) -> Array:
    """A scale or zero point that broadcasts to data of ``shape``."""
    found = value.reshape(spread(shape, value.shape, axis, block))
    if block and found.ndim and value.ndim == len(shape):
        axis = normal_axis(axis, len(shape))
        found = np.repeat(found, block, axis)
        found = np.take(found, np.arange(shape[axis]), axis)
    return found


def element(operand: Operand, shape: Sequence[int], axis: int, block: int) -> Expr:
    """A scale or zero point at the output index."""
    if math.prod(operand.shape) == 1 and len(operand.shape) <= 1:
        return operand.at([Affine()] * len(operand.shape))
    axis = normal_axis(axis, len(shape))
    index: list[IndexLike] = list(axes_of(len(shape)))
    if not block:
        return operand.at([index[axis]])
    index[axis] = call("floordiv", Index(affine(f"i{axis}")), block)
    return operand.at(index)


def quantized_dtype(zero: np.dtype[Any] | None, code: int) -> np.dtype[Any]:
    """Output dtype: that of the zero point, else the attribute ``output_dtype``, else uint8."""
    if zero is not None:
        return zero
    return dtype_of_onnx(code) if code else np.dtype(np.uint8)


@labelled
def infer_quantize(ctx: Inference) -> list[TensorType]:
    """Shape rule of QuantizeLinear: shape of the data, dtype of the zero point."""
    x = ctx.shape(0)
    where = ctx.attr("axis"), ctx.attr("block_size")
    scale = spread(x, ctx.shape(1), *where)
    if ctx.has(2) and spread(x, ctx.shape(2), *where) != scale:
        raise ModelError(
            f"the zero point has shape {ctx.shape(2)}, expected that of the scale, {ctx.shape(1)}"
        )
    zero = ctx.type(2).dtype if ctx.has(2) else None
    dtype = quantized_dtype(zero, ctx.attr("output_dtype"))
    limits(dtype)
    return [TensorType(dtype, x)]


@compiled
def lower_quantize(ctx: Lowering) -> Lazy:
    """``saturate(round(x / scale) + zero_point)``."""
    shape, dtype = ctx.output_types[0]
    where = (shape, int(ctx.attr("axis")), int(ctx.attr("block_size")))
    scale = cast(element(ctx[1], *where), "float32")
    value = call("round", cast(ctx[0].at(axes_of(len(shape))), "float32") / scale)
    if ctx.has(2):
        value = value + cast(element(ctx[2], *where), "float32")
    low, high = limits(np.dtype(dtype))
    value = call("min", call("max", value, low), high)
    return lazy(ctx, cast(value, dtype))


@operator("QuantizeLinear", infer=infer_quantize, lower=lower_quantize)
def quantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    saturate: int = 1,
) -> Array:
    """``saturate(round(x / scale) + zero_point)`` (ONNX QuantizeLinear-21).

    Parameters
    ----------
    x : float or int32 array
    scale : float array
        One number, one per element of ``axis``, or one per block of ``block_size`` along it.
    zero_point : array shaped like the scale, optional
        Its dtype is that of the result: 4 to 16 bit integers or float8.

    Raises
    ------
    ModelError
        A scale that does not fit the data.
    """
    dtype = quantized_dtype(None if zero_point is None else zero_point.dtype, output_dtype)
    low, high = limits(dtype)
    factor = wide(aligned(scale, x.shape, axis, block_size)).astype(np.float32, copy=False)
    value = x.astype(np.float32) / factor
    if dtype.kind not in "iu" and "int" not in dtype.name:
        if zero_point is not None:
            value = value + aligned(zero_point, x.shape, axis, block_size).astype(np.float32)
        return narrow(np.clip(value, low, high) if saturate else value, dtype)
    value = np.rint(value)
    if zero_point is not None:
        value = value + aligned(zero_point, x.shape, axis, block_size).astype(np.float32)
    whole = np.clip(value, low, high)
    # the small integers of ml_dtypes are made from int8
    return narrow(whole.astype(np.int8) if dtype.name in _SMALL else whole, dtype)


@labelled
def infer_dequantize(ctx: Inference) -> list[TensorType]:
    """Shape rule of DequantizeLinear: shape of the data, dtype of the scale."""
    x = ctx.shape(0)
    where = ctx.attr("axis"), ctx.attr("block_size")
    scale = spread(x, ctx.shape(1), *where)
    if ctx.has(2) and (
        ctx.type(2).dtype != ctx.type(0).dtype or spread(x, ctx.shape(2), *where) != scale
    ):
        raise ModelError(
            f"the zero point is {ctx.type(2)}, expected the dtype of the data and the shape of "
            f"the scale, {TensorType(ctx.type(0).dtype, ctx.shape(1))}"
        )
    return [TensorType(ctx.type(1).dtype, x)]


@compiled
def lower_dequantize(ctx: Lowering) -> Lazy:
    """``(x - zero_point) * scale``."""
    shape, dtype = ctx.output_types[0]
    where = (shape, int(ctx.attr("axis")), int(ctx.attr("block_size")))
    value = cast(ctx[0].at(axes_of(len(shape))), "int32")
    if ctx.has(2):
        value = value - cast(element(ctx[2], *where), "int32")
    scale = element(ctx[1], *where)
    return lazy(ctx, cast(value, compute_dtype(dtype)) * scale)


@operator("DequantizeLinear", infer=infer_dequantize, lower=lower_dequantize)
def dequantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
) -> Array:
    """``(x - zero_point) * scale`` in the dtype of the scale (ONNX DequantizeLinear-21).

    Parameters
    ----------
    x : 4 to 32 bit integer or float8 array
    scale : float array
        One number, one per element of ``axis``, or one per block of ``block_size`` along it.
    zero_point : array shaped like the scale, dtype of ``x``, optional

    Raises
    ------
    ModelError
        A scale that does not fit the data.
    """
    kind = np.int64 if x.dtype.kind in "iu" or "int" in x.dtype.name else np.float32
    value = x.astype(kind)
    if zero_point is not None:
        value = value - aligned(zero_point, x.shape, axis, block_size).astype(kind)
    factor = wide(aligned(scale, x.shape, axis, block_size))
    return narrow(value.astype(factor.dtype) * factor, scale.dtype)


def infer_dynamic(ctx: Inference) -> list[TensorType]:
    """Shape rule of DynamicQuantizeLinear: uint8 data, float32 scale, uint8 zero point."""
    byte, x = np.dtype(np.uint8), ctx.type(0)
    if x.dtype != np.float32:
        raise ModelError(f"{ctx.node.label}: the input is {x.dtype}, expected float32")
    types = [TensorType(byte, x.dims), TensorType(x.dtype, ()), TensorType(byte, ())]
    return types[: len(ctx.node.outputs)]


def lower_dynamic(ctx: Lowering) -> tuple[Lazy, ...]:
    """Range of all elements first, into memory; then a map."""
    x = ctx[0].stored()
    if not math.prod(x.shape):
        raise UnsupportedOperator("DynamicQuantizeLinear of nothing is not compiled")
    found = []
    for combine in ("min", "max"):
        axes = tuple(ctx.axis(n) for n in x.shape)
        value = x.at([affine(name) for name, _ in axes])
        whole = Reduce(combine, axes, value, value.dtype) if axes else value
        found.append(call(combine, whole, 0.0))
    low, high = found
    span = high - low
    # all zeros: any scale will do, but not 0
    scale = call("select", call("eq", span, 0.0), 0.0 * span + 1.0, span / 255.0)
    first = [Affine()]
    factor, offset = ctx.buffer((1,), "float32"), ctx.buffer((1,), "float32")
    ctx.kernel([("i0", 1)], [(factor, [affine("i0")], scale)])
    zero = call("round", (-low) / factor.at(first))
    ctx.kernel([("i0", 1)], [(offset, [affine("i0")], _byte(zero))])
    scaled = call("round", x.at(axes_of(len(x.shape))) / factor.at(first))
    outputs = [cast(_byte(scaled + offset.at(first)), "uint8"), factor.at(first)]
    outputs.append(cast(offset.at(first), "uint8"))
    return tuple(lazy(ctx, v, i) for i, v in enumerate(outputs[: len(ctx.output_types)]))


def _byte(value: Expr) -> Expr:
    return call("min", call("max", value, 0.0), 255.0)


@operator("DynamicQuantizeLinear", infer=infer_dynamic, lower=lower_dynamic)
def dynamic_quantize_linear(x: Array) -> tuple[Array, Array, Array]:
    """Quantise to uint8 by the range of the data (ONNX DynamicQuantizeLinear-11).

    Parameters
    ----------
    x : float32 array

    Returns
    -------
    uint8 array, float32 scale, uint8 zero point
        0 is represented exactly.
    """
    low, high = x.min(initial=0), x.max(initial=0)
    scale = np.float32(1) if low == high else np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255)
    q = np.clip(np.rint(x / scale) + zero, 0, 255)
    return q.astype(np.uint8), np.asarray(scale), np.asarray(zero, np.uint8)
