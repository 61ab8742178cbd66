"""From a kernel and its schedule to the text of one GPU function.

The same lowering serves every dialect of the C family. This module knows where work-items are and
what they share; ``lower_gpu_values`` writes the values they compute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from packhorse.compiler.c_dialects import Dialect, dialect
from packhorse.compiler.c_text import emit_c
from packhorse.compiler.c_text_ops import Helpers, combine_text
from packhorse.compiler.gpu_lanes import lanes
from packhorse.compiler.gpu_schedule import GpuSchedule
from packhorse.compiler.lower_gpu_values import Values, nodes
from packhorse.errors import CompileError
from packhorse.kernel.expr import Reduce, reduces
from packhorse.kernel.kernel import Kernel

__all__ = ["GpuLowering", "c_name", "gpu_program", "nodes"]


def gpu_program(
    functions: Sequence[tuple[str, Kernel, GpuSchedule]], language: str | Dialect
) -> str:
    """The source text of a program with these kernels.

    Parameters
    ----------
    functions : sequence of (symbol, Kernel, GpuSchedule)
        Each becomes a kernel named ``c_name(symbol)``, whose arguments are the buffers of
        ``Kernel.arguments``.
    language : str or Dialect
        A name of :data:`packhorse.compiler.c_dialects.DIALECTS`, or a table of one's own.

    Raises
    ------
    CompileError
        No such dialect, a schedule that does not fit its kernel, or a dtype or an operation that
        C has no words for.
    """
    from packhorse.compiler.lower_gpu_tiles import TileLowering  # it builds on this module

    helpers = Helpers(dialect(language))
    texts = []
    for symbol, kernel, plan in functions:
        kind = TileLowering if plan.mode == "tiles" else GpuLowering
        texts.append(kind(kernel, plan, helpers).emit(symbol))
    return emit_c(texts, helpers)


def c_name(symbol: str) -> str:
    """The kernel's name in the text: never a keyword or a function of C."""
    return f"k_{symbol}"


class GpuLowering(Values):
    """Writes one kernel.

    Attributes
    ----------
    shared : dict of str to (str, int)
        Arrays of local memory: C name -> C type, elements.
    """

    def __init__(self, kernel: Kernel, plan: GpuSchedule, helpers: Helpers) -> None:
        names = [n for n, _ in kernel.axes if n not in kernel.sequential]
        if sorted(plan.order) != sorted(names) or not set(plan.rows) <= set(plan.order):
            raise CompileError(
                f"the schedule of kernel '{kernel.name}' orders the axes {list(plan.order)}, the "
                f"kernel has {names} (without sequential ones). Name each exactly once"
            )
        super().__init__(kernel, helpers, plan.group)
        self.plan = plan
        self.shared: dict[str, tuple[str, int]] = {}

    def emit(self, symbol: str) -> str:
        """The whole function."""
        if all(extent > 0 for _, extent in self.kernel.axes):
            self.body()
        head = self.dialect.kernel.format(group=self.plan.group)
        parameters = ", ".join(map(self._parameter, self.kernel.arguments))
        if self.dialect.position:
            parameters += f", {self.dialect.position}"
        memory = [
            f"  {self.dialect.shared} {kind} {name}[{size}];"
            for name, (kind, size) in self.shared.items()
        ]
        body = "\n".join([*memory, *self.b.lines])
        return f"{head} {c_name(symbol)}({parameters}) {{\n{body}\n}}"

    def body(self) -> None:
        """What the schedule's mode wants."""
        modes = {"points": self._points, "rows": self._rows, "steps": self._steps}
        modes[self.plan.mode]()

    def _parameter(self, name: str) -> str:
        buffer = self.kernel.buffers[name]
        written = name in self.kernel.outputs
        return self.dialect.pointer.format(
            const="" if written else "const ",
            type=self.b.memory_type(buffer.dtype),
            # only constants are sure to be no other argument's memory
            restrict="restrict " if buffer.constant and not written else "",
            name=self.buffers[name],
        )

    # -- a work-item per point, or per few neighbours ----------------------------------------------

    def _points(self) -> None:
        order, count = self.plan.order, self.plan.lanes
        total = math.prod(self.extents[n] for n in order)
        where = self.b.let(self.index, self.cast(self.dialect.global_id))
        if count > 1:
            where = self.b.let(self.index, f"{where} * {self.number(count)}")
        last = self.extents[order[-1]] if order else 1
        if last % count and len(order) > 1:
            raise CompileError(
                f"kernel '{self.kernel.name}': the schedule gives {count} neighbours to a "
                f"work-item, but axis '{order[-1]}' has {last} points. Use lanes=1"
            )
        end = self.number(total - total % count)
        with self.b.block(f"if ({where} < {end})"), self._wide(order, count):
            self.decode(where, order)
            self.stores()
        if total % count:
            kind, one = self.helpers.ctype(self.index), self.b.fresh("i")
            head = f"for ({kind} {one} = {where}; {one} < {self.number(total)}; ++{one})"
            with self.b.block(f"if ({where} >= {end})"), self.b.block(head):
                self.decode(one, order)
                self.stores()

    @contextmanager
    def _wide(self, names: Sequence[str], count: int) -> Iterator[None]:
        if count == 1 or not names:
            yield
            return
        with self.wide(names[-1], count):
            yield

    # -- a few rows per group: their reductions are shared -----------------------------------------

    def _rows(self) -> None:
        names = self.plan.rows
        for store in self.kernel.stores:
            for node in reduces(store.value):
                if not self.view.free(node) <= set(names):
                    raise CompileError(
                        f"kernel '{self.kernel.name}': the schedule gives a row to "
                        f"{self.plan.share} work-items, but a reduction differs within the row"
                    )
        group = self.b.let(self.index, self.cast(self.dialect.group_id))
        self._row(names, group, [n for n in self.plan.order if n not in names])

    def _steps(self) -> None:
        """Groups that know nothing of each other; each goes through the steps of its part."""
        group = self.b.let(self.index, self.cast(self.dialect.group_id))
        self.decode(group, self.plan.rows)
        names = [n for n in self.plan.order if n not in self.plan.rows]
        self._sequence(list(self.kernel.sequential), names)

    def _sequence(self, sequential: Sequence[str], names: Sequence[str]) -> None:
        if sequential:
            with self.loop((sequential[0], self.extents[sequential[0]])):
                self._sequence(sequential[1:], names)
            return
        count, kind = math.prod(self.extents[n] for n in names), self.helpers.ctype(self.index)
        turn, turns = self.b.fresh("n"), -(-count // self.plan.many)
        with self.b.block(f"for ({kind} {turn} = 0; {turn} < {turns}; ++{turn})"):
            self._row(names, turn, ())
        self.b.line(self.dialect.global_barrier)

    def _row(self, names: Sequence[str], turn: str, inner: Sequence[str]) -> None:
        """Each work-item's part of its row: sums shared by all of the row, then its points."""
        count, many = math.prod(self.extents[n] for n in names), self.plan.many
        mine, member = self._member()
        row, live = turn, ""
        if many > 1:
            row = self.b.let(self.index, f"{turn} * {many} + {mine}")
        if count % many:  # all of a group meet at the barriers: those beyond repeat the last row
            live = f"{row} < {self.number(count)}"
            row = self.b.let(self.index, f"{live} ? {row} : {self.number(count - 1)}")
        self.decode(row, names)
        if self.plan.share > 1:
            for store in self.kernel.stores:
                for node in reduces(store.value):
                    self.value_of(node, self._team)
        with self.b.block(f"if ({live})" if live else ""):
            self._part(inner, member)

    def _member(self) -> tuple[str, str]:
        """Which of the group's rows a work-item belongs to, and its number there."""
        many, share = self.plan.many, self.plan.share
        me = self.b.let(self.index, self.cast(self.dialect.local_id))
        if many == 1:
            return "0", me
        if self.plan.across:
            member, mine = self.divided(me, many)
        else:
            mine, member = self.divided(me, share)
        return mine, member

    def _part(self, names: Sequence[str], member: str) -> None:
        """The points of some axes, dealt out to the work-items of a row."""
        total = math.prod(self.extents[n] for n in names)
        count = 1
        if names and not self.plan.across:
            values = [s.value for s in self.kernel.stores]
            count = min(self.plan.lanes, lanes(self.view, values, self.kernel.stores, names[-1]))
        with self._deal(total, member, count) as where, self._wide(names, count):
            self.decode(where, names)
            self.stores()

    @contextmanager
    def _deal(self, total: int, member: str, count: int) -> Iterator[str]:
        """A loop over what a work-item gets of so many things, ``count`` neighbours at a time."""
        where, kind = self.b.fresh("w"), self.helpers.ctype(self.index)
        first = member if count == 1 else f"{member} * {count}"
        step = self.plan.share * count
        head = f"for ({kind} {where} = {first}; {where} < {self.number(total)}; {where} += {step})"
        with self.b.block(head):
            yield where

    def _team(self, node: Reduce, lane: int = 0) -> str:
        """A reduction by all work-items of a row: parts, then a tree in local memory."""
        for inner in reduces(node.body):  # they do not depend on the axes of this one
            self.value_of(inner, self._team)
        names = [name for name, _ in node.axes]
        total, count = self.accumulator(node), 1
        if names and not self.plan.across:
            count = min(self.plan.lanes, lanes(self.view, [node.body], (), names[-1]))
        member = self._member()[1]
        terms = math.prod(e for _, e in node.axes)
        deal = self._deal(terms, member, count)
        with self.known_axes({}), deal as where, self._wide(names, count):
            self.decode(where, names)
            for i in range(count):
                self.add(node, total, self.value(node.body, i))
        return self._tree(node, total)

    def _tree(self, node: Reduce, total: str) -> str:
        """One value of those that the work-items of a row hold."""
        mine, member = self._member()
        kind = self.helpers.ctype("uint8" if node.dtype == "bool" else node.dtype)
        part, me = self._scratch(kind), self.b.let(self.index, self.cast(self.dialect.local_id))
        gap = self.plan.many if self.plan.across else 1
        self.b.line(f"{part}[{me}] = {total};")
        self.b.line(self.dialect.local_barrier)
        half = self.plan.share // 2
        with self.b.block(f"for (int n = {half}; n > 0; n = n >> 1)"):
            other = f"{part}[{me} + n * {gap}]" if gap > 1 else f"{part}[{me} + n]"
            text = combine_text(node.combine, node.dtype, f"{part}[{me}]", other, self.helpers)
            self.b.line(f"if ({member} < n) {part}[{me}] = {text};")
            self.b.line(self.dialect.local_barrier)
        first = mine if self.plan.across else f"{mine} * {self.plan.share}"
        result = self.b.fresh()
        self.b.line(f"const {self.helpers.ctype(node.dtype)} {result} = {part}[{first}];")
        self.b.line(self.dialect.local_barrier)  # before the next reduction writes there
        return result

    def _scratch(self, kind: str) -> str:
        """Local memory for partial results of a type: each reduction uses the same."""
        wanted = (kind, self.plan.group)
        name = next((n for n, known in self.shared.items() if known == wanted), "")
        if not name:
            name = f"s{len(self.shared)}"
            self.shared[name] = wanted
        return name
