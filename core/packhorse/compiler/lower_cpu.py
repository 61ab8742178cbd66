"""From a kernel and its schedule to loops: the one lowering for CPUs.

Output loops are opened in the schedule's order; each turn of a tiled loop is a block of unrolled
points. A reduction is computed as soon as the loops it depends on are open: in the register block
for a convolution (lanes along the output's vector axis), once per row for a softmax (lanes along
the reduced axis, added up at the end). Tails are the same block again with a smaller tile and,
along the vector axis, a constant lane mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from packhorse.compiler.access import Access, View
from packhorse.compiler.accumulate import Accumulate
from packhorse.compiler.llvm_builder import Builder, Val
from packhorse.compiler.llvm_ops import (
    constant,
    convert,
    neutral,
    operation,
    register,
    to_memory,
)
from packhorse.compiler.memory import Address, Memory
from packhorse.compiler.schedule import Schedule, lane_width
from packhorse.compiler.target import Target
from packhorse.errors import CompileError
from packhorse.kernel.expr import (
    Affine,
    Call,
    Const,
    Expr,
    Index,
    Load,
    Reduce,
    is_float,
    reduces,
    substitute,
    walk,
)
from packhorse.kernel.kernel import Kernel, Store

__all__ = ["CpuLowering"]

Point = Mapping[str, int]
"""Offsets within the register block, per tiled axis."""


@dataclass(frozen=True)
class Bound:
    """Where an open loop stands: element ``index * step + origin``, ``tile`` elements from there."""

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


class CpuLowering:
    """Emits the loops of one kernel into a :class:`Builder`.

    After :meth:`emit`, :attr:`turns` is the extent of the range that may be split over threads.
    """

    def __init__(self, kernel: Kernel, schedule: Schedule, target: Target) -> None:
        self.kernel, self.schedule, self.target = kernel, schedule, target
        self.view = View(kernel)
        self.b = Builder(target)
        self.memory = Memory(self.b, kernel)
        self.extents = self.view.extents
        self.order = list(schedule.order)
        missing = {n for n, _ in kernel.axes} ^ set(schedule.order)
        if missing:
            raise CompileError(
                f"the schedule of kernel '{kernel.name}' orders the loops {self.order}, "
                f"the kernel has {[n for n, _ in kernel.axes]}. Name each exactly once"
            )
        self.bound: dict[str, Bound] = {}
        self.lanes = Lanes()
        self.results: dict[tuple[Reduce, tuple[tuple[str, int], ...]], Val] = {}
        self.turns = 1
        self.decoded: dict[str, Val] = {}
        self._place()

    # -- what is computed at which depth ----------------------------------------------------------

    def _depth(self, axes: frozenset[str]) -> int:
        return max((i + 1 for i, n in enumerate(self.order) if n in axes), default=0)

    def _place(self) -> None:
        """Reductions and stores by the number of loops that must be open for them."""
        self.groups: dict[int, list[list[Reduce]]] = {}
        self.stores: dict[int, list[Store]] = {}
        for store in self.kernel.stores:
            axes = self.view.store(store).axes | self.view.free(store.value)
            self.stores.setdefault(self._depth(axes), []).append(store)
            for node in reduces(store.value):
                level = self.groups.setdefault(self._depth(self.view.free(node)), [])
                if not any(node in group for group in level):
                    self._join(level, node)
        self.last = max([*self.groups, *self.stores], default=0)
        self.spilled = self._find_spill()

    def _join(self, level: list[list[Reduce]], node: Reduce) -> None:
        inner = set(reduces(node.body))
        vector = self._along_output(node)
        for group in reversed(level):
            if inner.intersection(group):
                break
            if group[0].axes == node.axes and self._along_output(group[0]) == vector:
                group.append(node)
                return
        # it goes after everything it may use
        level.append([node])

    def _along_output(self, node: Reduce) -> bool:
        """True when the lanes of a reduction are neighbouring outputs."""
        return self.schedule.vector is not None and self.schedule.vector in self.view.free(node)

    def _find_spill(self) -> dict[Reduce, tuple[Store, Expr]]:
        """Reductions whose body is needed again for the output (softmax's exponentials): they
        store it there, and the last loop reads it back instead of computing it again."""
        vector, stores = self.schedule.vector, self.kernel.stores
        if vector is None or len(stores) != 1 or self.order[-1:] != [vector]:
            return {}
        store = stores[0]
        buffer = self.kernel.buffers[store.buffer]
        if vector in self.schedule.parallel or any(
            store.buffer == n.buffer for n in walk(store.value) if isinstance(n, Load)
        ):
            return {}
        if self.view.free(store.value) | {vector} != set(self.order):
            return {}
        inside = set(walk(store.value))
        for node in reduces(store.value):
            if len(node.axes) != 1 or isinstance(node.body, (Load, Const, Index)):
                continue
            (axis, extent) = node.axes[0]
            if extent != self.extents[vector] or node.body.dtype != buffer.dtype:
                continue
            if self._depth(self.view.free(node)) != len(self.order) - 1:
                continue
            moved = substitute(node.body, {axis: Affine(((vector, 1),))})
            if moved in inside and not isinstance(moved, Reduce):
                index = tuple(
                    Affine(tuple(sorted((axis if n == vector else n, c) for n, c in i.terms)),
                           i.const)
                    for i in store.index
                )  # fmt: skip
                return {node: (Store(store.buffer, index, node.body), moved)}
        return {}

    # -- loops ------------------------------------------------------------------------------------

    def emit(self) -> str:
        """The whole body, as ``void (i64 lo, i64 hi, ptr buffers...)`` wants it."""
        if all(e > 0 for _, e in self.kernel.axes):
            names = list(self.schedule.parallel)
            if names != self.order[: len(names)]:
                raise CompileError(
                    f"kernel '{self.kernel.name}': parallel loops {names} must be the first "
                    f"of {self.order}"
                )
            self._parallel(names)
        self.b.line("ret void")
        return self.b.text()

    def _tile(self, name: str) -> int:
        return max(1, min(self.schedule.tiles.get(name, 1), self.extents[name]))

    def _parallel(self, names: list[str]) -> None:
        counts = [-(-self.extents[n] // self._tile(n)) for n in names]
        for count in counts:
            self.turns *= count
        if self.turns == 1:
            self._nest(0)
            return
        lo, hi = Val("%lo", "i64"), Val("%hi", "i64")
        with self.b.loop(lo, hi, checked=True) as turn:
            rest = turn
            for i in reversed(range(len(names))):
                outer = any(c > 1 for c in counts[:i])
                count = self.b.int(counts[i])
                self.decoded[names[i]] = self.b.binary("urem", rest, count) if outer else rest
                rest = self.b.binary("udiv", rest, count) if outer else self.b.int(0)
            self._nest(0)

    def _open_decoded(self, name: str, depth: int) -> None:
        """Bind a parallel loop; a turn that hits the tail runs the smaller block."""
        extent, tile, index = self.extents[name], self._tile(name), self.decoded[name]
        full, rest = divmod(extent, tile)
        inner = lambda: self._nest(depth + 1)  # noqa: E731
        main = Bound(index, tile, 0, tile)
        if not rest:
            self._bind(name, main, inner)
            return
        test = self.b.compare("icmp ult", index, self.b.int(full))
        with self.b.branch(test):
            self._bind(name, main, inner)
        with self.b.branch(test, otherwise=True):
            self._bind(name, Bound(self.b.int(0), 0, full * tile, rest), inner)

    def _bind(self, name: str, bound: Bound, inner: Callable[[], None]) -> None:
        self.bound[name] = bound
        inner()
        del self.bound[name]

    def bound_at(self, index: Val, step: int, origin: int) -> Bound:
        """A reduce loop's position."""
        return Bound(index, step, origin)

    def _nest(self, depth: int) -> None:
        """Everything inside the first ``depth`` loops."""
        groups = self.groups.get(depth, [])
        block = any(self._along_output(r) for g in groups for r in g)
        with self.b.scope(barrier=block):
            for group in groups:
                self._reduce(group)
            for store in self.stores.get(depth, []):
                self._store(store)
            if depth < self.last:
                self._open(self.order[depth], depth)

    def _open(self, name: str, depth: int) -> None:
        extent, tile = self.extents[name], self._tile(name)
        full, rest = divmod(extent, tile)
        inner = lambda: self._nest(depth + 1)  # noqa: E731
        if name in self.decoded and full + bool(rest) > 1:
            self._open_decoded(name, depth)
            return
        if full == 1:
            self._bind(name, Bound(self.b.int(0), 0, 0, tile), inner)
        elif full:
            with self.b.loop(self.b.int(0), self.b.int(full)) as index:
                self._bind(name, Bound(index, tile, 0, tile), inner)
        if rest:
            self._bind(name, Bound(self.b.int(0), 0, full * tile, rest), inner)

    # -- points of a block --------------------------------------------------------------------------

    def _points(self, axes: frozenset[str]) -> Iterator[Point]:
        """Offsets of the block along these axes; the lane axis goes by whole vectors."""
        lane = self.lanes.axis
        names = [n for n in self.order if n in axes and n in self.bound]
        names = [n for n in names if self.bound[n].tile > 1 and n != lane]
        if lane in axes and lane in self.bound:  # innermost: a broadcast is used up at once
            names.append(lane)
        ranges = [
            range(0, self.bound[n].tile, self.lanes.width if n == lane else 1) for n in names
        ]
        for offsets in itertools.product(*ranges):
            yield dict(zip(names, offsets, strict=True))

    @contextmanager
    def _laned(self, lanes: Lanes) -> Iterator[None]:
        before, self.lanes = self.lanes, lanes
        yield
        self.lanes = before

    def _masked(self, point: Point) -> Lanes:
        """The current lanes with the mask this point needs."""
        axis, width = self.lanes.axis, self.lanes.width
        if axis is None:
            return self.lanes
        left = self.bound[axis].tile - point.get(axis, 0)
        mask = self.b.lane_mask(width, left) if left < width else None
        return Lanes(axis, width, mask)

    # -- stores -------------------------------------------------------------------------------------

    def _store(self, store: Store) -> None:
        where = self.view.store(store)
        axes = where.axes | self.view.free(store.value)
        vector = self.schedule.vector
        lanes = Lanes()
        if vector is not None and vector in axes and vector in self.bound:
            lanes = Lanes(vector, self.schedule.lanes)
        with self._laned(lanes):
            for point in self._points(axes):
                with self._laned(self._masked(point)):
                    value = self.value(store.value, point)
                    self._write(store, where, value, point)

    def _write(self, store: Store, where: Access, value: Val, point: Point) -> None:
        dtype = self.kernel.buffers[store.buffer].dtype
        value = convert(self.b, value, store.value.dtype, dtype)
        self.memory.write(self.address(where, point), dtype, to_memory(self.b, dtype, value),
                          self.lanes.mask)  # fmt: skip

    # -- reductions ---------------------------------------------------------------------------------

    def _reduce(self, group: list[Reduce]) -> None:
        if any(extent == 0 for _, extent in group[0].axes):
            for node in group:
                for point in self._points(self.view.free(node)):
                    self._keep(node, point, neutral(self.b, node.combine, node.dtype, 0))
            return
        loops = list(group[0].axes)
        if self._along_output(group[0]):
            lanes = Lanes(self.schedule.vector, self.schedule.lanes)
        else:
            lanes, loops = self._reduce_lanes(group, loops)
        with self._laned(lanes):
            points = [(r, list(self._points(self.view.free(r)))) for r in group]
            Accumulate(self, points, loops).run()

    def _reduce_lanes(
        self, group: list[Reduce], loops: list[tuple[str, int]]
    ) -> tuple[Lanes, list[tuple[str, int]]]:
        """Lanes along the reduced axis that the bodies read contiguously, moved innermost."""
        best, score = None, 0
        for name, extent in loops:
            strides = [
                self.view.load(n).stride(name)
                for r in group
                for n in walk(r.body)
                if isinstance(n, Load) and not n.index == ()
            ]
            good = sum(1 for s in strides if s == 1) - sum(1 for s in strides if s not in (0, 1))
            if good > score and extent > 1:
                best, score = name, good
        if best is None:
            return Lanes(), loops
        width = lane_width(list(group), self.target)
        rest = [x for x in loops if x[0] != best]
        return Lanes(best, width), [*rest, (best, self.extents[best])]

    def _keep(self, node: Reduce, point: Point, value: Val) -> None:
        self.results[node, self._key(node, point)] = value

    def _key(self, node: Reduce, point: Point) -> tuple[tuple[str, int], ...]:
        axes = self.view.free(node)
        return tuple(
            (n, point.get(n, 0)) for n in self.order
            if n in axes and n in self.bound and (self.bound[n].tile > 1)
        )  # fmt: skip

    # -- values -------------------------------------------------------------------------------------

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
        args = [self._value(a, point, memo) for a in expr.args]
        return operation(self.b, expr.op, expr.dtype, [a.dtype for a in expr.args], args)

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
            return self.b.float(-value.const, value.type, value.lanes)
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
        return convert(self.b, value, dtype, node.dtype)

    def _zero(self, dtype: str) -> Val:
        element = register(dtype)
        return self.b.float(0.0, element) if is_float(dtype) else self.b.int(0, element)

    # -- addresses ----------------------------------------------------------------------------------

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
        acc = self.b.int(0)
        for index, factor in sorted(terms, key=lambda t: t[0].level):
            acc = self.b.add(acc, self.b.mul(index, factor))
        return self.b.add(acc, self.b.int(total))

    def address(
        self, where: Access, point: Point, memo: dict[Expr, Val] | None = None
    ) -> Address:
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
        size = self.b.int(block)
        outer = self.b.mul(self.b.binary("sdiv", index, size), block_step)
        return self.b.add(outer, self.b.mul(self.b.binary("srem", index, size), step))

