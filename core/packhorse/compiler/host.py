"""Nodes that run on the host by their NumPy reference, inside a compiled program.

A step named ``packhorse.op.<Op>`` carries its node in its attributes, so that artifacts can be
run without the model they came from.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from packhorse.compiler.reference import node_failed
from packhorse.errors import ArtifactError, UnsupportedOperator
from packhorse.graph.ir import Graph, Node
from packhorse.graph.program import Step

__all__ = ["encode", "run_step"]

Array = np.ndarray[Any, Any]


def encode(node: Node) -> dict[str, str]:
    """A node as string attributes of a step.

    Raises
    ------
    UnsupportedOperator
        For control flow: its bodies are graphs, which a step cannot carry.
    """
    given = [bool(name) for name in node.inputs]
    content = {
        "op": node.op,
        "domain": node.domain,
        "name": node.name or node.outputs[0],
        "given": given,
        "outputs": [bool(name) for name in node.outputs],
        "attrs": {key: _encode(node, value) for key, value in node.attrs.items()},
    }
    return {"packhorse_node": json.dumps(content, sort_keys=True)}


def _encode(node: Node, value: Any) -> Any:
    if isinstance(value, Graph):
        raise UnsupportedOperator(
            f"node {node.label}: its condition is known only at run time; "
            "run this model on device 'cpu'"
        )
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"dtype": str(value.dtype), "shape": list(value.shape), "data": data}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.generic):
        return value.item()
    return list(value) if isinstance(value, tuple) else value


@functools.lru_cache(maxsize=4096)
def _decode(text: str) -> tuple[Node, tuple[bool, ...]]:
    try:
        content = json.loads(text)
        attrs = {key: _decode_value(value) for key, value in content["attrs"].items()}
        given = tuple(bool(g) for g in content["given"])
        inputs = [f"i{k}" if g else "" for k, g in enumerate(given)]
        outputs = [f"o{k}" if g else "" for k, g in enumerate(content["outputs"])]
        node = Node(
            str(content["op"]), inputs, outputs, attrs, str(content["name"]), str(content["domain"])
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"a host step of the program is damaged: {error}") from error
    return node, given


def _decode_value(value: Any) -> Any:
    if isinstance(value, Mapping) and "bytes" in value:
        return base64.b64decode(value["bytes"])
    if isinstance(value, Mapping):
        raw = np.frombuffer(base64.b64decode(value["data"]), np.dtype(value["dtype"]))
        return raw.reshape(value["shape"])
    return value


def run_step(step: Step, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
    """Run a host step: call the operator's reference and copy its results into place.

    Raises
    ------
    ModelError
        The reference refuses its inputs; the message names the node.
    """
    from packhorse.ops import registry

    node, given = _decode(step.attrs.get("packhorse_node", ""))
    queue = iter(inputs)
    arguments = [next(queue) if g else None for g in given]
    try:
        results = registry.get(node).run(node, arguments)
    except Exception as error:
        raise node_failed(node, arguments, error) from error
    wanted = [r for r, name in zip(results, node.outputs, strict=False) if name]
    for target, result in zip(outputs, wanted, strict=True):
        np.copyto(target, result.reshape(target.shape))
