"""Sequences of tensors whose lengths are known are taken apart: only tensors remain.

``SequenceConstruct`` followed by ``ConcatFromSequence`` is a Concat, ``SplitToSequence`` followed
by ``SequenceAt`` a Split, and so on; exporters write those for lists of the source language. What
depends on positions or lengths known only when the model runs stays as it is, and is then refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from packhorse.graph.ir import Graph, Node, TensorType, node_reads

__all__ = ["take_apart"]

Array = np.ndarray[Any, Any]


class _Unknown(Exception):
    """A position or a length is known only when the model runs."""


def take_apart(graph: Graph) -> Graph:
    """The graph without sequences, or unchanged where they cannot be resolved. Bodies of control
    flow are left as they are."""
    if not any(node.op in _RULES and not node.domain for node in graph.nodes):
        return graph
    work = _Work(graph)
    try:
        for node in graph.nodes:
            work.visit(node)
    except _Unknown:
        return graph
    if any(value.name in work.lists for value in graph.outputs):
        return graph
    constants, types = graph.constants | work.constants, dict(graph.types)
    types |= {name: TensorType(x.dtype, x.shape) for name, x in work.constants.items()}
    return Graph(
        graph.name, graph.inputs, graph.outputs, work.nodes, constants, types, graph.metadata
    )


class _Work:
    """State of one walk: the nodes made so far, and the items of each sequence."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self.lists: dict[str, list[str]] = {}
        self.taken = {*graph.constants, *graph.types}
        self.taken |= {name for node in graph.nodes for name in (*node.inputs, *node.outputs)}

    def visit(self, node: Node) -> None:
        """Resolve a node, or keep it."""
        rule = _RULES.get(node.op) if not node.domain else None
        if node.op == "Identity" and node.inputs[0] in self.lists:
            rule = _same
        if rule is not None:
            rule(self, node)
        elif not self.lists.keys().isdisjoint(node_reads(node)):
            raise _Unknown  # control flow over a sequence
        else:
            self.nodes.append(node)

    def fresh(self, base: str) -> str:
        """A name not in use, like ``base``."""
        count = 0
        while (made := f"{base}.{count}") in self.taken:
            count += 1
        self.taken.add(made)
        return made

    def constant(self, base: str, value: Any) -> str:
        """The name of a new int64 constant."""
        name = self.fresh(base)
        self.constants[name] = np.array(value, np.int64)
        return name

    def add(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Any) -> None:
        """Append a node."""
        self.nodes.append(Node(op, list(inputs), list(outputs), attrs, outputs[0]))

    def items(self, node: Node) -> list[str]:
        """The tensors of the node's first input."""
        if node.inputs[0] not in self.lists:
            raise _Unknown
        return self.lists[node.inputs[0]]

    def position(self, node: Node, i: int, count: int, default: int, behind: bool = False) -> int:
        """Input ``i``, the position of one of ``count`` items, or ``behind`` them all."""
        if i >= len(node.inputs) or not node.inputs[i]:
            return default
        value = self.graph.constants.get(node.inputs[i])
        if value is None or value.size != 1:
            raise _Unknown
        found = int(value.reshape(()))
        if not -count <= found < count + behind:
            raise _Unknown
        return found + count if found < 0 else found


def _same(work: _Work, node: Node) -> None:
    work.lists[node.outputs[0]] = work.items(node)


def _construct(work: _Work, node: Node) -> None:
    work.lists[node.outputs[0]] = [name for name in node.inputs if name]


def _insert(work: _Work, node: Node) -> None:
    items = work.items(node)
    # one more place than items, the last one behind all; a negative one counts items from the end
    at = work.position(node, 2, len(items), len(items), behind=True)
    work.lists[node.outputs[0]] = [*items[:at], node.inputs[1], *items[at:]]


def _erase(work: _Work, node: Node) -> None:
    items = work.items(node)
    at = work.position(node, 1, len(items), len(items) - 1)
    work.lists[node.outputs[0]] = [*items[:at], *items[at + 1 :]]


def _at(work: _Work, node: Node) -> None:
    items = work.items(node)
    work.add("Identity", [items[work.position(node, 1, len(items), 0)]], node.outputs)


def _length(work: _Work, node: Node) -> None:
    count = work.constant(node.outputs[0], len(work.items(node)))
    work.add("Identity", [count], node.outputs)


def _concat(work: _Work, node: Node) -> None:
    items, axis = work.items(node), node.attrs.get("axis", 0)
    if not items:
        raise _Unknown
    if node.attrs.get("new_axis"):
        place = work.constant(node.outputs[0], [axis])
        wide = [work.fresh(node.outputs[0]) for _ in items]
        for name, made in zip(items, wide, strict=True):
            work.add("Unsqueeze", [name, place], [made])
        items = wide
    work.add("Concat", items, node.outputs, axis=axis)


def _split(work: _Work, node: Node) -> None:
    name, axis = node.inputs[0], node.attrs.get("axis", 0)
    given = node.inputs[1] if len(node.inputs) > 1 else ""
    kind = work.graph.types.get(given) if given else None
    if kind is not None and kind.shape is not None and len(kind.shape) == 1:
        if not isinstance(kind.shape[0], int):
            raise _Unknown
        count, sizes = kind.shape[0], given
    else:
        step = int(work.graph.constants[given].reshape(())) if given in work.graph.constants else 1
        extent = _extent(work, name, axis)
        if (given and given not in work.graph.constants) or step < 1 or not extent:
            raise _Unknown
        cut = [step] * (extent // step) + ([extent % step] if extent % step else [])
        count, sizes = len(cut), work.constant(node.outputs[0], cut)
    parts = [work.fresh(node.outputs[0]) for _ in range(count)]
    work.add("Split", [name, sizes], parts, axis=axis)
    if not given and not node.attrs.get("keepdims", 1):
        place, flat = work.constant(node.outputs[0], [axis]), []
        for part in parts:
            flat.append(work.fresh(node.outputs[0]))
            work.add("Squeeze", [part, place], [flat[-1]])
        parts = flat
    work.lists[node.outputs[0]] = parts


def _extent(work: _Work, name: str, axis: int) -> int:
    """A dimension of a value; unknown ones cannot be cut into a known number of parts."""
    kind = work.graph.types.get(name)
    if kind is None or kind.shape is None or not -len(kind.shape) <= axis < len(kind.shape):
        raise _Unknown
    found = kind.shape[axis]
    if not isinstance(found, int):
        raise _Unknown
    return found


_RULES: dict[str, Callable[[_Work, Node], None]] = {
    "SequenceEmpty": _construct,
    "SequenceConstruct": _construct,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceAt": _at,
    "SequenceLength": _length,
    "ConcatFromSequence": _concat,
    "SplitToSequence": _split,
}
