"""onnx protos to the graph IR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto

from packhorse.errors import ModelFormatError, UnsupportedOperator
from packhorse.graph.ir import Dim, Graph, Node, TensorType, Value, node_reads
from packhorse_onnx.functions import normal_domain
from packhorse_onnx.tensors import Weights, np_dtype

__all__ = ["GraphReader"]

Array = np.ndarray[Any, Any]
_Kind = AttributeProto


class GraphReader:
    """Reads graphs of one model: tensors through ``weights``, types from ``types``."""

    def __init__(
        self,
        weights: Weights,
        tensors: Mapping[str, memoryview[int]],
        types: Mapping[str, TypeProto],
    ) -> None:
        self.weights, self.tensors, self.types = weights, tensors, types

    def main(self, proto: GraphProto) -> Graph:
        """The main graph with the tensors that were kept out of the skeleton.

        Raises
        ------
        ModelFormatError
            Nodes read values that nothing makes, or a value is made twice.
        """
        outside = {name: self.weights.read(view, name) for name, view in self.tensors.items()}
        return self.graph(proto, outside, frozenset())

    def graph(self, proto: GraphProto, constants: dict[str, Array], outer: frozenset[str]) -> Graph:
        """A graph or the body of a control-flow node that sees the ``outer`` names."""
        constants = dict(constants)
        for tensor in proto.initializer:
            constants[tensor.name] = self._tensor(tensor)
        for sparse in proto.sparse_initializer:
            name = sparse.values.name
            constants[name] = self.weights.sparse(sparse, name)
        inputs = [self._value(v) for v in proto.input if v.name not in constants]
        nodes = []
        visible = outer | {v.name for v in inputs} | set(constants)
        visible |= {name for node in proto.node for name in node.output}
        for node in proto.node:
            if node.op_type == "Constant" and not normal_domain(node.domain) and node.output:
                constants[node.output[0]] = self._constant(node)
            else:
                nodes.append(self._node(node, visible))
        outputs = [self._value(v) for v in proto.output]
        graph = Graph(proto.name, inputs, outputs, nodes, constants)
        _check(graph, outer)
        for name in [v.name for v in inputs] + [o for n in nodes for o in n.outputs if o]:
            if name in self.types and self.types[name].HasField("tensor_type"):
                graph.types[name] = _tensor_type(self.types[name], name)
        for name, array in constants.items():
            graph.types[name] = TensorType(array.dtype, tuple(array.shape))
        return graph

    def _value(self, proto: onnx.ValueInfoProto) -> Value:
        kind = self.types.get(proto.name, proto.type)
        which = kind.WhichOneof("value")
        if which not in (None, "tensor_type"):
            raise UnsupportedOperator(
                f"value '{proto.name}' is a {str(which).removesuffix('_type')}; "
                "packhorse runs models of tensors"
            )
        return Value(proto.name, _tensor_type(kind, proto.name))

    def _node(self, node: NodeProto, visible: frozenset[str]) -> Node:
        label = node.name or (node.output[0] if node.output else node.op_type)
        made = Node(
            node.op_type,
            list(node.input),
            list(node.output),
            name=label,
            domain=normal_domain(node.domain),
        )
        for attribute in node.attribute:
            made.attrs[attribute.name] = self._attribute(attribute, made, visible)
        return made

    def _attribute(self, attribute: AttributeProto, node: Node, visible: frozenset[str]) -> Any:
        kind = attribute.type
        if kind in (_Kind.INT, _Kind.FLOAT):
            return attribute.i if kind == _Kind.INT else attribute.f
        if kind in (_Kind.INTS, _Kind.FLOATS):
            return list(attribute.ints if kind == _Kind.INTS else attribute.floats)
        if kind == _Kind.STRING:
            return _text(attribute.s)
        if kind == _Kind.STRINGS:
            return [_text(s) for s in attribute.strings]
        if kind == _Kind.TENSOR:
            return self._tensor(attribute.t)
        if kind == _Kind.TENSORS:
            return [self._tensor(t) for t in attribute.tensors]
        if kind == _Kind.SPARSE_TENSOR:
            return self.weights.sparse(attribute.sparse_tensor, node.outputs[0])
        if kind == _Kind.GRAPH:
            return self.graph(attribute.g, {}, visible)
        raise UnsupportedOperator(
            f"node {node.label}: attribute '{attribute.name}' is of a kind packhorse does not "
            f"know ({AttributeProto.AttributeType.Name(kind)})"
        )

    def _tensor(self, proto: TensorProto) -> Array:
        return self.weights.read(memoryview(proto.SerializeToString()), proto.name)

    def _constant(self, node: NodeProto) -> Array:
        """Value of a Constant node (ONNX Constant-21: one of eight attributes)."""
        made = self._node(node, frozenset())
        if len(made.attrs) != 1:
            raise ModelFormatError(
                f"node {made.label}: Constant takes one attribute, found {sorted(made.attrs)}"
            )
        (name, value), *_ = made.attrs.items()
        if isinstance(value, np.ndarray):
            return value
        dtypes: dict[str, Any] = {"value_int": np.int64, "value_float": np.float32}
        dtypes |= {"value_ints": np.int64, "value_floats": np.float32}
        array = np.asarray(value, dtypes.get(name, object))
        array.flags.writeable = False
        return array


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _tensor_type(proto: TypeProto, name: str) -> TensorType:
    """What a TypeProto says; unknown dimensions get a name of their own: ``value.axis``."""
    tensor = proto.tensor_type
    dtype = np_dtype(tensor.elem_type or 1, f"value '{name}'")
    if not tensor.HasField("shape"):
        return TensorType(dtype, None)
    dims: list[Dim] = []
    for i, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value >= 0:
            dims.append(dim.dim_value)
        else:
            dims.append(dim.dim_param or f"{name}.{i}")
    return TensorType(dtype, tuple(dims))


def _check(graph: Graph, outer: frozenset[str]) -> None:
    """Single assignment and topological order; files out of order are put in order."""
    made = set(graph.constants)
    for name in [v.name for v in graph.inputs] + [o for n in graph.nodes for o in n.outputs if o]:
        if name in made:
            raise ModelFormatError(f"value '{name}' is made twice. The model is damaged")
        made.add(name)
    known = outer | set(graph.constants) | {v.name for v in graph.inputs}
    late = made - known
    ready: list[Node] = []
    waiting = graph.nodes
    while waiting:
        rest = []
        for node in waiting:
            missing = [name for name in node_reads(node) if name in late]
            if missing:
                rest.append(node)
                continue
            ready.append(node)
            late.difference_update(node.outputs)
        if len(rest) == len(waiting):
            raise ModelFormatError(f"node {rest[0].label} is part of a circle of nodes")
        waiting = rest
    graph.nodes = ready
    visible = known | made
    for node in ready:
        for name in node_reads(node):
            if name not in visible:
                raise ModelFormatError(
                    f"node {node.label} reads '{name}', which nothing makes. The model is damaged"
                )
    for value in graph.outputs:
        if value.name not in visible:
            raise ModelFormatError(
                f"output '{value.name}' is made by no node. The model is damaged"
            )
