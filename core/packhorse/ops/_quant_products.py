"""Integer products: MatMulInteger, ConvInteger; imported by ``quant``.

Sums are exact: int32 in the kernels, float64 in the references (whose matrix products are then
BLAS calls; every sum below 2**53 is exact).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Affine, Expr, Reduce, affine, cast
from packhorse.kernel.lowering import Lazy, Lowering, Operand, Pieces, axes_of, lazy
from packhorse.ops._window import window_of
from packhorse.ops.conv import check_channels, convolution, convolve
from packhorse.ops.matmul import matmul_shape, operand_index
from packhorse.ops.registry import Array, Inference, operator
from packhorse.ops.rules import labelled

__all__ = ["Places", "conv_integer", "integer_conv", "integer_product", "matmul_integer"]

INT32 = np.dtype(np.int32)


def check_bytes(ctx: Inference, *places: int) -> None:
    """The inputs at those places must be int8 or uint8."""
    for i in places:
        if ctx.type(i).dtype not in (np.int8, np.uint8):
            raise ModelError(f"input {i} is {ctx.type(i).dtype}, expected int8 or uint8")


def check_zero(name: str, zero: Sequence[int], shape: Sequence[int], axis: int) -> None:
    """A MatMul zero point is one number, or one per row of A (axis -2) or column of B (-1)."""
    full = list(shape)
    if len(full) > 1:
        full[-3 - axis] = 1
    allowed = [(), (1,), (shape[axis],) if len(shape) > 1 else (1,), tuple(full)]
    if tuple(zero) not in allowed:
        raise ModelError(
            f"{name} has shape {tuple(zero)}, expected one of "
            f"{', '.join(str(s) for s in dict.fromkeys(allowed))}"
        )


def _centred(x: Array, zero: Array | None, axis: int) -> Array:
    """``x - zero`` in float64."""
    if zero is None:
        return x.astype(np.float64)
    if zero.ndim == 1 and zero.size > 1 and axis == -2:
        zero = zero[:, None]
    return x.astype(np.float64) - (zero if zero.ndim > 1 or zero.size > 1 else zero.reshape(()))


@labelled
def infer_matmul_integer(ctx: Inference) -> list[TensorType]:
    """Shape rule of MatMulInteger: that of MatMul, int32."""
    check_bytes(ctx, 0, 1)
    a, b = ctx.shape(0), ctx.shape(1)
    shape = matmul_shape(ctx.node.label, a, b)
    for i, (name, operand, axis) in enumerate(
        (("a_zero_point", a, -2), ("b_zero_point", b, -1)), 2
    ):
        if ctx.has(i):
            check_zero(name, ctx.shape(i), operand, axis)
    return [TensorType(INT32, shape)]


@dataclass(frozen=True)
class Places:
    """The output index of a product of matrices, split up."""

    batch: list[Affine]
    row: list[Affine]
    column: list[Affine]

    @classmethod
    def of(cls, ctx: Lowering, a: Operand, b: Operand) -> Places:
        out = list(axes_of(len(ctx.output_types[0][0])))
        column = [out.pop()] if len(b.shape) > 1 else []
        row = [out.pop()] if len(a.shape) > 1 else []
        return cls(out, row, column)

    def each(self, x: Operand, of_rows: bool) -> Expr:
        """A scale or zero point: one number, one per row of A, or one per column of B."""
        if x.shape in ((), (1,)):
            return x.at([Affine()] * len(x.shape))
        one = self.row if of_rows else self.column
        if len(x.shape) == 1:
            return x.at(one)
        matrix = [*one, Affine()] if of_rows else [Affine(), *one]
        return x.at(operand_index(x.shape, self.batch, matrix))


def integer_product(
    ctx: Lowering, a: Operand, b: Operand, a_zero: Operand | None, b_zero: Operand | None
) -> Reduce:
    """``sum over k of (a - a_zero) * (b - b_zero)`` in int32."""
    if not a.shape[-1]:
        raise UnsupportedOperator("an integer product over an empty dimension is not compiled")
    axis, places = ctx.axis(a.shape[-1]), Places.of(ctx, a, b)
    k = affine(axis[0])
    left = a if a.constant is not None else a.stored(last=len(a.shape) - 1)
    right = b if b.constant is not None else b.stored(last=len(b.shape) - 1)
    x = cast(left.at(operand_index(a.shape, places.batch, [*places.row, k])), "int32")
    y = cast(right.at(operand_index(b.shape, places.batch, [k, *places.column])), "int32")
    if a_zero is not None:
        x = x - cast(places.each(a_zero, True), "int32")
    if b_zero is not None:
        y = y - cast(places.each(b_zero, False), "int32")
    return Reduce("sum", (axis,), x * y, "int32")


def _optional(ctx: Lowering, i: int) -> Operand | None:
    return ctx[i] if ctx.has(i) else None


def lower_matmul_integer(ctx: Lowering) -> Lazy:
    """The product of centred integers."""
    zeros = _optional(ctx, 2), _optional(ctx, 3)
    return lazy(ctx, integer_product(ctx, ctx[0], ctx[1], *zeros))


@operator("MatMulInteger", infer=infer_matmul_integer, lower=lower_matmul_integer)
def matmul_integer(
    a: Array, b: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None
) -> Array:
    """``(a - a_zero_point) @ (b - b_zero_point)`` in int32 (ONNX MatMulInteger-10).

    Parameters
    ----------
    a, b : int8 or uint8 arrays, shaped as for MatMul
    a_zero_point, b_zero_point : scalars, one per row of ``a`` or per column of ``b``, optional

    Raises
    ------
    ModelError
        Shapes that do not fit.
    """
    matmul_shape("MatMulInteger", a.shape, b.shape)
    product = np.matmul(_centred(a, a_zero_point, -2), _centred(b, b_zero_point, -1))
    return np.asarray(product.astype(np.int64).astype(np.int32))


@labelled
def infer_conv_integer(ctx: Inference) -> list[TensorType]:
    """Shape rule of ConvInteger: that of Conv, int32."""
    check_bytes(ctx, 0, 1)
    x, w, label = ctx.shape(0), ctx.shape(1), ctx.node.label
    check_channels(label, x, w, ctx.attr("group"), ctx.attr("kernel_shape"))
    if ctx.has(2) and ctx.shape(2) not in ((), (1,)):
        raise ModelError(f"x_zero_point has shape {ctx.shape(2)}, expected a scalar")
    if ctx.has(3) and ctx.shape(3) not in ((), (1,), (w[0],)):
        raise ModelError(f"w_zero_point has shape {ctx.shape(3)}, expected () or ({w[0]},)")
    plan = window_of(label, x[2:], w[2:], ctx.attr)
    return [TensorType(INT32, (x[0], w[0], *plan.out))]


def lower_conv_integer(ctx: Lowering) -> Lazy | Pieces:
    """The convolution of centred integers."""
    zeros = _optional(ctx, 2), _optional(ctx, 3)
    return integer_conv(ctx, ctx[0], ctx[1], *zeros, lambda total, _: total)


def integer_conv(
    ctx: Lowering,
    x: Operand,
    w: Operand,
    zero: Operand | None,
    offset: Operand | None,
    finish: Callable[[Expr, Affine], Expr],
) -> Lazy | Pieces:
    """``sum x * (w - w_zero) - x_zero * sum (w - w_zero)``; the second sum skips the padding.

    ``finish(sum, output channel)`` is the value.
    """
    plan = window_of("ConvInteger", x.shape[2:], w.shape[2:], ctx.attr)
    if zero is not None and zero.constant is not None and not zero.constant.any():
        zero = None
    one = None if zero is None else zero.at([Affine()] * len(zero.shape))
    padded = any(a or b for a, b in plan.halo(x.shape[2:]))
    known = w.constant is not None and (offset is None or offset.constant is not None)
    if zero is not None and padded and not known:
        raise UnsupportedOperator("ConvInteger with padding and unknown weights is not compiled")

    def product(data: Expr, coef: Expr, channel: Affine) -> Expr:
        value, factor = cast(data, "int32"), cast(coef, "int32")
        if offset is not None:
            factor = factor - cast(per_channel(offset, channel), "int32")
        if one is not None and not known:
            value = value - cast(one, "int32")
        return value * factor

    if one is None or not known:
        return convolution(ctx, plan, product, finish, x, w)
    assert w.constant is not None
    weights = _weights(w.constant, None if offset is None else offset.constant)
    # what a constant input of 1 gives: only positions inside the data count
    ones = np.ones((1, x.shape[1], *x.shape[2:]))
    table = ctx.constant(convolve(ones, weights, plan, int(ctx.attr("group")))[0].astype(np.int32))
    factor, spatial = cast(one, "int32"), axes_of(len(x.shape))[2:]

    def centred(total: Expr, channel: Affine) -> Expr:
        return finish(total - table.at([channel, *spatial]) * factor, channel)

    return convolution(ctx, plan, product, centred, x, w)


def per_channel(offset: Operand, channel: Affine) -> Expr:
    return offset.at([Affine()] * len(offset.shape) if offset.shape in ((), (1,)) else [channel])


def _weights(w: Array, zero: Array | None) -> Array:
    if zero is None:
        return w.astype(np.float64)
    return w.astype(np.float64) - zero.astype(np.float64).reshape(-1, *[1] * (w.ndim - 1))


@operator("ConvInteger", infer=infer_conv_integer, lower=lower_conv_integer)
def conv_integer(
    x: Array,
    w: Array,
    x_zero_point: Array | None = None,
    w_zero_point: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Convolution of 8-bit integers, int32 (ONNX ConvInteger-10).

    Parameters
    ----------
    x, w : int8 or uint8 arrays, shaped as for Conv
    x_zero_point : scalar, optional; the padding has this value
    w_zero_point : scalar or one per output channel, optional

    Raises
    ------
    ModelError
        Shapes that do not fit.
    """
    check_channels("ConvInteger", x.shape, w.shape, group, kernel_shape)
    found = {"auto_pad": auto_pad, "dilations": dilations, "pads": pads, "strides": strides}
    plan = window_of("ConvInteger", x.shape[2:], w.shape[2:], found.get)
    data = x.astype(np.float64)
    if x_zero_point is not None:
        data -= x_zero_point.astype(np.float64).reshape(())
    out = convolve(data, _weights(w, w_zero_point), plan, group)
    return np.asarray(out.astype(np.int64).astype(np.int32))
