"""From a kernel and its schedule to loops: the one lowering for CPUs.

Output loops are opened in the schedule's order; each turn of a tiled loop is a block of unrolled
points. A reduction is computed as soon as the loops it depends on are open: in the register block
for a convolution (lanes along the output's vector axis), once per row for a softmax (lanes along
the reduced axis, added up at the end). Tails are the same block again with a smaller tile and,
along the vector axis, a constant lane mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from packhorse.compiler.access import Access
from packhorse.compiler.accumulate import Accumulate
from packhorse.compiler.evaluate import Bound, Evaluator, Lanes, Point
from packhorse.compiler.llvm_builder import Val
from packhorse.compiler.llvm_ops import convert, neutral, to_memory
from packhorse.compiler.schedule import Schedule, lane_width
from packhorse.compiler.target import Target
from packhorse.errors import CompileError
from packhorse.kernel.expr import (
    Affine,
    Const,
    Expr,
    Index,
    Load,
    Reduce,
    reduces,
    substitute,
    walk,
)
from packhorse.kernel.kernel import Kernel, Store

__all__ = ["CpuLowering"]


class CpuLowering(Evaluator):
    """Emits the loops of one kernel into a :class:`Builder`.

    After :meth:`emit`, :attr:`turns` is the extent of the range that may be split over threads.
    """

    def __init__(self, kernel: Kernel, schedule: Schedule, target: Target) -> None:
        super().__init__(kernel, schedule, target)
        missing = {n for n, _ in kernel.axes} ^ set(schedule.order)
        if missing:
            raise CompileError(
                f"the schedule of kernel '{kernel.name}' orders the loops {self.order}, "
                f"the kernel has {[n for n, _ in kernel.axes]}. Name each exactly once"
            )
        self.turns = 1
        self.decoded: dict[str, Val] = {}
        self.shared: str | None = None
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
            if names == self.order[: len(names)]:
                self._parallel(names)
            elif len(names) == 1 and names[0] in self.order:
                self._inner_parallel(names[0])
            else:
                raise CompileError(
                    f"kernel '{self.kernel.name}': parallel loops {names} must be the first "
                    f"of {self.order}, or one of them"
                )
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
            left: Val = turn
            for i in reversed(range(len(names))):
                outer = any(c > 1 for c in counts[:i])
                size = self.b.integer(counts[i])
                self.decoded[names[i]] = self.b.binary("urem", left, size) if outer else left
                left = self.b.binary("udiv", left, size) if outer else self.b.integer(0)
            self._nest(0)

    def _inner_parallel(self, name: str) -> None:
        """Threads share an inner loop: each runs the whole nest over its part of that loop."""
        axes = [self.view.store(s).axes | self.view.free(s.value) for s in self.kernel.stores]
        needs = [*axes, *(self.view.free(r) for s in self.kernel.stores for r in reduces(s.value))]
        if not all(name in names for names in needs):
            raise CompileError(
                f"kernel '{self.kernel.name}': loop '{name}' cannot be split over threads, not "
                "everything the kernel computes depends on it"
            )
        self.turns = -(-self.extents[name] // self._tile(name))
        self.shared = name
        self._nest(0)

    def _open_decoded(self, name: str, depth: int) -> None:
        """Bind a parallel loop; a turn that hits the tail runs the smaller block."""
        extent, tile, index = self.extents[name], self._tile(name), self.decoded[name]
        full, rest = divmod(extent, tile)

        def inner() -> None:
            self._nest(depth + 1)

        main = Bound(index, tile, 0, tile)
        if not rest:
            self._bind(name, main, inner)
            return
        test = self.b.compare("icmp ult", index, self.b.integer(full))
        with self.b.branch(test):
            self._bind(name, main, inner)
        with self.b.branch(test, otherwise=True):
            self._bind(name, Bound(self.b.integer(0), 0, full * tile, rest), inner)

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

        def inner() -> None:
            self._nest(depth + 1)

        if name in self.decoded and full + bool(rest) > 1:
            self._open_decoded(name, depth)
            return
        if name == self.shared and full + bool(rest) > 1:
            lo, hi = Val("%lo", "i64"), Val("%hi", "i64")
            with self.b.loop(lo, hi, checked=True) as turn:
                self.decoded[name] = turn
                self._open_decoded(name, depth)
                del self.decoded[name]
            return
        if full == 1:
            self._bind(name, Bound(self.b.integer(0), 0, 0, tile), inner)
        elif full:
            with self.b.loop(self.b.integer(0), self.b.integer(full)) as index:
                self._bind(name, Bound(index, tile, 0, tile), inner)
        if rest:
            self._bind(name, Bound(self.b.integer(0), 0, full * tile, rest), inner)

    # -- points of a block ------------------------------------------------------------------------

    def _points(self, axes: frozenset[str]) -> Iterator[Point]:
        """Offsets of the block along these axes; the lane axis goes by whole vectors."""
        lane = self.lanes.axis
        names = [n for n in self.order if n in axes and n in self.bound]
        names = [n for n in names if self.bound[n].tile > 1 and n != lane]
        if lane in axes and lane in self.bound:  # innermost: a broadcast is used up at once
            names.append(lane)
        ranges = [range(0, self.bound[n].tile, self.lanes.width if n == lane else 1) for n in names]
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

    # -- stores -----------------------------------------------------------------------------------

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

    # -- reductions -------------------------------------------------------------------------------

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
                if isinstance(n, Load) and n.index != ()
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
