"""Expansion of function operators: model-local functions and those ONNX defines by a body.

``onnx.inliner`` is not used for schema functions: it stops at elided optional inputs and at
attributes left at their default. Rules of ONNX IR spec, section "Functions".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import suppress
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TypeProto, defs

from packhorse.errors import ModelFormatError
from packhorse.graph.ir import OPSET

__all__ = ["MAX_NODES", "expand_local", "expand_schema", "normal_domain", "proto_bodies"]

MAX_NODES = 200_000
"""Expansion stops here: a small file can describe functions that call each other exponentially."""

Pick = Callable[[NodeProto], FunctionProto | None]


def normal_domain(domain: str) -> str:
    """``ai.onnx`` is another spelling of the default domain."""
    return "" if domain == "ai.onnx" else domain


def proto_bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies of If, Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def expand_local(model: onnx.ModelProto) -> None:
    """Replace calls of model-local functions by their bodies, in place, until none is left.

    Raises
    ------
    ModelFormatError
        Functions call each other in a circle, or expand to more than :data:`MAX_NODES` nodes.
    """
    if not model.functions:
        return
    table = {(normal_domain(f.domain), f.name, f.overload): f for f in model.functions}
    opsets = {normal_domain(o.domain): o.version for o in model.opset_import}
    for function in model.functions:
        for opset in function.opset_import:
            opsets.setdefault(normal_domain(opset.domain), opset.version)
            model_version = opsets[normal_domain(opset.domain)]
            if normal_domain(opset.domain) == "" and opset.version != model_version:
                raise ModelFormatError(
                    f"function '{function.name}' is written for opset {opset.version}, the model "
                    f"for {model_version}. Convert it: onnx.inliner.inline_local_functions(model, "
                    "convert_version=True)"
                )

    def pick(node: NodeProto) -> FunctionProto | None:
        return table.get((normal_domain(node.domain), node.op_type, node.overload))

    _refuse_explosion(model.graph, pick)
    while _expand_graph(model.graph, pick, _Fresh(model.graph)):
        pass
    del model.functions[:]
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in opsets.items())


def _refuse_explosion(graph: GraphProto, pick: Pick) -> None:
    """Count the nodes expansion would give, before giving them."""
    sizes: dict[int, int | None] = {}

    def size(nodes: Iterable[NodeProto]) -> int:
        total = 0
        for node in nodes:
            total += 1 + sum(size(body.node) for body in proto_bodies(node))
            function = pick(node)
            if function is not None:
                if id(function) not in sizes:
                    sizes[id(function)] = None
                    sizes[id(function)] = size(function.node)
                found = sizes[id(function)]
                if found is None:
                    raise ModelFormatError(
                        f"function '{function.name}' calls itself, by way of others perhaps: "
                        "the model's functions go in a circle"
                    )
                total += found
        return total

    made = size(graph.node)
    if made > MAX_NODES and made > 4 * len(graph.node):
        raise ModelFormatError(
            f"expanding the model's functions gives {made} nodes, more than {MAX_NODES}: they "
            "call each other many times over. The model is damaged or hostile"
        )


def expand_schema(
    model: onnx.ModelProto, known: Callable[[str, str], bool], types: dict[str, TypeProto]
) -> bool:
    """One round: replace operators that are not ``known`` by the bodies ONNX gives for them.

    ``types`` are the inferred types of all values; bodies may depend on them. Returns whether
    anything was replaced (then types must be inferred again and another round be made).
    """
    version = max(
        [o.version for o in model.opset_import if normal_domain(o.domain) == ""], default=OPSET
    )

    def pick(node: NodeProto) -> FunctionProto | None:
        domain = normal_domain(node.domain)
        return None if known(domain, node.op_type) else _schema_body(node, domain, version, types)

    return _expand_graph(model.graph, pick, _Fresh(model.graph))


def _schema_body(
    node: NodeProto, domain: str, version: int, types: dict[str, TypeProto]
) -> FunctionProto | None:
    schema: Any  # the stubs of onnx lack the function members
    try:
        schema = defs.get_schema(node.op_type, version, domain)
    except defs.SchemaError:
        try:
            schema = defs.get_schema(node.op_type, domain=domain)
        except defs.SchemaError:
            return None
    body: bytes = b""
    if schema.has_function:
        chosen = _nearest(schema.function_opset_versions, version)
        body = schema.get_function_with_opset_version(chosen)
    elif schema.has_context_dependent_function:
        known = [types.get(name, TypeProto()).SerializeToString() for name in node.input]
        chosen = _nearest(schema.context_dependent_function_opset_versions, version)
        # the builder refuses by an exception of its own when a type it needs is unknown
        with suppress(Exception):
            body = schema.get_context_dependent_function_with_opset_version(
                chosen, node.SerializeToString(), known
            )
    function = FunctionProto()
    function.ParseFromString(body)
    return function if body else None


def _nearest(versions: Iterable[int], wanted: int) -> int:
    found = list(versions)
    return max((v for v in found if v <= wanted), default=min(found))


class _Fresh:
    """Names that do not occur in the graph yet."""

    def __init__(self, graph: GraphProto) -> None:
        self.taken: set[str] = set()
        self.count = 0
        self._collect(graph)

    def _collect(self, graph: GraphProto) -> None:
        self.taken.update(v.name for v in graph.input)
        self.taken.update(t.name for t in graph.initializer)
        for node in graph.node:
            self.taken.update(node.output)
            for body in proto_bodies(node):
                self._collect(body)

    def prefix(self, base: str) -> str:
        self.count += 1
        return f"{base}~{self.count}/"

    def name(self, prefix: str, name: str) -> str:
        made = prefix + name
        while made in self.taken:
            made += "'"
        self.taken.add(made)
        return made


def _expand_graph(graph: GraphProto, pick: Pick, fresh: _Fresh) -> bool:
    """Expand the calls in a graph and its bodies one level deep."""
    nodes: list[NodeProto] = []
    changed = False
    for node in graph.node:
        for body in proto_bodies(node):
            changed |= _expand_graph(body, pick, fresh)
        function = pick(node)
        if function is None:
            nodes.append(node)
            continue
        changed = True
        nodes += _inline(node, function, fresh)
    if changed:
        copies = [_copy(node) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    return changed


def _copy(node: NodeProto) -> NodeProto:
    copied = NodeProto()
    copied.CopyFrom(node)
    return copied


def _inline(node: NodeProto, function: FunctionProto, fresh: _Fresh) -> list[NodeProto]:
    prefix = fresh.prefix(node.name or node.op_type)
    names: dict[str, str] = {"": ""}
    for i, formal in enumerate(function.input):
        names[formal] = node.input[i] if i < len(node.input) else ""
    after: list[NodeProto] = []
    for i, formal in enumerate(function.output):
        actual = node.output[i] if i < len(node.output) else ""
        if not actual:
            continue
        if formal in names:  # an input passed through
            after.append(onnx.helper.make_node("Identity", [names[formal]], [actual]))
        else:
            names[formal] = actual
    attributes = {a.name: a for a in function.attribute_proto}
    attributes |= _schema_defaults(node)
    attributes |= {a.name: a for a in node.attribute}
    made = []
    for inner in function.node:
        copied = _copy(inner)
        _rename(copied, names, attributes, prefix, fresh)
        made.append(copied)
    return made + after


def _schema_defaults(node: NodeProto) -> dict[str, AttributeProto]:
    try:
        schema = defs.get_schema(node.op_type, domain=normal_domain(node.domain))
    except defs.SchemaError:
        return {}
    return {
        name: attribute.default_value
        for name, attribute in schema.attributes.items()
        if attribute.default_value.type != AttributeProto.UNDEFINED
    }


def _rename(
    node: NodeProto,
    names: MutableMapping[str, str],
    attributes: dict[str, AttributeProto],
    prefix: str,
    fresh: _Fresh,
) -> None:
    """Rewrite a node of a function body: values, attribute references, bodies inside it."""
    node.name = prefix + (node.name or node.op_type)
    node.input[:] = [_local(names, name, prefix, fresh) for name in node.input]
    kept = []
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            given = attributes.get(attribute.ref_attr_name)
            if given is None:
                continue  # not given and without default: the inner default applies
            copied = AttributeProto()
            copied.CopyFrom(given)
            copied.name = attribute.name
        else:
            copied = attribute
        kept.append(copied)
    for attribute in kept:
        for body in [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs:
            _rename_body(body, dict(names), attributes, prefix, fresh)
    copies = [AttributeProto.FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    node.attribute.extend(copies)
    node.output[:] = [_local(names, name, prefix, fresh) for name in node.output]


def _rename_body(
    body: GraphProto,
    names: dict[str, str],
    attributes: dict[str, AttributeProto],
    prefix: str,
    fresh: _Fresh,
) -> None:
    for value in [*body.input, *body.initializer]:
        names[value.name] = value.name = fresh.name(prefix, value.name)
    for node in body.node:
        _rename(node, names, attributes, prefix, fresh)
    for value in body.output:
        value.name = names.get(value.name, value.name)
    del body.value_info[:]


def _local(names: MutableMapping[str, str], name: str, prefix: str, fresh: _Fresh) -> str:
    if name not in names:
        names[name] = fresh.name(prefix, name)
    return names[name]
