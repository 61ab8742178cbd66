"""Whole small networks for the conformance kit, with what the NumPy references make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from packhorse.graph.ir import Graph, Node, TensorType, Value

__all__ = ["GRAPHS", "Example"]

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Example:
    """A graph and inputs for it."""

    graph: Graph
    feeds: Mapping[str, Array]

    @cached_property
    def wanted(self) -> list[Array]:
        """Its outputs by the NumPy references."""
        from packhorse.compiler.reference import ReferenceExecutable

        return list(ReferenceExecutable(self.graph).run(self.feeds).values())


class _Net:
    """Builds a graph node by node, with random weights."""

    def __init__(self, name: str, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph(name, [], [], [])
        self.count = 0

    def weight(self, *shape: int) -> str:
        self.count += 1
        size = float(np.sqrt(max(1, int(np.prod(shape[1:])))))
        return self.constant(f"w{self.count}", self.rng.standard_normal(shape) / size)

    def constant(self, name: str, value: Any, dtype: str = "float32") -> str:
        self.graph.constants[name] = np.asarray(value, dtype)
        return name

    def ints(self, *values: int) -> str:
        self.count += 1
        return self.constant(f"i{self.count}", values, "int64")

    def input(self, name: str, *shape: int | str) -> str:
        self.graph.inputs.append(Value(name, TensorType(np.dtype("float32"), shape)))
        return name

    def __call__(self, op: str, *inputs: str, **attrs: Any) -> str:
        self.count += 1
        name = f"v{self.count}"
        self.graph.nodes.append(Node(op, list(inputs), [name], attrs, f"{op}{self.count}"))
        return name

    def done(self, outputs: Mapping[str, tuple[int | str, ...]], **feeds: Array) -> Example:
        kind = np.dtype("float32")
        self.graph.outputs = [Value(n, TensorType(kind, s)) for n, s in outputs.items()]
        return Example(self.graph, feeds)

    def data(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(np.float32)


def _mlp(rows: int = 2, seed: int = 0) -> Example:
    net = _Net("mlp", 1)  # the weights are always the same, the data is not
    x = net.input("x", "rows", 16)
    x = net("Relu", net("Gemm", x, net.weight(16, 24), net.weight(24)))
    x = net("Tanh", net("MatMul", x, net.weight(24, 12)))
    y = net("Softmax", x, axis=-1)
    net.rng = np.random.default_rng(100 + seed)
    return net.done({y: ("rows", 12)}, x=net.data(rows, 16))


def _cnn() -> Example:
    net = _Net("cnn", 2)
    x = net.input("image", 1, 3, 16, 16)
    same = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    x = net("Relu", net("Conv", x, net.weight(8, 3, 3, 3), net.weight(8), **same))
    x = net("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = net("Conv", x, net.weight(8, 1, 3, 3), group=8, **same)
    y = net("Conv", net("HardSwish", y), net.weight(8, 8, 1, 1))
    x = net("Flatten", net("GlobalAveragePool", net("Add", x, y)))
    y = net("Softmax", net("Gemm", x, net.weight(10, 8), net.weight(10), transB=1))
    return net.done({y: (1, 10)}, image=net.data(1, 3, 16, 16))


def _attention() -> Example:
    net = _Net("attention", 3)
    x = net.input("tokens", 2, 5, 12)
    normal = net("LayerNormalization", x, net.weight(12), net.weight(12))
    heads = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        part = net("MatMul", normal, net.weight(12, 12))
        part = net("Reshape", part, net.ints(2, 5, 3, 4))
        heads.append(net("Transpose", part, perm=perm))
    scores = net("Mul", net("MatMul", heads[0], heads[1]), net.constant("scale", 0.5))
    mixed = net("MatMul", net("Softmax", scores, axis=-1), heads[2])
    mixed = net("Reshape", net("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(2, 5, 12))
    x = net("Add", x, net("MatMul", mixed, net.weight(12, 12)))
    y = net("Gelu", net("MatMul", x, net.weight(12, 20)))
    return net.done({y: (2, 5, 20)}, tokens=net.data(2, 5, 12))


def _unet() -> Example:
    net = _Net("unet", 4)
    x = net.input("image", 1, 2, 8, 8)
    a = net("Relu", net("Conv", x, net.weight(4, 2, 3, 3), pads=[1, 1, 1, 1]))
    b = net("Conv", a, net.weight(6, 4, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    up = net("ConvTranspose", net("Sigmoid", b), net.weight(6, 4, 2, 2), strides=[2, 2])
    both = net("Concat", a, up, axis=1)
    y = net("Conv", both, net.weight(1, 8, 1, 1))
    return net.done({y: (1, 1, 8, 8), b: (1, 6, 4, 4)}, image=net.data(1, 2, 8, 8))


def _two_inputs() -> Example:
    net = _Net("two_inputs", 5)
    a, b = net.input("a", 4, 6), net.input("b", 6)
    total = net("Mul", net("Add", a, b), net("Sub", a, b))
    mean = net("ReduceMean", total, net.ints(1), keepdims=0)
    part = net("Slice", net("Where", net("Greater", a, b), a, b), net.ints(1), net.ints(3))
    return net.done({mean: (4,), part: (2, 6)}, a=net.data(4, 6), b=net.data(6))


def _passes_through() -> Example:
    """An input and a constant that are outputs too, and a value that nobody reads."""
    net = _Net("passes_through", 6)
    a = net.input("a", 3, 4)
    same, net.count = net("Identity", a), net.count + 1
    net("Exp", a)
    weight = net("Identity", net.weight(2, 2))
    return net.done({same: (3, 4), weight: (2, 2)}, a=net.data(3, 4))


GRAPHS: Mapping[str, Callable[..., Example]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "attention": _attention,
    "unet": _unet,
    "two_inputs": _two_inputs,
    "passes_through": _passes_through,
}
"""Name -> builder of the example."""
