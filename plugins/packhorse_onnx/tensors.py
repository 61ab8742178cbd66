"""TensorProto to NumPy: zero-copy where the bytes are raw, size-checked everywhere."""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from packhorse.errors import ModelFormatError
from packhorse_onnx import wire

__all__ = ["Weights", "map_file", "np_dtype"]

RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 9, 13, 14
_TYPED_DATA = {4: "<f4", 10: "<f8"}  # packed floats are plain memory; integers are varints
_PLAIN = frozenset("?bBhHiIlLqQefdFD")
COPY_BYTES = 64 << 10
"""Smaller tensors are copied: aligned, and they do not keep the file mapped."""
MAX_SPARSE_BYTES = 1 << 30


def np_dtype(kind: int, what: str) -> np.dtype[Any]:
    """NumPy dtype of ``TensorProto.DataType`` (ml_dtypes for bfloat16, float8 and int4).

    Raises
    ------
    ModelFormatError
        There is no such element type.
    """
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    except (KeyError, ValueError, TypeError):
        raise ModelFormatError(
            f"{what}: element type {kind} does not exist. The file is damaged, or newer than the "
            f"installed onnx {onnx.__version__}: pip install -U onnx"
        ) from None


def map_file(path: Path) -> memoryview[int]:
    """A read-only memory map of a file; empty files give an empty view."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class Weights:
    """Reads tensors; knows the folder that external data may come from."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.files: dict[str, memoryview[int]] = {}

    def read(self, tensor: memoryview[int], name: str) -> np.ndarray[Any, Any]:
        """The array of a serialised TensorProto.

        Raw data becomes a read-only view of ``tensor`` (or of the external file), except small
        tensors, which are copied.

        Raises
        ------
        ModelFormatError
            The declared shape does not fit the data, or external data is not there.
        """
        dims: list[int] = []
        kind, external, payload = 0, False, 0
        raw: memoryview[int] | None = None
        packed: dict[int, memoryview[int]] = {}
        for found in wire.fields(tensor):
            if found.number == wire.TENSOR_DIMS:
                dims += wire.integers(found)
            elif found.number == wire.TENSOR_TYPE:
                kind = found.value
            elif found.number == RAW_DATA:
                raw = found.payload
            elif found.number == DATA_LOCATION:
                external = found.value == TensorProto.EXTERNAL
            elif found.payload is not None and found.number in _TYPED_DATA:
                packed[found.number] = found.payload
            if found.number in (4, 5, 6, 7, 10, 11):
                payload += found.end - found.start
        what = f"tensor '{name}'"
        dtype = np_dtype(kind, what)
        count = _count(dims, what)
        if external:
            raw = self._external(tensor, what)
        if raw is not None and dtype.kind != "O":
            if dtype.char in _PLAIN:
                return _view(raw, dtype, dims, count, what)
            payload = len(raw)
        for number, code in _TYPED_DATA.items():
            run = packed.get(number, b"")
            # One packed run is the usual case; several runs go the slow way below.
            if dtype == np.dtype(code) and len(run) == count * dtype.itemsize:
                return _view(memoryview(run), dtype, dims, count, what)
        return _slow(tensor, raw if external else None, dims, count, payload, what)

    def _external(self, tensor: memoryview[int], what: str) -> memoryview[int]:
        entries = {}
        for found in wire.fields(tensor):
            if found.number == EXTERNAL_DATA and found.payload is not None:
                parts = {f.number: bytes(f.payload or b"") for f in wire.fields(found.payload)}
                entries[parts.get(1, b"")] = parts.get(2, b"").decode("utf-8", "replace")
        location = entries.get(b"location", "")
        data = self._file(location, what)
        try:
            offset = int(entries.get(b"offset", "0"))
            length = int(entries.get(b"length", str(len(data) - offset)))
        except ValueError:
            raise ModelFormatError(
                f"{what}: offset or length of its external data is not a number: {entries}"
            ) from None
        if offset < 0 or length < 0 or offset + length > len(data):
            raise ModelFormatError(
                f"{what}: external data at {offset}, {length} bytes, lies beyond the end of "
                f"'{location}' ({len(data)} bytes). The file is truncated; copy it again"
            )
        return data[offset : offset + length]

    def _file(self, location: str, what: str) -> memoryview[int]:
        if location in self.files:
            return self.files[location]
        if self.folder is None:
            raise ModelFormatError(
                f"{what} keeps its data in the file '{location}', but the model was given as "
                "bytes. Load it from its path, or pass folder=..."
            )
        root = self.folder.resolve()
        path = (root / location).resolve() if location and "\0" not in location else root
        if Path(location).is_absolute() or not path.is_relative_to(root) or path == root:
            raise ModelFormatError(
                f"{what}: external data '{location}' is not inside the model's folder; "
                "refused, because a model must not read other files"
            )
        if not path.is_file():
            raise ModelFormatError(
                f"{what}: its data file '{location}' is missing. Copy it into the folder of the "
                "model, under that name"
            )
        self.files[location] = map_file(path)
        return self.files[location]

    def sparse(self, proto: onnx.SparseTensorProto, name: str) -> np.ndarray[Any, Any]:
        """Dense array of a SparseTensorProto (at most 1 GiB)."""
        what = f"sparse tensor '{name}'"
        values = self.read(memoryview(proto.values.SerializeToString()), name)
        indices = self.read(memoryview(proto.indices.SerializeToString()), name)
        dims = list(proto.dims)
        if _count(dims, what) * values.dtype.itemsize > MAX_SPARSE_BYTES:
            raise ModelFormatError(f"{what} of shape {dims} is larger than 1 GiB when made dense")
        dense = np.zeros(dims, values.dtype)
        try:
            if indices.ndim == 2:
                indices = np.ravel_multi_index(tuple(indices.T), dims)
            dense.reshape(-1)[indices] = values
        except (ValueError, IndexError) as error:
            raise ModelFormatError(f"{what}: its indices do not fit {dims}: {error}") from None
        return dense


def _count(dims: list[int], what: str) -> int:
    if any(dim < 0 for dim in dims) or len(dims) > 64:
        raise ModelFormatError(f"{what}: shape {dims[:8]} is not a shape. The file is damaged")
    return math.prod(dims)


def _view(
    raw: memoryview[int], dtype: np.dtype[Any], dims: list[int], count: int, what: str
) -> np.ndarray[Any, Any]:
    if len(raw) != count * dtype.itemsize:
        raise ModelFormatError(
            f"{what}: {dtype}{dims} takes {count * dtype.itemsize} bytes, {len(raw)} are there. "
            "The file is truncated or damaged"
        )
    _check_dims(dims, what)
    array = np.frombuffer(raw, dtype.newbyteorder("<")).reshape(dims)
    array = array.astype(dtype, copy=len(raw) <= COPY_BYTES)
    array.flags.writeable = False
    return array


def _check_dims(dims: list[int], what: str) -> None:
    # (0, 2**62) holds no elements, yet NumPy cannot represent its strides
    if any(dim >= 1 << 48 for dim in dims):
        raise ModelFormatError(f"{what}: shape {dims[:8]} is not a shape. The file is damaged")


def _slow(
    tensor: memoryview[int],
    external: memoryview[int] | None,
    dims: list[int],
    count: int,
    payload: int,
    what: str,
) -> np.ndarray[Any, Any]:
    """Strings, 4-bit and 8-bit floats, and integers stored as varints, by the onnx package."""
    if count > 4 * payload:  # no encoding packs more than four elements into a byte
        raise ModelFormatError(
            f"{what}: shape {dims} asks for {count} elements, {payload} bytes of data are there. "
            "The file is truncated or damaged"
        )
    _check_dims(dims, what)
    try:
        proto = TensorProto.FromString(bytes(tensor))
        if external is not None:
            proto.raw_data = bytes(external)
            proto.data_location = TensorProto.DEFAULT
            del proto.external_data[:]
        array = numpy_helper.to_array(proto)
    except Exception as error:
        raise ModelFormatError(f"{what} of shape {dims} cannot be read: {error}") from None
    array = np.asarray(array)
    if array.shape != tuple(dims):
        raise ModelFormatError(f"{what}: shape {dims} declared, {array.shape} found")
    array.flags.writeable = False
    return array
