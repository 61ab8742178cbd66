"""Comparisons, boolean and bitwise operators, element by element; Where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from packhorse.errors import ModelError
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Expr, call, cast, const, select
from packhorse.kernel.lowering import Lazy, Lowering, lazy
from packhorse.ops.elementwise import calls
from packhorse.ops.maps import (
    ANY,
    BOOL,
    INT,
    NUMBER,
    Map,
    broadcasting,
    check_kinds,
    expand,
    register,
)
from packhorse.ops.registry import Inference, operator
from packhorse.ops.rules import Array, compiled, labelled, same_dtype, text

__all__ = ["bit_shift", "where"]


def _is_inf(x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    return np.asarray(
        (np.isposinf(x) & bool(detect_positive)) | (np.isneginf(x) & bool(detect_negative))
    )


def _is_inf_expr(x: Expr, *, detect_negative: int, detect_positive: int) -> Expr:
    above = call("eq", x, np.inf if detect_positive else np.nan)  # nothing equals NaN
    return call("or", above, call("eq", x, -np.inf if detect_negative else np.nan))


_TWO = (2, 2)
register([
    Map("Equal", "ONNX Equal-19", np.equal, calls("eq"), ANY, _TWO, "bool"),
    Map("Less", "ONNX Less-13", np.less, calls("lt"), NUMBER, _TWO, "bool"),
    Map("LessOrEqual", "ONNX LessOrEqual-16", np.less_equal, calls("le"), NUMBER, _TWO, "bool"),
    Map("Greater", "ONNX Greater-13", np.greater, calls("gt"), NUMBER, _TWO, "bool"),
    Map("GreaterOrEqual", "ONNX GreaterOrEqual-16", np.greater_equal, calls("ge"), NUMBER, _TWO,
        "bool"),
    Map("And", "ONNX And-7", np.logical_and, calls("and"), BOOL, _TWO),
    Map("Or", "ONNX Or-7", np.logical_or, calls("or"), BOOL, _TWO),
    Map("Xor", "ONNX Xor-7", np.logical_xor, calls("xor"), BOOL, _TWO),
    Map("Not", "ONNX Not-1", np.logical_not, calls("not"), BOOL),
    Map("IsNaN", "ONNX IsNaN-20", np.isnan, calls("isnan"), result="bool"),
    Map("IsInf", "ONNX IsInf-20", _is_inf, _is_inf_expr, result="bool"),
    Map("BitwiseAnd", "ONNX BitwiseAnd-18", np.bitwise_and, calls("and"), INT, _TWO),
    Map("BitwiseOr", "ONNX BitwiseOr-18", np.bitwise_or, calls("or"), INT, _TWO),
    Map("BitwiseXor", "ONNX BitwiseXor-18", np.bitwise_xor, calls("xor"), INT, _TWO),
    Map("BitwiseNot", "ONNX BitwiseNot-18", np.invert, calls("not"), INT),
])  # fmt: skip


@labelled
def _shift_rule(ctx: Inference) -> Sequence[TensorType]:
    dtype = same_dtype(ctx)
    check_kinds(dtype, INT)
    if text(ctx.attr("direction")) not in ("LEFT", "RIGHT"):
        raise ModelError(f"direction must be LEFT or RIGHT, found {ctx.attr('direction')!r}")
    return broadcasting(ctx, dtype)


@compiled
def _lower_shift(ctx: Lowering) -> Lazy:
    """Unsigned products and quotients with powers of two, which are 0 from the width on.

    A negative number to the right is the complement of its shifted complement.
    """
    x, y = expand(ctx, 0), expand(ctx, 1)
    kind = x.dtype if x.dtype.startswith("u") else f"u{x.dtype}"
    power = call("pow", const(2, kind), cast(y, kind))
    if text(ctx.attr("direction")) == "LEFT":
        return lazy(ctx, cast(cast(x, kind) * power, x.dtype))

    def halved(value: Expr) -> Expr:
        return select(call("eq", power, 0), const(0, kind), value / power)

    if kind == x.dtype:
        return lazy(ctx, halved(x))
    negative = call("lt", x, 0)
    whole = select(negative, call("not", x), x)
    shifted = cast(halved(cast(whole, kind)), x.dtype)
    return lazy(ctx, select(negative, call("not", shifted), shifted))


@operator("BitShift", infer=_shift_rule, lower=_lower_shift)
def bit_shift(x: Array, y: Array, *, direction: str) -> Array:
    """Shift by ``y`` bits, keeping the sign to the right (ONNX BitShift-11, signed as in 28).

    Shifts by the width or more, and negative ones, leave no bit.
    """
    return np.asarray((np.left_shift if text(direction) == "LEFT" else np.right_shift)(x, y))


@labelled
def _where_rule(ctx: Inference) -> Sequence[TensorType]:
    if ctx.type(0).dtype != np.bool_:
        raise ModelError(f"the condition must be bool, found {ctx.type(0).dtype}")
    ctx.type(2)
    return broadcasting(ctx, same_dtype(ctx, first=1))


@compiled
def _lower_where(ctx: Lowering) -> Lazy:
    return lazy(ctx, select(expand(ctx, 0), expand(ctx, 1), expand(ctx, 2)))


@operator("Where", infer=_where_rule, lower=_lower_where)
def where(condition: Array, x: Array, y: Array) -> Array:
    """``x`` where the condition holds, else ``y``; all three broadcast (ONNX Where-16)."""
    return np.where(condition, x, y)
