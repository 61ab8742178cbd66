"""Elementary functions as straight-line LLVM text: no libm, no tables, any number of lanes.

float32 results are within 2 ulp, float64 within about 1e-15, checked over dense ranges in
``tests/compiler/test_llvm_math.py``. Sources: exp, log, erf (float32): minimax polynomials by
N. Juffa; float64 log, sin, cos, erf: fdlibm; tanh: Cephes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from packhorse.compiler.llvm_builder import Val
from packhorse.compiler.llvm_num import Num, native_round, split, truncate

__all__ = ["FLOAT", "exp_of"]


def _scale(x: Num, n: Num) -> Num:
    """``x * 2**n`` for an integral n that may lead to overflow or to denormals."""
    b, lanes = x.b, x.v.lanes
    if b.target.has("avx512f") and lanes == (8 if x.double else 16):
        kind = f"<{lanes} x {x.v.type}>"
        name = f"llvm.x86.avx512.mask.scalef.{'pd' if x.double else 'ps'}.512"
        src = Val("zeroinitializer", x.v.type, lanes)
        mask = Val("-1", f"i{lanes}")
        full = b.same_lanes(x.v, n.v)
        args = [*full, src, mask, Val("4", "i32")]
        return Num(b, b.call_raw(name, args, kind, x.v.type, lanes))
    bias, shift = (1023, 52) if x.double else (127, 23)
    whole = n.to_int()
    half = b.binary("ashr", whole, b.integer(1, whole.type))
    for part in (half, b.binary("sub", whole, half)):
        biased = b.binary("add", part, b.integer(bias, whole.type))
        x = x * x.from_bits(b.binary("shl", biased, b.integer(shift, whole.type)))
    return x


_LN2 = math.log(2.0)
_EXP32 = (1.37805939e-3, 8.37312452e-3, 4.16695364e-2, 1.66664720e-1, 4.99999851e-1, 1.0, 1.0)
_EXP64 = tuple(float(Fraction(1, math.factorial(k))) for k in range(13, -1, -1))


def exp_of(x: Num, low: bool = True, high: bool = True) -> Num:
    """e ** x, 1 ulp; overflows to inf, underflows through denormals.

    ``low`` and ``high`` say whether x may fall below -100 or rise above 80 and must be clamped.
    """
    x = x.at_least(-746.0 if x.double else -104.5) if low else x
    x = x.at_most(710.0 if x.double else 89.0) if high else x
    if x.double:
        n = (x * (1.0 / _LN2)).nearest()
        r = n.fma(-1.90821492927058770002e-10, n.fma(-6.93147180369123816490e-01, x))
        return _scale(r.poly(_EXP64), n)
    n = (x * 1.44269502).nearest()
    r = n.fma(-1.42860677e-6, n.fma(-0.693145752, x))
    return _scale(r.poly(_EXP32), n)


_LOG64 = (
    1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01,
    2.222219843214978396e-01, 2.857142874366239149e-01, 3.999999999940941908e-01,
    6.666666666666735130e-01,
)  # fmt: skip


def _log(x: Num) -> Num:
    m, e = split(x)
    f = m - 1.0
    if x.double:
        s = f / (f + 2.0)
        z = s * s
        r = z * z.poly(_LOG64)
        half = f * f * 0.5
        low = s.fma(half + r, e * 1.90821492927058770002e-10)
        y = e.fma(6.93147180369123816490e-01, f - (half - low))
    else:
        s = f * f
        r = s.poly((-0.130310059, -0.121489234, -0.166846126, -0.249996200))
        t = s.poly((0.140869141, 0.139814854, 0.200120345))
        r = t.fma(f, r).fma(f, 0.333331972).fma(f, -0.5)
        y = e.fma(0.693147182, r.fma(s, f))
    return _log_edges(x, y)


def _log_edges(x: Num, y: Num) -> Num:
    y = y.where(x.test("olt", math.inf), x)  # inf and NaN stay
    low = Num(x.b, x.of(-math.inf)).where(x.test("oeq", 0.0), math.nan)
    return low.where(x.test("ole", 0.0), y)


def _inverse(x: Num) -> Num:
    """1 / x within 1 ulp for x in [1, 1e18]: an estimate and one Newton step where the division
    is the slowest instruction of all."""
    b = x.b
    if x.double or x.v.lanes != 16 or not b.target.has("avx512f"):
        return 1.0 / x
    src, mask = Val("zeroinitializer", "float", 16), Val("-1", "i16")
    name = "llvm.x86.avx512.rcp14.ps.512"
    r = Num(b, b.call_raw(name, [x.v, src, mask], "<16 x float>", "float", 16))
    return r.fma((-x).fma(r, 1.0), r)


def _sigmoid(x: Num) -> Num:
    z = exp_of(-abs(x), high=False)
    one = Num(x.b, x.of(1.0))
    return one.where(x.test("oge", 0.0), z) * _inverse(z + 1.0)


_TANH32 = (1.57394409e-2, -5.23025580e-2, 1.33152470e-1, -3.33327681e-1)
_TANH64_P = (-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3)
_TANH64_Q = (1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3)


def _tanh(x: Num) -> Num:
    a = abs(x)
    s = x * x
    if x.double:
        small = (x * s).fma(s.poly(_TANH64_P) / s.poly(_TANH64_Q), x)
    else:
        small = (s.poly(_TANH32) * s).fma(x, x)
    large = 1.0 - 2.0 / (exp_of(a + a) + 1.0)
    return small.where(a.test("olt", 0.625 if x.double else 0.55), large.copysign(x))


def _erf32(x: Num) -> Num:
    t, s = abs(x), x * x
    r = t.fma(-1.72853470e-5, 3.83197126e-4)
    u = t.fma(-3.88396438e-3, 2.42546219e-2)
    r = r.fma(s, u).fma(t, -1.06777877e-1).fma(t, -6.34846687e-1).fma(t, -1.28717512e-1)
    big = (1.0 - exp_of(r.fma(t, -t), high=False)).copysign(x)  # the exponent falls for every t
    small = s.poly(
        (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1,
         1.28379166e-1)
    ).fma(x, x)  # fmt: skip
    return big.where(t.test("ogt", 0.927734375), small)


_ERF_PP = (
    -2.37630166566501626084e-05, -5.77027029648944159157e-03, -2.84817495755985104766e-02,
    -3.25042107247001499370e-01, 1.28379167095512558561e-01,
)  # fmt: skip
_ERF_QQ = (
    -3.96022827877536812320e-06, 1.32494738004321644526e-04, 5.08130628187576562776e-03,
    6.50222499887672944485e-02, 3.97917223959155352819e-01, 1.0,
)  # fmt: skip
_ERF_PA = (
    -2.16637559486879084300e-03, 3.54783043256182359371e-02, -1.10894694282396677476e-01,
    3.18346619901161753674e-01, -3.72207876035701323847e-01, 4.14856118683748331666e-01,
    -2.36211856075265944077e-03,
)  # fmt: skip
_ERF_QA = (
    1.19844998467991074170e-02, 1.36370839120290507362e-02, 1.26171219808761642112e-01,
    7.18286544141962662868e-02, 5.40397917702171048937e-01, 1.06420880400844228286e-01, 1.0,
)  # fmt: skip
_ERF_RA = (
    -9.81432934416914548592e+00, -8.12874355063065934246e+01, -1.84605092906711035994e+02,
    -1.62396669462573470355e+02, -6.23753324503260060396e+01, -1.05586262253232909814e+01,
    -6.93858572707181764372e-01, -9.86494403484714822705e-03,
)  # fmt: skip
_ERF_SA = (
    -6.04244152148580987438e-02, 6.57024977031928170135e+00, 1.08635005541779435134e+02,
    4.29008140027567833386e+02, 6.45387271733267880336e+02, 4.34565877475229228821e+02,
    1.37657754143519042600e+02, 1.96512716674392571292e+01, 1.0,
)  # fmt: skip
_ERF_RB = (
    -4.83519191608651397019e+02, -1.02509513161107724954e+03, -6.37566443368389627722e+02,
    -1.60636384855821916062e+02, -1.77579549177547519889e+01, -7.99283237680523006574e-01,
    -9.86494292470009928597e-03,
)  # fmt: skip
_ERF_SB = (
    -2.24409524465858183362e+01, 4.74528541206955367215e+02, 2.55305040643316442583e+03,
    3.19985821950859553908e+03, 1.53672958608443695994e+03, 3.25792512996573918826e+02,
    3.03380607434824582924e+01, 1.0,
)  # fmt: skip


def _erf64(x: Num) -> Num:
    a, z = abs(x), x * x
    small = x.fma(z.poly(_ERF_PP) / z.poly(_ERF_QQ), x)
    s = a - 1.0
    middle = s.poly(_ERF_PA) / s.poly(_ERF_QA) + 8.45062911510467529297e-01
    t = a.at_least(0.5).at_most(7.0)
    inverse = 1.0 / (t * t)
    near = inverse.poly(_ERF_RA) / inverse.poly(_ERF_SA)
    far = inverse.poly(_ERF_RB) / inverse.poly(_ERF_SB)
    tail = near.where(a.test("olt", 1.0 / 0.35), far)
    large = 1.0 - exp_of(tail - t * t - 0.5625) / t
    y = middle.where(a.test("olt", 1.25), large)
    y = y.where(a.test("ule", 6.0), Num(x.b, x.of(1.0)))
    y = y.where(a.test("ord", a), a).copysign(x)
    return small.where(a.test("olt", 0.84375), y)


def _erf(x: Num) -> Num:
    return _erf64(x) if x.double else _erf32(x)


# sin and cos: argument minus a multiple of pi/2, in double for both dtypes. Good to a few ulp for
# |x| < 2^28 (float64 loses absolute accuracy beyond); infinities give NaN.
_PIO2 = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
_SIN = (
    1.58969099521155010221e-10, -2.50507602534068634195e-08, 2.75573137070700676789e-06,
    -1.98412698298579493134e-04, 8.33333333332248946124e-03, -1.66666666666666324348e-01,
)  # fmt: skip
_COS = (
    -1.13596475577881948265e-11, 2.08757232129817482790e-09, -2.75573143513906633035e-07,
    2.48015872894767294178e-05, -1.38888888888741095749e-03, 4.16666666666666019037e-02,
)  # fmt: skip


def _circular(x: Num, quarter: int) -> Num:
    b, single = x.b, not x.double
    wide = Num(b, b.convert("fpext", x.v, "double")) if single else x
    n = (wide * (2.0 / math.pi)).nearest()
    r = wide
    for part in _PIO2:
        r = n.fma(-part, r)
    k = b.binary("add", n.at_least(-(2.0**50)).at_most(2.0**50).to_int(), b.integer(quarter, "i64"))
    z = r * r
    sine = (z * r).fma(z.poly(_SIN), r)
    half = z * 0.5
    whole = 1.0 - half
    cosine = whole + ((1.0 - whole) - half + z * z * z.poly(_COS))
    odd = b.compare("icmp ne", b.binary("and", k, b.integer(1, "i64")), b.integer(0, "i64"))
    y = cosine.where(odd, sine)
    flip = b.compare("icmp ne", b.binary("and", k, b.integer(2, "i64")), b.integer(0, "i64"))
    y = (-y).where(flip, y)
    y = y.where(abs(wide).test("olt", math.inf), math.nan)
    return Num(b, b.convert("fptrunc", y.v, "float")) if single else y


def _rounder(name: str) -> Callable[[Num], Num]:
    def emit(x: Num) -> Num:
        if native_round(x.b):
            return Num(x.b, x.b.intrinsic(name, x.v))
        if name == "roundeven":
            small = abs(x) + 2.0 ** (52 if x.double else 23) - 2.0 ** (52 if x.double else 23)
        else:
            t = truncate(x)
            step, how = (-1.0, "ogt") if name == "floor" else (1.0, "olt")
            return (t + step).where(t.test(how, x), t).copysign(x)
        return small.copysign(x).where(abs(x).test("olt", 2.0 ** (52 if x.double else 23)), x)

    return emit


def _sign(x: Num) -> Num:
    one = Num(x.b, x.of(1.0)).copysign(x)
    return x.where(x.test("ueq", 0.0), one)


def _unary(fn: Callable[[Num], Num]) -> Callable[..., Val]:
    return lambda b, v: fn(Num(b, v)).v


FLOAT: Mapping[str, Callable[..., Val]] = {
    "exp": _unary(exp_of),
    "log": _unary(_log),
    "sigmoid": _unary(_sigmoid),
    "tanh": _unary(_tanh),
    "erf": _unary(_erf),
    "sin": _unary(lambda x: _circular(x, 0)),
    "cos": _unary(lambda x: _circular(x, 1)),
    "sqrt": lambda b, v: b.intrinsic("sqrt", v),
    "rsqrt": _unary(lambda x: 1.0 / Num(x.b, x.b.intrinsic("sqrt", x.v))),
    "neg": _unary(lambda x: -x),
    "abs": _unary(abs),
    "sign": _unary(_sign),
    "floor": _unary(_rounder("floor")),
    "ceil": _unary(_rounder("ceil")),
    "trunc": _unary(truncate),
    "round": _unary(_rounder("roundeven")),
}
"""Floating-point operations that are not one arithmetic instruction."""
