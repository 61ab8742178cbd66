"""Sums of products in tiles: matrix products and convolutions for devices of many work-items.

Rows are the axes only the first factor knows, columns those only the second one knows, both as
one running number. A group stages a tile of each factor in local memory, with zeros beyond the
edges, and every work-item adds up a block of outputs in registers. A factor may be any
expression: its guards, layout and dtype are dealt with where it is staged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from packhorse.compiler.c_text_ops import Helpers, call_text, combine_text, literal
from packhorse.compiler.gpu_schedule import GpuSchedule, contraction
from packhorse.compiler.lower_gpu import GpuLowering
from packhorse.errors import CompileError
from packhorse.kernel.expr import Expr, Load, walk
from packhorse.kernel.kernel import Kernel

__all__ = ["TileLowering"]


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
        self.factors = (first, second)
        self.terms = [name for name, _ in self.node.axes]
        self.counts = tuple(
            math.prod(self.extents[n] for n in names) for names in (plan.rows, plan.columns)
        )

    def body(self) -> None:
        """Decode the group, stage and multiply chunk by chunk, store."""
        tm, tn, tk = self.plan.tile
        sides = (self.plan.rows, self.plan.columns)
        tiles = [-(-count // size) for count, size in zip(self.counts, (tm, tn), strict=True)]
        left = self.b.let(self.index, self._cast(self.dialect.group_id))
        column = self.b.let(self.index, f"{left} % {tiles[1]} * {tn}")
        left = self.b.let(self.index, f"{left} / {tiles[1]}")
        row = self.b.let(self.index, f"{left} % {tiles[0]} * {tm}")
        left = self.b.let(self.index, f"{left} / {tiles[0]}")
        self._decode(left, [n for n in self.plan.order if n not in (*sides[0], *sides[1])])
        kind = self.helpers.ctype(self.node.dtype)
        self.shared = {"sa": (kind, tm * tk), "sb": (kind, tn * tk)}
        me = self.b.let("int32", f"(int){self.dialect.local_id}")
        across = tn // self.plan.block[1]
        place = (self.b.let("int32", f"{me} / {across}"), self.b.let("int32", f"{me} % {across}"))
        sums = self._sums()
        total = math.prod(self.extents[n] for n in self.terms)
        start = self.b.fresh("k")
        index = self.helpers.ctype(self.index)
        head = f"for ({index} {start} = 0; {start} < {self._number(total)}; {start} += {tk})"
        with self.b.block(head):
            self._stage("sa", self.factors[0], sides[0], (row, self.counts[0], tm), (start, total))
            self._stage(
                "sb", self.factors[1], sides[1], (column, self.counts[1], tn), (start, total)
            )
            self.b.line(self.dialect.local_barrier)
            self._multiply(sums, place)
            self.b.line(self.dialect.local_barrier)
        self._write(sums, (row, column), place)

    def _sums(self) -> dict[tuple[int, int], str]:
        rows, columns = map(range, self.plan.block)
        return {(i, j): self._accumulator(self.node) for i in rows for j in columns}

    def _stage(
        self,
        name: str,
        factor: Expr,
        axes: Sequence[str],
        edge: tuple[str, int, int],
        terms: tuple[str, int],
    ) -> None:
        """Fill local memory with a tile of a factor: ``name[term][row]``, zero outside."""
        first, count, size = edge
        start, total = terms
        depth, dtype = self.plan.tile[2], self.node.dtype
        with self.b.block(self._stride_loop(size * depth, where := self.b.fresh("w"))):
            if self._along_terms(factor, axes):
                i, k = f"{where} / {depth}", f"{where} % {depth}"
            else:
                i, k = f"{where} % {size}", f"{where} / {size}"
            i, k = self.b.let(self.index, i), self.b.let(self.index, k)
            outer = self.b.let(self.index, f"{first} + {i}")
            inner = self.b.let(self.index, f"{start} + {k}")
            value = self.b.fresh("t")
            zero = literal(0, dtype, self.dialect)
            self.b.line(f"{self.helpers.ctype(dtype)} {value} = {zero};")
            inside = f"{outer} < {self._number(count)} && {inner} < {self._number(total)}"
            with self.b.block(f"if ({inside})"):
                self._decode(outer, axes)
                self._decode(inner, self.terms)
                self.b.line(f"{value} = {self.value(factor)};")
            self.b.line(f"{name}[{k} * {size} + {i}] = {value};")

    def _along_terms(self, factor: Expr, axes: Sequence[str]) -> bool:
        """Whether neighbours in memory are neighbouring terms, not neighbouring rows."""
        found = [self.view.load(n) for n in walk(factor) if isinstance(n, Load)]
        by_rows = any(axes and a.stride(axes[-1]) == 1 for a in found)
        return not by_rows and any(a.stride(self.terms[-1]) == 1 for a in found)

    def _multiply(self, sums: dict[tuple[int, int], str], place: tuple[str, str]) -> None:
        """One chunk: rows and columns of a work-item lie a whole stride of the group apart."""
        (tm, tn, tk), (bm, bn) = self.plan.tile, self.plan.block
        dtype, k = self.node.dtype, self.b.fresh("k")
        with self.b.block(f"for (int {k} = 0; {k} < {tk}; ++{k})"):
            a = [self.b.let(dtype, f"sa[{k} * {tm} + {place[0]} + {i * (tm // bm)}]")
                 for i in range(bm)]  # fmt: skip
            b = [self.b.let(dtype, f"sb[{k} * {tn} + {place[1]} + {j * (tn // bn)}]")
                 for j in range(bn)]  # fmt: skip
            for (i, j), total in sums.items():
                term = call_text("mul", dtype, (dtype, dtype), (a[i], b[j]), self.helpers)
                text = combine_text("sum", dtype, total, term, self.helpers)
                self.b.line(f"{total} = {text};")

    def _write(
        self, sums: dict[tuple[int, int], str], corner: tuple[str, str], place: tuple[str, str]
    ) -> None:
        """The outputs of a work-item, where they are inside."""
        strides = [t // b for t, b in zip(self.plan.tile, self.plan.block, strict=False)]
        columns = [
            self.b.let(self.index, f"{corner[1]} + {place[1]} + {j * strides[1]}")
            for j in range(self.plan.block[1])
        ]
        for i in range(self.plan.block[0]):
            row = self.b.let(self.index, f"{corner[0]} + {place[0]} + {i * strides[0]}")
            with self.b.block(f"if ({row} < {self._number(self.counts[0])})"):
                self._decode(row, self.plan.rows)
                for j, column in enumerate(columns):
                    with self.b.block(f"if ({column} < {self._number(self.counts[1])})"):
                        self._decode(column, self.plan.columns)
                        self.b.remember(self.node, sums[i, j])
                        self._stores()
