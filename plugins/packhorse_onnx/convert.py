"""Conversion to opset 21 by the onnx package, done only when an operator changed on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TypeProto, defs, version_converter

from packhorse.errors import ModelFormatError, UnsupportedOperator
from packhorse.graph.ir import OPSET
from packhorse_onnx.functions import normal_domain, proto_bodies

__all__ = ["all_nodes", "has_schema", "infer_types", "opset_of", "to_opset"]

IR_VERSION = 10
NUMPY_BROADCASTING = 7
"""From this opset on arithmetic broadcasts as in NumPy; conversion to it needs shapes."""


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes of a graph and its bodies."""
    for node in graph.node:
        yield node
        for body in proto_bodies(node):
            yield from all_nodes(body)


def opset_of(model: ModelProto) -> int:
    """Opset of the default domain; 1 where the file predates the field.

    Raises
    ------
    ModelFormatError
        The opset is unknown to the installed onnx package.
    """
    found = [o.version for o in model.opset_import if normal_domain(o.domain) == ""]
    version = max(found) if found else (OPSET if model.opset_import else 1)
    newest = defs.onnx_opset_version()
    if not 1 <= version <= newest:
        raise ModelFormatError(
            f"the model says opset {version}; the installed onnx {onnx.__version__} knows 1 to "
            f"{newest}. If the file is sound, update it: pip install -U onnx"
        )
    return version


def to_opset(model: ModelProto) -> ModelProto:
    """The model at opset 21; the same object when no operator it uses changed in between.

    Opsets above 21 added element types, attributes and operators and changed no meaning, so newer
    models stay as they are.

    Raises
    ------
    UnsupportedOperator
        The converter has no rule for an operator: it is named.
    """
    version = opset_of(model)
    changed = {n.op_type for n in all_nodes(model.graph) if _changed(n, version)}
    if version >= OPSET:
        return model
    for node in all_nodes(model.graph):
        if version == 8 and node.op_type == "Scan" and not normal_domain(node.domain):
            raise UnsupportedOperator(
                f"node '{node.name or node.output[0]}' (Scan) of opset 8 has a batch axis, which "
                f"later opsets have not. Export the model again at opset 9 to {OPSET}"
            )
    if not changed:
        # The stamp matters: it chooses among the function bodies ONNX gives per opset.
        for opset in model.opset_import:
            if normal_domain(opset.domain) == "":
                opset.version = OPSET
        return model
    model.ir_version = max(model.ir_version, IR_VERSION)
    if version < NUMPY_BROADCASTING:
        with suppress(Exception):  # the converter says better what is wrong
            model = onnx.shape_inference.infer_shapes(model)
        _align_broadcasts(model.graph)
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception:
        # The converter cannot replace a value that a body reads from outside.
        isolated = ModelProto()
        isolated.CopyFrom(model)
        _isolate_captures(isolated.graph, set())
    try:
        return version_converter.convert_version(isolated, OPSET)
    except Exception as error:
        culprits = _culprits(model, changed, version)
        raise UnsupportedOperator(
            f"the model cannot be converted from opset {version} to {OPSET}"
            + (f": no rule for {', '.join(culprits)}" if culprits else "")
            + f" ({_first_line(error)}). Export it again at opset {OPSET}"
        ) from None


def _align_broadcasts(graph: GraphProto) -> None:
    """Where operands meet in opsets before 7, which the converter does not know, as Unsqueeze.

    Arithmetic has an attribute ``axis``; the slopes of PRelu belong to the channels.
    """
    types: dict[str, TypeProto] = {}
    _collect(graph, types)
    ranks = {name: len(t.tensor_type.shape.dim) for name, t in types.items()}
    nodes: list[NodeProto] = []
    for node in graph.node:
        axis = next((a for a in node.attribute if a.name == "axis"), None)
        broadcast = any(a.name == "broadcast" and a.i for a in node.attribute)
        place = axis.i if axis is not None and broadcast else 1 if node.op_type == "PRelu" else None
        if place is not None and all(name in ranks for name in node.input):
            left, right = (ranks[name] for name in node.input)
            missing = left - (place if place >= 0 else place + left) - right
            if missing > 0:
                nodes.append(_unsqueeze(graph, node, len(nodes), right, missing, types))
        if axis is not None and broadcast:
            node.attribute.remove(axis)
        nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _unsqueeze(
    graph: GraphProto,
    node: NodeProto,
    number: int,
    rank: int,
    missing: int,
    types: dict[str, TypeProto],
) -> NodeProto:
    """Let the node read its second operand with so many dimensions of 1 behind; what makes it."""
    name = node.input[1]
    made = f"{name}~{number}"
    kind = types[name].tensor_type
    sizes = [d.dim_value or None for d in kind.shape.dim] + [1] * missing
    graph.value_info.append(onnx.helper.make_tensor_value_info(made, kind.elem_type, sizes))
    node.input[1] = made
    axes = list(range(rank, rank + missing))
    return onnx.helper.make_node("Unsqueeze", [name], [made], axes=axes)


def _isolate_captures(graph: GraphProto, taken: set[str]) -> None:
    """Let bodies read what outer nodes make through an Identity, which is never replaced."""
    made = {name for node in graph.node for name in node.output if name}
    nodes: list[NodeProto] = []
    for node in graph.node:
        for body in proto_bodies(node):
            names = {}
            for name in sorted(_captures(body) & made):
                names[name] = f"{name}~{len(taken)}"
                taken.add(names[name])
                nodes.append(onnx.helper.make_node("Identity", [name], [names[name]]))
            _rename_captures(body, names)
            _isolate_captures(body, taken)
        nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _captures(body: GraphProto) -> set[str]:
    local = {v.name for v in [*body.input, *body.initializer]}
    local |= {name for node in body.node for name in node.output}
    read = {name for node in body.node for name in node.input} | {v.name for v in body.output}
    for node in body.node:
        for inner in proto_bodies(node):
            read |= _captures(inner)
    return read - local


def _rename_captures(body: GraphProto, names: dict[str, str]) -> None:
    local = {v.name for v in [*body.input, *body.initializer]}
    local |= {name for node in body.node for name in node.output}
    outside = {old: new for old, new in names.items() if old not in local}
    for node in body.node:
        node.input[:] = [outside.get(name, name) for name in node.input]
        for inner in proto_bodies(node):
            _rename_captures(inner, outside)
    for value in body.output:
        value.name = outside.get(value.name, value.name)


def _changed(node: NodeProto, version: int) -> bool:
    if normal_domain(node.domain):
        return False
    try:
        old, new = (defs.get_schema(node.op_type, v) for v in (version, OPSET))
    except defs.SchemaError:  # removed on the way (Upsample), or unknown
        return defs.has(node.op_type)
    return bool(old.since_version != new.since_version)


def has_schema(op: str, version: int) -> bool:
    """Whether the default domain has the operator at that opset."""
    try:
        defs.get_schema(op, version)
    except defs.SchemaError:
        return False
    return True


def _culprits(model: ModelProto, ops: set[str], version: int) -> list[str]:
    """Operators that do not convert when they stand alone."""
    found = []
    anything = TypeProto(tensor_type=TypeProto.Tensor(elem_type=1))
    types: dict[str, TypeProto] = {}
    _collect(model.graph, types)
    for op in sorted(ops):
        node = next(n for n in all_nodes(model.graph) if n.op_type == op)
        inputs, outputs = (
            [onnx.helper.make_value_info(n, types.get(n, anything)) for n in names if n]
            for names in (dict.fromkeys(node.input), node.output)
        )
        graph = onnx.helper.make_graph([node], op, inputs, outputs)
        alone = onnx.helper.make_model(
            graph, ir_version=IR_VERSION, opset_imports=[onnx.helper.make_opsetid("", version)]
        )
        try:
            version_converter.convert_version(alone, OPSET)
        except Exception:
            found.append(f"node '{node.name or node.output[0]}' ({op})")
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)


def infer_types(model: ModelProto) -> tuple[ModelProto, dict[str, TypeProto]]:
    """Run shape inference with data propagation; returns the model and the type of each value.

    What inference cannot do is left unknown: execution infers again with real shapes.
    """
    declared = _forget_shapes(model.graph)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # a contradiction in the file; specialisation will name the node
        inferred = model
    types: dict[str, TypeProto] = {}
    _collect(inferred.graph, types)
    for name, kind in declared.items():
        _prefer_declared(types.setdefault(name, kind), kind)
    return inferred, types


def _prefer_declared(found: TypeProto, declared: TypeProto) -> None:
    """Where inference only invented a symbol, the exporter's word for a dimension is kept."""
    if found is declared or not declared.tensor_type.HasField("shape"):
        return
    if not found.tensor_type.HasField("shape"):
        found.CopyFrom(declared)
    elif len(found.tensor_type.shape.dim) == len(declared.tensor_type.shape.dim):
        pairs = zip(found.tensor_type.shape.dim, declared.tensor_type.shape.dim, strict=True)
        for mine, theirs in pairs:
            if not mine.HasField("dim_value") and theirs.WhichOneof("value"):
                mine.CopyFrom(theirs)


def _forget_shapes(graph: GraphProto) -> dict[str, TypeProto]:
    """Drop what exporters wrote about shapes, which is often wrong; returns the outputs' types."""
    declared = {}
    del graph.value_info[:]
    for value in graph.output:
        kept = TypeProto()
        kept.CopyFrom(value.type)
        _forget_any(kept)
        declared[value.name] = kept
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for value in graph.input:
        _forget_any(value.type)
    return declared


def _forget_any(kind: TypeProto) -> None:
    """0, -1, "" and "?" are ways to say "any size"; none of them names one."""
    if kind.HasField("tensor_type"):
        for dim in kind.tensor_type.shape.dim:
            if dim.dim_param in ("", "?") and dim.dim_value <= 0:
                dim.Clear()


def _collect(graph: GraphProto, types: dict[str, TypeProto]) -> None:
    for value in [*graph.input, *graph.value_info, *graph.output]:
        old = types.get(value.name)
        known = value.type.tensor_type.HasField("shape") or old is None
        if value.type.WhichOneof("value") and known:
            types[value.name] = value.type
    for tensor in graph.initializer:
        made = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        types[tensor.name] = made
    for node in graph.node:
        for body in proto_bodies(node):
            _collect(body, types)
