"""``packhorse inspect``: what is in a model, an artifact or a library, and where it runs."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from packhorse.artifact import load_artifact
from packhorse.cli._artifact import is_artifact, print_stored, stored
from packhorse.cli._inputs import add_shape_options, read_signature
from packhorse.cli._output import bytes_text, print_json, print_section, print_table
from packhorse.cli._session import Session, add_device_options, wanted_device
from packhorse.errors import (
    ArgumentValueError,
    ArtifactError,
    CompileError,
    DeviceError,
    FunctionNotFound,
    MissingExtra,
)
from packhorse.graph.ir import Graph, TensorType, subgraphs, walk
from packhorse.model import Executable
from packhorse.module import SUFFIXES, Module, NativeModule, load_module

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("path", metavar="MODEL", help="a model file, an artifact or a library")
    add_device_options(parser, "compile for it and say which device runs each node")
    add_shape_options(parser)
    parser.add_argument("--nodes", action="store_true", help="list every node and function")
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print what is known of the file."""
    try:
        found = _network(arguments)
    except (ArtifactError, FunctionNotFound) as error:
        if Path(arguments.path).suffix not in SUFFIXES:
            raise
        found = _library(arguments.path, str(error))
    if arguments.json:
        print_json(found)
    else:
        _print(found, arguments.nodes)
    return 0


def _library(path: str, why: str) -> dict[str, Any]:
    """A library that is no model: what can be called in it, and why it cannot be run."""
    with load_module(path) as module:
        return {"path": path, "kind": "library", "note": why, "code": _code(module)}


def _network(arguments: argparse.Namespace) -> dict[str, Any]:
    wanted = wanted_device(arguments)
    try:
        session = Session(arguments.path, wanted)
    except (DeviceError, MissingExtra, CompileError) as error:
        if wanted or not is_artifact(arguments.path):
            raise
        # what it holds can be said on a machine that cannot run it
        return {"path": arguments.path, "kind": "artifact", "note": str(error),
                **stored(load_artifact(arguments.path))}  # fmt: skip
    if session.model is not None and not wanted and (arguments.shape or arguments.value):
        raise ArgumentValueError(
            "--shape and --value say for what to compile; add the device: --device llvm-cpu"
        )
    compiled = session.model is None or wanted is not None
    if session.model is not None and compiled:
        session.prepare(*read_signature(session.inputs, arguments))
    return _describe(session, arguments.path, compiled)


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
        found["outputs"] = _outputs(session.ready)
        found["code"] = _code(session.ready.module)
        if is_artifact(path):
            found |= stored(session.ready.artifact())
    if compiled:
        report = session.ready.report()
        found["device"] = session.device_name
        found["devices"] = [where.name for where in session.ready.devices]
        found["compiled_for"] = session.ready.compiled_for
        found["nodes"] = [{"node": r.node, "device": r.device, "kernel": r.step} for r in report]
        found["copies"] = [asdict(copy) for copy in report.copies]
    return found


def _code(module: Module | None) -> dict[str, Any] | None:
    """A module of compiled code and what it imports."""
    if module is None:
        return None
    return {
        "name": module.name,
        "kind": module.kind,
        "abis": _abis(module),
        "compiled_by": module.generation,
        "functions": [_title(module, name) for name in module.functions],
        "imports": [_code(imported) for imported in module.imports],
    }


def _title(module: Module, name: str) -> str:
    known = module.signature(name) if isinstance(module, NativeModule) else None
    return name if known is None else f"{name}({known})"


def _abis(module: Module) -> list[str]:
    """The ABIs its functions can be called by; packhorse's own libraries have both."""
    also = isinstance(module, NativeModule) and any(
        symbol.startswith("__tvm_ffi_ph_") for symbol in module.library.symbols()
    )
    return [*([module.abi] if module.abi else []), *(["ffi"] if also else [])]


def _types(types: Mapping[str, TensorType]) -> list[dict[str, Any]]:
    return [
        {"name": name, "dtype": t.dtype.name, "shape": None if t.shape is None else list(t.shape)}
        for name, t in types.items()
    ]


def _outputs(executable: Executable) -> list[dict[str, Any]]:
    """As :func:`_types`; what an artifact does not say (Relax) is null, dtype included."""
    rows = _types(executable.outputs)
    return [row if row["shape"] is not None else {**row, "dtype": None} for row in rows]


def _parameters(graph: Graph) -> tuple[int, int]:
    """Numbers and bytes of constants, bodies of control flow included."""
    bodies = [body for node in walk(graph) for body in subgraphs(node)]
    arrays = [array for g in (graph, *bodies) for array in g.constants.values()]
    return sum(a.size for a in arrays), sum(a.nbytes for a in arrays)


def _print(found: Mapping[str, Any], every: bool) -> None:
    print(f"{found['kind']} {found['path']}")
    if "note" in found:
        print(f"\n{found['note']}")
    for title in ("inputs", "outputs"):
        if title in found:
            print_section(title)
            rows = [
                (f"  {v['name']}", v["dtype"] or "known after a run", _shape(v))
                for v in found[title]
            ]
            print_table(("", "", ""), rows or [("  none", "", "")])
    if "operators" in found:
        count = sum(found["operators"].values())
        size = bytes_text(found["parameter_bytes"])
        print_section(f"{found['parameters']:,} parameters, {size}")
        print_section(f"{count} operators")
        names = [(f"  {name}", str(n)) for name, n in found["operators"].items()]
        print_table(("", ""), names)
    if "targets" in found:
        print_stored(found)
    if found.get("code"):
        print_section("code")
        _print_code(found["code"], every or found["kind"] == "library", "  ")
    if "nodes" in found:
        _print_placement(found, every)


def _print_code(code: Mapping[str, Any], every: bool, indent: str) -> None:
    print(f"{indent}{code['name']} ({code['kind']})")
    indent += "  "
    if code["abis"]:
        abis = " and ".join(code["abis"])
        print(f"{indent}{abis} ABI, compiled by {code['compiled_by'] or 'unknown'}")
    if code["functions"]:
        print(f"{indent}{len(code['functions'])} functions")
    for title in code["functions"] if every else ():
        print(f"{indent}  {title}")
    for imported in code["imports"]:
        _print_code(imported, every, indent)


def _shape(value: Mapping[str, Any]) -> str:
    if value["shape"] is None:
        return "any shape" if value["dtype"] else ""
    return f"({', '.join(map(str, value['shape']))})"


def _print_placement(found: Mapping[str, Any], every: bool) -> None:
    nodes = found["nodes"]
    made = found["compiled_for"] or ("" if found["kind"] == "artifact" else found["device"])
    print_section(f"where it runs{f' (compiled for {made})' if made else ''}")
    for place, count in Counter(node["device"] for node in nodes).items():
        kernels = len({node["kernel"] for node in nodes if node["device"] == place})
        print(f"  {place}: {_count(count, 'node')} in {_count(kernels, 'step')}")
    # What runs elsewhere than asked for is always shown: visible, never silent.
    listed = [node for node in nodes if every or node["device"] not in found["devices"]]
    if listed:
        print()
        rows = [(f"  {node['node']}", node["device"], node["kernel"]) for node in listed]
        print_table(("  node", "device", "step"), rows)
    copies = found["copies"]
    if copies:
        total = bytes_text(sum(copy["nbytes"] for copy in copies))
        print_section(f"copied in each run ({total})")
        moves = [(f"  {c['what']}", f"{c['source']} -> {c['target']}", bytes_text(c["nbytes"]))
                 for c in copies]  # fmt: skip
        print_table(("  value", "", ""), moves)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
