"""Floating-point values with Python operators, for writing elementary functions."""

from __future__ import annotations

from collections.abc import Sequence

from packhorse.compiler.llvm_builder import Builder, Val

__all__ = ["Num", "native_round", "split", "truncate"]


class Num:
    """A float value with Python operators; numbers become literals of its type."""

    __slots__ = ("b", "v")

    def __init__(self, b: Builder, v: Val) -> None:
        self.b, self.v = b, v

    def of(self, x: Num | float) -> Val:
        """An operand as a value of this type."""
        return x.v if isinstance(x, Num) else self.b.real(x, self.v.type)

    def __add__(self, x: Num | float) -> Num:
        return Num(self.b, self.b.binary("fadd", self.v, self.of(x)))

    def __sub__(self, x: Num | float) -> Num:
        return Num(self.b, self.b.binary("fsub", self.v, self.of(x)))

    def __rsub__(self, x: float) -> Num:
        return Num(self.b, self.b.binary("fsub", self.of(x), self.v))

    def __mul__(self, x: Num | float) -> Num:
        return Num(self.b, self.b.binary("fmul", self.v, self.of(x)))

    def __truediv__(self, x: Num | float) -> Num:
        return Num(self.b, self.b.binary("fdiv", self.v, self.of(x)))

    def __rtruediv__(self, x: float) -> Num:
        return Num(self.b, self.b.binary("fdiv", self.of(x), self.v))

    def __neg__(self) -> Num:
        text = f"fneg {self.v}"
        return Num(self.b, self.b.inst(text, self.v.type, self.v.lanes, [self.v], "value"))

    def __abs__(self) -> Num:
        return Num(self.b, self.b.intrinsic("fabs", self.v))

    def fma(self, m: Num | float, a: Num | float) -> Num:
        """``self * m + a``."""
        return Num(self.b, self.b.fma(self.v, self.of(m), self.of(a)))

    def poly(self, coefs: Sequence[float]) -> Num:
        """Horner, highest power first."""
        acc: Num | float = coefs[0]
        for c in coefs[1:]:
            acc = self.fma(acc, c)
        return acc if isinstance(acc, Num) else Num(self.b, self.of(acc))

    def test(self, how: str, x: Num | float) -> Val:
        """``fcmp how``."""
        return self.b.compare(f"fcmp {how}", self.v, self.of(x))

    def where(self, condition: Val, other: Num | float) -> Num:
        """``condition ? self : other``."""
        return Num(self.b, self.b.select(condition, self.v, self.of(other)))

    def at_least(self, low: float) -> Num:
        """``max(self, low)``, NaN kept."""
        return Num(self.b, self.b.select(self.test("olt", low), self.of(low), self.v))

    def at_most(self, high: float) -> Num:
        """``min(self, high)``, NaN kept."""
        return Num(self.b, self.b.select(self.test("ogt", high), self.of(high), self.v))

    @property
    def double(self) -> bool:
        """True for float64."""
        return self.v.type == "double"

    @property
    def bits(self) -> Val:
        """The bit pattern as an integer."""
        return self.b.convert("bitcast", self.v, "i64" if self.double else "i32")

    def from_bits(self, bits: Val) -> Num:
        """A float of this type from its bit pattern."""
        return Num(self.b, self.b.convert("bitcast", bits, self.v.type))

    def to_int(self) -> Val:
        """Truncated to an integer of the same width (saturating, so that it never is poison)."""
        return self.b.intrinsic("fptosi.sat", self.v, element="i64" if self.double else "i32")

    def copysign(self, sign: Num) -> Num:
        """Magnitude of self, sign of the other."""
        return Num(self.b, self.b.intrinsic("copysign", self.v, sign.v))

    def nearest(self) -> Num:
        """Nearest integer, half to even, for magnitudes below 2^22 (2^51)."""
        magic = 1.5 * 2.0 ** (52 if self.double else 23)
        return (self + magic) - magic


def native_round(b: Builder) -> bool:
    """True where rounding is an instruction; elsewhere LLVM would call libm."""
    return b.target.has("sse4.1") or not b.target.arch.startswith("x86")


def truncate(x: Num) -> Num:
    """Rounded towards zero."""
    if native_round(x.b):
        return Num(x.b, x.b.intrinsic("trunc", x.v))
    whole = Num(x.b, x.b.convert("sitofp", x.to_int(), x.v.type)).copysign(x)
    return whole.where(abs(x).test("olt", 2.0 ** (52 if x.double else 23)), x)


def split(x: Num) -> tuple[Num, Num]:
    """``m, e`` with ``x = m * 2**e`` for positive finite x; m in [2/3, 4/3), for float64 in
    [sqrt(1/2), sqrt(2))."""
    b = x.b
    tiny = x.test("olt", 2.0**-1022 if x.double else 2.0**-126)
    power = 54.0 if x.double else 23.0
    x = (x * 2.0**power).where(tiny, x)
    word, shift = ("i64", 52) if x.double else ("i32", 23)
    origin = 0x3FE6A09E667F3BCD if x.double else 0x3F2AAAAB
    bits = x.bits
    delta = b.binary("sub", bits, b.integer(origin, word))
    exponent = b.binary("ashr", delta, b.integer(shift, word))
    moved = b.binary("sub", bits, b.binary("shl", exponent, b.integer(shift, word)))
    e = Num(b, b.convert("sitofp", exponent, x.v.type))
    return x.from_bits(moved), (e - power).where(tiny, e)
