"""Scalar operations of the kernel language as LLVM instructions, one table entry each.

Registers hold float16 and bfloat16 as ``float`` rounded after every operation (NumPy's
arithmetic); bool is ``i1``. Nothing here calls a function outside the module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from packhorse.compiler.llvm_builder import Builder, Val
from packhorse.compiler.llvm_math import FLOAT
from packhorse.compiler.llvm_num import Num
from packhorse.compiler.llvm_power import fmod, power
from packhorse.errors import CompileError
from packhorse.kernel.expr import COMBINES, Const, is_float

__all__ = [
    "MEMORY",
    "REGISTER",
    "combine",
    "constant",
    "convert",
    "from_memory",
    "neutral",
    "operation",
    "size_of",
    "to_memory",
]

_INTS = {f"{u}int{n}": f"i{n}" for u in ("", "u") for n in (8, 16, 32, 64)}
REGISTER: Mapping[str, str] = {
    **_INTS, "float32": "float", "float64": "double", "float16": "float", "bfloat16": "float",
    "bool": "i1",
}  # fmt: skip
"""LLVM type of a value in a register."""
MEMORY: Mapping[str, str] = {
    **_INTS, "float32": "float", "float64": "double", "float16": "half", "bfloat16": "i16",
    "bool": "i8",
}  # fmt: skip
"""LLVM type of an element in memory."""
_SIZES = {"bool": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def size_of(dtype: str) -> int:
    """Bytes of one element in memory; CompileError for a dtype no kernel can hold."""
    if dtype in _SIZES:
        return _SIZES[dtype]
    if dtype in _INTS:
        return int(_INTS[dtype][1:]) // 8
    raise CompileError(f"dtype '{dtype}' has no machine type. Known are: {', '.join(MEMORY)}")


def register(dtype: str) -> str:
    """LLVM register type of a dtype."""
    size_of(dtype)
    return REGISTER[dtype]


def unsigned(dtype: str) -> bool:
    """True for unsigned integers and bool."""
    return dtype.startswith("u") or dtype == "bool"


def constant(b: Builder, node: Const) -> Val:
    """A literal as a scalar value."""
    element = register(node.dtype)
    if is_float(node.dtype):
        return b.real(float(node.value), element)
    return b.integer(int(node.value), element)


def limits(dtype: str) -> tuple[int, int]:
    """Smallest and largest value of an integer dtype."""
    if dtype == "bool":
        return 0, 1
    bits = 8 * size_of(dtype)
    return (0, (1 << bits) - 1) if unsigned(dtype) else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def neutral(b: Builder, how: str, dtype: str, lanes: int) -> Val:
    """Neutral element of a combine."""
    value = COMBINES[how]
    if is_float(dtype):
        return b.real(value, register(dtype), lanes)
    low, high = limits(dtype)
    exact = {"sum": 0, "prod": 1, "max": low, "min": high}[how]
    return b.integer(exact, register(dtype), lanes)


_COMBINE_OPS = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}


def combine(b: Builder, how: str, dtype: str, a: Val, x: Val) -> Val:
    """``a (combine) x``; the accumulator comes first."""
    return operation(b, _COMBINE_OPS[how], dtype, [dtype, dtype], [a, x])


# -- memory <-> registers ---------------------------------------------------------------------


def from_memory(b: Builder, dtype: str, raw: Val) -> Val:
    """Register value of what was loaded as the memory type."""
    if dtype == "bool":
        return b.compare("icmp ne", raw, b.integer(0, "i8"))
    if dtype == "float16":
        return _half_to_float(b, raw)
    if dtype == "bfloat16":
        wide = b.binary("shl", b.convert("zext", raw, "i32"), b.integer(16, "i32"))
        return b.convert("bitcast", wide, "float")
    return raw


def to_memory(b: Builder, dtype: str, value: Val) -> Val:
    """What to store for a register value."""
    if dtype == "bool":
        return b.convert("zext", value, "i8")
    if dtype == "float16":
        return _float_to_half(b, value)
    if dtype == "bfloat16":
        return b.convert("trunc", _bfloat_bits(b, value), "i16")
    return value


def _has_half(b: Builder) -> bool:
    return b.target.has("f16c") or b.target.arch in ("aarch64", "arm64")


def _half_to_float(b: Builder, raw: Val) -> Val:
    if _has_half(b):
        return b.convert("fpext", raw, "float")
    bits = b.convert("zext", b.convert("bitcast", raw, "i16"), "i32")
    sign = b.binary("shl", b.binary("and", bits, b.integer(0x8000, "i32")), b.integer(16, "i32"))
    rest = b.binary("shl", b.binary("and", bits, b.integer(0x7FFF, "i32")), b.integer(13, "i32"))
    # scaling by 2^112 moves the exponent and normalises denormals in one exact multiplication
    value = b.binary("fmul", b.convert("bitcast", rest, "float"), b.real(2.0**112, "float"))
    special = b.compare("icmp uge", rest, b.integer(0x7C00 << 13, "i32"))
    whole = b.convert("bitcast", value, "i32")
    whole = b.select(special, b.binary("or", rest, b.integer(0x7F800000, "i32")), whole)
    return b.convert("bitcast", b.binary("or", whole, sign), "float")


def _float_to_half(b: Builder, value: Val) -> Val:
    if _has_half(b):
        return b.convert("fptrunc", value, "half")

    def i32(n: int) -> Val:
        return b.integer(n, "i32")

    bits = b.convert("bitcast", value, "i32")
    sign = b.binary("and", b.binary("lshr", bits, i32(16)), i32(0x8000))
    mag = b.binary("and", bits, i32(0x7FFFFFFF))
    odd = b.binary("and", b.binary("lshr", mag, i32(13)), i32(1))
    rounded = b.binary("add", b.binary("add", mag, i32(0xC8000FFF)), odd)  # rebias, half to even
    normal = b.binary("lshr", rounded, i32(13))
    # below 2^-14 let the adder round: 0.5 + x has a ulp of 2^-24
    tiny = b.binary("fadd", b.convert("bitcast", mag, "float"), b.real(0.5, "float"))
    denormal = b.binary("sub", b.convert("bitcast", tiny, "i32"), i32(0x3F000000))
    out = b.select(b.compare("icmp ult", mag, i32(0x38800000)), denormal, normal)
    out = b.select(b.compare("icmp uge", mag, i32(0x477FF000)), i32(0x7C00), out)
    out = b.select(b.compare("icmp ugt", mag, i32(0x7F800000)), i32(0x7E00), out)
    return b.convert("bitcast", b.convert("trunc", b.binary("or", out, sign), "i16"), "half")


def _bfloat_bits(b: Builder, value: Val) -> Val:
    bits = b.convert("bitcast", value, "i32")
    odd = b.binary("and", b.binary("lshr", bits, b.integer(16, "i32")), b.integer(1, "i32"))
    rounded = b.binary("add", b.binary("add", bits, b.integer(0x7FFF, "i32")), odd)
    top = b.binary("lshr", rounded, b.integer(16, "i32"))
    quiet = b.binary("or", b.binary("lshr", bits, b.integer(16, "i32")), b.integer(0x40, "i32"))
    return b.select(b.compare("fcmp uno", value, value), quiet, top)


def _rounded(b: Builder, dtype: str, value: Val) -> Val:
    if dtype == "float16":
        return _half_to_float(b, _float_to_half(b, value))
    if dtype == "bfloat16":
        bits = b.binary("shl", _bfloat_bits(b, value), b.integer(16, "i32"))
        return b.convert("bitcast", bits, "float")
    return value


# -- conversions --------------------------------------------------------------------------------


def convert(b: Builder, value: Val, source: str, dtype: str) -> Val:
    """``cast``: float to int truncates and saturates, anything to bool is ``!= 0``."""
    if source == dtype:
        return value
    element = register(dtype)
    if dtype == "bool":
        zero = b.real(0.0, value.type) if is_float(source) else b.integer(0, value.type)
        return b.compare("fcmp une" if is_float(source) else "icmp ne", value, zero)
    if is_float(source) and is_float(dtype):
        wider = element == "double"
        value = b.convert("fpext" if wider else "fptrunc", value, element)
        return _rounded(b, dtype, value)
    if is_float(dtype):
        op = "uitofp" if unsigned(source) else "sitofp"
        return _rounded(b, dtype, b.convert(op, value, element))
    if is_float(source):
        name = "fptoui.sat" if unsigned(dtype) else "fptosi.sat"
        return b.intrinsic(name, value, element=element)
    if int(element[1:]) <= int(value.type[1:]):
        return b.convert("trunc", value, element)
    return b.convert("zext" if unsigned(source) else "sext", value, element)


# -- operations ---------------------------------------------------------------------------------

_Emit = Callable[[Builder, str, list[Val]], Val]

_FLOAT_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_BOOL_BINARY = {"add": "or", "mul": "and", "sub": "xor", "max": "or", "min": "and"}
_BITS = {"and": "and", "or": "or", "xor": "xor"}
_COMPARE = {
    # op: (float, signed, unsigned)
    "lt": ("olt", "slt", "ult"), "le": ("ole", "sle", "ule"), "gt": ("ogt", "sgt", "ugt"),
    "ge": ("oge", "sge", "uge"), "eq": ("oeq", "eq", "eq"), "ne": ("une", "ne", "ne"),
}  # fmt: skip


def operation(b: Builder, op: str, dtype: str, sources: list[str], args: list[Val]) -> Val:
    """Emit one entry of :data:`packhorse.kernel.expr.CALLS`.

    Raises
    ------
    CompileError
        The operation has no meaning for this dtype.
    """
    source = sources[-1]
    if op in _COMPARE:
        names = _COMPARE[op]
        if is_float(source):
            return b.compare(f"fcmp {names[0]}", *args)
        return b.compare(f"icmp {names[2 if unsigned(source) else 1]}", *args)
    if op == "select":
        return b.select(*args)
    if op == "cast":
        return convert(b, args[0], source, dtype)
    if op == "bitcast":
        return b.convert("bitcast", args[0], register(dtype))
    if op == "isnan":
        if is_float(source):
            return b.compare("fcmp uno", args[0], args[0])
        return b.integer(0, "i1", args[0].lanes)
    if is_float(source):
        return _rounded(b, dtype, _float_op(b, op, source, args))
    return _int_op(b, op, source, args)


def _float_op(b: Builder, op: str, dtype: str, args: list[Val]) -> Val:
    if op in _FLOAT_BINARY:
        return b.binary(_FLOAT_BINARY[op], *args)
    if op in ("max", "min"):
        return _float_extreme(b, op, *args)
    if op in ("pow", "mod"):
        return (power if op == "pow" else fmod)(*(Num(b, v) for v in args)).v
    emit = FLOAT.get(op)
    if emit is None:
        raise CompileError(f"operation '{op}' is not defined for {dtype}")
    return emit(b, *args)


def _float_extreme(b: Builder, op: str, a: Val, x: Val) -> Val:
    """max/min that propagate NaN. ``a > x ? a : x`` is one x86 instruction and returns x when
    either is NaN, so only a NaN in a needs care, and none when a is a literal."""
    if x.const is not None and a.const is None:
        a, x = x, a
    first = b.select(b.compare("fcmp ogt" if op == "max" else "fcmp olt", a, x), a, x)
    if a.const is not None and a.const == a.const:
        return first
    return b.select(b.compare("fcmp uno", a, a), a, first)


def _int_op(b: Builder, op: str, dtype: str, args: list[Val]) -> Val:
    if op in _BITS:
        return b.binary(_BITS[op], *args)
    if op == "not":
        return b.binary("xor", args[0], b.integer(-1, args[0].type))
    if dtype == "bool" and op in _BOOL_BINARY:
        return b.binary(_BOOL_BINARY[op], *args)
    if op in ("add", "sub", "mul"):
        return b.binary(op, *args)
    emit = _INT.get(op)
    if emit is None:
        raise CompileError(
            f"operation '{op}' is not defined for {dtype}. Cast to a float dtype first"
        )
    return emit(b, dtype, args)


def _int_extreme(name: str) -> _Emit:
    def emit(b: Builder, dtype: str, args: list[Val]) -> Val:
        return b.intrinsic(("u" if unsigned(dtype) else "s") + name, *args)

    return emit


def _safe_divisor(b: Builder, dtype: str, d: Val) -> tuple[Val, Val | None]:
    """A divisor that cannot trap (0, and -1 for the smallest dividend), and where it was 0."""
    if d.const is not None and d.const not in (0, -1):
        return d, None
    zero = b.compare("icmp eq", d, b.integer(0, d.type))
    unsafe = zero
    if not unsigned(dtype):
        unsafe = b.binary("or", zero, b.compare("icmp eq", d, b.integer(-1, d.type)))
    return b.select(unsafe, b.integer(1, d.type), d), zero


def _divide(b: Builder, dtype: str, args: list[Val]) -> Val:
    """Truncating quotient; x / 0 is 0 and min / -1 wraps, as NumPy has it."""
    x, d = b.same_lanes(*args)
    safe, zero = _safe_divisor(b, dtype, d)
    if unsigned(dtype):
        quotient = b.binary("udiv", x, safe)
    else:
        quotient = b.binary("sdiv", x, safe)
        if zero is not None:
            minus = b.compare("icmp eq", d, b.integer(-1, d.type))
            quotient = b.select(minus, b.binary("sub", b.integer(0, x.type), x), quotient)
    return quotient if zero is None else b.select(zero, b.integer(0, x.type), quotient)


def _remainder(b: Builder, dtype: str, args: list[Val]) -> Val:
    """Remainder with the sign of the divisor; x mod 0 is 0."""
    x, d = b.same_lanes(*args)
    safe, zero = _safe_divisor(b, dtype, d)
    if unsigned(dtype):
        rest = b.binary("urem", x, safe)
    else:
        rest = b.binary("srem", x, safe)
        differ = b.compare("icmp slt", b.binary("xor", rest, safe), b.integer(0, x.type))
        nonzero = b.compare("icmp ne", rest, b.integer(0, x.type))
        fix = b.binary("and", differ, nonzero)
        rest = b.select(fix, b.binary("add", rest, safe), rest)
    return rest if zero is None else b.select(zero, b.integer(0, x.type), rest)


def _floor_divide(b: Builder, dtype: str, args: list[Val]) -> Val:
    if unsigned(dtype):
        return _divide(b, dtype, args)
    x, d = b.same_lanes(*args)
    quotient = _divide(b, dtype, [x, d])
    rest = b.binary("sub", x, b.binary("mul", quotient, d))
    differ = b.compare("icmp slt", b.binary("xor", rest, d), b.integer(0, x.type))
    fix = b.binary("and", differ, b.compare("icmp ne", rest, b.integer(0, x.type)))
    fix = b.binary("and", fix, b.compare("icmp ne", d, b.integer(0, x.type)))
    return b.select(fix, b.binary("sub", quotient, b.integer(1, x.type)), quotient)


def _int_sign(b: Builder, dtype: str, args: list[Val]) -> Val:
    x = args[0]
    zero, one = b.integer(0, x.type), b.integer(1, x.type)
    positive = b.select(b.compare("icmp ne", x, zero), one, zero)
    if unsigned(dtype):
        return positive
    return b.select(b.compare("icmp slt", x, zero), b.integer(-1, x.type), positive)


def _int_power(b: Builder, dtype: str, args: list[Val]) -> Val:
    """Square and multiply; a negative exponent gives the truncated reciprocal (1, -1 or 0)."""
    base, exponent = b.same_lanes(*args)
    zero, one = b.integer(0, base.type), b.integer(1, base.type)
    result, square = b.splat(one, base.lanes), base
    bits = int(base.type[1:])
    known = exponent.const
    for bit in range(bits if known is None else max(int(known), 0).bit_length()):
        mask = b.integer(1 << bit, base.type)
        on = b.compare("icmp ne", b.binary("and", exponent, mask), zero)
        result = b.select(on, b.binary("mul", result, square), result)
        square = b.binary("mul", square, square)
    if unsigned(dtype):
        return result
    odd = b.compare("icmp ne", b.binary("and", exponent, one), zero)
    unit = b.compare("icmp eq", base, one)
    minus = b.compare("icmp eq", base, b.integer(-1, base.type))
    reciprocal = b.select(minus, b.select(odd, b.integer(-1, base.type), one), zero)
    reciprocal = b.select(unit, one, reciprocal)
    return b.select(b.compare("icmp slt", exponent, zero), reciprocal, result)


_INT: Mapping[str, _Emit] = {
    "max": _int_extreme("max"),
    "min": _int_extreme("min"),
    "div": _divide,
    "floordiv": _floor_divide,
    "mod": _remainder,
    "pow": _int_power,
    "neg": lambda b, _, a: b.binary("sub", b.integer(0, a[0].type), a[0]),
    "abs": lambda b, dtype, a: (
        a[0] if unsigned(dtype) else b.intrinsic("abs", a[0], extra="i1 false")
    ),
    "sign": _int_sign,
    "floor": lambda b, _, a: a[0],
    "ceil": lambda b, _, a: a[0],
    "round": lambda b, _, a: a[0],
    "trunc": lambda b, _, a: a[0],
}
