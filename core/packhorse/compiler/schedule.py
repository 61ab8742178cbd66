"""In which order, with which tiles, vectors and threads a kernel's loops run.

:func:`schedule` is a heuristic: it picks the vector axis by what loads and stores would cost,
the register tile by counting loads and multiply-adds, and the loop order so that what is reused
most stays nearest. Everything it decides is a field of :class:`Schedule` and can be overridden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from packhorse.compiler.access import View
from packhorse.compiler.llvm_ops import size_of
from packhorse.compiler.target import Target
from packhorse.kernel.expr import Call, Const, Expr, Index, Load, Reduce, reduces, walk
from packhorse.kernel.kernel import Buffer, Kernel

__all__ = ["Schedule", "lane_width", "pack_constants", "schedule"]


_SHARED_BYTES = 8.0
"""Bytes a cycle that a core gets from beyond its own caches."""


@dataclass(frozen=True)
class Schedule:
    """How one kernel is run on one CPU. Every field may be overridden with ``dataclasses.replace``.

    Parameters
    ----------
    order : tuple of str
        Output loops, outermost first; sequential ones come first.
    tile : tuple of (axis, int)
        Elements of each loop handled by one unrolled register block; 1 where not named.
    vector : str or None
        The output loop whose neighbours share a vector; None: outputs are written one by one.
    lanes : int
        Elements in a vector along ``vector``.
    parallel : tuple of str
        Leading loops of ``order`` run as one range that threads split, or one inner loop whose
        range they split; empty: one thread.
    unroll : tuple of (axis, int)
        Reduce loops written out: the whole extent, or that many turns of the innermost one.
    accumulators : int
        Independent partial results of a reduction (hides the latency of the adder where the
        register block alone is too small to).
    prefetch : int
        Bytes ahead to ask for when a reduction streams vectors (weights) past the cache; 0: not.
    """

    order: tuple[str, ...]
    tile: tuple[tuple[str, int], ...] = ()
    vector: str | None = None
    lanes: int = 1
    parallel: tuple[str, ...] = ()
    unroll: tuple[tuple[str, int], ...] = ()
    accumulators: int = 1
    prefetch: int = 0

    @property
    def tiles(self) -> Mapping[str, int]:
        """Tile of each loop that has one."""
        return dict(self.tile)

    @property
    def unrolls(self) -> Mapping[str, int]:
        """Unroll factor of each reduce loop that has one."""
        return dict(self.unroll)


def pack_constants(kernel: Kernel, plan: Schedule) -> dict[str, Buffer]:
    """The layout each constant buffer of a kernel should have under a schedule."""
    from packhorse.compiler.packing import pack

    return pack(kernel, plan)


def lane_width(exprs: list[Expr], target: Target) -> int:
    """Lanes of a vector of the widest dtype computed with; indices do not count."""
    widest = 0
    for expr in exprs:
        for node in walk(expr):
            if isinstance(node, (Index, Const)) or node.dtype in ("bool", "int64"):
                continue
            widest = max(widest, size_of(node.dtype))
            if isinstance(node, Call) and node.op == "cast":
                widest = max(widest, size_of(node.args[0].dtype))
    if not widest:  # only bools and int64: by what is there
        sizes = [size_of(n.dtype) for e in exprs for n in walk(e)]
        widest = max(sizes, default=8)
    return max(1, target.vector_bytes // max(widest, 1))


def schedule(kernel: Kernel, target: Target) -> Schedule:
    """Choose a schedule.

    Parameters
    ----------
    kernel : Kernel
        With the layouts its buffers will have; constants may still be unpacked.
    target : Target
        Vector width, registers, caches and threads are read from it.
    """
    return _Chooser(kernel, target).choose()


class _Chooser:
    def __init__(self, kernel: Kernel, target: Target) -> None:
        self.kernel, self.target = kernel, target
        self.view = View(kernel)
        self.extents = kernel.extents
        self.stores = [self.view.store(s) for s in kernel.stores]
        self.reduces = list(dict.fromkeys(r for s in kernel.stores for r in reduces(s.value)))
        self.lanes = lane_width([s.value for s in kernel.stores], target)
        self.constants = {n for n, b in kernel.buffers.items() if b.constant}
        loose = [n for n, _ in kernel.axes if n not in kernel.sequential]
        # outermost first: by the distance between neighbours in the output
        self.axes = sorted(loose, key=lambda n: -abs(self.stores[0].stride(n) or 0))

    def choose(self) -> Schedule:
        vector = self._vector()
        inside = [r for r in self.reduces if vector in self.view.free(r)]
        if vector is not None and inside:
            from packhorse.compiler.tiling import tile_block

            plan = tile_block(self.view, self.target, self.axes, vector, self.lanes, inside)
        elif vector is None:
            plan = self._scalar_outputs()
        else:
            plan = self._rows(vector)
        order = self.kernel.sequential + plan.order
        parallel = () if self.kernel.sequential else self._parallel(plan)
        return replace(plan, order=order, parallel=parallel)

    # -- vector axis ------------------------------------------------------------------------------

    def _vector(self) -> str | None:
        names = [n for n in self.axes if self.extents[n] > 1]
        costs: dict[str | None, float] = {n: self._cost(n) for n in (*names, None)}
        return min(costs, key=lambda n: costs[n])

    def _cost(self, vector: str | None) -> float:
        """Memory operations per output element, very roughly, with this vector axis."""
        total = 0.0
        for store, where in zip(self.kernel.stores, self.stores, strict=True):
            # scattering costs more than gathering: lines are read before they are written
            step = self._step(where.stride(vector) if vector else None)
            total += step if step <= 1.0 else 1.5 * step
            total += sum(
                self._load_cost(n, vector)
                for n in walk(store.value) if isinstance(n, Load) and not self._reduced(n)
            )  # fmt: skip
        for node in self.reduces:
            total += self._reduce_cost(node, vector)
        if vector is None:
            return total
        extent = self.extents[vector]
        return total * (-(-extent // self.lanes) * self.lanes) / extent

    def _reduced(self, node: Load) -> bool:
        return any(n not in dict(self.kernel.axes) for n in self.view.free(node))

    def _step(self, stride: int | None) -> float:
        if stride in (0, 1):
            return 1.0 if stride else 0.3
        return float(self.lanes)

    def _load_cost(self, node: Load, axis: str | None) -> float:
        if axis is None:
            return float(self.lanes)
        where = self.view.load(node)
        if any(axis in self.view.free(e) for e, _ in where.indirect):
            return 2.0 * self.lanes
        stride = where.stride(axis)
        if stride and node.buffer in self.constants and not where.indirect:
            return 1.0
        return self._step(stride)

    def _reduce_cost(self, node: Reduce, vector: str | None) -> float:
        turns = 1
        for _, extent in node.axes:
            turns *= extent
        loads = [n for n in walk(node.body) if isinstance(n, Load)]
        if vector is not None and vector in self.view.free(node):
            return turns * sum(self._load_cost(n, vector) for n in loads)
        # lanes along a reduced axis, and one horizontal sum
        best = min(
            (sum(self._step(self.view.load(n).stride(a)) for n in loads) for a, _ in node.axes),
            default=float(self.lanes),
        )
        cost = turns * best + 4.0 * self.lanes
        return cost if vector is None else cost / self.extents[vector]

    # -- maps, rows, scalar outputs ---------------------------------------------------------------

    def _rows(self, vector: str) -> Schedule:
        """Maps, and kernels whose reductions are per row: the vector axis innermost."""
        others = [n for n in self.axes if n != vector]
        extent, lanes = self.extents[vector], self.lanes
        count = min(4, -(-extent // lanes))
        across = None if self.reduces else self._transposed(vector, others)
        if across is not None:  # each line gathered from serves a whole square
            square = ((vector, min(extent, lanes)), (across, min(self.extents[across], lanes)))
            return Schedule((*others, vector), square, vector, lanes)
        tile = [(vector, min(extent, count * lanes))]
        if not self.reduces and others and count < 4 and self.extents[others[-1]] > 1:
            tile.append((others[-1], min(self.extents[others[-1]], 4 // count)))
        return Schedule((*others, vector), tuple(tile), vector, lanes)

    def _transposed(self, vector: str, others: list[str]) -> str | None:
        """The axis along which something strided along the vector axis lies contiguously."""
        for store in self.kernel.stores:
            for node in walk(store.value):
                if isinstance(node, Load) and node.buffer not in self.constants:
                    where = self.view.load(node)
                    if where.stride(vector) not in (0, 1) and not where.indirect:
                        for name in reversed(others):
                            if where.stride(name) == 1 and self.extents[name] > 1:
                                return name
        return None

    def _scalar_outputs(self) -> Schedule:
        """Outputs one by one: lanes, if any, lie along the reduced axes. A small block lets
        products of two operands share their loads."""
        tile = []
        for name in self.axes[-2:]:
            shared = any(
                name in self.view.free(r) and not all(
                    name in self.view.free(n) for n in walk(r.body) if isinstance(n, Load)
                )
                for r in self.reduces
            )  # fmt: skip
            if shared and self.extents[name] > 1:
                tile.append((name, min(4, self.extents[name])))
        return Schedule(tuple(self.axes), tuple(tile))

    # -- threads ----------------------------------------------------------------------------------

    def _parallel(self, plan: Schedule) -> tuple[str, ...]:
        """The loops to split over threads, if there is enough work: the leading ones, or an inner
        one where that lets each thread read less of what the others read."""
        threads, work = self.target.threads, self._work()
        if threads < 2 or work < 40_000:
            return ()
        options = [self._leading(plan)]
        options += [(name,) for name in plan.order[1:] if self._splits(name)]
        costs = {names: self._threaded(names, plan, work) for names in options if names}
        return min(costs, key=lambda names: costs[names], default=())

    def _leading(self, plan: Schedule) -> tuple[str, ...]:
        """As many leading loops as give every thread a fair share, no reduction repeated."""
        threads, tiles = self.target.threads, plan.tiles
        need = [self.view.free(r) for r in self.reduces]
        chosen: list[str] = []
        turns = 1
        for i, name in enumerate(plan.order):
            rest = plan.order[i:]
            # a reduction that needs no loop from here on would be redone by every turn
            if any(free and not free.intersection(rest) for free in need) or (
                need and not any(name in free for free in need)
            ):
                break
            chosen.append(name)
            turns *= -(-self.extents[name] // max(1, tiles.get(name, 1)))
            if turns >= 16 * threads or (turns >= 4 * threads and turns % threads == 0):
                break
        return tuple(chosen) if turns > 1 else ()

    def _splits(self, name: str) -> bool:
        """True when everything computed depends on the loop: it may be split where it is."""
        stores = zip(self.kernel.stores, self.stores, strict=True)
        return all(name in self.view.free(r) for r in self.reduces) and all(
            name in where.axes | self.view.free(store.value) for store, where in stores
        )

    def _threaded(self, names: tuple[str, ...], plan: Schedule, work: float) -> float:
        """Cycles of the slowest thread: its share of the work, and what it has to read."""
        threads, tiles = self.target.threads, plan.tiles
        counts = [-(-self.extents[n] // max(1, tiles.get(n, 1))) for n in names]
        turns = prod(counts)
        share = -(-turns // threads) / turns
        # a thread gets a stretch of turns: what differs between threads is the outermost loop
        outer = next((n for n, count in zip(names, counts, strict=True) if count > 1), "")
        read: dict[str, float] = {}
        for node in {n for s in self.kernel.stores for n in walk(s.value) if isinstance(n, Load)}:
            buffer = self.kernel.buffers[node.buffer]
            nbytes = float(buffer.size * size_of(buffer.dtype))
            part = share if outer in self.view.free(node) else 1.0
            read[node.buffer] = max(read.get(node.buffer, 0.0), nbytes * part)
        return share * work + sum(read.values()) / _SHARED_BYTES

    def _work(self) -> float:
        """Estimated vector operations of the whole kernel, in units of about a cycle."""
        points = 1.0
        for _, extent in self.kernel.axes:
            points *= extent
        total = 0.0
        for store in self.kernel.stores:
            total += points * sum(1 for n in walk(store.value) if isinstance(n, (Call, Load)))
        for node in self.reduces:
            turns = 1.0
            for name in self.view.free(node):
                turns *= self.extents.get(name, 1)
            for _, extent in node.axes:
                turns *= extent
            total += turns * sum(1 for n in walk(node.body) if isinstance(n, (Call, Load)))
        return total / self.lanes
