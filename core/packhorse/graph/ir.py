"""The graph: a network in ONNX operator semantics at opset 21.

A :class:`Graph` is plain data. Values are named by strings; a :class:`Node` reads and writes
names; constants (weights included) live in ``Graph.constants`` as NumPy arrays, which may be
read-only views of a mapped file. Nodes are kept in topological order. Shapes hold ints, or
strings for symbolic dimensions (the same string is the same size).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from packhorse.errors import ModelError

__all__ = ["OPSET", "Dim", "Graph", "Node", "Shape", "TensorType", "Value"]

OPSET = 21
"""The one ONNX opset the IR speaks; frontends convert to it."""

Dim: TypeAlias = int | str
Shape: TypeAlias = tuple[Dim, ...]


@dataclass(frozen=True)
class TensorType:
    """Dtype and shape of a value. ``shape=None`` means not even the rank is known."""

    dtype: np.dtype[Any]
    shape: Shape | None

    @property
    def is_static(self) -> bool:
        """True when every dimension is a number."""
        return self.shape is not None and all(isinstance(d, int) for d in self.shape)

    @property
    def dims(self) -> tuple[int, ...]:
        """The static shape; raises :class:`ModelError` when a dimension is symbolic."""
        if not self.is_static or self.shape is None:
            raise ModelError(f"shape {self.shape} is not static yet")
        return tuple(int(d) for d in self.shape)

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join(str(d) for d in self.shape)
        return f"{self.dtype}[{dims}]"


@dataclass(frozen=True)
class Value:
    """A named graph input or output."""

    name: str
    type: TensorType


@dataclass
class Node:
    """One operator application.

    ``inputs`` may hold ``""`` for an elided optional input, likewise ``outputs``. ``attrs`` are
    Python values: int, float, str, bytes, lists of those, ``np.ndarray`` for tensors and
    :class:`Graph` for the bodies of If/Loop/Scan. A body sees the outer graph's names.
    ``domain`` is ``""`` for ai.onnx.
    """

    op: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""

    @property
    def label(self) -> str:
        """How errors and reports name this node: ``'name' (Op)``."""
        return f"'{self.name or self.outputs[0]}' ({self.op})"


@dataclass
class Graph:
    """A network. ``types`` holds what is known of every value, inputs and constants included."""

    name: str
    inputs: list[Value]
    outputs: list[Value]
    nodes: list[Node]
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    types: dict[str, TensorType] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def consumers(self) -> Mapping[str, list[Node]]:
        """Which nodes read each value (bodies of control flow count as their node)."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node_reads(node)):
                found.setdefault(name, []).append(node)
        return found

    def type_of(self, name: str) -> TensorType:
        """Type of a value; :class:`ModelError` if nothing is known of it."""
        if name in self.types:
            return self.types[name]
        if name in self.constants:
            array = self.constants[name]
            return TensorType(array.dtype, tuple(array.shape))
        raise ModelError(f"nothing is known about the type of value '{name}'")

    def count_ops(self) -> dict[str, int]:
        """Operator name -> how often it occurs, bodies included, most frequent first."""
        counts: dict[str, int] = {}
        for node in walk(self):
            counts[node.op] = counts.get(node.op, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def subgraphs(node: Node) -> list[Graph]:
    """The bodies a control-flow node carries."""
    return [value for value in node.attrs.values() if isinstance(value, Graph)]


def node_reads(node: Node) -> Iterator[str]:
    """Every value a node reads: its inputs and what its bodies capture from outside."""
    yield from (name for name in node.inputs if name)
    for body in subgraphs(node):
        local = {value.name for value in body.inputs} | set(body.constants)
        for inner in body.nodes:
            yield from (name for name in node_reads(inner) if name not in local)
            local.update(inner.outputs)
        yield from (value.name for value in body.outputs if value.name not in local)


def walk(graph: Graph) -> Iterator[Node]:
    """All nodes, depth first through the bodies of control flow."""
    for node in graph.nodes:
        yield node
        for body in subgraphs(node):
            yield from walk(body)
