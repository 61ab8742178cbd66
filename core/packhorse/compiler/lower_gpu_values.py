"""Values of one point of a GPU kernel, or of a few neighbours of it, as lines of C.

A value is computed where it is first needed, in the scope that needs it. With *lanes* the points
are several neighbours along one axis: what does not move with the axis is computed once, what
lies side by side in memory is read and written as one vector, and arithmetic is written out for
each, since a work-item of a GPU has scalar registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from packhorse.compiler.access import Access, View
from packhorse.compiler.c_dialects import Dialect
from packhorse.compiler.c_text import CBuilder
from packhorse.compiler.c_text_ops import (
    Helpers,
    bitcast_text,
    call_text,
    cast_text,
    combine_text,
    from_memory,
    literal,
    neutral,
    to_memory,
)
from packhorse.compiler.gpu_lanes import load_is_vector, store_is_vector
from packhorse.errors import CompileError
from packhorse.kernel.expr import (
    Affine,
    Axis,
    Call,
    Const,
    Expr,
    Index,
    Load,
    Reduce,
    reduces,
    walk,
)
from packhorse.kernel.kernel import Kernel, Store

__all__ = ["Values", "nodes"]

_INT = 1 << 31
_ELEMENTS = "xyzw"
_BITS = {"float16": "uint16", "bfloat16": "uint16", "bool": "uint8"}
"""What lies in memory, of dtypes that no language has a vector of."""


def nodes(kernel: Kernel) -> list[Expr]:
    """Every expression node of a kernel, children before parents."""
    return list(dict.fromkeys(n for s in kernel.stores for n in walk(s.value)))


class Values:
    """Writes expressions of one kernel.

    Parameters
    ----------
    kernel : Kernel
    helpers : Helpers
        Of the program the kernel is part of.
    room : int
        Work-items of a group: what a count of them may exceed the axes by.
    """

    def __init__(self, kernel: Kernel, helpers: Helpers, room: int) -> None:
        self.kernel, self.helpers = kernel, helpers
        self.dialect: Dialect = helpers.dialect
        self.view, self.extents = View(kernel), kernel.extents
        self.buffers = {name: f"p{i}" for i, name in enumerate(kernel.arguments)}
        self.axes: dict[str, str] = {}
        """C names of the axes in scope."""
        self.b = CBuilder(self.dialect, helpers)
        self.index = "int64" if self._far(room) else "int32"
        self._lane_axis, self._lanes = "", 1

    @contextmanager
    def wide(self, axis: str, lanes: int) -> Iterator[None]:
        """Points are ``lanes`` neighbours from here on; the axis' value is the first one's.

        Enter a scope of the builder with it: what is remembered must not outlive it.
        """
        before = self._lane_axis, self._lanes
        self._lane_axis, self._lanes = (axis, lanes) if lanes > 1 else ("", 1)
        yield
        self._lane_axis, self._lanes = before

    def _far(self, room: int) -> bool:
        """Whether an address or a count of work-items may not fit 32 bits."""
        found = [self.view.store(s) for s in self.kernel.stores]
        inside = nodes(self.kernel)
        found += [self.view.load(n) for n in inside if isinstance(n, Load)]
        sizes = [b.size for b in self.kernel.buffers.values()]
        counts = [math.prod(e for _, e in self.kernel.axes) * room]
        reach = [self._reach(a.linear) for a in found]
        reach += [self._reach(n.affine) for n in inside if isinstance(n, Index)]
        reach += [self._reach(i) * max(d.step, d.block_step) for a in found for i, d in a.blocked]
        return max([*sizes, *counts, *reach], default=0) >= _INT

    def _reach(self, value: Affine) -> int:
        return abs(value.const) + sum(abs(c) * self.extents[n] for n, c in value.terms)

    # -- indices ----------------------------------------------------------------------------------

    def number(self, value: int) -> str:
        """An index literal."""
        return literal(value, self.index, self.dialect)

    def cast(self, text: str) -> str:
        """Some integer as an index."""
        return f"({self.helpers.ctype(self.index)}){text}"

    def divided(self, value: str, by: int) -> tuple[str, str]:
        """Quotient and remainder of an index that is not negative, as named values."""
        if by == 1:
            return value, "0"
        if by & (by - 1) == 0:
            quotient, rest = f"{value} >> {by.bit_length() - 1}", f"{value} & {by - 1}"
        else:
            quotient, rest = f"{value} / {self.number(by)}", f"{value} % {self.number(by)}"
        return self.b.let(self.index, quotient), self.b.let(self.index, rest)

    def decode(self, where: str, names: Sequence[str]) -> None:
        """Positions along axes from their running number; the last one runs fastest."""
        self.axes.update((name, "0") for name in names if self.extents[name] == 1)
        names = [name for name in names if self.extents[name] != 1]
        for name in reversed(names[1:]):
            where, self.axes[name] = self.divided(where, self.extents[name])
        if names:
            self.axes[names[0]] = where

    def affine(self, value: Affine, lane: int = 0) -> str:
        """An affine function of the axes in scope, as an index."""
        parts = [
            self.axes[n] if c == 1 else f"{self.axes[n]} * {self.number(c)}"
            for n, c in value.terms
            if self.axes[n] != "0"
        ]
        fixed = value.const + lane * value.coef(self._lane_axis)
        if fixed or not parts:
            parts.append(self.number(fixed))
        return " + ".join(parts)

    def address(self, access: Access, lane: int = 0) -> str:
        """Where an access lies, in elements."""
        parts = [self.affine(access.linear, lane)]
        for index, dim in access.blocked:
            outer, inner = self.divided(self.b.let(self.index, self.affine(index, lane)), dim.block)
            parts.append(f"{outer} * {self.number(dim.block_step)}")
            parts.append(f"{inner} * {self.number(dim.step)}")
        for expr, dim in access.indirect:
            i = self.value(expr, lane)
            step, block, jump = (
                literal(n, "int64", self.dialect) for n in (dim.step, dim.block, dim.block_step)
            )
            text = f"({i} / {block}) * {jump} + ({i} % {block}) * {step}"
            parts.append(self.cast(f"({text if dim.block else f'{i} * {step}'})"))
        return self.b.let(self.index, " + ".join(parts))

    # -- values -----------------------------------------------------------------------------------

    def moves(self, expr: Expr) -> bool:
        """Whether neighbouring points have values of their own."""
        return self._lanes > 1 and self._lane_axis in self.view.free(expr)

    def value(self, expr: Expr, lane: int = 0) -> str:
        """The C name (or literal) of an expression's value at one of the points in scope."""
        return self.value_of(expr, self.alone, lane)

    def value_of(self, expr: Expr, reduce: Callable[[Reduce, int], str], lane: int = 0) -> str:
        """The same, with a word in how a reduction is computed."""
        lane = lane if self.moves(expr) else 0
        known = self.b.known((expr, lane))
        if known is not None:
            return known
        if isinstance(expr, Const):
            return literal(expr.value, expr.dtype, self.dialect)
        if isinstance(expr, Index):
            long = self.helpers.ctype("int64")
            text = self.b.let("int64", f"({long})({self.affine(expr.affine, lane)})")
        elif isinstance(expr, Load):
            text = self._load(expr, lane)
        elif isinstance(expr, Reduce):
            text = reduce(expr, lane)
        elif isinstance(expr, Call):
            text = self._call(expr, lane)
        else:
            raise CompileError(f"not an expression node: {expr!r}")
        self.remember(expr, text, lane)
        return text

    def remember(self, expr: Expr, name: str, lane: int = 0) -> None:
        """Note a value until the scope ends."""
        self.b.remember((expr, lane), name)

    def _call(self, expr: Call, lane: int) -> str:
        args = [self.value(a, lane) for a in expr.args]
        if expr.op in ("cast", "bitcast"):
            turn = cast_text if expr.op == "cast" else bitcast_text
            text = turn(args[0], expr.args[0].dtype, expr.dtype, self.helpers)
        else:
            kinds = [a.dtype for a in expr.args]
            text = call_text(expr.op, expr.dtype, kinds, args, self.helpers)
        return self.b.let(expr.dtype, text)

    def _load(self, expr: Load, lane: int) -> str:
        dtype = self.kernel.buffers[expr.buffer].dtype
        vector = self.moves(expr) and self.vector_type(dtype)
        if vector and load_is_vector(self.view, expr, self._lane_axis, self._lanes):
            return self._load_vector(expr, dtype, lane)
        guard = None if expr.when is None else self.value(expr.when, lane)
        where = self.address(self.view.load(expr), lane)
        text = from_memory(f"{self.buffers[expr.buffer]}[{where}]", dtype, self.helpers)
        text = cast_text(text, dtype, expr.dtype, self.helpers)
        if guard is not None:
            text = f"{guard} ? {text} : {literal(0, expr.dtype, self.dialect)}"
        return self.b.let(expr.dtype, text)

    def vector_type(self, dtype: str, lanes: int = 0) -> str:
        """The C type of ``lanes`` neighbours in memory; empty where the language has none."""
        name = self.dialect.vectors.get(_BITS.get(dtype, dtype), "")
        return f"{name}{lanes or self._lanes}" if name else ""

    def _load_vector(self, expr: Load, dtype: str, lane: int) -> str:
        guard = None if expr.when is None else self.value(expr.when)
        kind, where = self.vector_type(dtype), self.address(self.view.load(expr))
        place = f"{self.buffers[expr.buffer]} + {where}"
        text = self.dialect.vector_at.format(const="const ", type=kind, address=place)
        if guard is not None:
            zeros = ", ".join("0" * self._lanes)
            text = f"{guard} ? {text} : {self.dialect.vector.format(type=kind, values=zeros)}"
        name = self.b.fresh()
        self.b.line(f"const {kind} {name} = {text};")
        found = []
        for i, element in enumerate(_ELEMENTS[: self._lanes]):
            part = from_memory(f"{name}.{element}", dtype, self.helpers)
            part = cast_text(part, dtype, expr.dtype, self.helpers)
            found.append(self.b.let(expr.dtype, part))
            self.remember(expr, found[i], i)
        return found[lane]

    # -- stores -----------------------------------------------------------------------------------

    def stores(self) -> None:
        """All values first, then all stores: what a point reads is not what it writes."""
        pending: list[tuple[Store, list[str], list[str]]] = []
        for store in self.kernel.stores:
            dtype = self.kernel.buffers[store.buffer].dtype
            where = self.view.store(store)
            moving = self._lanes > 1 and self._lane_axis in where.axes
            points = range(self._lanes if moving else 1)
            values = [
                cast_text(self.value(store.value, i), store.value.dtype, dtype, self.helpers)
                for i in points
            ]
            vector = moving and store_is_vector(self.view, store, self._lane_axis, self._lanes)
            if not (vector and self.vector_type(dtype)):
                pending.append((store, [self.address(where, i) for i in points], values))
            else:
                pending.append((store, [self.address(where)], values))
        for store, places, values in pending:
            idle = self._idle(store)
            for line in self._store(store, places, values):
                self.b.line(f"if ({idle}) {line}" if idle else line)

    def _store(self, store: Store, places: Sequence[str], values: Sequence[str]) -> Iterator[str]:
        name, dtype = self.buffers[store.buffer], self.kernel.buffers[store.buffer].dtype
        texts = [to_memory(value, dtype, self.helpers) for value in values]
        if len(places) == len(texts):
            yield from (f"{name}[{p}] = {t};" for p, t in zip(places, texts, strict=True))
            return
        kind = self.vector_type(dtype)
        left = self.dialect.vector_at.format(const="", type=kind, address=f"{name} + {places[0]}")
        yield f"{left} = {self.dialect.vector.format(type=kind, values=', '.join(texts))};"

    def _idle(self, store: Store) -> str:
        """A condition that lets one of the points through that would store the same."""
        used = self.view.store(store).axes | self.view.free(store.value)
        names = [n for n, _ in self.kernel.axes if n not in used and self.extents[n] > 1]
        names = [n for n in names if n not in self.kernel.sequential]
        return " && ".join(f"{self.axes[n]} == 0" for n in names if self.axes[n] != "0")

    # -- reductions -------------------------------------------------------------------------------

    def alone(self, node: Reduce, lane: int) -> str:
        """A reduction by one work-item, for all its points at once."""
        points = range(self._lanes if self.moves(node) else 1)
        for inner in reduces(node.body):  # they do not depend on the axes of this one
            for i in points:
                self.value(inner, i)
        totals = [self.accumulator(node) for _ in points]
        self._sum(node, totals, list(node.axes))
        for i in points:
            self.remember(node, totals[i], i)
        return totals[lane]

    def _sum(self, node: Reduce, totals: Sequence[str], axes: Sequence[Axis]) -> None:
        if not axes:
            for i, total in enumerate(totals):
                self.add(node, total, self.value(node.body, i))
            return
        with self.loop(axes[0]):
            self._sum(node, totals, axes[1:])

    def accumulator(self, node: Reduce) -> str:
        """A variable that a reduction starts from."""
        name = self.b.fresh("a")
        start = neutral(node.combine, node.dtype, self.dialect)
        self.b.line(f"{self.helpers.ctype(node.dtype)} {name} = {start};")
        return name

    def add(self, node: Reduce, total: str, value: str) -> None:
        """One step of a reduction."""
        text = combine_text(node.combine, node.dtype, total, value, self.helpers)
        self.b.line(f"{total} = {text};")

    @contextmanager
    def loop(self, axis: Axis) -> Iterator[None]:
        """``for`` over an axis, a scope; the axis is known within."""
        name, extent = axis
        place, kind = self.b.fresh("i"), self.helpers.ctype(self.index)
        head = f"for ({kind} {place} = 0; {place} < {self.number(extent)}; ++{place})"
        with self.b.block(head), self.known_axes({name: place}):
            yield

    @contextmanager
    def known_axes(self, axes: Mapping[str, str]) -> Iterator[None]:
        """More axes in scope for a while."""
        before = self.axes
        self.axes = {**before, **axes}
        yield
        self.axes = before
