"""The loop nest of one group of reductions: accumulators, unrolling, tails, horizontal sums."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from packhorse.compiler.llvm_builder import Val
from packhorse.compiler.llvm_ops import combine, convert, neutral, register
from packhorse.kernel.expr import Call, Reduce

if TYPE_CHECKING:
    from packhorse.compiler.evaluate import Point
    from packhorse.compiler.lower_cpu import CpuLowering

__all__ = ["Accumulate"]


class Accumulate:
    """Computes reductions that share their loops, each at several points of the block."""

    def __init__(
        self,
        low: CpuLowering,
        work: list[tuple[Reduce, list[Point]]],
        loops: list[tuple[str, int]],
    ) -> None:
        self.low, self.b, self.work, self.loops = low, low.b, work, loops
        self.lanes = low.lanes
        self.rows = self.lanes.axis is not None and self.lanes.axis in dict(loops)
        unrolls = low.schedule.unrolls
        self.whole = [n for n, e in loops if unrolls.get(n) == e and n != self.lanes.axis]
        self.inner = loops[-1][0] if loops and loops[-1][0] not in self.whole else None
        self.split = max(1, low.schedule.accumulators)
        if self.rows:  # enough independent chains to hide the adder's latency
            self.split = max(1, 4 // max(1, sum(len(p) for _, p in work)))
        factor = self.split
        if self.inner is not None:
            extent = low.extents[self.inner]
            width = self.lanes.width if self.rows else 1
            factor = max(self.split, 1 if self.rows else unrolls.get(self.inner, 1))
            factor = min(factor, max(1, extent // width))
            self.split = min(self.split, factor)
        else:
            self.split = 1
        self.factor = factor
        self.slots: dict[tuple[Reduce, int, int], Val] = {}

    def run(self) -> None:
        """Emit the loops and leave the results with the lowering."""
        for node, points in self.work:
            lanes = self.lanes.width if self.lanes.axis is not None else 0
            element = register(node.dtype)
            start = neutral(self.b, node.combine, node.dtype, lanes)
            for i, j in itertools.product(range(len(points)), range(self.split)):
                slot = self.slots[node, i, j] = self.b.slot(element, lanes)
                self.b.put(slot, start)
        outer = [x for x in self.loops if x[0] not in self.whole and x[0] != self.inner]
        self._outer(outer)
        for node, points in self.work:
            for i, point in enumerate(points):
                self.low._keep(node, point, self._total(node, i))

    def _outer(self, loops: list[tuple[str, int]]) -> None:
        if not loops:
            self._inner()
            return
        (name, extent), rest = loops[0], loops[1:]
        if extent == 1:
            bound = self.low.bound_at(self.b.integer(0), 0, 0)
            self.low._bind(name, bound, lambda: self._outer(rest))
            return
        with self.b.loop(self.b.integer(0), self.b.integer(extent)) as index:
            self.low._bind(name, self.low.bound_at(index, 1, 0), lambda: self._outer(rest))

    def _inner(self) -> None:
        if self.inner is None:
            self._steps({}, 1, None)
            return
        name, extent = self.inner, self.low.extents[self.inner]
        width = self.lanes.width if self.rows else 1
        step = width * self.factor
        full, rest = divmod(extent, step)
        zero = self.b.integer(0)
        if full == 1:
            bound = self.low.bound_at(zero, 0, 0)
            self.low._bind(name, bound, lambda: self._steps({}, self.factor, None))
        elif full:
            self.low.ahead = 0 if self.rows else self.low.schedule.prefetch
            with self.b.loop(zero, self.b.integer(full)) as index:
                bound = self.low.bound_at(index, step, 0)
                self.low._bind(name, bound, lambda: self._steps({}, self.factor, None))
            self.low.ahead = 0
        if rest:
            bound = self.low.bound_at(zero, 0, full * step)
            count, left = divmod(rest, width)
            self.low._bind(name, bound, lambda: self._steps({}, count + bool(left), left or None))

    def _steps(self, point: Mapping[str, int], count: int, left: int | None) -> None:
        """``count`` unrolled turns of the innermost loop, the last with ``left`` lanes only."""
        ranges = [range(self.low.extents[n]) for n in self.whole]
        for offsets in itertools.product(*ranges):
            base = dict(zip(self.whole, offsets, strict=True))
            for name in self.whole:
                self.low.bound[name] = self.low.bound_at(self.b.integer(0), 0, 0)
            for turn in range(count):
                here = dict(base)
                if self.inner is not None:
                    here[self.inner] = turn * (self.lanes.width if self.rows else 1)
                mask = left if turn == count - 1 else None
                self._turn(here, turn % self.split, mask)
            for name in self.whole:
                del self.low.bound[name]

    def _turn(self, here: Mapping[str, int], chain: int, left: int | None) -> None:
        for node, points in self.work:
            for i, point in enumerate(points):
                at = {**point, **here}
                lanes = self.low._masked(point) if not self.rows else self.lanes
                if left is not None:
                    mask = self.b.lane_mask(self.lanes.width, left)
                    lanes = type(lanes)(lanes.axis, lanes.width, mask)
                with self.low._laned(lanes):
                    self._update(node, at, self.slots[node, i, chain], left is not None)

    def _update(self, node: Reduce, at: Point, slot: Val, masked: bool) -> None:
        b, low = self.b, self.low
        lanes = self.lanes.width if self.lanes.axis is not None else 0
        element = register(node.dtype)
        body = node.body
        acc = b.get(slot, element, lanes)
        product = isinstance(body, Call) and body.op == "mul" and node.combine == "sum"
        if product and body.dtype == node.dtype and node.dtype in ("float32", "float64"):
            assert isinstance(body, Call)
            x, y = (low.value(a, at) for a in body.args)
            spill = node in low.spilled
            new = b.fma(x, y, acc)
            value = b.binary("fmul", x, y) if spill else new
        else:
            value = low.value(body, at)
            typed = convert(b, value, body.dtype, node.dtype)
            new = combine(b, node.combine, node.dtype, acc, b.splat(typed, lanes))
        if masked:
            mask = low.lanes.mask
            assert mask is not None
            new = b.select(mask, new, acc)
        b.put(slot, new)
        if node in low.spilled:
            store, _ = low.spilled[node]
            low._write(store, low.view.store(store), value, at)

    def _total(self, node: Reduce, i: int) -> Val:
        b = self.b
        lanes = self.lanes.width if self.lanes.axis is not None else 0
        element = register(node.dtype)
        parts = [b.get(self.slots[node, i, j], element, lanes) for j in range(self.split)]
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=False)
            odd = parts[-1:] if len(parts) % 2 else []
            parts = [combine(b, node.combine, node.dtype, x, y) for x, y in pairs] + odd
        total = parts[0]
        return self._across(node, total) if self.rows else total

    def _across(self, node: Reduce, value: Val) -> Val:
        """Combine the lanes: log2 shuffles."""
        b = self.b
        while value.lanes > 1:
            half = value.lanes // 2
            low, high = (self._half(value, start, half) for start in (0, half))
            value = combine(b, node.combine, node.dtype, low, high)
        text = f"extractelement {value}, i32 0"
        return b.inst(text, value.type, 0, [value], "value")

    def _half(self, value: Val, start: int, count: int) -> Val:
        picks = ", ".join(f"i32 {start + i}" for i in range(count))
        text = f"shufflevector {value}, {value.full} poison, <{count} x i32> <{picks}>"
        return self.b.inst(text, value.type, count, [value], "value")
