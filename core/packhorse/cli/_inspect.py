"""``packhorse inspect``: inputs, outputs, operators, parameters, and where each operator runs."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from typing import Any

from packhorse.cli._inputs import add_shape_options, read_signature
from packhorse.cli._output import bytes_text, print_json, print_section, print_table
from packhorse.cli._session import Session
from packhorse.graph.ir import Graph, TensorType, subgraphs, walk

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("path", metavar="MODEL", help="a model file, or an artifact")
    parser.add_argument("--device", "-d", help="compile for it and say which device runs each node")
    add_shape_options(parser)
    parser.add_argument("--nodes", action="store_true", help="list every node (with --device)")
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print what is known of the file."""
    session = Session(arguments.path, arguments.device)
    compiled = session.model is None or arguments.device is not None
    if session.model is not None and compiled:
        session.prepare(*read_signature(session.inputs, arguments))
    found = _describe(session, arguments.path, compiled)
    if arguments.json:
        print_json(found)
    else:
        _print(found, arguments.nodes)
    return 0


def _describe(session: Session, path: str, compiled: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "path": path,
        "kind": "artifact" if session.model is None else "model",
        "inputs": _types(session.inputs),
    }
    if session.model is not None:
        graph = session.model.graph
        found["outputs"] = _types(session.model.outputs)
        found["metadata"] = dict(graph.metadata)
        found["operators"] = graph.count_ops()
        found["parameters"], found["parameter_bytes"] = _parameters(graph)
    else:
        found["outputs"] = _types(session.ready.outputs)
    if compiled:
        report = session.ready.report()
        found["device"] = session.device_name
        found["nodes"] = [{"node": r.node, "device": r.device, "kernel": r.step} for r in report]
    return found


def _types(types: Mapping[str, TensorType]) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": t.dtype.name, "shape": None if t.shape is None else list(t.shape)}
        for name, t in types.items()
    ]


def _parameters(graph: Graph) -> tuple[int, int]:
    """Numbers and bytes of constants, bodies of control flow included."""
    bodies = [body for node in walk(graph) for body in subgraphs(node)]
    arrays = [array for g in (graph, *bodies) for array in g.constants.values()]
    return sum(a.size for a in arrays), sum(a.nbytes for a in arrays)


def _print(found: Mapping[str, Any], every_node: bool) -> None:
    print(f"{found['kind']} {found['path']}")
    for title in ("inputs", "outputs"):
        print_section(title)
        rows = [(f"  {v['name']}", v["dtype"], _shape(v["shape"])) for v in found[title]]
        print_table(("", "", ""), rows or [("  none", "", "")])
    if "operators" in found:
        count = sum(found["operators"].values())
        size = bytes_text(found["parameter_bytes"])
        print_section(f"{found['parameters']:,} parameters, {size}")
        print_section(f"{count} operators")
        names = [(f"  {name}", str(n)) for name, n in found["operators"].items()]
        print_table(("", ""), names)
    if "nodes" in found:
        _print_placement(found, every_node)


def _shape(shape: list[int | str] | None) -> str:
    return "any shape" if shape is None else f"({', '.join(map(str, shape))})"


def _print_placement(found: Mapping[str, Any], every_node: bool) -> None:
    nodes = found["nodes"]
    print_section(f"where it runs (compiled for {found['device']})")
    for place, count in Counter(node["device"] for node in nodes).items():
        kernels = len({node["kernel"] for node in nodes if node["device"] == place})
        print(f"  {place}: {count} nodes in {kernels} steps")
    # What runs elsewhere than asked for is always shown: visible, never silent.
    listed = [node for node in nodes if every_node or node["device"] != found["device"]]
    if listed:
        print()
        rows = [(f"  {node['node']}", node["device"], node["kernel"]) for node in listed]
        print_table(("  node", "device", "step"), rows)
