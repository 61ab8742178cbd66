"""Hyperbolic and inverse functions as scalar expressions, from exp, log and sqrt.

Accurate to a few units in the last place in float32 and float64 over the whole range: where a
difference would cancel, another formula is chosen. Arguments outside a function's domain give NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from packhorse.kernel.expr import Expr, call, const, select

__all__ = ["acos", "acosh", "asin", "asinh", "atan", "atanh", "log1p", "sinh"]

_LARGE = 2.0**28
"""From here on ``x * x + 1`` is ``x * x`` in float64."""


def _size(x: Expr) -> Expr:
    return call("abs", x)


def _signed(x: Expr, size: Expr) -> Expr:
    """``size`` with the sign of ``x``."""
    return select(call("lt", x, 0.0), -size, size)


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Highest power first."""
    value: Expr | float = coefficients[0]
    for c in coefficients[1:]:
        value = x * value + c
    assert isinstance(value, Expr)
    return value


def log1p(x: Expr) -> Expr:
    """log(1 + x), also where x is tiny (W. Kahan: the error of 1 + x cancels in the quotient)."""
    above = x + 1.0
    small = select(call("eq", above, 1.0), x, call("log", above) * (x / (above - 1.0)))
    return select(call("gt", x, _LARGE), call("log", above), small)


def sinh(x: Expr) -> Expr:
    """Its series up to 1, then by exp of half the argument, which overflows no earlier."""
    size = _size(x)
    square = x * x
    series = [1 / math.factorial(n) for n in range(19, 0, -2)]
    half = call("exp", size * 0.5)
    large = (half * 0.5) * half - 0.5 / (half * half)
    return select(call("lt", size, 1.0), x * _polynomial(square, series), _signed(x, large))


def asinh(x: Expr) -> Expr:
    """log(x + sqrt(x * x + 1)) without cancellation."""
    size = _size(x)
    square = size * size
    near = log1p(size + square / (call("sqrt", square + 1.0) + 1.0))
    far = call("log", size) + math.log(2)
    return _signed(x, select(call("gt", size, _LARGE), far, near))


def acosh(x: Expr) -> Expr:
    """log(x + sqrt(x * x - 1)) without cancellation near 1."""
    above = x - 1.0
    near = log1p(above + call("sqrt", above * (above + 2.0)))
    return select(call("gt", x, _LARGE), call("log", x) + math.log(2), near)


def atanh(x: Expr) -> Expr:
    """Half the logarithm of (1 + x) / (1 - x)."""
    size = _size(x)
    return _signed(x, log1p(size * 2.0 / (1.0 - size)) * 0.5)


# S. L. Moshier, Cephes: atan of |x| <= 0.66 is x + x * z * P(z) / Q(z) with z = x * x.
_ATAN_P = (
    -8.750608600031904122785e-1, -1.615753718733365076637e1, -7.500855792314704667340e1,
    -1.228866684490136173410e2, -6.485021904942025371773e1,
)  # fmt: skip
_ATAN_Q = (
    1.0, 2.485846490142306297962e1, 1.650270098316988542046e2, 4.328810604912902668951e2,
    4.853903996359136964868e2, 1.945506571482613964425e2,
)  # fmt: skip
_STEEP = math.tan(3 * math.pi / 8)


def atan(x: Expr) -> Expr:
    """The argument is turned by 0, 45 or 90 degrees until it is small."""
    size = _size(x)
    steep, middle = call("gt", size, _STEEP), call("gt", size, 0.66)
    turned = select(middle, (size - 1.0) / (size + 1.0), size)
    turned = select(steep, -1.0 / size, turned)
    right, none = const(math.pi / 2, x.dtype), const(0.0, x.dtype)
    base = select(steep, right, select(middle, const(math.pi / 4, x.dtype), none))
    square = turned * turned
    tail = square * (_polynomial(square, _ATAN_P) / _polynomial(square, _ATAN_Q))
    return _signed(x, base + (turned * tail + turned))


def asin(x: Expr) -> Expr:
    """The angle whose tangent is x / sqrt(1 - x * x)."""
    return atan(x / call("sqrt", (1.0 - x) * (x + 1.0)))


def acos(x: Expr) -> Expr:
    """Twice the angle whose tangent is sqrt((1 - x) / (1 + x))."""
    return atan(call("sqrt", (1.0 - x) / (x + 1.0))) * 2.0
