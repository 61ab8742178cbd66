"""Reads the protobuf wire format without copying: the weights of a model stay where they are.

ONNX files are one ``ModelProto``. :func:`split` walks it once and takes the big tensors out, so
that the passes of the onnx package see a skeleton of some kilobytes instead of the whole model (and
the 2 GiB limit of protobuf does not apply). What was taken out is a memoryview of the file.

Field numbers are those of ``onnx.proto``. Every length is checked against the bytes that are there
before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from packhorse.errors import ModelFormatError

__all__ = ["KEEP_BYTES", "Field", "Split", "fields", "integers", "split"]

KEEP_BYTES = 2048
"""Tensors up to this size stay in the skeleton: shapes, axes and scales that inference reads."""

Bytes: TypeAlias = "memoryview[int]"

MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT = 1, 5, 11
NODE_OUTPUT, NODE_OP, NODE_ATTRIBUTE, NODE_DOMAIN = 2, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_TENSOR = 1, 5
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_EXTERNAL = 1, 2, 8, 13


class Field(NamedTuple):
    """One field: its number, its value (ints) or payload (views), and where it stands."""

    number: int
    value: int
    payload: Bytes | None
    start: int
    end: int


def _varint(data: Bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            break
    raise ModelFormatError(
        f"not a valid ONNX file: a number at byte {at} does not end. "
        "The file is truncated or damaged; fetch or export it again"
    )


def fields(data: Bytes) -> Iterator[Field]:
    """The fields of one message.

    Raises
    ------
    ModelFormatError
        A length reaches beyond the data, or the wire type does not exist.
    """
    at, limit = 0, len(data)
    while at < limit:
        start = at
        key, at = _varint(data, at, limit)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at, limit)
            yield Field(number, value, None, start, at)
            continue
        if kind == 2:
            size, at = _varint(data, at, limit)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ModelFormatError(
                f"not a valid ONNX file: wire type {kind} at byte {start}. "
                "The file is damaged or of another format"
            )
        if size > limit - at or number == 0:
            raise ModelFormatError(
                f"not a valid ONNX file: field {number} announces {size} bytes, {limit - at} are "
                "there. The file is truncated or damaged; fetch or export it again"
            )
        yield Field(number, 0, data[at : at + size], start, at + size)
        at += size


def integers(found: Field) -> list[int]:
    """A repeated int64: packed (one payload) or one value per field."""
    if found.payload is None:
        return [_signed(found.value)]
    values, at = [], 0
    while at < len(found.payload):
        value, at = _varint(found.payload, at, len(found.payload))
        values.append(_signed(value))
    return values


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _text(payload: Bytes | None) -> str:
    return "" if payload is None else bytes(payload).decode("utf-8", "replace")


@dataclass
class Split:
    """A model in two parts.

    Attributes
    ----------
    skeleton : bytes
        The ModelProto; tensors taken out appear as graph inputs of the same type.
    tensors : dict of str to memoryview
        The TensorProto of each tensor taken out, by name of the value.
    """

    skeleton: bytes
    tensors: dict[str, Bytes] = field(default_factory=dict)


def split(data: Bytes) -> Split:
    """Take the big initializers and Constant nodes of the main graph out of a model.

    Raises
    ------
    ModelFormatError
        The bytes are not a well-formed message.
    """
    result = Split(b"")
    graph: list[bytes] = []
    head: list[bytes] = []
    inputs: set[str] = set()
    for found in fields(data):
        if found.number == MODEL_GRAPH and found.payload is not None:
            graph.append(_split_graph(found.payload, result.tensors, inputs))
        else:
            head.append(bytes(data[found.start : found.end]))
    if not graph:
        raise ModelFormatError(
            "not an ONNX model: it holds no graph. If it is a model of another format, name it: "
            "load(path, format=...)"
        )
    for name, tensor in result.tensors.items():
        if name not in inputs:
            graph.append(_emit(GRAPH_INPUT, _value_info(name, tensor)))
    result.skeleton = b"".join(head) + _emit(MODEL_GRAPH, b"".join(graph))
    return result


def _split_graph(graph: Bytes, tensors: dict[str, Bytes], inputs: set[str]) -> bytes:
    kept: list[bytes] = []
    for found in fields(graph):
        payload = found.payload
        if payload is not None:
            moved: tuple[str, Bytes] | None = None
            if found.number == GRAPH_INITIALIZER:
                moved = _big_initializer(payload)
            elif found.number == GRAPH_NODE and len(payload) > KEEP_BYTES:
                moved = _big_constant(payload)
            elif found.number == GRAPH_INPUT:
                inputs.update(_text(f.payload) for f in fields(payload) if f.number == 1)
            if moved is not None and moved[0] and moved[0] not in tensors:
                tensors[moved[0]] = moved[1]
                continue
        kept.append(bytes(graph[found.start : found.end]))
    return b"".join(kept)


def _big_initializer(tensor: Bytes) -> tuple[str, Bytes] | None:
    name, external = "", False
    for found in fields(tensor):
        if found.number == TENSOR_NAME:
            name = _text(found.payload)
        external |= found.number == TENSOR_EXTERNAL
    return (name, tensor) if external or len(tensor) > KEEP_BYTES else None


def _big_constant(node: Bytes) -> tuple[str, Bytes] | None:
    """Name and tensor of a Constant node with a tensor value, else None."""
    op = output = domain = ""
    tensor: Bytes | None = None
    for found in fields(node):
        if found.number == NODE_OP:
            op = _text(found.payload)
            if op != "Constant":
                return None
        elif found.number == NODE_OUTPUT:
            output = _text(found.payload)
        elif found.number == NODE_DOMAIN:
            domain = _text(found.payload)
        elif found.number == NODE_ATTRIBUTE and found.payload is not None:
            parts = {f.number: f.payload for f in fields(found.payload)}
            if _text(parts.get(ATTRIBUTE_NAME)) == "value":
                tensor = parts.get(ATTRIBUTE_TENSOR)
    if op != "Constant" or domain not in ("", "ai.onnx") or tensor is None:
        return None
    return output, tensor


def _value_info(name: str, tensor: Bytes) -> bytes:
    """ValueInfoProto of a tensor: inference needs its dtype and shape, not its values."""
    kind, dims = 0, []
    for found in fields(tensor):
        if found.number == TENSOR_TYPE:
            kind = found.value
        elif found.number == TENSOR_DIMS:
            dims += integers(found)
    shape = b"".join(_emit(1, b"\x08" + _encode(dim)) for dim in dims)
    typed = b"\x08" + _encode(kind) + _emit(2, shape)
    return _emit(1, name.encode()) + _emit(2, _emit(1, typed))


def _encode(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _emit(number: int, payload: bytes) -> bytes:
    return _encode(number << 3 | 2) + _encode(len(payload)) + payload
