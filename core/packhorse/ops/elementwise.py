"""Arithmetic and functions applied element by element, with broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from packhorse.errors import ModelError
from packhorse.graph.ir import TensorType
from packhorse.kernel.expr import Expr, call, cast, is_float, select
from packhorse.kernel.lowering import Lazy, Lowering, lazy
from packhorse.ops import _trigonometry as trigonometry
from packhorse.ops.maps import FLOAT, MANY, NUMBER, Map, expand, register, widen
from packhorse.ops.registry import Inference, operator
from packhorse.ops.rules import Array, broadcast, compiled, labelled
from packhorse.ops.special import erf

__all__ = ["calls", "clip", "folded", "pow_"]


def calls(op: str) -> Callable[..., Expr]:
    """The expression builder that is one scalar operation."""
    return functools.partial(call, op)


def folded(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A variadic operator from its binary one; ``Max(x)`` is ``x``."""
    return lambda *inputs: functools.reduce(function, inputs)


def _div(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    return np.asarray((a - np.fmod(a, b)) // b)  # exact, so rounding down does not matter


def _mod(a: Array, b: Array, *, fmod: int = 0) -> Array:
    return np.asarray(np.fmod(a, b) if fmod else np.mod(a, b))


def _mod_expr(a: Expr, b: Expr, *, fmod: int) -> Expr:
    if not is_float(a.dtype):
        return a - call("div", a, b) * b if fmod else call("mod", a, b)
    rest = call("mod", a, b)
    if fmod:
        return rest
    crossed = call("and", call("ne", rest, 0.0), call("lt", rest * b, 0.0))
    return select(crossed, rest + b, rest)


def _abs_expr(x: Expr) -> Expr:
    return x if x.dtype.startswith("uint") else call("abs", x)


def _cosh_expr(x: Expr) -> Expr:
    return (call("exp", x) + call("exp", -x)) * 0.5


def _tan_expr(x: Expr) -> Expr:
    return call("sin", x) / call("cos", x)


_TWO, _SOME = (2, 2), (1, MANY)
_ADD, _MAX, _MIN = calls("add"), calls("max"), calls("min")

register([
    Map("Add", "ONNX Add-14", np.add, _ADD, NUMBER, _TWO),
    Map("Sub", "ONNX Sub-14", np.subtract, calls("sub"), NUMBER, _TWO),
    Map("Mul", "ONNX Mul-14", np.multiply, calls("mul"), NUMBER, _TWO),
    Map("Div", "ONNX Div-14, integers truncate", _div, calls("div"), NUMBER, _TWO),
    Map("Mod", "ONNX Mod-13", _mod, _mod_expr, NUMBER, _TWO),
    Map("Max", "ONNX Max-13", folded(np.maximum), folded(_MAX), NUMBER, _SOME),
    Map("Min", "ONNX Min-13", folded(np.minimum), folded(_MIN), NUMBER, _SOME),
    Map("Sum", "ONNX Sum-13", folded(np.add), folded(_ADD), FLOAT, _SOME),
    Map("Mean", "ONNX Mean-13", lambda *xs: folded(np.add)(*xs) / len(xs),
        lambda *xs: folded(_ADD)(*xs) / float(len(xs)), FLOAT, _SOME),
    Map("Neg", "ONNX Neg-13", np.negative, calls("neg"), NUMBER),
    Map("Abs", "ONNX Abs-13", np.abs, _abs_expr, NUMBER),
    Map("Sign", "ONNX Sign-13", np.sign, calls("sign"), NUMBER),
    Map("Sqrt", "ONNX Sqrt-13", np.sqrt, calls("sqrt")),
    Map("Reciprocal", "ONNX Reciprocal-13", lambda x: 1 / x, lambda x: 1.0 / x),
    Map("Exp", "ONNX Exp-13", np.exp, calls("exp")),
    Map("Log", "ONNX Log-13", np.log, calls("log")),
    Map("Erf", "ONNX Erf-13", erf, calls("erf")),
    Map("Floor", "ONNX Floor-13", np.floor, calls("floor")),
    Map("Ceil", "ONNX Ceil-13", np.ceil, calls("ceil")),
    Map("Round", "ONNX Round-11, half to even", np.rint, calls("round")),
    Map("Sin", "ONNX Sin-7", np.sin, calls("sin")),
    Map("Cos", "ONNX Cos-7", np.cos, calls("cos")),
    Map("Tan", "ONNX Tan-7", np.tan, _tan_expr),
    Map("Sinh", "ONNX Sinh-9", np.sinh, trigonometry.sinh),
    Map("Cosh", "ONNX Cosh-9", np.cosh, _cosh_expr),
    Map("Asin", "ONNX Asin-7", np.arcsin, trigonometry.asin),
    Map("Acos", "ONNX Acos-7", np.arccos, trigonometry.acos),
    Map("Atan", "ONNX Atan-7", np.arctan, trigonometry.atan),
    Map("Asinh", "ONNX Asinh-9", np.arcsinh, trigonometry.asinh),
    Map("Acosh", "ONNX Acosh-9", np.arccosh, trigonometry.acosh),
    Map("Atanh", "ONNX Atanh-9", np.arctanh, trigonometry.atanh),
])  # fmt: skip


# Pow and Clip differ from the table: mixed dtypes, elided inputs.


@labelled
def _pow_rule(ctx: Inference) -> Sequence[TensorType]:
    return [TensorType(ctx.type(0).dtype, broadcast(ctx.shape(0), ctx.shape(1)))]


_SHORT_POWERS: dict[float, Callable[[Expr], Expr]] = {
    -1.0: lambda x: 1.0 / x,
    -0.5: lambda x: 1.0 / call("sqrt", x),
    0.5: calls("sqrt"),
    1.0: lambda x: x,
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
    4.0: lambda x: (x * x) * (x * x),
}
"""Exponents worth more than a call of pow: what models ask for."""


@compiled
def _lower_pow(ctx: Lowering) -> Lazy:
    base, constant = expand(ctx, 0), ctx[1].constant
    if constant is not None and constant.size == 1:
        short = _SHORT_POWERS.get(float(constant.reshape(()).item()))
        if short is not None and (is_float(base.dtype) or float(constant.reshape(())) >= 1):
            return lazy(ctx, short(base))
    wide = base.dtype if is_float(base.dtype) else "float64"
    power = call("pow", cast(base, wide), cast(expand(ctx, 1), wide))
    return lazy(ctx, cast(power, base.dtype))


@operator("Pow", infer=_pow_rule, lower=_lower_pow)
def pow_(x: Array, y: Array) -> Array:
    """``x ** y`` with broadcasting, dtype of ``x`` (ONNX Pow-15).

    Integer bases with negative or fractional exponents truncate towards zero.
    """
    base, exponent = widen(x), widen(y)
    with np.errstate(all="ignore"):
        if base.dtype.kind == "f":
            result = np.power(base, exponent.astype(base.dtype))
        elif exponent.dtype.kind == "f" or (exponent.dtype.kind == "i" and (exponent < 0).any()):
            result = np.trunc(np.power(base.astype(np.float64), exponent.astype(np.float64)))
        else:
            result = np.power(base, exponent.astype(base.dtype))
        return np.asarray(result).astype(np.asarray(x).dtype, copy=False)


@labelled
def _clip_rule(ctx: Inference) -> Sequence[TensorType]:
    kind = ctx.type(0)
    for i, bound in enumerate(("min", "max"), 1):
        if not ctx.has(i):
            continue
        if ctx.type(i).dtype != kind.dtype:
            raise ModelError(
                f"{bound} is {ctx.type(i).dtype} but the input is {kind.dtype}; insert a Cast"
            )
        if int(np.prod(ctx.shape(i))) != 1:
            raise ModelError(f"{bound} must be a scalar, found shape {ctx.shape(i)}")
    return [kind]


@compiled
def _lower_clip(ctx: Lowering) -> Lazy:
    value = expand(ctx, 0)
    for i, op in enumerate(("max", "min"), 1):
        if ctx.has(i):
            bound = ctx[i].reshape(())
            value = call(op, value, expand(ctx, i) if bound.constant is not None else bound.at(()))
    return lazy(ctx, value)


@operator("Clip", infer=_clip_rule, lower=_lower_clip)
def clip(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """``min(max(x, low), high)``; either bound may be left out (ONNX Clip-13)."""
    for bound, function in ((low, np.maximum), (high, np.minimum)):
        if bound is not None:
            x = np.asarray(function(x, np.asarray(bound).reshape(())))
    return np.array(x)
