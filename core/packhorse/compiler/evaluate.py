"""The value of an expression at one point of a register block, and where its loads lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packhorse.compiler.access import Access, View
from packhorse.compiler.llvm_builder import Builder, Val
from packhorse.compiler.llvm_ops import constant, convert, operation, register
from packhorse.compiler.memory import Address, Memory
from packhorse.compiler.schedule import Schedule
from packhorse.compiler.target import Target
from packhorse.errors import CompileError
from packhorse.kernel.expr import Affine, Call, Const, Expr, Index, Load, Reduce, is_float
from packhorse.kernel.kernel import Kernel, Store

__all__ = ["Bound", "Evaluator", "Lanes", "Point"]

Point = Mapping[str, int]
"""Offsets within the register block, per tiled axis."""


@dataclass(frozen=True)
class Bound:
    """Where an open loop stands: at element ``index * step + origin``, ``tile`` elements on."""

    index: Val
    step: int
    origin: int
    tile: int = 1


@dataclass(frozen=True)
class Lanes:
    """The axis whose neighbours fill a vector just now, and the mask of a tail."""

    axis: str | None = None
    width: int = 1
    mask: Val | None = None


class Evaluator:
    """Emits values and addresses under the loops that are open (:attr:`bound`) and the lanes in
    force (:attr:`lanes`). Reductions must have left their :attr:`results` before."""

    def __init__(self, kernel: Kernel, schedule: Schedule, target: Target) -> None:
        self.kernel, self.schedule, self.target = kernel, schedule, target
        self.view = View(kernel)
        self.b = Builder(target)
        self.memory = Memory(self.b, kernel)
        self.extents = self.view.extents
        self.order = list(schedule.order)
        self.bound: dict[str, Bound] = {}
        self.lanes = Lanes()
        self.results: dict[tuple[Reduce, tuple[tuple[str, int], ...]], Val] = {}
        self.ahead = 0  # bytes to prefetch ahead of vectors loaded just now
        self.spilled: dict[Reduce, tuple[Store, Expr]] = {}

    def _key(self, node: Reduce, point: Point) -> tuple[tuple[str, int], ...]:
        axes = self.view.free(node)
        return tuple(
            (n, point.get(n, 0)) for n in self.order
            if n in axes and n in self.bound and (self.bound[n].tile > 1)
        )  # fmt: skip

    # -- values -----------------------------------------------------------------------------------

    def value(self, expr: Expr, point: Point) -> Val:
        """The value of an expression at a point of the block (a vector where it varies along
        the lanes)."""
        return self._value(expr, point, {})

    def _value(self, expr: Expr, point: Point, memo: dict[Expr, Val]) -> Val:
        found = memo.get(expr)
        if found is None:
            found = memo[expr] = self._compute(expr, point, memo)
        return found

    def _compute(self, expr: Expr, point: Point, memo: dict[Expr, Val]) -> Val:
        if isinstance(expr, Const):
            return constant(self.b, expr)
        for store, moved in self.spilled.values():
            if expr == moved and self.lanes.axis == self.schedule.vector:
                where = self.view.store(self.kernel.stores[0])
                address = self.address(where, point)
                dtype = self.kernel.buffers[store.buffer].dtype
                return self.memory.read(address, dtype, self.lanes.mask, None, written=True)
        if isinstance(expr, Index):
            return self._index(expr.affine, point)
        if isinstance(expr, Load):
            return self._load(expr, point, memo)
        if isinstance(expr, Reduce):
            return self.results[expr, self._key(expr, point)]
        if isinstance(expr, Call):
            return self._call(expr, point, memo)
        raise CompileError(f"kernel '{self.kernel.name}': {expr!r} is not an expression node")

    def _call(self, expr: Call, point: Point, memo: dict[Expr, Val]) -> Val:
        if expr.op in ("add", "sub") and expr.dtype in ("float32", "float64"):
            fused = self._fused(expr, point, memo)
            if fused is not None:
                return fused
        if expr.op == "div" and self._row_sum(expr):
            numerator, sum_ = (self._value(a, point, memo) for a in expr.args)
            inverse = self.b.binary("fdiv", self.b.real(1.0, sum_.type), sum_)
            return self.b.binary("fmul", numerator, inverse)
        args = [self._value(a, point, memo) for a in expr.args]
        return operation(self.b, expr.op, expr.dtype, [a.dtype for a in expr.args], args)

    def _row_sum(self, expr: Call) -> bool:
        """A division of each element of a row by the row's sum (softmax): one reciprocal per row
        is as good. Other quotients keep their rounding, quantisation depends on it."""
        above, below = expr.args
        return (
            expr.dtype in ("float32", "float64")
            and isinstance(below, Reduce)
            and below.combine == "sum"
            and self.lanes.axis in self.view.free(above)
            and self.lanes.axis not in self.view.free(below)
        )

    def _fused(self, expr: Call, point: Point, memo: dict[Expr, Val]) -> Val | None:
        """a*b + c, a*b - c and c - a*b with one rounding."""
        left, right = expr.args
        for product, other, first in ((left, right, True), (right, left, False)):
            if isinstance(product, Call) and product.op == "mul":
                a, x = (self._value(v, point, memo) for v in product.args)
                c = self._value(other, point, memo)
                if expr.op == "sub":
                    a, c = (a, self._negated(c)) if first else (self._negated(a), c)
                return self.b.fma(a, x, c)
        return None

    def _negated(self, value: Val) -> Val:
        if value.const is not None:
            return self.b.real(-value.const, value.type, value.lanes)
        return self.b.inst(f"fneg {value}", value.type, value.lanes, [value], "value")

    def _load(self, node: Load, point: Point, memo: dict[Expr, Val]) -> Val:
        when = None
        if node.when is not None:
            if isinstance(node.when, Const) and not node.when.value:
                return self._zero(node.dtype)
            when = self._value(node.when, point, memo)
        address = self.address(self.view.load(node), point, memo)
        dtype = self.kernel.buffers[node.buffer].dtype
        written = node.buffer in self.kernel.outputs
        value = self.memory.read(address, dtype, self.lanes.mask, when, written=written)
        if self.ahead and address.dense:
            self.memory.prefetch(address, self.ahead)
        return convert(self.b, value, dtype, node.dtype)

    def _zero(self, dtype: str) -> Val:
        element = register(dtype)
        return self.b.real(0.0, element) if is_float(dtype) else self.b.integer(0, element)

    # -- addresses --------------------------------------------------------------------------------

    def _terms(self, value: Affine, point: Point) -> tuple[list[tuple[Val, int]], int]:
        """Loop variables with their factors, and the constant, of lane 0 at a point."""
        terms, total = [], value.const
        for name, coef in value.terms:
            bound = self.bound[name]
            total += coef * (bound.origin + point.get(name, 0))
            if bound.index.const is None and bound.step:
                terms.append((bound.index, coef * bound.step))
        return terms, total

    def _index(self, value: Affine, point: Point) -> Val:
        """The number itself, as int64 (a vector where it varies along the lanes)."""
        terms, total = self._terms(value, point)
        acc = self._sum(terms, total)
        step = value.coef(self.lanes.axis) if self.lanes.axis else 0
        if step:
            acc = self.b.add(acc, self.b.iota(self.lanes.width, "i64", step))
        return acc

    def _sum(self, terms: list[tuple[Val, int]], total: int) -> Val:
        acc = self.b.integer(0)
        for index, factor in sorted(terms, key=lambda t: t[0].level):
            acc = self.b.add(acc, self.b.mul(index, factor))
        return self.b.add(acc, self.b.integer(total))

    def address(self, where: Access, point: Point, memo: dict[Expr, Val] | None = None) -> Address:
        """Where an access lies at a point."""
        terms, total = self._terms(where.linear, point)
        axis = self.lanes.axis
        stride = where.linear.coef(axis) if axis else 0
        extra: list[Val] = []
        for index, dim in where.blocked:
            inner, number = self._terms(index, point)
            coef = index.coef(axis) if axis else 0
            room = dim.block - number % dim.block
            if all(f % dim.block == 0 for _, f in inner) and (
                coef == 0 or (coef == 1 and room >= self._active(point))
            ):
                terms += [(v, f // dim.block * dim.block_step) for v, f in inner]
                total += number // dim.block * dim.block_step + number % dim.block * dim.step
                stride += coef * dim.step
            else:
                extra.append(self._split(self._index(index, point), dim.block, dim.block_step,
                                         dim.step))  # fmt: skip
        for expr, dim in where.indirect:
            value = self._value(expr, point, {} if memo is None else memo)
            value = convert(self.b, value, expr.dtype, "int64")
            if dim.block:
                extra.append(self._split(value, dim.block, dim.block_step, dim.step))
            else:
                extra.append(self.b.mul(value, dim.step))
        return Address(where.buffer, terms, total, stride, extra, self.lanes.width)

    def _active(self, point: Point) -> int:
        """Lanes in use at a point."""
        axis = self.lanes.axis
        if axis is None or self.lanes.mask is None:
            return self.lanes.width
        return self.lanes.mask.name.count("true")

    def _split(self, index: Val, block: int, block_step: int, step: int) -> Val:
        size = self.b.integer(block)
        outer = self.b.mul(self.b.binary("sdiv", index, size), block_step)
        return self.b.add(outer, self.b.mul(self.b.binary("srem", index, size), step))
