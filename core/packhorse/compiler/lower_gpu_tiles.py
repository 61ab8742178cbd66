"""Sums of products in tiles: matrix products and convolutions for devices of many work-items.

Rows are the axes only the first factor knows, columns those only the second one knows, both as
one running number. A group stages a tile of each factor in local memory, with zeros beyond the
edges, and every work-item adds up a block of outputs in registers. A factor may be any
expression: its guards, layout and dtype are dealt with where it is staged.

Local memory holds terms outermost, so that what a work-item multiplies are neighbours it reads
as vectors. A factor whose terms are neighbours in device memory is turned while it is staged; a
few elements of padding then keep the writes of neighbouring work-items in different banks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from packhorse.compiler.c_text_ops import Helpers, call_text, combine_text, literal, register
from packhorse.compiler.gpu_lanes import lanes, widest
from packhorse.compiler.gpu_schedule import GpuSchedule, contraction
from packhorse.compiler.lower_gpu import GpuLowering
from packhorse.errors import CompileError
from packhorse.kernel.expr import Expr, Load, walk
from packhorse.kernel.kernel import Kernel

__all__ = ["TileLowering"]

_SLOTS = 8
"""What a work-item stages of a tile without a loop, at most."""


@dataclass(frozen=True)
class _Side:
    """One factor of the products and its tile.

    ``count`` outputs along ``axes``; a tile of ``size`` of them by the depth of the schedule, of
    which a work-item multiplies ``block`` at a time. ``turned``: neighbours in memory are terms.
    """

    name: str
    factor: Expr
    axes: tuple[str, ...]
    count: int
    size: int
    block: int
    turned: bool
    lanes: int
    vector: int

    @property
    def stride(self) -> int:
        """Elements from one term to the next in local memory."""
        return self.size + (self.vector if self.turned else 0)

    def places(self) -> list[int]:
        """Of a block's vectors, how far each lies from the work-item's own corner."""
        apart = self.size // self.block * self.vector
        return [n * apart for n in range(self.block // self.vector)]


@dataclass(frozen=True)
class _Slot:
    """A vector (or element) a work-item stages of every chunk: where in the tile, and when."""

    row: str
    term: str
    condition: str
    live: str
    axes: dict[str, str]


class TileLowering(GpuLowering):
    """Writes one kernel whose schedule has the mode ``tiles``."""

    def __init__(self, kernel: Kernel, plan: GpuSchedule, helpers: Helpers) -> None:
        super().__init__(kernel, plan, helpers)
        found = contraction(kernel)
        if found is None:
            raise CompileError(f"kernel '{kernel.name}' has no single sum of products to tile")
        self.node, first, second = found
        if set(plan.rows) & self.view.free(second) or set(plan.columns) & self.view.free(first):
            first, second = second, first
        known = self.view.free(first) - set(plan.rows), self.view.free(second) - set(plan.columns)
        if set(plan.columns) & known[0] or set(plan.rows) & known[1]:
            raise CompileError(
                f"kernel '{kernel.name}': rows {list(plan.rows)} and columns "
                f"{list(plan.columns)} of the schedule are no axes of one factor each"
            )
        terms = [name for name, _ in self.node.axes]
        # a loop per outer term axis needs no division, where the last one fills its chunks
        whole = len(terms) > 1 and self.extents[terms[-1]] % plan.tile[2] == 0
        self.outer, self.terms = (terms[:-1], terms[-1:]) if whole else ([], terms)
        self.total = math.prod(self.extents[name] for name in self.terms)
        self.local = register(self.node.dtype)
        self.kind = helpers.ctype(self.local)
        self.rows = self._side("sa", first, plan.rows, 0)
        self.columns = self._side("sb", second, plan.columns, 1)

    def _side(self, name: str, factor: Expr, axes: tuple[str, ...], n: int) -> _Side:
        size, block = self.plan.tile[n], self.plan.block[n]
        found = [self.view.load(x) for x in walk(factor) if isinstance(x, Load)]
        by_rows = any(axes and a.stride(axes[-1]) == 1 for a in found)
        turned = not by_rows and any(a.stride(self.terms[-1]) == 1 for a in found)
        fastest = self.terms[-1:] if turned else list(axes[-1:])
        room = self.plan.tile[2] if turned else size
        count = lanes(self.view, [factor], (), fastest[0]) if fastest else 1
        count = min(count, self.plan.lanes)
        vector = min(block, widest(self.local), self.plan.lanes)
        if self.local == "bool" or not self.vector_type(self.local, vector):
            vector = 1
        return _Side(
            name, factor, axes, math.prod(self.extents[x] for x in axes), size, block, turned,
            count if room % count == 0 and self.local != "bool" else 1, vector,
        )  # fmt: skip

    def body(self) -> None:
        """Decode the group, stage and multiply chunk by chunk, store."""
        corners = self._corners()
        for side in (self.rows, self.columns):
            self.shared[side.name] = (self.kind, side.stride * self.plan.tile[2])
        me = self.b.let("int32", f"(int){self.dialect.local_id}")
        across = self.columns.size // self.columns.block
        place = self.divided(me, across)
        mine = [
            self.b.let("int32", f"{place[n]} * {side.vector}")
            for n, side in enumerate((self.rows, self.columns))
        ]
        sides = (self.rows, self.columns)
        slots = [self._slots(sides[n], corners[n], me) for n in range(2)]
        sums = {(i, j): self.accumulator(self.node)
                for i in range(self.rows.block) for j in range(self.columns.block)}  # fmt: skip
        with self._chunks(self.outer) as start:
            self._stage(self.rows, slots[0], corners[0], start)
            self._stage(self.columns, slots[1], corners[1], start)
            self.b.line(self.dialect.local_barrier)
            self._multiply(sums, mine)
            self.b.line(self.dialect.local_barrier)
        self._write(sums, corners, mine)

    def _corners(self) -> tuple[str, str]:
        """First row and column of the group's tile; axes that both factors know are decoded."""
        left = self.b.let(self.index, self.cast(self.dialect.group_id))
        ours = (*self.rows.axes, *self.columns.axes)
        rest = [n for n in self.plan.order if n not in ours]
        found = []
        for side in (self.columns, self.rows):
            n = left
            if rest or side is self.columns:
                left, n = self.divided(left, -(-side.count // side.size))
            found.append("0" if n == "0" else self.b.let(self.index, f"{n} * {side.size}"))
        self.decode(left, rest)
        return found[1], found[0]

    @contextmanager
    def _chunks(self, outer: Sequence[str]) -> Iterator[str]:
        """Loops over the terms, as many at a time as a tile is deep."""
        if outer:
            with self.loop((outer[0], self.extents[outer[0]])), self._chunks(outer[1:]) as start:
                yield start
            return
        start, kind = self.b.fresh("k"), self.helpers.ctype(self.index)
        step = f"{start} += {self.plan.tile[2]}"
        with self.b.block(f"for ({kind} {start} = 0; {start} < {self.number(self.total)}; {step})"):
            yield start

    # -- staging -----------------------------------------------------------------------------------

    def _slots(self, side: _Side, corner: str, me: str) -> list[_Slot]:
        """What does not change from chunk to chunk: worked out once, before the loops.

        Empty where a work-item stages so much that it had better go through a loop.
        """
        total, group = side.size * self.plan.tile[2] // side.lanes, self.plan.group
        if total > _SLOTS * group:
            return []
        found = []
        for first in range(0, total, group):
            where = self.b.let("int32", f"{me} + {first}") if first else me
            live = f"{where} < {total}" if first + group > total else ""
            found.append(self._slot(side, corner, where, live))
        return found

    def _slot(self, side: _Side, corner: str, where: str, live: str) -> _Slot:
        if side.turned:
            i, k = self.divided(where, self.plan.tile[2] // side.lanes)
        else:
            k, i = self.divided(where, side.size // side.lanes)
        if side.lanes > 1:
            wide = self.b.let(self.index, f"{k if side.turned else i} * {side.lanes}")
            i, k = (i, wide) if side.turned else (wide, k)
        row = self.b.let(self.index, f"{corner} + {i}")
        inside = f"{row} < {self.number(side.count)}" if side.count % side.size else ""
        condition = " && ".join(text for text in (live, inside) if text)
        with self.known_axes({}):
            self.decode(row, side.axes)
            return _Slot(i, k, condition, live, self.axes)

    def _stage(self, side: _Side, slots: Sequence[_Slot], corner: str, start: str) -> None:
        """Fill local memory with a tile of a factor: ``name[term][row]``, zero outside."""
        for slot in slots:
            self._stage_slot(side, slot, start)
        if not slots:
            where, total = self.b.fresh("w"), side.size * self.plan.tile[2] // side.lanes
            first = f"(int){self.dialect.local_id}"
            step = f"{where} += {self.plan.group}"
            with self.b.block(f"for (int {where} = {first}; {where} < {total}; {step})"):
                self._stage_slot(side, self._slot(side, corner, where, ""), start)

    def _stage_slot(self, side: _Side, slot: _Slot, start: str) -> None:
        zero, term = literal(0, self.local, self.dialect), f"{start} + {slot.term}"
        term = self.b.let(self.index, term)
        conditions = [slot.condition] if slot.condition else []
        if self.total % self.plan.tile[2]:
            conditions.append(f"{term} < {self.number(self.total)}")
        held = [self.b.fresh("t") for _ in range(side.lanes)]
        for name in held:
            self.b.line(f"{self.kind} {name} = {zero};")
        guard = f"if ({' && '.join(conditions)})" if conditions else ""
        with self.b.block(guard), self.known_axes(slot.axes):
            self.decode(term, self.terms)
            with self._wide(self.terms if side.turned else side.axes, side.lanes):
                for i, name in enumerate(held):
                    self.b.line(f"{name} = {self.value(side.factor, i)};")
        vector = self.vector_type(self.local, side.lanes) if side.lanes > 1 else ""
        if side.turned or not vector:
            lines = [f"{side.name}[{self._at(side, slot, i)}] = {t};"
                     for i, t in enumerate(held)]  # fmt: skip
        else:
            lines = [self._put(f"{side.name} + {self._at(side, slot, 0)}", vector, held)]
        for line in lines:
            self.b.line(f"if ({slot.live}) {line}" if slot.live else line)

    def _at(self, side: _Side, slot: _Slot, i: int) -> str:
        if side.turned:
            return f"({slot.term} + {i}) * {side.stride} + {slot.row}"
        return f"{slot.term} * {side.stride} + {slot.row} + {i}"

    def _put(self, place: str, vector: str, values: Sequence[str]) -> str:
        left = self.dialect.shared_vector_at.format(const="", type=vector, address=place)
        return f"{left} = {self.dialect.vector.format(type=vector, values=', '.join(values))};"

    # -- products ----------------------------------------------------------------------------------

    def _multiply(self, sums: dict[tuple[int, int], str], mine: Sequence[str]) -> None:
        """One chunk: every row of the block by every column of it."""
        dtype, k = self.node.dtype, self.b.fresh("k")
        with self.b.block(f"for (int {k} = 0; {k} < {self.plan.tile[2]}; ++{k})"):
            a = self._block(self.rows, f"{k} * {self.rows.stride} + {mine[0]}")
            b = self._block(self.columns, f"{k} * {self.columns.stride} + {mine[1]}")
            for (i, j), total in sums.items():
                term = call_text("mul", dtype, (dtype, dtype), (a[i], b[j]), self.helpers)
                text = combine_text("sum", dtype, total, term, self.helpers)
                self.b.line(f"{total} = {text};")

    def _block(self, side: _Side, corner: str) -> list[str]:
        """The elements of a factor that a work-item multiplies, read from local memory."""
        found: list[str] = []
        for place in side.places():
            if side.vector == 1:
                found.append(self.b.let(self.node.dtype, f"{side.name}[{corner} + {place}]"))
                continue
            vector, name = self.vector_type(self.local, side.vector), self.b.fresh()
            text = self.dialect.shared_vector_at.format(
                const="const ", type=vector, address=f"{side.name} + {corner} + {place}"
            )
            self.b.line(f"const {vector} {name} = {text};")
            found += [f"{name}.{element}" for element in "xyzw"[: side.vector]]
        return found

    # -- outputs -----------------------------------------------------------------------------------

    def _write(
        self, sums: dict[tuple[int, int], str], corner: tuple[str, str], mine: Sequence[str]
    ) -> None:
        """The outputs of a work-item, where they are inside."""
        rows, columns = self.rows, self.columns
        values = [s.value for s in self.kernel.stores]
        # the sum itself moves with the columns and lies in registers
        wide = self._lanes_of_columns(values)
        starts = [self._edge(corner[1], mine[1], place) for place in columns.places()]
        for i in range(rows.block):
            place, shift = rows.places()[i // rows.vector], i % rows.vector
            row = self._edge(corner[0], mine[0], place + shift)
            live = f"if ({row} < {self.number(rows.count)})" if rows.count % rows.size else ""
            with self.b.block(live):
                self.decode(row, rows.axes)
                for n, start in enumerate(starts):
                    held = [sums[i, n * columns.vector + j] for j in range(columns.vector)]
                    self._write_columns(start, held, wide)

    def _edge(self, corner: str, mine: str, shift: int) -> str:
        text = f"{corner} + {mine}" if corner != "0" else mine
        return self.b.let(self.index, f"{text} + {shift}" if shift else text)

    def _lanes_of_columns(self, values: Sequence[Expr]) -> int:
        axes = self.columns.axes
        if not axes:
            return 1
        outside = [n for v in values for n in _outside(v, self.node)]
        found = lanes(self.view, outside, self.kernel.stores, axes[-1])
        return self.columns.vector if found >= self.columns.vector else 1

    def _write_columns(self, start: str, held: Sequence[str], wide: int) -> None:
        columns = self.columns
        for first in range(0, len(held), wide):
            column = self.b.let(self.index, f"{start} + {first}") if first else start
            live = f"if ({column} < {self.number(columns.count)})"
            with self.b.block(live if columns.count % columns.size else ""):
                self.decode(column, columns.axes)
                with self._wide(columns.axes, wide):
                    for i in range(wide):
                        self.remember(self.node, held[first + i], i)
                    self.stores()


def _outside(value: Expr, node: Expr) -> list[Load]:
    """Loads of a value that are not within the sum."""
    found: dict[Expr, None] = {}

    def go(expr: Expr) -> None:
        if expr != node and expr not in found:
            found[expr] = None
            for child in expr.children():
                go(child)

    go(value)
    return [expr for expr in found if isinstance(expr, Load)]
