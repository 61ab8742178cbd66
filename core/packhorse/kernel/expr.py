"""Scalar expressions: the body language of a :class:`~packhorse.kernel.Kernel`.

Five node classes say everything a loop nest computes at one point of its iteration space:
:class:`Const`, :class:`Index` (an affine function of loop axes), :class:`Load`, :class:`Call` and
:class:`Reduce`. Nodes are immutable and compared by structure, so equal subexpressions are
computed once. There are no loops here; loops come from the schedule.

Dtypes are NumPy names (``"float32"``, ``"int64"``, ``"bool"`` ...) plus ``"bfloat16"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

__all__ = [
    "CALLS",
    "COMBINES",
    "Affine",
    "Axis",
    "Call",
    "Const",
    "Expr",
    "Index",
    "IndexLike",
    "Load",
    "Reduce",
    "affine",
    "bitcast",
    "call",
    "cast",
    "const",
    "free_axes",
    "is_float",
    "loads",
    "reduces",
    "rewrite",
    "select",
    "substitute",
]

Axis: TypeAlias = tuple[str, int]
"""A loop axis: name and extent. Names are unique within a kernel."""


@dataclass(frozen=True)
class Affine:
    """``const + sum(coef * axis)``; terms sorted by axis name, no zero coefficients."""

    terms: tuple[tuple[str, int], ...] = ()
    const: int = 0

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.terms, self.const + other)
        merged = dict(self.terms)
        for name, coef in other.terms:
            merged[name] = merged.get(name, 0) + coef
        return Affine(_sorted(merged), self.const + other.const)

    __radd__ = __add__

    def __mul__(self, factor: int) -> Affine:
        return Affine(_sorted({n: c * factor for n, c in self.terms}), self.const * factor)

    __rmul__ = __mul__

    def __neg__(self) -> Affine:
        return self * -1

    def __sub__(self, other: Affine | int) -> Affine:
        return self + (-other)

    def coef(self, axis: str) -> int:
        """Coefficient of an axis, 0 when it does not occur."""
        return dict(self.terms).get(axis, 0)

    def __str__(self) -> str:
        parts = [name if coef == 1 else f"{coef}*{name}" for name, coef in self.terms]
        return " + ".join([*parts, str(self.const)] if self.const or not parts else parts)


def _sorted(terms: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((name, coef) for name, coef in terms.items() if coef))


def affine(value: str | int | Affine) -> Affine:
    """An axis name, a number or an affine as an :class:`Affine`."""
    if isinstance(value, Affine):
        return value
    return Affine((), value) if isinstance(value, int) else Affine(((value, 1),))


class Expr:
    """Base of the five node classes. Python operators build :class:`Call` nodes."""

    dtype: str
    _hash: int

    def __hash__(self) -> int:  # structural, computed once: expressions are shared DAGs
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other) or self._hash != hash(other):
            return False
        return all(getattr(self, f.name) == getattr(other, f.name) for f in fields(self))  # type: ignore[arg-type]

    def __add__(self, other: Expr | float) -> Expr:
        return call("add", self, other)

    def __radd__(self, other: float) -> Expr:
        return call("add", const(other, self.dtype), self)

    def __sub__(self, other: Expr | float) -> Expr:
        return call("sub", self, other)

    def __rsub__(self, other: float) -> Expr:
        return call("sub", const(other, self.dtype), self)

    def __mul__(self, other: Expr | float) -> Expr:
        return call("mul", self, other)

    def __rmul__(self, other: float) -> Expr:
        return call("mul", const(other, self.dtype), self)

    def __truediv__(self, other: Expr | float) -> Expr:
        return call("div", self, other)

    def __rtruediv__(self, other: float) -> Expr:
        return call("div", const(other, self.dtype), self)

    def __neg__(self) -> Expr:
        return call("neg", self)

    def children(self) -> tuple[Expr, ...]:
        """Direct subexpressions."""
        return ()


def _remember_hash(node: Expr) -> None:
    values = tuple(getattr(node, f.name) for f in fields(node))  # type: ignore[arg-type]
    object.__setattr__(node, "_hash", hash((type(node).__name__, *values)))


@dataclass(frozen=True, eq=False)
class Const(Expr):
    """A literal. Bools are 0/1 with dtype ``bool``."""

    value: float | int | str
    dtype: str

    def __post_init__(self) -> None:
        _remember_hash(self)


@dataclass(frozen=True, eq=False)
class Index(Expr):
    """The value of an affine function of the loop axes, as int64."""

    affine: Affine
    dtype: str = "int64"

    def __post_init__(self) -> None:
        _remember_hash(self)


IndexLike: TypeAlias = Affine | Expr
"""What may index a buffer: affine, or any int64 expression (gathered element by element)."""


@dataclass(frozen=True, eq=False)
class Load(Expr):
    """One element of a buffer at a *logical* index (layout, halo and packing are the buffer's).

    ``when`` guards the access: where it is false nothing is read and the value is 0.
    """

    buffer: str
    index: tuple[IndexLike, ...]
    dtype: str
    when: Expr | None = None

    def __post_init__(self) -> None:
        _remember_hash(self)

    def children(self) -> tuple[Expr, ...]:
        inner = tuple(i for i in self.index if isinstance(i, Expr))
        return (*inner, self.when) if self.when is not None else inner


@dataclass(frozen=True, eq=False)
class Call(Expr):
    """A scalar operation of :data:`CALLS`."""

    op: str
    args: tuple[Expr, ...]
    dtype: str

    def __post_init__(self) -> None:
        _remember_hash(self)

    def children(self) -> tuple[Expr, ...]:
        return self.args


@dataclass(frozen=True, eq=False)
class Reduce(Expr):
    """``combine`` of ``body`` over bound ``axes`` (in this order, innermost last).

    The body may hold other Reduce nodes only if those do not depend on ``axes``
    (a softmax's sum uses its max): they are then computed before this one.
    """

    combine: str
    axes: tuple[Axis, ...]
    body: Expr
    dtype: str

    def __post_init__(self) -> None:
        _remember_hash(self)

    def children(self) -> tuple[Expr, ...]:
        return (self.body,)


COMBINES: Mapping[str, float] = {
    "sum": 0.0,
    "prod": 1.0,
    "max": -math.inf,
    "min": math.inf,
}
"""Reductions and their neutral elements (integers use the dtype's limits)."""

_SAME, _BOOL, _GIVEN = "same", "bool", "given"
CALLS: Mapping[str, tuple[int, str]] = {
    # name: (arity, dtype rule). Arithmetic is the dtype's own; ints wrap.
    "add": (2, _SAME), "sub": (2, _SAME), "mul": (2, _SAME),
    "div": (2, _SAME),       # ints truncate towards zero (ONNX Div)
    "floordiv": (2, _SAME),  # ints only, rounds down
    "mod": (2, _SAME),       # sign of the divisor (ONNX Mod fmod=0); floats: fmod
    "max": (2, _SAME), "min": (2, _SAME),   # NaN propagates
    "pow": (2, _SAME), "neg": (1, _SAME), "abs": (1, _SAME), "sign": (1, _SAME),
    "exp": (1, _SAME), "log": (1, _SAME), "sqrt": (1, _SAME), "rsqrt": (1, _SAME),
    "erf": (1, _SAME), "tanh": (1, _SAME), "sigmoid": (1, _SAME),
    "sin": (1, _SAME), "cos": (1, _SAME),
    "floor": (1, _SAME), "ceil": (1, _SAME), "trunc": (1, _SAME),
    "round": (1, _SAME),     # half to even
    "lt": (2, _BOOL), "le": (2, _BOOL), "eq": (2, _BOOL),
    "ne": (2, _BOOL), "gt": (2, _BOOL), "ge": (2, _BOOL),
    "and": (2, _SAME), "or": (2, _SAME), "xor": (2, _SAME), "not": (1, _SAME),
    "isnan": (1, _BOOL),
    "select": (3, _SAME),    # select(condition, a, b): dtype of a and b
    "cast": (1, _GIVEN),     # float -> int truncates and saturates; anything -> bool is != 0
    "bitcast": (1, _GIVEN),  # the same bits as another dtype of that size
}  # fmt: skip
"""The scalar operations: name -> (arity, dtype rule)."""


def is_float(dtype: str) -> bool:
    """True for float16/32/64 and bfloat16."""
    return dtype.startswith(("float", "bfloat"))


def const(value: float | int | bool, dtype: str) -> Const:
    """A literal of the given dtype. Non-finite floats are kept exactly."""
    if dtype == "bool":
        return Const(int(bool(value)), dtype)
    # repr-keyed floats: NaN must equal itself and -0.0 must differ from 0.0
    return Const(repr(float(value)), dtype) if is_float(dtype) else Const(int(value), dtype)


def call(op: str, *args: Expr | float) -> Expr:
    """Build a :class:`Call`, turning Python numbers into literals of the other operand's dtype.

    Raises
    ------
    KeyError
        Unknown operation.
    TypeError
        Operands of different dtypes, or the wrong number of them.
    """
    arity, rule = CALLS[op]
    if len(args) != arity:
        raise TypeError(f"{op} takes {arity} operands, got {len(args)}")
    if rule == _GIVEN:
        raise TypeError(f"use {op}(...) of packhorse.kernel.expr: its dtype must be given")
    typed = [a.dtype for a in (args[1:] if op == "select" else args) if isinstance(a, Expr)]
    if not typed:
        raise TypeError(f"{op} needs at least one expression operand")
    dtype = typed[0]
    exprs = tuple(a if isinstance(a, Expr) else const(a, dtype) for a in args)
    if any(t != dtype for t in typed):
        raise TypeError(f"{op} of different dtypes: {', '.join(typed)}")
    return Call(op, exprs, "bool" if rule == _BOOL else dtype)


def select(condition: Expr, a: Expr | float, b: Expr | float) -> Expr:
    """``a`` where the condition holds, else ``b``."""
    return call("select", condition, a, b)


def cast(value: Expr, dtype: str) -> Expr:
    """Convert to another dtype (nothing when it is the same already)."""
    return value if value.dtype == dtype else Call("cast", (value,), dtype)


def bitcast(value: Expr, dtype: str) -> Expr:
    """Take the bits of a value for another dtype of the same size.

    Raises
    ------
    TypeError
        bool, or a half: registers hold those in another form, their bits would not be exact.
    """
    if not {value.dtype, dtype}.isdisjoint(("bool", "float16", "bfloat16")):
        raise TypeError(f"bitcast from {value.dtype} to {dtype} would not be exact")
    return value if value.dtype == dtype else Call("bitcast", (value,), dtype)


def rewrite(expr: Expr, visit: Callable[[Expr], Expr | None]) -> Expr:
    """Rebuild an expression. ``visit`` sees each node before its children and may return a
    replacement; ``None`` means "go on into the children". Shared nodes are done once."""
    memo: dict[Expr, Expr] = {}

    def go(node: Expr) -> Expr:
        found = memo.get(node)
        if found is None:
            found = visit(node)
            if found is None:
                found = _with_children(node, go)
            memo[node] = found
        return found

    return go(expr)


def _with_children(node: Expr, go: Callable[[Expr], Expr]) -> Expr:
    if isinstance(node, Call):
        return Call(node.op, tuple(go(a) for a in node.args), node.dtype)
    if isinstance(node, Reduce):
        return Reduce(node.combine, node.axes, go(node.body), node.dtype)
    if isinstance(node, Load):
        index = tuple(go(i) if isinstance(i, Expr) else i for i in node.index)
        return Load(node.buffer, index, node.dtype, None if node.when is None else go(node.when))
    return node


def substitute(expr: Expr, mapping: Mapping[str, IndexLike]) -> Expr:
    """Replace axes by affine functions or int64 expressions everywhere, loads included."""
    if not mapping or all(affine(k) == v for k, v in mapping.items()):
        return expr

    def visit(node: Expr) -> Expr | None:
        if isinstance(node, Index):
            return _as_expr(_map_affine(node.affine, mapping))
        if isinstance(node, Load):
            index = tuple(
                _map_affine(i, mapping) if isinstance(i, Affine) else rewrite(i, visit)
                for i in node.index
            )
            when = None if node.when is None else rewrite(node.when, visit)
            return Load(node.buffer, index, node.dtype, when)
        return None

    return rewrite(expr, visit)


def _map_affine(value: Affine, mapping: Mapping[str, IndexLike]) -> IndexLike:
    plain, extra = Affine((), value.const), []
    for name, coef in value.terms:
        target = mapping.get(name)
        if target is None:
            plain = plain + Affine(((name, coef),))
        elif isinstance(target, Affine):
            plain = plain + target * coef
        elif isinstance(target, Index):
            plain = plain + target.affine * coef
        else:
            extra.append(target if coef == 1 else target * coef)
    if not extra:
        return plain
    total = extra[0]
    for term in extra[1:]:
        total = total + term
    return total if plain == Affine() else total + Index(plain)


def _as_expr(value: IndexLike) -> Expr:
    return Index(value) if isinstance(value, Affine) else value


def walk(expr: Expr) -> Iterator[Expr]:
    """Every distinct node once, children before parents."""
    seen: set[Expr] = set()

    def go(node: Expr) -> Iterator[Expr]:
        if node not in seen:
            seen.add(node)
            for child in node.children():
                yield from go(child)
            yield node

    return go(expr)


def loads(expr: Expr) -> list[Load]:
    """Distinct loads in the expression, reductions included."""
    return [node for node in walk(expr) if isinstance(node, Load)]


def reduces(expr: Expr) -> list[Reduce]:
    """Distinct reductions, each after those it depends on."""
    return [node for node in walk(expr) if isinstance(node, Reduce)]


def free_axes(expr: Expr) -> frozenset[str]:
    """Axes the value depends on (bound reduce axes excluded)."""
    memo: dict[Expr, frozenset[str]] = {}
    for node in walk(expr):
        names: set[str] = set()
        if isinstance(node, Index):
            names.update(n for n, _ in node.affine.terms)
        if isinstance(node, Load):
            names.update(n for i in node.index if isinstance(i, Affine) for n, _ in i.terms)
        for child in node.children():
            names |= memo[child]
        if isinstance(node, Reduce):
            names -= {n for n, _ in node.axes}
        memo[node] = frozenset(names)
    return memo[expr]


def shifted(index: Sequence[IndexLike], by: Sequence[int]) -> tuple[IndexLike, ...]:
    """Add a constant to each index."""
    return tuple(
        i + b if isinstance(i, Affine) else (i + const(b, "int64") if b else i)
        for i, b in zip(index, by, strict=True)
    )
