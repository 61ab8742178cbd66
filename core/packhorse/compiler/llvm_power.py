"""pow and fmod: the two functions that need more than working precision inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from packhorse.compiler.llvm_math import exp_of
from packhorse.compiler.llvm_num import Num, split, truncate

__all__ = ["fmod", "power"]

_ATANH64 = tuple(2.0 / (2 * k + 1) for k in range(13, 1, -1))


def _log_pair(x: Num) -> tuple[Num, Num]:
    """log of a positive finite double as an unevaluated sum, good to about 2^-65."""
    m, e = split(x)
    f = m - 1.0
    g = f + 2.0
    s = f / g
    g_low = f - (g - 2.0)
    s_low = ((-s).fma(g, f) - s * g_low) / g
    z = s * s
    # log(m) = 2 atanh(s) = 2s + s*z*R(z); R's leading 2/3 is large and needs its own low part
    tail = s * z
    tail_low = (s.fma(z, -tail)) + s * s.fma(s, -z)
    r = z * z.poly(_ATANH64)
    third = 2.0 / 3.0
    p = tail * third
    p_low = tail.fma(third, -p) + tail * 3.700743415417188e-17 + tail_low * third + tail * r
    high = s + s
    total = high + p
    low = (high - total) + p + (s_low + s_low) + s_low * z * 2.0 + p_low
    ln2_high, ln2_low = 6.93147180369123816490e-01, 1.90821492927058770002e-10
    big = e * ln2_high  # exact: ln2_high has 33 bits
    y = big + total
    back = y - big
    y_low = (big - (y - back)) + (total - back) + low + e * ln2_low
    out = y + y_low
    return out, (y - out) + y_low


def _pow64(x: Num, y: Num) -> Num:
    a = abs(x)
    high, low = _log_pair(a)
    p = y * high
    p_low = y.fma(high, -p) + y * low
    p_low = p_low.where(abs(p).test("olt", math.inf), 0.0)
    clipped = p.at_least(-800.0).at_most(800.0)
    r = exp_of(clipped)
    r = r.fma(p_low.where(abs(clipped).test("olt", 750.0), 0.0), r).where(
        r.test("olt", math.inf), r
    )
    return _pow_edges(x, y, a, r)


def _pow_edges(x: Num, y: Num, a: Num, r: Num) -> Num:
    """Signs, zeros, infinities and NaN as C99 has them."""
    b = x.b
    inf, zero, one = (Num(b, x.of(v)) for v in (math.inf, 0.0, 1.0))
    rises = y.test("ogt", 0.0)
    r = zero.where(rises, inf).where(a.test("oeq", 0.0), r)
    r = inf.where(rises, zero).where(a.test("oeq", math.inf), r)
    grows = b.binary("xor", a.test("ogt", 1.0), y.test("olt", 0.0))
    r = inf.where(grows, zero).where(abs(y).test("oeq", math.inf), r)
    whole = truncate(y)
    integral = whole.test("oeq", y)
    halved = y * 0.5
    odd = b.binary("and", integral, truncate(halved).test("une", halved))
    negative = b.compare("icmp slt", x.bits, b.integer(0, "i64"))
    r = (-r).where(b.binary("and", odd, negative), r)
    finite = b.binary("and", x.test("olt", 0.0), x.test("ogt", -math.inf))
    outside = b.binary("and", finite, b.binary("xor", integral, b.integer(1, "i1")))
    r = Num(b, x.of(math.nan)).where(outside, r)
    r = (x + y).where(x.test("uno", y), r)
    r = one.where(a.test("oeq", 1.0), r).where(
        b.binary("and", a.test("oeq", 1.0), abs(y).test("oeq", math.inf)), r
    )
    return one.where(b.binary("or", y.test("oeq", 0.0), x.test("oeq", 1.0)), r)


def power(x: Num, y: Num) -> Num:
    """``x ** y`` by C99's rules; float32 is computed in float64, float64 within about 1 ulp."""
    known = y.v.const
    if known in (0.5, 1.0, 2.0, 3.0, -1.0):
        simple: Mapping[float, Callable[[], Num]] = {
            0.5: lambda: _sqrt_power(x),
            1.0: lambda: x,
            2.0: lambda: x * x,
            3.0: lambda: x * x * x,
            -1.0: lambda: 1.0 / x,
        }
        return simple[float(known)]()
    if x.double:
        return _pow64(*(Num(x.b, v) for v in x.b.same_lanes(x.v, y.v)))
    b = x.b
    args = b.same_lanes(x.v, y.v)
    wide = [Num(b, b.convert("fpext", v, "double")) for v in args]
    return Num(b, b.convert("fptrunc", _pow64(*wide).v, "float"))


def _sqrt_power(x: Num) -> Num:
    """pow(x, 0.5): differs from sqrt at -0 and -inf only."""
    root = Num(x.b, x.b.intrinsic("sqrt", (x + 0.0).v))
    return Num(x.b, x.of(math.inf)).where(x.test("oeq", -math.inf), root)


def fmod(x: Num, y: Num) -> Num:
    """Remainder with the sign of x; exact while the quotient is below 2^53, else 0."""
    b = x.b
    args = b.same_lanes(x.v, y.v)
    p, q = (Num(b, b.convert("fpext", v, "double") if v.type == "float" else v) for v in args)
    divisor = abs(q)
    quotient = truncate(p / divisor)
    r = (-quotient).fma(divisor, p)
    # the quotient may have been rounded across an integer
    low = b.binary("and", r.test("olt", 0.0), p.test("ogt", 0.0))
    high = b.binary("and", r.test("ogt", 0.0), p.test("olt", 0.0))
    r = (r + divisor).where(low, r)
    r = (r - divisor).where(high, r)
    over = abs(r).test("oge", divisor)
    r = (r - divisor.copysign(p)).where(over, r)
    r = r.where(abs(r).test("ult", divisor), 0.0).copysign(p)  # quotient beyond 2^53: no digits
    finite = b.binary("and", abs(p).test("olt", math.inf), divisor.test("oeq", math.inf))
    r = p.where(finite, r)
    return Num(b, b.convert("fptrunc", r.v, "float")) if args[0].type == "float" else r
