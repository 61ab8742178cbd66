"""Activation functions, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from packhorse.kernel.expr import Expr, call, select
from packhorse.ops.elementwise import calls
from packhorse.ops.maps import NUMBER, Map, register
from packhorse.ops.rules import Array, text
from packhorse.ops.special import erf

_GELU_TANH = math.sqrt(2 / math.pi)
_SELU_ALPHA, _SELU_GAMMA = 1.6732632423543772, 1.0507009873554805


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _positive(x: Expr) -> Expr:
    return call("max", x, 0.0)


def _clamp01(x: Expr) -> Expr:
    return call("min", call("max", x, 0.0), 1.0)


def _log1p_expr(x: Expr) -> Expr:
    """log(1 + x) without losing a small x: the rounding of 1 + x is divided out again."""
    y = 1.0 + x
    return select(call("eq", y, 1.0), x, call("log", y) * x / (y - 1.0))


def _softplus(x: Array) -> Array:
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def _softplus_expr(x: Expr) -> Expr:
    return _positive(x) + _log1p_expr(call("exp", -call("abs", x)))


def _gelu(x: Array, *, approximate: str = "none") -> Array:
    if text(approximate) == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(_GELU_TANH * (x + 0.044715 * x * x * x))))
    return np.asarray(0.5 * x * (1 + erf(x * math.sqrt(0.5))))


def _gelu_expr(x: Expr, *, approximate: str) -> Expr:
    if text(approximate) == "tanh":
        inner = call("tanh", (x + x * x * x * 0.044715) * _GELU_TANH)
    else:
        inner = call("erf", x * math.sqrt(0.5))
    return x * 0.5 * (inner + 1.0)


def _negative_part(
    expression: Callable[..., Expr],
) -> Callable[..., Expr]:
    """``x`` where it is not negative, else ``expression(x, ...)``."""
    return lambda x, *more, **attrs: select(call("lt", x, 0.0), expression(x, *more, **attrs), x)


def _leaky(x: Array, *, alpha: float = 0.01) -> Array:
    return np.where(x < 0, x * alpha, x)


def _elu(x: Array, *, alpha: float = 1.0) -> Array:
    return np.where(x < 0, alpha * np.expm1(x), x)


def _celu(x: Array, *, alpha: float = 1.0) -> Array:
    return np.where(x < 0, alpha * np.expm1(x / alpha), x)


def _selu(x: Array, *, alpha: float = _SELU_ALPHA, gamma: float = _SELU_GAMMA) -> Array:
    return gamma * np.where(x < 0, alpha * np.expm1(x), x)


def _hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Array:
    return np.clip(x * alpha + beta, 0, 1)


def _thresholded(x: Array, *, alpha: float = 1.0) -> Array:
    return np.where(x > alpha, x, 0)


def _shrink(x: Array, *, bias: float = 0.0, lambd: float = 0.5) -> Array:
    return np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0))


def _shrink_expr(x: Expr, *, bias: float, lambd: float) -> Expr:
    above = select(call("gt", x, lambd), x - bias, 0.0)
    return select(call("lt", x, -lambd), x + bias, above)


register([
    Map("Relu", "ONNX Relu-14", lambda x: np.maximum(x, 0), _positive, NUMBER),
    Map("Sigmoid", "ONNX Sigmoid-13", _sigmoid, calls("sigmoid")),
    Map("Tanh", "ONNX Tanh-13", np.tanh, calls("tanh")),
    Map("HardSigmoid", "ONNX HardSigmoid-6", _hard_sigmoid,
        lambda x, alpha, beta: _clamp01(x * alpha + beta)),
    Map("HardSwish", "ONNX HardSwish-14", lambda x: x * np.clip(x * (1 / 6) + 0.5, 0, 1),
        lambda x: x * _clamp01(x * (1 / 6) + 0.5)),
    Map("LeakyRelu", "ONNX LeakyRelu-16", _leaky,
        _negative_part(lambda x, alpha: x * alpha)),
    Map("PRelu", "ONNX PRelu-16", lambda x, slope: np.where(x < 0, x * slope, x),
        _negative_part(lambda x, slope: x * slope), NUMBER, (2, 2)),
    Map("Elu", "ONNX Elu-6", _elu,
        _negative_part(lambda x, alpha: (call("exp", x) - 1.0) * alpha)),
    Map("Celu", "ONNX Celu-12", _celu,
        _negative_part(lambda x, alpha: (call("exp", x / alpha) - 1.0) * alpha)),
    Map("Selu", "ONNX Selu-6", _selu, lambda x, alpha, gamma: gamma * select(
        call("lt", x, 0.0), (call("exp", x) - 1.0) * alpha, x)),
    Map("Softplus", "ONNX Softplus-1", _softplus, _softplus_expr),
    Map("Softsign", "ONNX Softsign-1", lambda x: x / (1 + np.abs(x)),
        lambda x: x / (1.0 + call("abs", x))),
    Map("Gelu", "ONNX Gelu-20", _gelu, _gelu_expr),
    Map("Mish", "ONNX Mish-18", lambda x: x * np.tanh(_softplus(x)),
        lambda x: x * call("tanh", _softplus_expr(x))),
    Map("ThresholdedRelu", "ONNX ThresholdedRelu-10", _thresholded,
        lambda x, alpha: select(call("gt", x, alpha), x, 0.0)),
    Map("Shrink", "ONNX Shrink-9", _shrink, _shrink_expr, NUMBER),
])  # fmt: skip
