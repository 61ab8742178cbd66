"""Which order each value lies in, and how wide a zero border it gets.

Values of convolutional networks lie channels-last: 1x1 convolutions are then matrix products,
depthwise ones and every map vectorise over channels. The border (halo) is what the convolutions
reading the value want to see outside it, so that padding costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packhorse.compiler.fusion import is_contraction
from packhorse.graph.ir import Graph, Node
from packhorse.kernel.expr import Affine, Load, Reduce, walk
from packhorse.kernel.lowering import Lazy

__all__ = ["Halo", "Layouts", "column_axes"]

Halo = tuple[tuple[int, int], ...]

_SPATIAL = frozenset(
    "Conv ConvTranspose MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool Resize "
    "Upsample ConvInteger LRN".split()
)
_ROW_MAJOR = frozenset("Reshape Flatten MatMul Gemm LSTM GRU RNN".split())
_SAME_RANK = frozenset(
    "Abs Add BatchNormalization Ceil Clip Concat Div Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish InstanceNormalization LeakyRelu Log Max Min Mul Neg PRelu Pad Pow Reciprocal "
    "Relu Round Sigmoid Slice Softplus Split Sqrt Sub Sum Tanh Where Cast Softmax".split()
)
_MIN_CHANNELS = 8


class Layouts:
    """Preferences of a static graph, computed once before lowering."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.outputs = {v.name for v in graph.outputs}
        self.consumers = graph.consumers()
        self.spatial = self._spatial_values()
        self.halos: dict[str, Halo] = {}
        for node in graph.nodes:
            self._note_halo(node)

    def order(self, name: str, shape: Sequence[int]) -> list[int] | None:
        """Dimensions outermost first for a value about to be placed; None for no preference."""
        rank = len(shape)
        rows = list(range(rank))
        if name in self.outputs or rank < 3:
            return rows
        if name not in self.spatial or shape[1] < _MIN_CHANNELS:
            return None
        if any(n.op in _ROW_MAJOR for n in self.consumers.get(name, ())):
            return rows
        return [0, *rows[2:], 1]

    def halo(self, name: str, shape: Sequence[int]) -> Halo | None:
        """The border readers of a value want; None for none (graph outputs are never padded)."""
        return None if name in self.outputs else self.halos.get(name)

    def _spatial_values(self) -> set[str]:
        found: set[str] = set()
        for node in self.graph.nodes:
            if node.op in _SPATIAL or (
                node.op in _SAME_RANK and any(i in found for i in node.inputs)
            ):
                found.update(node.outputs)
            if node.op in _SPATIAL and node.inputs:
                found.add(node.inputs[0])
        return found

    def _note_halo(self, node: Node) -> None:
        if node.op not in ("Conv", "ConvInteger", "AveragePool") or not node.inputs:
            return
        source = node.inputs[0]
        pads = padding_of(node, self.graph)
        if not any(map(any, pads)):
            return
        old = self.halos.get(source, tuple((0, 0) for _ in pads))
        self.halos[source] = tuple(
            (max(a, c), max(b, d)) for (a, b), (c, d) in zip(old, pads, strict=True)
        )


def padding_of(node: Node, graph: Graph) -> Halo:
    """(before, after) per dimension of a convolution's or pooling's input, batch and channel
    included; (0, 0) where the node does not say it with explicit numbers."""
    shape = graph.type_of(node.inputs[0]).shape
    rank = 0 if shape is None else len(shape)
    pads: Any = node.attrs.get("pads")
    mode = node.attrs.get("auto_pad", "NOTSET")
    if pads is None or rank < 3 or mode not in ("NOTSET", b"NOTSET"):
        return tuple((0, 0) for _ in range(rank))
    n = rank - 2
    spatial = tuple((int(pads[d]), int(pads[d + n])) for d in range(n))
    return ((0, 0), (0, 0), *spatial)


def column_axes(value: Lazy) -> list[int]:
    """Dimensions that only the second factor of a pending contraction knows (output channels,
    columns of a matrix product), slowest first. They should lie innermost: weights are then read
    as vectors and the first factor as scalars. Empty when nothing is pending."""
    for node in walk(value.value):
        if not (isinstance(node, Reduce) and is_contraction(node)):
            continue
        first, second = (a for a in node.body.children() if isinstance(a, Load))
        known = {n for i in first.index if isinstance(i, Affine) for n, _ in i.terms}
        steps: dict[int, tuple[int, int]] = {}
        for position, i in enumerate(second.index):
            for name, coef in i.terms if isinstance(i, Affine) else ():
                if name.startswith("i") and name not in known:
                    steps[int(name[1:])] = (-position, abs(coef))
        return sorted(steps, key=lambda d: (-steps[d][0], -steps[d][1]))
    return []
