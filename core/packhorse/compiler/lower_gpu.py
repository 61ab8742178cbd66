"""From a kernel and its schedule to the text of one GPU function.

The same lowering serves every dialect of the C family. A value is computed where it is first
needed; a reduction in a loop of its own, by one work-item or by all of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from packhorse.compiler.access import Access, View
from packhorse.compiler.c_dialects import Dialect, dialect
from packhorse.compiler.c_text import CBuilder, emit_c
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
from packhorse.compiler.gpu_schedule import GpuSchedule
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

__all__ = ["GpuLowering", "c_name", "gpu_program", "nodes"]

_INT = 1 << 31


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


def nodes(kernel: Kernel) -> list[Expr]:
    """Every expression node of a kernel, children before parents."""
    return list(dict.fromkeys(n for s in kernel.stores for n in walk(s.value)))


class GpuLowering:
    """Writes one kernel."""

    def __init__(self, kernel: Kernel, plan: GpuSchedule, helpers: Helpers) -> None:
        names = [n for n, _ in kernel.axes if n not in kernel.sequential]
        if sorted(plan.order) != sorted(names) or not set(plan.rows) <= set(plan.order):
            raise CompileError(
                f"the schedule of kernel '{kernel.name}' orders the axes {list(plan.order)}, the "
                f"kernel has {names} (without sequential ones). Name each exactly once"
            )
        self.kernel, self.plan, self.helpers = kernel, plan, helpers
        self.dialect: Dialect = helpers.dialect
        self.view, self.extents = View(kernel), kernel.extents
        self.buffers = {name: f"p{i}" for i, name in enumerate(kernel.arguments)}
        self.axes: dict[str, str] = {}
        """C names of the axes in scope."""
        self.b = CBuilder(self.dialect, helpers)
        self.index = "int64" if self._far() else "int32"
        self.shared: dict[str, tuple[str, int]] = {}
        """Arrays of local memory: C name -> C type, elements."""

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

    def _far(self) -> bool:
        """Whether an address or a count of work-items may not fit 32 bits."""
        found = [self.view.store(s) for s in self.kernel.stores]
        inside = nodes(self.kernel)
        found += [self.view.load(n) for n in inside if isinstance(n, Load)]
        sizes = [b.size for b in self.kernel.buffers.values()]
        counts = [math.prod(e for _, e in self.kernel.axes) * self.plan.group]
        reach = [self._reach(a.linear) for a in found]
        reach += [self._reach(n.affine) for n in inside if isinstance(n, Index)]
        reach += [self._reach(i) * max(d.step, d.block_step) for a in found for i, d in a.blocked]
        return max([*sizes, *counts, *reach], default=0) >= _INT

    def _reach(self, value: Affine) -> int:
        return abs(value.const) + sum(abs(c) * self.extents[n] for n, c in value.terms)

    # -- where work-items are ---------------------------------------------------------------------

    def _points(self) -> None:
        total = math.prod(self.extents[n] for n in self.plan.order)
        where = self.b.let(self.index, self._cast(self.dialect.global_id))
        with self.b.block(f"if ({where} < {self._number(total)})"):
            self._decode(where, self.plan.order)
            self._stores()

    def _rows(self) -> None:
        row = self.b.let(self.index, self._cast(self.dialect.group_id))
        self._decode(row, self.plan.rows)
        bound = set(self.plan.rows)
        for store in self.kernel.stores:
            for node in reduces(store.value):
                if not self.view.free(node) <= bound:
                    raise CompileError(
                        f"kernel '{self.kernel.name}': the schedule gives a row to a work-group, "
                        "but a reduction differs within the row"
                    )
                self._value_of(node, self._team)
        inner = [n for n in self.plan.order if n not in bound]
        self._shared_loop(inner)

    def _steps(self) -> None:
        self._sequence(list(self.kernel.sequential))

    def _sequence(self, names: list[str]) -> None:
        if not names:
            self._shared_loop(self.plan.order)
            self.b.line(self.dialect.global_barrier)
            return
        with self._loop((names[0], self.extents[names[0]])):
            self._sequence(names[1:])

    def _shared_loop(self, names: Sequence[str]) -> None:
        """The points of some axes, dealt out to the work-items of a group."""
        total = math.prod(self.extents[n] for n in names)
        with self.b.block(self._stride_loop(total, where := self.b.fresh("w"))):
            self._decode(where, names)
            self._stores()

    def _stride_loop(self, total: int, name: str) -> str:
        kind = self.helpers.ctype(self.index)
        start = self._cast(self.dialect.local_id)
        return (
            f"for ({kind} {name} = {start}; {name} < {self._number(total)}; "
            f"{name} += {self.plan.group})"
        )

    def _decode(self, where: str, names: Sequence[str]) -> None:
        """Positions along axes from their running number; the last one runs fastest."""
        left = where
        for position, name in reversed(list(enumerate(names))):
            extent = self.extents[name]
            outermost = all(self.extents[n] == 1 for n in names[:position])
            text = "0" if extent == 1 else left if outermost else f"{left} % {self._number(extent)}"
            self.axes[name] = self.b.let(self.index, text)
            if not outermost and extent > 1:
                left = self.b.let(self.index, f"{left} / {self._number(extent)}")

    def _loop(self, axis: Axis) -> _Loop:
        return _Loop(self, axis)

    def _cast(self, text: str) -> str:
        return f"({self.helpers.ctype(self.index)}){text}"

    def _number(self, value: int) -> str:
        return literal(value, self.index, self.dialect)

    # -- stores -----------------------------------------------------------------------------------

    def _stores(self) -> None:
        """All values first, then all stores: what a point reads is not what it writes."""
        pending: list[tuple[Store, str, str]] = []
        for store in self.kernel.stores:
            dtype = self.kernel.buffers[store.buffer].dtype
            value = cast_text(self.value(store.value), store.value.dtype, dtype, self.helpers)
            pending.append((store, self._address(self.view.store(store)), value))
        for store, where, value in pending:
            dtype = self.kernel.buffers[store.buffer].dtype
            text = to_memory(value, dtype, self.helpers)
            statement = f"{self.buffers[store.buffer]}[{where}] = {text};"
            idle = self._idle(store)
            self.b.line(f"if ({idle}) {statement}" if idle else statement)

    def _idle(self, store: Store) -> str:
        """A condition that lets one of the points through that would store the same."""
        used = self.view.store(store).axes | self.view.free(store.value)
        names = [n for n in self.plan.order if n not in used and self.extents[n] > 1]
        return " && ".join(f"{self.axes[n]} == 0" for n in names)

    # -- addresses --------------------------------------------------------------------------------

    def affine(self, value: Affine) -> str:
        """An affine function of the axes in scope, as an index."""
        parts = [
            self.axes[n] if c == 1 else f"{self.axes[n]} * {self._number(c)}"
            for n, c in value.terms
        ]
        if value.const or not parts:
            parts.append(self._number(value.const))
        return " + ".join(parts)

    def _address(self, access: Access) -> str:
        parts = [self.affine(access.linear)]
        for index, dim in access.blocked:
            i, block = self.b.let(self.index, self.affine(index)), self._number(dim.block)
            parts.append(
                f"({i} / {block}) * {self._number(dim.block_step)} + "
                f"({i} % {block}) * {self._number(dim.step)}"
            )
        for expr, dim in access.indirect:
            i = self.value(expr)
            step, block, jump = (
                literal(n, "int64", self.dialect) for n in (dim.step, dim.block, dim.block_step)
            )
            text = f"({i} / {block}) * {jump} + ({i} % {block}) * {step}"
            parts.append(self._cast(f"({text if dim.block else f'{i} * {step}'})"))
        return self.b.let(self.index, " + ".join(parts))

    # -- values -----------------------------------------------------------------------------------

    def value(self, expr: Expr) -> str:
        """The C name (or literal) of an expression's value at the point in scope."""
        return self._value_of(expr, self._alone)

    def _value_of(self, expr: Expr, reduce: Callable[[Reduce], str]) -> str:
        known = self.b.known(expr)
        if known is not None:
            return known
        if isinstance(expr, Const):
            return literal(expr.value, expr.dtype, self.dialect)
        if isinstance(expr, Index):
            long = self.helpers.ctype("int64")
            text = self.b.let("int64", f"({long})({self.affine(expr.affine)})")
        elif isinstance(expr, Load):
            text = self._load(expr)
        elif isinstance(expr, Reduce):
            text = reduce(expr)
        elif isinstance(expr, Call):
            text = self._call(expr)
        else:
            raise CompileError(f"not an expression node: {expr!r}")
        self.b.remember(expr, text)
        return text

    def _call(self, expr: Call) -> str:
        args = [self.value(a) for a in expr.args]
        if expr.op == "cast":
            text = cast_text(args[0], expr.args[0].dtype, expr.dtype, self.helpers)
        elif expr.op == "bitcast":
            text = bitcast_text(args[0], expr.args[0].dtype, expr.dtype, self.helpers)
        else:
            kinds = [a.dtype for a in expr.args]
            text = call_text(expr.op, expr.dtype, kinds, args, self.helpers)
        return self.b.let(expr.dtype, text)

    def _load(self, expr: Load) -> str:
        guard = None if expr.when is None else self.value(expr.when)
        dtype = self.kernel.buffers[expr.buffer].dtype
        where = self._address(self.view.load(expr))
        text = from_memory(f"{self.buffers[expr.buffer]}[{where}]", dtype, self.helpers)
        text = cast_text(text, dtype, expr.dtype, self.helpers)
        if guard is not None:
            text = f"{guard} ? {text} : {literal(0, expr.dtype, self.dialect)}"
        return self.b.let(expr.dtype, text)

    # -- reductions -------------------------------------------------------------------------------

    def _alone(self, node: Reduce) -> str:
        """A reduction by one work-item."""
        self._before(node)
        total = self._accumulator(node)
        loops = [_Loop(self, axis) for axis in node.axes]
        for loop in loops:
            loop.__enter__()
        self._add(node, total, self.value(node.body))
        for loop in reversed(loops):
            loop.__exit__()
        return total

    def _team(self, node: Reduce) -> str:
        """A reduction by all work-items of a group: parts, then a tree in local memory."""
        self._before(node)
        total, group = self._accumulator(node), self.plan.group
        count = math.prod(extent for _, extent in node.axes)
        with self.b.block(self._stride_loop(count, where := self.b.fresh("w"))):
            self._decode(where, [name for name, _ in node.axes])
            self._add(node, total, self.value(node.body))
        if group == 1:
            return total
        me = f"(int){self.dialect.local_id}"
        kind = self.helpers.ctype("uint8" if node.dtype == "bool" else node.dtype)
        part = self._scratch(kind, group)
        self.b.line(f"{part}[{me}] = {total};")
        self.b.line(self.dialect.local_barrier)
        with self.b.block(f"for (int n = {group // 2}; n > 0; n = n / 2)"):
            mine, other = f"{part}[{me}]", f"{part}[{me} + n]"
            text = combine_text(node.combine, node.dtype, mine, other, self.helpers)
            self.b.line(f"if ({me} < n) {mine} = {text};")
            self.b.line(self.dialect.local_barrier)
        result = self.b.fresh()
        self.b.line(f"const {self.helpers.ctype(node.dtype)} {result} = {part}[0];")
        self.b.line(self.dialect.local_barrier)  # before the next reduction writes there
        return result

    def _scratch(self, kind: str, size: int) -> str:
        """Local memory for partial results of a type: each reduction uses the same."""
        name = next((n for n, known in self.shared.items() if known == (kind, size)), "")
        if not name:
            name = f"s{len(self.shared)}"
            self.shared[name] = (kind, size)
        return name

    def _before(self, node: Reduce) -> None:
        """Reductions that a reduction uses: they do not depend on its axes."""
        for inner in reduces(node.body):
            self.value(inner)

    def _accumulator(self, node: Reduce) -> str:
        name = self.b.fresh("a")
        start = neutral(node.combine, node.dtype, self.dialect)
        self.b.line(f"{self.helpers.ctype(node.dtype)} {name} = {start};")
        return name

    def _add(self, node: Reduce, total: str, value: str) -> None:
        text = combine_text(node.combine, node.dtype, total, value, self.helpers)
        self.b.line(f"{total} = {text};")


class _Loop:
    """``for`` over an axis, a scope; the axis is known within."""

    def __init__(self, low: GpuLowering, axis: Axis) -> None:
        self.low, self.axis = low, axis

    def __enter__(self) -> None:
        low, (name, extent) = self.low, self.axis
        self._place = low.b.fresh("i")
        kind = low.helpers.ctype(low.index)
        head = f"for ({kind} {self._place} = 0; {self._place} < {low._number(extent)}; "
        self._block = low.b.block(f"{head}++{self._place})")
        self._block.__enter__()
        low.axes[name] = self._place

    def __exit__(self, *_: object) -> None:
        self._block.__exit__(None, None, None)
        del self.low.axes[self.axis[0]]
