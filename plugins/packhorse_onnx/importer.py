"""ONNX models to graphs: split, convert, expand, infer, read, fold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from packhorse import ops
from packhorse.compiler.fold import fold_constants
from packhorse.compiler.simplify import fold_norms
from packhorse.errors import (
    MissingExtra,
    ModelError,
    ModelFormatError,
    UnsupportedOperator,
    did_you_mean,
)
from packhorse.graph.ir import OPSET, Graph, Node, walk
from packhorse_onnx import wire
from packhorse_onnx.convert import has_schema, infer_types, to_opset
from packhorse_onnx.functions import expand_local, expand_schema
from packhorse_onnx.reader import GraphReader
from packhorse_onnx.sequences import take_apart
from packhorse_onnx.tensors import Weights, map_file

__all__ = ["import_onnx"]

MAX_ROUNDS = 16
CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})

_OTHER_FORMATS = (
    (0, b"\x89HDF", "an HDF5 file (Keras .h5?)"),
    (0, b"PK\x03\x04", "a zip archive (.keras, .npz or a PyTorch file?)"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself: run 'git lfs pull'"),
    (0, b"\x7fELF", "a shared library: use packhorse.load_module"),
    (0, b"\x80\x02", "a Python pickle"),
    (0, b"{", "a JSON file"),
)


def import_onnx(
    source: str | os.PathLike[str] | bytes | ModelProto,
    *,
    folder: str | os.PathLike[str] | None = None,
    strict: bool = True,
) -> Graph:
    """Read an ONNX model (opset 1 to the newest the installed onnx knows) as a graph of opset 21.

    Parameters
    ----------
    source : path, bytes or onnx.ModelProto
        Weights of a file stay in the file: constants are read-only views of a memory map.
    folder : path, optional
        Where external data files lie; the model's own folder for a path.
    strict : bool
        Refuse models with operators nothing can run. False keeps such nodes (for inspection).

    Raises
    ------
    ModelFormatError
        Missing, empty, truncated or damaged file; not an ONNX file; external data missing,
        truncated, or outside the folder.
    UnsupportedOperator
        Names the node and the operator that nothing can run, or that cannot be converted.
    """
    data, home = _read(source)
    try:
        graph = _import(data, Path(folder) if folder is not None else home)
    except (ModelError, MissingExtra):
        raise
    except Exception as error:  # names that are not UTF-8, numbers no field may hold, ...
        raise ModelFormatError(
            f"the model cannot be read: {type(error).__name__}: {error}. The file is damaged; if "
            "onnx.checker.check_model accepts it, please report this"
        ) from error
    if strict:
        _refuse_unknown(graph)
    return fold_norms(fold_constants(graph))


def _import(data: memoryview[int], folder: Path | None) -> Graph:
    parts = wire.split(data)
    model = ModelProto.FromString(parts.skeleton)
    expand_local(model)
    model, types = infer_types(to_opset(model))
    for _ in range(MAX_ROUNDS):
        if not expand_schema(model, _known, types):
            break
        model, types = infer_types(model)
    graph = GraphReader(Weights(folder), parts.tensors, types).main(model.graph)
    graph.metadata = _metadata(model)
    return take_apart(graph)


def _read(source: Any) -> tuple[memoryview[int], Path | None]:
    if isinstance(source, ModelProto):
        try:
            return memoryview(source.SerializeToString()), None
        except Exception as error:
            raise ModelFormatError(
                f"the model cannot be serialised: {error}. Save it with external data and load "
                "the file"
            ) from None
    if isinstance(source, (bytes, bytearray, memoryview)):
        data, home, name = memoryview(source).cast("B"), None, "the model"
    else:
        path = Path(source)
        name = f"'{path}'"
        if not path.exists():
            raise ModelFormatError(f"{name} does not exist")
        if not path.is_file():
            raise ModelFormatError(f"{name} is a directory, not an ONNX file: name the .onnx in it")
        try:
            data, home = map_file(path), path.parent
        except OSError as error:
            raise ModelFormatError(f"{name} cannot be read: {error.strerror}") from None
    _refuse_other_formats(data, name)
    return data, home


def _refuse_other_formats(data: memoryview[int], name: str) -> None:
    if not len(data):
        raise ModelFormatError(f"{name} is empty")
    head = bytes(data[:64])
    for at, magic, what in _OTHER_FORMATS:
        if head[at:].startswith(magic):
            raise ModelFormatError(f"{name} is not an ONNX model but {what}")
    # A ModelProto starts with a field key below 32 or so; prose does not
    if all(9 <= byte < 127 for byte in head) and head[0] >= 32:
        raise ModelFormatError(f"{name} is not an ONNX model but text: {head[:32].decode()!r}...")


def _known(domain: str, op: str) -> bool:
    builtin = not domain and (op in CONTROL_FLOW or op == "Constant")
    return builtin or ops.find(Node(op, [], [""], domain=domain)) is not None


def _metadata(model: ModelProto) -> dict[str, str]:
    found = {p.key: p.value for p in model.metadata_props}
    producer = f"{model.producer_name} {model.producer_version}".strip()
    return {"producer": producer, **found} if producer else found


def _refuse_new_attributes(node: Node) -> None:
    """Attributes that opsets after 21 added change what is computed; none may be ignored."""
    operator = ops.find(node)
    if node.domain or operator is None or operator.keywords.issuperset(node.attrs):
        return
    if not (onnx.defs.has(node.op) and has_schema(node.op, OPSET)):
        return
    newest, ours = (onnx.defs.get_schema(node.op), onnx.defs.get_schema(node.op, OPSET))
    for name, value in node.attrs.items():
        if name in operator.keywords or name in ours.attributes or name not in newest.attributes:
            continue
        default = onnx.helper.get_attribute_value(newest.attributes[name].default_value)
        default = default.decode() if isinstance(default, bytes) else default
        if value != default:
            raise UnsupportedOperator(
                f"node {node.label}: attribute {name}={value!r} came after opset {OPSET} and is "
                f"not implemented; only {default!r} is"
            )


def _refuse_unknown(graph: Graph) -> None:
    unknown: dict[str, Node] = {}
    for node in walk(graph):
        _refuse_new_attributes(node)
        if not _known(node.domain, node.op):
            unknown.setdefault(f"{node.domain}::{node.op}" if node.domain else node.op, node)
    if unknown:
        listed = ", ".join(f"{op} (node '{node.name}')" for op, node in list(unknown.items())[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        hint = did_you_mean(next(iter(unknown)), ops.names())
        raise UnsupportedOperator(
            f"the model uses operators that packhorse does not implement: {listed}{more}{hint}. "
            f"onnx {onnx.__version__} gives no function body for them either"
        )
