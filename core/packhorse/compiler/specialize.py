"""Specialisation: from a graph with symbolic shapes to one where everything is a number.

:func:`specialize` walks the graph once in topological order with known input types. Shapes are
inferred by the operators' rules, nodes whose inputs are known are evaluated by their NumPy
references (chains of Shape, Gather, Concat fall away), ``If`` with a known condition is replaced by
the branch taken, and nodes that do nothing here are dropped. :mod:`packhorse.compiler.simplify`
then folds batch norms and paddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from packhorse import ops
from packhorse.compiler.fold import evaluate, type_of_array
from packhorse.compiler.noop import is_noop
from packhorse.compiler.simplify import remove_dead, simplify
from packhorse.errors import ArgumentTypeError, ArgumentValueError, ModelError
from packhorse.graph.ir import Graph, Node, TensorType, node_reads, subgraphs
from packhorse.ops import Inference, NotStatic

__all__ = ["VALUE_ELEMENTS", "NotStatic", "shape_operands", "specialize"]

Array = np.ndarray[Any, Any]

VALUE_ELEMENTS = 16
"""Inputs with more elements are data, never shapes."""


def specialize(
    graph: Graph,
    types: Mapping[str, TensorType],
    values: Mapping[str, Array] | None = None,
) -> Graph:
    """A new graph with static types for every value and nothing left to fold.

    Parameters
    ----------
    graph : Graph
        As imported; not changed.
    types : mapping of str to TensorType
        Static type of every graph input.
    values : mapping of str to ndarray, optional
        Values of inputs to build in (see :func:`shape_operands`). They stay inputs of the result,
        unread.

    Returns
    -------
    Graph
        Same inputs and outputs; every value has a static type in ``types``; outputs are made by
        nodes (``Identity`` where they equal an input or a constant); only constants that are read.

    Raises
    ------
    NotStatic
        A shape or a condition depends on data: run the graph with
        :class:`packhorse.compiler.reference.ReferenceExecutable`.
    ArgumentTypeError, ArgumentValueError
        ``types`` or ``values`` do not fit the graph's inputs.
    ModelError
        Shapes contradict each other, or an operator is unknown; the node is named.
    """
    given = _check_inputs(graph, types, values or {})
    alive = remove_dead(graph)
    work = _Specializer(alive, given, values or {})
    work.run(alive.nodes, {})
    work.finish_outputs(alive)
    result = Graph(
        graph.name,
        list(graph.inputs),
        list(graph.outputs),
        work.nodes,
        work.known,
        work.types,
        dict(graph.metadata),
    )
    return simplify(remove_dead(result))


def _check_inputs(
    graph: Graph, types: Mapping[str, TensorType], values: Mapping[str, Array]
) -> dict[str, TensorType]:
    given: dict[str, TensorType] = {}
    for value in graph.inputs:
        kind = types.get(value.name)
        if kind is None:
            raise ArgumentValueError(f"the type of input '{value.name}' is missing")
        want = value.type
        if kind.dtype != want.dtype:
            raise ArgumentTypeError(
                f"input '{value.name}' must be {want.dtype}, got {kind.dtype}. "
                f"Convert it: x.astype('{want.dtype}')"
            )
        sizes = want.shape if want.shape is not None else kind.dims
        fits = len(sizes) == len(kind.dims) and all(
            isinstance(a, str) or a == b for a, b in zip(sizes, kind.dims, strict=True)
        )
        if not fits:
            raise ArgumentValueError(f"input '{value.name}' must be {want}, got {kind}")
        array = values.get(value.name)
        if array is not None and type_of_array(array) != kind:
            raise ArgumentValueError(
                f"the value given for input '{value.name}' is {type_of_array(array)}, "
                f"its type is {kind}"
            )
        given[value.name] = kind
    return given


class _Specializer:
    """State of one walk: what is known so far, and the nodes that remain."""

    def __init__(
        self, graph: Graph, given: dict[str, TensorType], values: Mapping[str, Array]
    ) -> None:
        self.inputs = frozenset(given)
        self.types: dict[str, TensorType] = dict(given)
        self.known: dict[str, Array] = {}
        self.nodes: list[Node] = []
        self.alias: dict[str, str] = {}
        self.taken = {name for node in graph.nodes for name in node.outputs}
        self.taken |= set(graph.constants) | set(given)
        for name, array in graph.constants.items():
            self.learn(name, array)
        # The value gets a name of its own: the input keeps its name and is read no more.
        for name, array in values.items():
            self.alias[name] = self.fresh(f"{name}.value")
            self.learn(self.alias[name], np.array(array))

    def fresh(self, name: str) -> str:
        """A name not in use, like ``name``."""
        made, i = name, 1
        while made in self.taken:
            made, i = f"{name}.{i}", i + 1
        self.taken.add(made)
        return made

    def learn(self, name: str, array: Array) -> None:
        """A value is known."""
        self.known[name] = array
        self.types[name] = type_of_array(array)

    def resolve(self, name: str, scope: Mapping[str, str]) -> str:
        """The value behind a name: renamed in a body, or an alias of another value."""
        name = scope.get(name, name)
        return self.alias.get(name, name)

    def run(self, nodes: Sequence[Node], scope: dict[str, str]) -> None:
        """Process the nodes of a graph, or of a body whose names ``scope`` renames."""
        for node in nodes:
            inputs = [self.resolve(n, scope) if n else "" for n in node.inputs]
            outputs = [scope.get(n, n) if n else "" for n in node.outputs]
            attrs = node.attrs
            made = Node(node.op, inputs, outputs, attrs, node.name, node.domain)
            if node.op == "If" and not node.domain:
                self.inline_if(made, scope)
            elif subgraphs(node):
                raise NotStatic(
                    f"node {node.label} repeats a body as often as the data says; "
                    "such graphs run on the NumPy references only"
                )
            else:
                self.visit(made)

    def visit(self, node: Node) -> None:
        """Infer, then drop, evaluate or keep one node."""
        operator = ops.get(node)
        kinds = tuple(self.types.get(n) if n else None for n in node.inputs)
        values = tuple(self.known.get(n) if n else None for n in node.inputs)
        complete = all(v is not None or not n for v, n in zip(values, node.inputs, strict=True))
        results: Sequence[TensorType] | None = None
        try:
            results = operator.infer(Inference(node, kinds, values, operator))
        except NotStatic:
            if not complete:
                raise
        except Exception as error:
            if isinstance(error, ModelError) and node.label in str(error):
                raise
            given = ", ".join("-" if k is None else str(k) for k in kinds)
            refusal = type(error) if isinstance(error, ModelError) else ModelError
            raise refusal(f"node {node.label} does not accept ({given}): {error}") from error
        if results is not None and is_noop(node, kinds, values, results):
            self.alias[node.outputs[0]] = node.inputs[0]
            return
        found = None
        if complete or node.op in ("Shape", "Size"):
            found = self.fold(node, values, kinds, results)
        if found is None and results is None:
            raise NotStatic(f"node {node.label}: the shape of its result depends on data")
        if found is not None:
            for name, array in zip(node.outputs, found, strict=False):
                if name:
                    self.learn(name, array)
            return
        for name, kind in zip(node.outputs, results or (), strict=False):
            if name:
                self.types[name] = kind
        self.nodes.append(node)

    def fold(
        self,
        node: Node,
        values: Sequence[Array | None],
        kinds: Sequence[TensorType | None],
        results: Sequence[TensorType] | None,
    ) -> tuple[Array, ...] | None:
        """Value of a node with known inputs; Shape and Size need the type of theirs only."""
        if node.op in ("Shape", "Size") and not node.domain and kinds[0] is not None:
            stand_in = np.broadcast_to(np.zeros((), kinds[0].dtype), kinds[0].dims)
            return evaluate(node, ops.get(node), [stand_in], results)
        return evaluate(node, ops.get(node), values, results)

    def inline_if(self, node: Node, scope: Mapping[str, str]) -> None:
        """Replace an If by the branch its condition selects (ONNX If-21)."""
        condition = self.known.get(node.inputs[0])
        if condition is None:
            raise NotStatic(
                f"node {node.label}: its condition depends on data; "
                "such graphs run on the NumPy references only"
            )
        taken = bool(condition.reshape(-1)[0])
        body: Graph = node.attrs["then_branch" if taken else "else_branch"]
        inner = dict(scope)
        prefix = node.name or node.outputs[0]
        for name in [*body.constants, *(o for n in body.nodes for o in n.outputs if o)]:
            inner[name] = self.fresh(f"{prefix}/{name}")
        for name, array in body.constants.items():
            self.learn(inner[name], array)
        self.run(remove_dead(body).nodes, inner)
        for name, value in zip(node.outputs, body.outputs, strict=False):
            if name:
                self.alias[name] = self.resolve(value.name, inner)

    def finish_outputs(self, graph: Graph) -> None:
        """Give the graph's outputs their names: rename what makes them, or add an Identity."""
        makers = {name for node in self.nodes for name in node.outputs if name}
        finals = {value.name for value in graph.outputs}
        renamed: dict[str, str] = {}
        copies: list[Node] = []
        for name in finals & set(self.known):  # the output became a constant: others read that
            renamed[name] = self.fresh(f"{name}.value")
            self.learn(renamed[name], self.known.pop(name))
        for name in (value.name for value in graph.outputs):
            source = self.resolve(name, {})
            if (source == name and name in makers) or name in self.inputs:
                continue
            if source in makers and source not in finals and source not in renamed:
                renamed[source] = name
                self.types[name] = self.types.pop(source)
                continue
            source = renamed.get(source, source)
            self.types[name] = self.types[source]
            copies.append(Node("Identity", [source], [name], name=name))
        for node in self.nodes:
            node.inputs = [renamed.get(n, n) for n in node.inputs]
            node.outputs = [renamed.get(n, n) for n in node.outputs]
        self.nodes += copies


SHAPE_OPERANDS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1, 2),
    "ConstantOfShape": (0,), "CumProd": (1,), "CumSum": (1,), "DFT": (1, 2), "Dropout": (1, 2),
    "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,), "If": (0,), "Loop": (0, 1),
    "MaxUnpool": (2,), "MelWeightMatrix": (0, 1, 2, 3, 4), "NonMaxSuppression": (2,),
    "OneHot": (1,), "Pad": (1, 2, 3), "Range": (0, 1, 2), "Reshape": (1,), "Resize": (1, 2, 3),
    "STFT": (1, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,),
    "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,), "Upsample": (1,),
    **{
        f"Reduce{how}": (1,)
        for how in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum",
                    "SumSquare")
    },
}  # fmt: skip
"""Which operands of an operator decide about shapes or control flow (ONNX opset 21)."""


def shape_operands(graph: Graph) -> frozenset[str]:
    """Graph inputs whose values, not only their shapes, are needed to specialise.

    These are integer and bool inputs of at most 16 elements (or of unknown length) from which a
    shape-like operand or a condition is computed, and inputs of any dtype that are such an operand
    themselves (the scales of Resize).
    """
    wanted: set[str] = set()
    direct: set[str] = set()
    makers: dict[str, Node] = {}
    _collect_operands(graph.nodes, makers, direct)
    todo, seen = list(direct), set(direct)
    while todo:
        name = todo.pop()
        node = makers.get(name)
        if node is None:
            wanted.add(name)
        elif node.op not in ("Shape", "Size"):  # those read the type of their input only
            new = set(node_reads(node)) - seen
            seen |= new
            todo += new
    return frozenset(
        value.name
        for value in graph.inputs
        if value.name in wanted
        and (value.type.dtype.kind in "iub" or value.name in direct)
        and _is_small(value.type)
    )


def _collect_operands(nodes: Sequence[Node], makers: dict[str, Node], direct: set[str]) -> None:
    """Who makes each value, bodies included, and the names that are shape-like operands."""
    for node in nodes:
        makers.update(dict.fromkeys((n for n in node.outputs if n), node))
        places = SHAPE_OPERANDS.get(node.op, ()) if not node.domain else ()
        direct.update(node.inputs[i] for i in places if i < len(node.inputs) and node.inputs[i])
        for body in subgraphs(node):
            _collect_operands(body.nodes, makers, direct)


def _is_small(kind: TensorType) -> bool:
    if kind.shape is None:
        return True
    known = [d for d in kind.shape if isinstance(d, int)]
    unknown = len(kind.shape) - len(known)
    return unknown <= 1 and int(np.prod(known, dtype=object)) <= VALUE_ELEMENTS
