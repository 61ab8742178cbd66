"""QLinearMatMul and QLinearConv: integer products scaled back to integers; imported by ``quant``.

The sum of products is exact in int32; it is multiplied by ``x_scale * w_scale / y_scale`` in
float32, rounded half to even, moved by the output's zero point and saturated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from packhorse.errors import ModelError
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Affine, Expr, call, cast
from packhorse.kernel.lowering import Lazy, Lowering, Pieces, lazy
from packhorse.ops import _quant_products as products
from packhorse.ops._quant_products import Places
from packhorse.ops._window import wide, window_of
from packhorse.ops.conv import check_bias, check_channels
from packhorse.ops.matmul import matmul_shape
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import compiled, labelled

__all__ = ["qlinear_conv", "qlinear_matmul"]

FLOAT32 = np.dtype(np.float32)


def _check_output(ctx: Inference) -> None:
    """Inputs 6 and 7: one scale and one zero point, whose dtype is the output's."""
    products.check_bytes(ctx, 0, 3, 7)
    for i, name in ((6, "y_scale"), (7, "y_zero_point")):
        if math.prod(ctx.shape(i)) != 1:
            raise ModelError(f"{name} has shape {ctx.shape(i)}, expected one number")


def _requantized(ctx: Lowering, total: Expr, scale: Expr) -> Expr:
    """An int32 sum as an element of the output."""
    _, dtype = ctx.output_types[0]
    divisor, zero = (ctx[i].reshape(()).at(()) for i in (6, 7))
    value = cast(total, "float32") * (scale / cast(divisor, "float32"))
    value = call("round", value) + cast(zero, "float32")
    limits = np.iinfo(dtype)
    return cast(call("min", call("max", value, limits.min), limits.max), dtype)


def _rounded(total: Array, scale: Array, y_scale: Array, y_zero: Array) -> Array:
    """The same in NumPy."""
    factor = (scale / wide(y_scale).astype(FLOAT32).reshape(())).astype(FLOAT32)
    limits = np.iinfo(y_zero.dtype)
    value = np.rint(total.astype(FLOAT32) * factor) + y_zero.reshape(()).astype(FLOAT32)
    return np.asarray(np.clip(value, limits.min, limits.max), y_zero.dtype)


def _float(x: Array) -> Array:
    return wide(x).astype(FLOAT32)


# QLinearMatMul


@labelled
def infer_qlinear_matmul(ctx: Inference) -> list[TensorType]:
    """Shape rule of QLinearMatMul: that of MatMul, dtype of the output's zero point."""
    _check_output(ctx)
    a, b = ctx.shape(0), ctx.shape(3)
    shape = matmul_shape(ctx.node.label, a, b)
    for i, operand, axis in ((1, a, -2), (2, a, -2), (4, b, -1), (5, b, -1)):
        name = ("a_scale", "a_zero_point", "", "b_scale", "b_zero_point")[i - 1]
        products.check_zero(name, ctx.shape(i), operand, axis)
    return [TensorType(ctx.type(7).dtype, shape)]


@compiled
def _lower_qlinear_matmul(ctx: Lowering) -> Lazy:
    a, b = ctx[0], ctx[3]
    total = products.integer_product(ctx, a, b, ctx[2], ctx[5])
    places = Places.of(ctx, a, b)
    left, right = places.each(ctx[1], True), places.each(ctx[4], False)
    scale = cast(left, "float32") * cast(right, "float32")
    return lazy(ctx, _requantized(ctx, total, scale))


@operator("QLinearMatMul", infer=infer_qlinear_matmul, lower=_lower_qlinear_matmul)
def qlinear_matmul(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
) -> Array:
    """Product of quantised matrices, quantised (ONNX QLinearMatMul-21).

    Parameters
    ----------
    a, b : int8 or uint8 arrays, shaped as for MatMul
    a_scale, a_zero_point : one number, or one per row of ``a``
    b_scale, b_zero_point : one number, or one per column of ``b``
    y_scale, y_zero_point : one number each
        The zero point's dtype, int8 or uint8, is that of the result.

    Raises
    ------
    ModelError
        Shapes that do not fit.
    """
    matmul_shape("QLinearMatMul", a.shape, b.shape)
    total = products.matmul_integer(a, b, a_zero_point, b_zero_point)
    rows = _float(a_scale)
    if rows.ndim == 1 and rows.size > 1:
        rows = rows[:, None]
    scale = (rows if rows.size > 1 else rows.reshape(())) * _float(b_scale)
    return _rounded(total, scale if scale.size > 1 else scale.reshape(()), y_scale, y_zero_point)


# QLinearConv


@labelled
def infer_qlinear_conv(ctx: Inference) -> list[TensorType]:
    """Shape rule of QLinearConv: that of Conv, dtype of the output's zero point."""
    _check_output(ctx)
    x, w, label = ctx.shape(0), ctx.shape(3), ctx.node.label
    check_channels(label, x, w, ctx.attr("group"), ctx.attr("kernel_shape"))
    for i, name in ((1, "x_scale"), (2, "x_zero_point")):
        if ctx.shape(i) not in ((), (1,)):
            raise ModelError(f"{name} has shape {ctx.shape(i)}, expected one number")
    for i, name in ((4, "w_scale"), (5, "w_zero_point")):
        if ctx.shape(i) not in ((), (1,), (w[0],)):
            raise ModelError(f"{name} has shape {ctx.shape(i)}, expected () or ({w[0]},)")
    if ctx.has(8):
        check_bias(label, ctx.shape(8), w[0])
    plan = window_of(label, x[2:], w[2:], ctx.attr)
    return [TensorType(ctx.type(7).dtype, (x[0], w[0], *plan.out))]


@compiled
def _lower_qlinear_conv(ctx: Lowering) -> Lazy | Pieces:
    def finish(total: Expr, channel: Affine) -> Expr:
        if ctx.has(8):
            total = total + ctx[8].at([channel])
        left = ctx[1].reshape(()).at(())
        scale = cast(left, "float32") * cast(products.per_channel(ctx[4], channel), "float32")
        return _requantized(ctx, total, scale)

    return products.integer_conv(ctx, ctx[0], ctx[3], ctx[2], ctx[5], finish)


@operator("QLinearConv", infer=infer_qlinear_conv, lower=_lower_qlinear_conv)
def qlinear_conv(
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    w: Array,
    w_scale: Array,
    w_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Convolution of quantised data, quantised (ONNX QLinearConv-10).

    Parameters
    ----------
    x, w : int8 or uint8 arrays, shaped as for Conv
    x_scale, x_zero_point : one number each; the padding has the value of the zero point
    w_scale, w_zero_point : one number, or one per output channel
    y_scale, y_zero_point : one number each
        The zero point's dtype, int8 or uint8, is that of the result.
    b : int32 array (M,), optional
        In units of ``x_scale * w_scale``.

    Raises
    ------
    ModelError
        Shapes that do not fit.
    """
    total = products.conv_integer(
        x, w, x_zero_point, w_zero_point, auto_pad=auto_pad, dilations=dilations, group=group,
        kernel_shape=kernel_shape, pads=pads, strides=strides,
    )  # fmt: skip
    ones = [1] * (x.ndim - 2)
    if b is not None:
        total = total + b.reshape(-1, *ones)
    scale = _float(x_scale).reshape(()) * _float(w_scale).reshape(-1, *ones)
    return _rounded(total, scale, y_scale, y_zero_point)
