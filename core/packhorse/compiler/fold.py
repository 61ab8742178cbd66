"""Constant folding with the NumPy references of the operators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from packhorse import ops
from packhorse.graph.ir import Graph, Node, TensorType, subgraphs
from packhorse.ops import Inference, Operator

__all__ = ["FOLD_BYTES", "FOLD_GROWTH", "evaluate", "fold_constants", "nbytes", "type_of_array"]

Array = np.ndarray[Any, Any]

FOLD_BYTES = 64 << 20
"""Larger results are computed when the graph runs."""
FOLD_GROWTH = 16
"""So are results this many times larger than what they are made of (Expand, Tile)."""
SMALL_BYTES = 64 << 10
"""Growth does not matter below this size."""

RANDOM = frozenset(
    {
        "Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike",
        "RandomUniform", "RandomUniformLike",
    }
)  # fmt: skip


def type_of_array(array: Array) -> TensorType:
    """Dtype and static shape of an array."""
    return TensorType(array.dtype, tuple(array.shape))


def nbytes(kind: TensorType) -> int:
    """Bytes of a static type."""
    return math.prod(kind.dims) * kind.dtype.itemsize


def evaluate(
    node: Node,
    operator: Operator,
    inputs: Sequence[Array | None],
    results: Sequence[TensorType] | None,
) -> tuple[Array, ...] | None:
    """Outputs of a node whose inputs are all known, or None when it is not to be folded.

    ``results`` are the inferred types; None when they depend on the values (then the results are
    no larger than the inputs by nature: NonZero, Unique, Compress). A reference that fails is not
    folded either: the error belongs to the run, with the node's name.
    """
    if node.op in RANDOM or subgraphs(node):
        return None
    given = sum(x.nbytes for x in inputs if x is not None)
    if results is not None:
        made = sum(nbytes(t) for t in results)
        if made > FOLD_BYTES or made > max(SMALL_BYTES, FOLD_GROWTH * given):
            return None
    elif given > FOLD_BYTES:
        return None
    try:
        with np.errstate(all="ignore"):
            found = operator.run(node, inputs)
    except Exception:
        return None
    for array in found:
        if array.flags.owndata:
            array.flags.writeable = False
    return found


def fold_constants(graph: Graph) -> Graph:
    """The graph with every node that depends on constants only replaced by its value.

    Nodes whose bodies or operators are unknown stay. The graph's outputs stay outputs of nodes.
    """
    constants = dict(graph.constants)
    types = dict(graph.types)
    outputs = {value.name for value in graph.outputs}
    nodes: list[Node] = []
    for node in graph.nodes:
        found = None
        if subgraphs(node):
            bodies = {k: fold_constants(v) for k, v in node.attrs.items() if isinstance(v, Graph)}
            attrs = {**node.attrs, **bodies}
            node = Node(node.op, node.inputs, node.outputs, attrs, node.name, node.domain)
        if outputs.isdisjoint(node.outputs) and all(n in constants for n in node.inputs if n):
            found = _fold(node, constants)
        if found is None:
            nodes.append(node)
            continue
        for name, array in zip(node.outputs, found, strict=False):
            if name:
                constants[name] = array
                types[name] = type_of_array(array)
    return Graph(
        graph.name, graph.inputs, graph.outputs, nodes, constants, types, dict(graph.metadata)
    )


def _fold(node: Node, constants: Mapping[str, Array]) -> tuple[Array, ...] | None:
    operator = ops.find(node)
    if operator is None:
        return None
    values = tuple(constants[name] if name else None for name in node.inputs)
    kinds = tuple(None if v is None else type_of_array(v) for v in values)
    results: Sequence[TensorType] | None
    try:
        results = operator.infer(Inference(node, kinds, values, operator))
        return evaluate(node, operator, values, results)
    except ops.NotStatic:
        return evaluate(node, operator, values, None)
    except Exception:  # a node that cannot be typed fails where it runs, with its name
        return None
