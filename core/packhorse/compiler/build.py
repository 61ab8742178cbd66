"""From a static graph to kernels and the program that calls them.

One pass over the nodes: each is lowered to expressions; a value stays lazy while fusing it into
its readers pays (``fusion``), else a kernel computes it into memory laid out as its readers like
it (``layout``). Every kernel is normalised (``collapse``), scheduled, and its constants packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from packhorse.compiler.context import Context
from packhorse.compiler.emitter import Build, Emitted, Emitter, Refuses, Scheduler
from packhorse.compiler.fusion import Regions, contractions, too_costly, wasteful
from packhorse.compiler.operands import ConstOperand, LazyOperand, Place, StoredOperand
from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.graph.ir import Graph, Node
from packhorse.kernel.expr import Expr, cast
from packhorse.kernel.kernel import Buffer, Store, contiguous
from packhorse.kernel.layout import numpy_dtype
from packhorse.kernel.lowering import Lazy, Lowered, Operand, Piece, Pieces, axes_of
from packhorse.ops import registry

__all__ = ["Build", "Builder", "Emitted", "Refuses", "Scheduler"]


class Builder(Emitter):
    """Lowers one static graph. Implements :class:`~packhorse.compiler.operands.Memory`."""

    def __init__(self, graph: Graph, scheduler: Scheduler, refuses: Refuses | None = None) -> None:
        super().__init__(graph, scheduler, refuses)
        self.regions = Regions(graph)
        self.env: dict[str, Operand] = {}
        self.fused: dict[str, tuple[str, ...]] = {}
        """Labels of the nodes folded into each value."""
        self.inlining: dict[str, LazyOperand] = {}
        """Lazy operands inlined by the ``lower`` call under way."""
        self.forced: set[str] = set()
        """Those that were found wasteful to inline there."""

    def build(self) -> Build:
        """Lower every node; the result names steps, functions, buffers and parameters."""
        for value in self.graph.inputs:
            found = self.graph.type_of(value.name)  # the declared one may still be symbolic
            dtype = str(found.dtype)
            buffer = contiguous(found.dims, dtype)
            self.env[value.name] = StoredOperand(self, self.root(value.name, buffer), dtype)
        for node in self.graph.nodes:
            if any(o in self.regions.consumers or o in self.regions.outputs for o in node.outputs):
                self._node(node)
        for value in self.graph.outputs:
            self._output(value.name)
        self._give_empty()
        return self.out

    def _give_empty(self) -> None:
        """What no kernel wrote has no elements; who reads it gets it as a parameter."""
        known = {*(value.name for value in self.graph.inputs), *self.out.params}

        def give(wanted: set[str]) -> None:
            for root in sorted(wanted - known):
                buffer = self.out.roots[root]
                self.out.params[root] = (np.empty(buffer.shape, numpy_dtype(buffer.dtype)), buffer)
                known.add(root)

        for step in self.out.steps:
            give({root for root in step.reads if root})
            known.update(step.writes)
        give({*self.out.results.values()})

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
        results = self._on_device(node)
        if results is None:
            self._host(node)
            return
        inherited = [n for op in self.inlining.values() for n in self.fused.get(op.name, ())]
        nodes = tuple(dict.fromkeys([*inherited, node.label]))
        for name, result in zip(node.outputs, results, strict=False):
            if name and result is not None:
                self.fused[name] = nodes
                self.nodes = nodes
                self.env[name] = self._define(name, result)

    def _on_device(self, node: Node) -> tuple[Lowered | None, ...] | None:
        """A node as kernels; None where it has none, or none that the device can run."""
        operator = registry.get(node)
        if operator.lower is None:
            return None
        try:
            results = self._lower(node, operator)
            for value in _values(results):
                self.admit(value)
        except UnsupportedOperator:
            return None
        return results

    def _lower(self, node: Node, operator: registry.Operator) -> tuple[Lowered | None, ...]:
        """Lower; where fusing turned out wasteful, put the culprits into memory and try again."""
        assert operator.lower is not None
        self.forced = set()
        for _ in range(4):
            self.inlining = {}
            self.nodes = (node.label,)
            lowered = operator.lower(Context(self, node, operator))
            results = lowered if isinstance(lowered, tuple) else (lowered,)
            culprits: set[str] = set()
            for name, result in zip(node.outputs, results, strict=False):
                culprits |= self._culprits(name, result)
            if not culprits - self.forced:
                break
            self.forced |= culprits
        return results

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
        order = self.order(name, result, None)
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
        place = self.allocate(name, contiguous(result.shape, result.dtype, order, halo))
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
        rows = contiguous(operand.shape, str(self.graph.type_of(name).dtype))
        if isinstance(operand, StoredOperand) and self._may_give(operand.where, rows):
            place = operand.where
        else:
            self.nodes = self.fused.get(name, ())
            place = self._copied(name, operand, rows)
        self.out.results[name] = place.root
        self.out.roots[place.root] = rows  # it may have been made under another shape

    def _copied(self, name: str, operand: Operand, rows: Buffer) -> Place:
        """An output in memory of its own; the host copies what the device has no type for."""
        if self.refuses and self.refuses([rows.dtype]):
            place = self.root(self.fresh(name + ".out"), rows)
            copy = Node("Identity", [name], [place.root])
            self._call_host(copy, [self._row_major(operand, name)], [place.root])
            return place
        copied = Lazy(operand.shape, rows.dtype, operand.at(axes_of(len(operand.shape))))
        return self.place(copied, name + ".out", order=range(len(copied.shape)))

    def _may_give(self, place: Place, rows: Buffer) -> bool:
        """Whether memory can be handed out as an output: row-major, and nobody else's."""
        theirs = {*(value.name for value in self.graph.inputs), *self.out.results.values()}
        if place.buffer != rows or place.root in theirs:
            return False
        hosts = (step for step in self.out.steps if step.host is not None)
        shaped = self.out.roots[place.root].shape == rows.shape
        return shaped or not any(place.root in (*step.reads, *step.writes) for step in hosts)

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
            place = self.root(self.fresh(name), contiguous(found.dims, str(found.dtype)))
            self.env[name] = StoredOperand(self, place, str(found.dtype))
            self.fused[name] = (node.label,)
            writes.append(place.root)
        self._call_host(node, reads, writes)

    def _call_host(self, node: Node, reads: Sequence[str], writes: Sequence[str]) -> None:
        self.out.steps.append(
            Emitted(node.name or node.outputs[0], (node.label,), tuple(reads), tuple(writes),
                    f"packhorse.op.{node.op}", host=node)
        )  # fmt: skip

    def _row_major(self, operand: Operand, name: str) -> str:
        if isinstance(operand, ConstOperand):
            exact = self.exact(operand, str(self.graph.type_of(name).dtype))
            return self.param(exact.name, contiguous(exact.shape, exact.dtype))
        if isinstance(operand, LazyOperand):
            operand = self._stored(operand)
        assert isinstance(operand, StoredOperand)
        if operand.where.buffer != contiguous(operand.shape, operand.dtype):
            copy = Lazy(operand.shape, operand.dtype, operand.at(axes_of(len(operand.shape))))
            return self.place(copy, name, order=range(len(copy.shape))).root
        return operand.where.root

    # -- lazy values ----------------------------------------------------------------------------

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

    def inlined(self, operand: LazyOperand) -> bool:
        """Note an inlining; refuse values that were found wasteful to inline here."""
        if operand.name in self.forced:
            return False
        self.inlining[operand.name] = operand
        return True


def _values(results: Sequence[Lowered | None]) -> Iterator[Expr]:
    """What kernels will store for these results; values in memory need none."""
    for result in results:
        if isinstance(result, LazyOperand):
            result = result.value
        if isinstance(result, Pieces):
            yield from _values([piece.value for piece in result.pieces])
        elif isinstance(result, Lazy):
            yield cast(result.value, result.dtype)
