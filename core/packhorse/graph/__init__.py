"""The graph IR, its serialised program, and what runs it.

``ir`` (a network in ONNX semantics) is what frontends make and the compiler reads; ``program`` is
a compiled graph as plain data. This package imports no operator and no compiler.
"""

from packhorse.graph.ir import OPSET, Dim, Graph, Node, Shape, TensorType, Value

__all__ = ["OPSET", "Dim", "Graph", "Node", "Shape", "TensorType", "Value"]
