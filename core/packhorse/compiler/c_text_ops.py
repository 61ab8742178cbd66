"""The scalar operations of the kernel language as C expressions.

Where C leaves a result undefined that the kernel language defines (division by zero, overflow,
casts out of range) the text calls a helper function that defines it; helpers are emitted once per
program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from packhorse.compiler.c_dialects import Dialect
from packhorse.errors import CompileError
from packhorse.kernel.expr import COMBINES, is_float

__all__ = [
    "Helpers",
    "bitcast_text",
    "call_text",
    "cast_text",
    "combine_text",
    "from_memory",
    "literal",
    "neutral",
    "register",
    "to_memory",
]

_HALVES = ("float16", "bfloat16")


def register(dtype: str) -> str:
    """The dtype a value has in a register: half precision is computed as float32."""
    return "float32" if dtype in _HALVES else dtype


class Helpers:
    """Functions that kernels of one program call, each emitted once."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.texts: dict[str, str] = {}

    def need(self, name: str, template: str, **words: str) -> str:
        """Note a helper function and return its name."""
        if name not in self.texts:
            text = template.replace("FN ", self.dialect.helper + " ").replace("NAME", name)
            for word, value in words.items():
                text = text.replace(f"${word}", value)
            self.texts[name] = text
        return name

    def ctype(self, dtype: str) -> str:
        """C type of a register."""
        kind = register(dtype)
        if kind not in self.dialect.types:
            raise CompileError(f"{self.dialect.name} has no type for dtype '{dtype}'")
        return self.dialect.types[kind]

    def unsigned(self, dtype: str) -> str:
        """The type in which integers of a dtype wrap instead of overflowing."""
        return self.dialect.types["uint64" if dtype.endswith("64") else "uint32"]


def literal(value: float | int | str, dtype: str, dialect: Dialect) -> str:
    """A constant as C text, exactly."""
    if dtype == "bool":
        return "true" if int(value) else "false"
    if is_float(dtype):
        return _float_literal(float(value), register(dtype), dialect)
    number = int(value)
    if dtype in ("int64", "uint64"):
        suffix = ("U" if dtype == "uint64" else "") + dialect.long_suffix
        if number == -(1 << 63):
            return f"(-{(1 << 63) - 1}{suffix} - 1)"
    else:
        suffix = "U" if dtype == "uint32" else ""
        if number == -(1 << 31):
            return f"(-{(1 << 31) - 1} - 1)"
    return f"{number}{suffix}" if number >= 0 else f"({number}{suffix})"


def _float_literal(value: float, dtype: str, dialect: Dialect) -> str:
    typed = np.dtype(dtype).type(value)
    if not math.isfinite(typed):
        if dtype == "float32":
            bits = int(np.float32(typed).view(np.uint32))
            return dialect.bits["float32"].format(f"{bits:#x}U")
        bits = int(np.float64(typed).view(np.uint64))
        return dialect.bits["float64"].format(f"{bits:#x}U{dialect.long_suffix}")
    text = np.format_float_scientific(typed) if typed else ("-0.0" if np.signbit(typed) else "0.0")
    text += "f" if dtype == "float32" else ""
    return f"({text})" if text.startswith("-") else text


def neutral(combine: str, dtype: str, dialect: Dialect) -> str:
    """What a reduction starts from, as C text."""
    if dtype == "bool":
        return "false" if combine in ("sum", "max") else "true"
    if is_float(dtype) or combine in ("sum", "prod"):
        return literal(COMBINES[combine], dtype, dialect)
    info = np.iinfo(dtype)
    return literal(int(info.min if combine == "max" else info.max), dtype, dialect)


def combine_text(combine: str, dtype: str, a: str, b: str, helpers: Helpers) -> str:
    """One step of a reduction."""
    if dtype == "bool":
        return f"({a} || {b})" if combine in ("sum", "max") else f"({a} && {b})"
    op = {"sum": "add", "prod": "mul"}.get(combine, combine)
    return call_text(op, dtype, (dtype, dtype), (a, b), helpers)


_WRAPPING = {"add": "+", "sub": "-", "mul": "*"}
_PLAIN = {**_WRAPPING, "div": "/"}
_COMPARE = {"lt": "<", "le": "<=", "eq": "==", "ne": "!=", "gt": ">", "ge": ">="}
_LOGIC = {"and": "&", "or": "|", "xor": "^"}
_MATH = {
    "exp": "exp", "log": "log", "sqrt": "sqrt", "erf": "erf", "tanh": "tanh", "sin": "sin",
    "cos": "cos", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "rint",
    "abs": "fabs", "mod": "fmod", "pow": "pow",
}  # fmt: skip
_INTEGER_IDENTITY = ("floor", "ceil", "trunc", "round")


def call_text(
    op: str, dtype: str, kinds: Sequence[str], args: Sequence[str], helpers: Helpers
) -> str:
    """A :class:`~packhorse.kernel.expr.Call` (all but ``cast``) as C text.

    Parameters
    ----------
    op, dtype : str
        The operation and the dtype of its result.
    kinds, args : sequences of str
        Dtypes and C expressions (names or literals) of the operands.

    Raises
    ------
    CompileError
        The operation does not exist for the dtype.
    """
    kind = kinds[-1]
    if op in _COMPARE:
        return f"({args[0]} {_COMPARE[op]} {args[1]})"
    if op == "select":
        return f"({args[0]} ? {args[1]} : {args[2]})"
    if op == "isnan":
        return f"({args[0]} != {args[0]})" if is_float(kind) else "false"
    if kind == "bool":
        return _bool(op, args)
    text = _float(op, kind, args, helpers) if is_float(kind) else _int(op, kind, args, helpers)
    return round_text(text, dtype, helpers)


def _unknown(op: str, dtype: str) -> CompileError:
    return CompileError(f"there is no operation '{op}' of {dtype} in C")


def _bool(op: str, args: Sequence[str]) -> str:
    if op == "not":
        return f"(!{args[0]})"
    same = {"add": "||", "max": "||", "or": "||", "mul": "&&", "min": "&&", "and": "&&",
            "xor": "!="}  # fmt: skip
    if op not in same:
        raise _unknown(op, "bool")
    return f"({args[0]} {same[op]} {args[1]})"


def _float(op: str, dtype: str, args: Sequence[str], helpers: Helpers) -> str:
    dialect, a = helpers.dialect, args[0]
    one = literal(1.0, dtype, dialect)
    suffix = dialect.float_suffix if register(dtype) == "float32" else ""
    if op in _PLAIN:
        return f"({a} {_PLAIN[op]} {args[1]})"
    if op in ("max", "min"):  # a NaN on either side is the result
        sign = ">" if op == "max" else "<"
        return f"(({a} {sign} {args[1]} || {a} != {a}) ? {a} : {args[1]})"
    if op == "neg":
        return f"(-{a})"
    if op == "sign":
        zero = literal(0.0, dtype, dialect)
        return f"({a} > {zero} ? {one} : ({a} < {zero} ? -{one} : {a}))"
    if op == "rsqrt":
        return f"({one} / sqrt{suffix}({a}))"
    if op == "sigmoid":
        return f"({one} / ({one} + exp{suffix}(-{a})))"
    if op in _MATH:
        return f"{_MATH[op]}{suffix}({', '.join(args)})"
    raise _unknown(op, dtype)


_INT_HELPERS: Mapping[str, str] = {
    "div": """FN $T NAME($T a, $T b) {
  if (b == 0) return 0;
  if (b == ($T)-1 && ($T)-1 < ($T)1) return ($T)(0 - ($U)a);
  return a / b;
}""",
    "floordiv": """FN $T NAME($T a, $T b) {
  if (b == 0) return 0;
  if (b == ($T)-1 && ($T)-1 < ($T)1) return ($T)(0 - ($U)a);
  return (a % b != 0 && (a < 0) != (b < 0)) ? a / b - 1 : a / b;
}""",
    "mod": """FN $T NAME($T a, $T b) {
  if (b == 0 || (b == ($T)-1 && ($T)-1 < ($T)1)) return 0;
  $T r = a % b;
  return (r != 0 && (r < 0) != (b < 0)) ? r + b : r;
}""",
    "pow": """FN $T NAME($T a, $T b) {
  if (b < 0) return a == 1 ? 1 : (a == ($T)-1 ? (b % 2 != 0 ? a : 1) : 0);
  $U r = 1, s = ($U)a;
  for (; b > 0; b = b / 2) { if (b % 2 != 0) r = r * s; s = s * s; }
  return ($T)r;
}""",
}


def _int(op: str, dtype: str, args: Sequence[str], helpers: Helpers) -> str:
    kind, wide, a = helpers.ctype(dtype), helpers.unsigned(dtype), args[0]
    if op in _WRAPPING:
        return f"({kind})(({wide}){a} {_WRAPPING[op]} ({wide}){args[1]})"
    if op in _INT_HELPERS:
        words = {"T": kind, "U": wide}
        return f"{helpers.need(f'f_{op}_{dtype}', _INT_HELPERS[op], **words)}({a}, {args[1]})"
    if op in ("max", "min"):
        return f"({a} {'>' if op == 'max' else '<'} {args[1]} ? {a} : {args[1]})"
    if op in _LOGIC:
        return f"({kind})({a} {_LOGIC[op]} {args[1]})"
    unary: Mapping[str, Callable[[], str]] = {
        "neg": lambda: f"({kind})(0 - ({wide}){a})",
        "abs": lambda: f"({a} < 0 ? ({kind})(0 - ({wide}){a}) : {a})",
        "sign": lambda: f"({kind})(({a} > 0) - ({a} < 0))",
        "not": lambda: f"({kind})(~{a})",
        **dict.fromkeys(_INTEGER_IDENTITY, lambda: a),
    }
    if op not in unary:
        raise _unknown(op, dtype)
    return unary[op]()


_SATURATE = """FN $T NAME($F x) {
  if (x != x) return 0;
  if (x >= $HIGHF) return $HIGH;
  if (x <= $LOWF) return $LOW;
  return ($T)x;
}"""


def cast_text(text: str, source: str, target: str, helpers: Helpers) -> str:
    """Convert a value: float to int truncates and saturates, anything to bool is ``!= 0``."""
    dialect = helpers.dialect
    if source == target:
        return text
    if target == "bool":
        return f"({text} != {literal(0, source, dialect)})"
    if is_float(source) and not is_float(target):
        info = np.iinfo(target)
        low, high = int(info.min), int(info.max)
        name = helpers.need(
            f"f_{target}_of_{register(source)}", _SATURATE,
            HIGHF=literal(float(high), source, dialect), LOWF=literal(float(low), source, dialect),
            HIGH=literal(high, target, dialect), LOW=literal(low, target, dialect),
            T=helpers.ctype(target), F=helpers.ctype(source),
        )  # fmt: skip
        return f"{name}({text})"
    return round_text(f"({helpers.ctype(target)}){text}", target, helpers)


def bitcast_text(text: str, source: str, target: str, helpers: Helpers) -> str:
    """The bits of a value, taken for another dtype of that size; see ``kernel.expr.bitcast``."""
    bits = helpers.dialect.bits
    if is_float(source):
        text = bits[f"uint{source[5:]}"].format(text)
    return bits[target].format(text) if is_float(target) else f"({helpers.ctype(target)}){text}"


# Round to nearest even on the bits. Of a half, numbers below 2^-14 are multiples of 2^-24:
# adding 0.5 to them lets the adder round.
_HALF_BITS = """FN $H NAME(float x) {
  $I u = $ASUINT, s = (u >> 16) & 0x8000U, a = u & 0x7fffffffU;
  if (a > 0x7f800000U) return ($H)(s | 0x7e00U);
  if (a >= 0x477ff000U) return ($H)(s | 0x7c00U);
  if (a < 0x38800000U) {
    float t = $ASFLOAT_A + 0.5f;
    return ($H)(s | ($ASUINT_T - 0x3f000000U));
  }
  return ($H)(s | ((a + 0xc8000fffU + ((a >> 13) & 1U)) >> 13));
}"""
_HALF_VALUE = """FN float NAME($H h) {
  $I s = ($I)(h & 0x8000U) << 16, e = (h >> 10) & 31U, m = h & 0x3ffU;
  if (e == 31U) return $ASFLOAT_INF;
  if (e == 0U) { float t = (float)m * 5.9604644775390625e-8f; return s ? -t : t; }
  return $ASFLOAT_NORMAL;
}"""
_BRAIN_BITS = """FN $H NAME(float x) {
  $I u = $ASUINT;
  if (x != x) return ($H)((u >> 16) | 0x40U);
  return ($H)((u + 0x7fffU + ((u >> 16) & 1U)) >> 16);
}"""
_BRAIN_VALUE = """FN float NAME($H h) { return $ASFLOAT_HIGH; }"""
_BITS = {"float16": _HALF_BITS, "bfloat16": _BRAIN_BITS}
_VALUES = {"float16": _HALF_VALUE, "bfloat16": _BRAIN_VALUE}


def _half_helper(prefix: str, template: str, dtype: str, helpers: Helpers) -> str:
    to_float, to_bits = helpers.dialect.bits["float32"], helpers.dialect.bits["uint32"]
    return helpers.need(
        f"f_{prefix}_{dtype}", template,
        ASUINT_T=to_bits.format("t"), ASUINT=to_bits.format("x"),
        ASFLOAT_A=to_float.format("a"), ASFLOAT_INF=to_float.format("s | 0x7f800000U | (m << 13)"),
        ASFLOAT_NORMAL=to_float.format("s | ((e + 112U) << 23) | (m << 13)"),
        ASFLOAT_HIGH=to_float.format("(($I)h) << 16").replace(
            "$I", helpers.dialect.types["uint32"]),
        H=helpers.dialect.types["uint16"], I=helpers.dialect.types["uint32"],
    )  # fmt: skip


def to_memory(text: str, dtype: str, helpers: Helpers) -> str:
    """A register as it lies in memory: halves as their bits, bool as a byte."""
    if dtype in _HALVES:
        return f"{_half_helper('bits', _BITS[dtype], dtype, helpers)}({text})"
    return f"({text} ? 1 : 0)" if dtype == "bool" else text


def from_memory(text: str, dtype: str, helpers: Helpers) -> str:
    """What was loaded, as a register."""
    if dtype in _HALVES:
        return f"{_half_helper('value', _VALUES[dtype], dtype, helpers)}({text})"
    return f"({text} != 0)" if dtype == "bool" else text


def round_text(text: str, dtype: str, helpers: Helpers) -> str:
    """A float32 register rounded to what a half can hold."""
    if dtype not in _HALVES:
        return text
    return from_memory(to_memory(text, dtype, helpers), dtype, helpers)
