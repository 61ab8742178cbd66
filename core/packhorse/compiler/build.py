"""From a static graph to kernels and the program that calls them.

One pass over the nodes: each is lowered to expressions; a value stays lazy while fusing it into
its readers pays (``fusion``), else a kernel computes it into memory laid out as its readers like
it (``layout``). Every kernel is normalised (``collapse``), scheduled, and its constants packed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from packhorse.compiler.collapse import collapse
from packhorse.compiler.fusion import Regions, contractions, too_costly, wasteful
from packhorse.compiler.layout import Layouts, column_axes
from packhorse.compiler.operands import ConstOperand, Halo, LazyOperand, Place, StoredOperand
from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import Graph, Node, TensorType
from packhorse.kernel.expr import Affine, Axis, Expr, Load, cast, const, walk
from packhorse.kernel.kernel import Buffer, Kernel, Store, contiguous
from packhorse.kernel.lowering import (
    Lazy,
    Lowered,
    Lowering,
    Operand,
    Piece,
    Pieces,
    axes_of,
    compute_dtype,
)
from packhorse.ops import registry

__all__ = ["Build", "Builder", "Emitted", "Scheduler"]

Array = np.ndarray[Any, Any]
Scheduler = Callable[[Kernel], tuple[Any, dict[str, Buffer]]]
"""kernel -> (schedule, layouts of its constant buffers): what the backend's target prefers."""


@dataclass(frozen=True)
class Emitted:
    """One call of the program to be: a kernel, or a node run on the host by its reference."""

    label: str
    nodes: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    function: str
    host: Node | None = None
    once: bool = False


@dataclass
class Build:
    """What the builder produced; ``packhorse.compiler.link`` turns it into a Program."""

    graph: Graph
    steps: list[Emitted] = field(default_factory=list)
    functions: dict[str, tuple[Kernel, Any]] = field(default_factory=dict)
    roots: dict[str, Buffer] = field(default_factory=dict)
    params: dict[str, tuple[Array, Buffer]] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)


class Builder:
    """Lowers one static graph. Implements :class:`~packhorse.compiler.operands.Memory`."""

    def __init__(self, graph: Graph, scheduler: Scheduler) -> None:
        self.graph, self.scheduler = graph, scheduler
        self.out = Build(graph)
        self.layouts, self.regions = Layouts(graph), Regions(graph)
        self.env: dict[str, Operand] = {}
        self.places: dict[str, Place] = {}
        self.constants: dict[str, ConstOperand] = {}
        self.fused: dict[str, tuple[str, ...]] = {}
        self.inlining: dict[str, LazyOperand] = {}
        self.forced: set[str] = set()
        self.nodes: tuple[str, ...] = ()
        self._copies: dict[object, Place] = {}
        self._params: dict[tuple[str, Buffer], str] = {}
        self._count = 0

    # -- the walk ---------------------------------------------------------------------------

    def build(self) -> Build:
        """Lower every node; the result names steps, functions, buffers and parameters."""
        for value in self.graph.inputs:
            found = self.graph.type_of(value.name)  # the declared one may still be symbolic
            dtype = str(found.dtype)
            buffer = contiguous(found.dims, dtype)
            self.env[value.name] = StoredOperand(self, self._root(value.name, buffer), dtype)
        for node in self.graph.nodes:
            if any(o in self.regions.consumers or o in self.regions.outputs for o in node.outputs):
                self._node(node)
        for value in self.graph.outputs:
            self._output(value.name)
        return self.out

    def operand(self, name: str) -> Operand | None:
        """The operand of a value name; None for an elided input."""
        if not name:
            return None
        if name not in self.env:
            if name not in self.graph.constants:
                raise ModelError(f"value '{name}' is read before it is computed")
            self.env[name] = self.constant(self.graph.constants[name])
        return self.env[name]

    def _node(self, node: Node) -> None:
        operator = registry.get(node)
        if operator.lower is None:
            self._host(node)
            return
        try:
            lowered = self._lower(node, operator)
        except UnsupportedOperator:
            self._host(node)
            return
        results = lowered if isinstance(lowered, tuple) else (lowered,)
        inherited = [n for op in self.inlining.values() for n in self.fused.get(op.name, ())]
        nodes = tuple(dict.fromkeys([*inherited, node.label]))
        for name, result in zip(node.outputs, results, strict=False):
            if name and result is not None:
                self.fused[name] = nodes
                self.nodes = nodes
                self.env[name] = self._define(name, result)

    def _lower(self, node: Node, operator: registry.Operator) -> Lowered | tuple[Any, ...]:
        """Lower; where fusing turned out wasteful, put the culprits into memory and try again."""
        assert operator.lower is not None
        self.forced = set()
        for _ in range(4):
            self.inlining = {}
            self.nodes = (node.label,)
            lowered = operator.lower(_Context(self, node, operator))
            results = lowered if isinstance(lowered, tuple) else (lowered,)
            culprits: set[str] = set()
            for name, result in zip(node.outputs, results, strict=False):
                culprits |= self._culprits(name, result)
            if not culprits - self.forced:
                break
            self.forced |= culprits
        return lowered

    def _culprits(self, name: str, result: Lowered | None) -> set[str]:
        """Inlined operands that this result had better read from memory."""
        if isinstance(result, Pieces):
            return set().union(*(self._culprits("", piece.value) for piece in result.pieces))
        if isinstance(result, LazyOperand):
            result = result.value
        if not isinstance(result, Lazy):
            return set()
        found: set[str] = set()
        if len(contractions(result)) > 1:
            found |= self._rivals()
        order = self._order(name, result, None)
        if wasteful(result.value, [(f"i{d}", result.shape[d]) for d in order]):
            found |= {n for n, op in self.inlining.items() if too_costly(op.value)}
        return found

    def _rivals(self) -> set[str]:
        """One register tile serves one contraction: of several convolutions or products that meet
        here, the one computed last stays fused."""
        held = {n: contractions(op.value) for n, op in self.inlining.items()}
        last = max((n for n in held if held[n]), key=self.regions.made_at, default="")
        return {n for n in held if held[n] and held[n] != held[last]}

    def _define(self, name: str, result: Lowered) -> Operand:
        if isinstance(result, LazyOperand):
            result = result.value
        if isinstance(result, Pieces):
            return self._pieces(name, result)
        if not isinstance(result, Lazy):
            return result
        operand = LazyOperand(self, name, result)
        if self.regions.stays_lazy(name, result):
            return operand
        return self._stored(operand)

    def _pieces(self, name: str, result: Pieces) -> Operand:
        order = self.layouts.order(name, result.shape)
        halo = self.layouts.halo(name, result.shape)
        place = self._allocate(name, contiguous(result.shape, result.dtype, order, halo))
        for piece in result.pieces:
            self._piece(place, piece)
        return StoredOperand(self, place, result.dtype)

    def _piece(self, place: Place, piece: Piece) -> None:
        rank = len(piece.value.shape)
        steps = [max((abs(i.coef(f"i{d}")) * dim.step for i, dim in
                      zip(piece.index, place.buffer.dims, strict=True)), default=0)
                 for d in range(rank)]  # fmt: skip
        order = sorted(range(rank), key=lambda d: (-steps[d], d))
        axes = [(f"i{d}", piece.value.shape[d]) for d in order]
        value = cast(piece.value.value, piece.value.dtype)
        self.emit(axes, [Store(place.name, piece.index, value)])

    def _output(self, name: str) -> None:
        operand = self.operand(name)
        assert operand is not None
        rows = contiguous(operand.shape, operand.dtype)
        own = isinstance(operand, StoredOperand) and operand.where.root not in {
            *(v.name for v in self.graph.inputs),
            *self.out.results.values(),
        }
        if not (own and isinstance(operand, StoredOperand) and operand.where.buffer == rows):
            self.nodes = self.fused.get(name, ())
            copy = Lazy(operand.shape, operand.dtype, operand.at(axes_of(len(operand.shape))))
            operand = StoredOperand(
                self, self.place(copy, name + ".out", order=range(len(copy.shape))), copy.dtype
            )
        assert isinstance(operand, StoredOperand)
        self.out.results[name] = operand.where.root

    def _host(self, node: Node) -> None:
        """Run a node by its NumPy reference: row-major in, row-major out."""
        reads = []
        for name in node.inputs:
            operand = self.operand(name)
            reads.append("" if operand is None else self._row_major(operand, name))
        writes = []
        for name in node.outputs:
            if not name:
                writes.append("")
                continue
            found = self.graph.type_of(name)
            place = self._root(self._fresh(name), contiguous(found.dims, str(found.dtype)))
            self.env[name] = StoredOperand(self, place, str(found.dtype))
            self.fused[name] = (node.label,)
            writes.append(place.root)
        self.out.steps.append(
            Emitted(node.name or node.outputs[0], (node.label,), tuple(reads), tuple(writes),
                    f"packhorse.op.{node.op}", host=node)
        )  # fmt: skip

    def _row_major(self, operand: Operand, name: str) -> str:
        if isinstance(operand, ConstOperand):
            assert operand.constant is not None
            return self._param(operand.name, contiguous(operand.shape, operand.dtype))
        if isinstance(operand, LazyOperand):
            operand = self._stored(operand)
        assert isinstance(operand, StoredOperand)
        if operand.where.buffer != contiguous(operand.shape, operand.dtype):
            copy = Lazy(operand.shape, operand.dtype, operand.at(axes_of(len(operand.shape))))
            return self.place(copy, name, order=range(len(copy.shape))).root
        return operand.where.root

    # -- Memory: what operands ask ------------------------------------------------------------

    def place(
        self,
        value: Lazy,
        name: str,
        *,
        order: Sequence[int] | None = None,
        halo: Halo | None = None,
    ) -> Place:
        """Emit the kernel that computes a lazy value into memory of its own."""
        chosen = self._order(name, value, order)
        key = (value, tuple(chosen), None if halo is None else tuple(halo))
        if key in self._copies:
            return self._copies[key]
        buffer = contiguous(value.shape, value.dtype, chosen, halo)
        place = self._allocate(name, buffer)
        axes = [(f"i{d}", value.shape[d]) for d in chosen]
        store = Store(place.name, axes_of(len(value.shape)), cast(value.value, value.dtype))
        self.emit(axes, [store])
        self._copies[key] = place
        return place

    def placed(self, operand: LazyOperand) -> StoredOperand:
        """A lazy operand in memory; values of the graph are placed once for all readers."""
        return self._stored(operand)

    def _stored(self, operand: LazyOperand) -> StoredOperand:
        name, value = operand.name, operand.value
        known = self.env.get(name)
        if isinstance(known, StoredOperand) and known.shape == value.shape:
            return known
        outer, self.nodes = self.nodes, self.fused.get(name, self.nodes)
        halo = self.layouts.halo(name, value.shape) if known in (None, operand) else None
        stored = StoredOperand(self, self.place(value, name, halo=halo), value.dtype)
        self.nodes = outer
        if known is operand:
            self.env[name] = stored
        return stored

    def view(self, place: Place, buffer: Buffer) -> Place:
        """Another view of the same memory, under a name of its own."""
        name = self._fresh(place.root + ".view")
        self.places[name] = Place(name, place.root, buffer)
        return self.places[name]

    def find(self, name: str) -> Place | None:
        """The memory of that name; None for constants."""
        return self.places.get(name)

    def constant(self, array: Array) -> ConstOperand:
        """Register an array; float16 is widened once, here, and not in every kernel."""
        dtype = str(array.dtype)
        if compute_dtype(dtype) != dtype:
            array = array.astype(np.float32)
        name = self._fresh("const")
        self.constants[name] = ConstOperand(self, name, array, str(array.dtype))
        return self.constants[name]

    def preferred_halo(self, name: str, wanted: Halo) -> Halo:
        """The halo wanted now, widened to what the other readers of the value want."""
        root = self.places[name].root if name in self.places else name
        known = self.layouts.halos.get(root)
        if known is None or len(known) != len(wanted):
            return tuple(wanted)
        return tuple((max(a, c), max(b, d)) for (a, b), (c, d) in zip(wanted, known, strict=True))

    def inlined(self, operand: LazyOperand) -> bool:
        """Note an inlining; refuse values that were found wasteful to inline here."""
        if operand.name in self.forced:
            return False
        self.inlining[operand.name] = operand
        return True

    # -- emission -----------------------------------------------------------------------------

    def emit(
        self, axes: Sequence[Axis], stores: Sequence[Store], sequential: Sequence[str] = ()
    ) -> None:
        """Normalise, schedule and record one kernel."""
        if any(extent == 0 for _, extent in axes):
            return
        names = {s.buffer for s in stores}
        for store in stores:
            names |= {n.buffer for n in walk(store.value) if isinstance(n, Load)}
        label = self.nodes[-1].split("'")[1] if self.nodes and "'" in self.nodes[-1] else "fill"
        kernel = Kernel(
            _kernel_name(self.nodes),
            tuple(axes),
            tuple(stores),
            {n: self._buffer(n) for n in names},
            tuple(sequential),
        )
        kernel, originals = collapse(kernel).canonical()
        schedule, packed = self.scheduler(kernel)
        kernel = replace(kernel, buffers={**kernel.buffers, **packed})
        function = f"{kernel.name}_{kernel.digest[:12]}"
        self.out.functions.setdefault(function, (kernel, schedule))
        outputs = kernel.outputs
        arguments = {
            new: self._argument(old, kernel.buffers[new]) for new, old in originals.items()
        }
        self.out.steps.append(
            Emitted(
                label,
                self.nodes,
                tuple(arguments[a] for a in kernel.arguments if a not in outputs),
                tuple(arguments[a] for a in outputs),
                function,
            )
        )

    def _argument(self, name: str, buffer: Buffer) -> str:
        return self._param(name, buffer) if name in self.constants else self.places[name].root

    def _param(self, name: str, buffer: Buffer) -> str:
        key = (name, buffer)
        if key not in self._params:
            param = f"p{len(self._params)}"
            self._params[key] = param
            array = self.constants[name].constant
            assert array is not None
            self.out.params[param] = (array, buffer)
            self.out.roots[param] = buffer
        return self._params[key]

    def _buffer(self, name: str) -> Buffer:
        if name in self.constants:
            operand = self.constants[name]
            return contiguous(operand.shape, operand.dtype, constant=True)
        return self.places[name].buffer

    def _allocate(self, name: str, buffer: Buffer) -> Place:
        """New memory; a border is zeroed by a step that lasts."""
        place = self._root(self._fresh(name), buffer)
        if buffer.size > int(np.prod(buffer.shape)):
            flat = self.view(place, Buffer((buffer.size,), buffer.dtype, contiguous(
                (buffer.size,), buffer.dtype).dims, 0, buffer.size))  # fmt: skip
            outer, self.nodes = self.nodes, ()
            zero = cast(const(0, compute_dtype(buffer.dtype)), buffer.dtype)
            self.emit([("i0", buffer.size)], [Store(flat.name, axes_of(1), zero)])
            self.out.steps[-1] = replace(
                self.out.steps[-1], once=True, label=f"{place.root}.border"
            )
            self.nodes = outer
        return place

    def _root(self, name: str, buffer: Buffer) -> Place:
        self.places[name] = Place(name, name, buffer)
        self.out.roots[name] = buffer
        return self.places[name]

    def _fresh(self, name: str) -> str:
        if name not in self.places and name not in self.constants:
            return name
        self._count += 1
        return f"{name}.{self._count}"

    def _order(self, name: str, value: Lazy, order: Sequence[int] | None) -> list[int]:
        """Explicit, else the graph's preference, else as the largest thing read lies."""
        if order is not None:
            return list(order)
        preferred = self.layouts.order(name, value.shape)
        if preferred is not None:
            return preferred
        rank = len(value.shape)
        columns = column_axes(value)
        if columns:
            rows = [d for d in range(rank) if d not in columns]
            return [*rows, *columns]
        best, steps = 0, [0] * rank
        for node in walk(value.value):
            if isinstance(node, Load) and node.buffer in self.places:
                found = [_step(node, self.places[node.buffer].buffer, f"i{d}") for d in range(rank)]
                covered = sum(1 for d in range(rank) if found[d] and value.shape[d] > 1)
                if covered > best:
                    best, steps = covered, found
        if best < sum(1 for n in value.shape if n > 1):
            return list(range(rank))
        return sorted(range(rank), key=lambda d: (-abs(steps[d]) if steps[d] else 0, d))


def _step(load: Load, buffer: Buffer, axis: str) -> int:
    return sum(
        i.coef(axis) * dim.step
        for i, dim in zip(load.index, buffer.dims, strict=True)
        if isinstance(i, Affine)
    )


def _kernel_name(nodes: Sequence[str]) -> str:
    ops = [n[n.rindex("(") + 1 : -1].lower() for n in nodes if n.endswith(")")]
    text = "_".join(["ph", *dict.fromkeys(ops)]) if ops else "ph_fill"
    return "".join(c if c.isalnum() else "_" for c in text)[:48]


class _Context(Lowering):
    """One ``lower`` call."""

    def __init__(self, builder: Builder, node: Node, operator: registry.Operator) -> None:
        self.builder, self.node, self.operator = builder, node, operator
        self.inputs = tuple(builder.operand(name) for name in node.inputs)
        self.output_types = tuple((t.dims, str(t.dtype)) for t in self._types())

    def _types(self) -> Sequence[TensorType]:
        """Types of all outputs; elided ones are inferred, the graph does not list them."""
        graph, node = self.builder.graph, self.node
        if all(node.outputs):
            return [graph.type_of(o) for o in node.outputs]
        seen = registry.Inference(
            node,
            tuple(graph.type_of(i) if i else None for i in node.inputs),
            tuple(graph.constants.get(i) for i in node.inputs),
            self.operator,
        )
        return self.operator.infer(seen)[: len(node.outputs)]

    def attr(self, name: str) -> Any:
        return self.operator.attr(self.node, name)

    def axis(self, extent: int) -> Axis:
        self.builder._count += 1
        return (f"r{self.builder._count}", extent)

    def constant(self, array: Array) -> Operand:
        return self.builder.constant(array)

    def buffer(self, shape: Sequence[int], dtype: str) -> Operand:
        name = self.builder._fresh(f"{self.node.outputs[0]}.work")
        place = self.builder._root(name, contiguous(shape, dtype))
        return StoredOperand(self.builder, place, dtype)

    def kernel(
        self,
        axes: Sequence[Axis],
        stores: Sequence[tuple[Operand, Sequence[Affine], Expr]],
        sequential: Sequence[str] = (),
    ) -> None:
        written = []
        for operand, index, value in stores:
            assert isinstance(operand, StoredOperand)
            written.append(Store(operand.where.name, tuple(index), cast(value, operand.dtype)))
        self.builder.emit(axes, written, sequential)
