"""TVM's params format: named arrays in one stream, as ``deploy.params`` holds them.

::

    u64 magic, u64 0, u64 n, n * (u64 length, name), u64 n, n * NDArray
    NDArray = u64 magic, u64 0, i32 device_type, i32 device_id, i32 ndim,
              u8 code, u8 bits, u16 lanes, i64 shape[ndim], i64 nbytes, data

all little-endian. Written by every TVM up to 0.19 (``relay.save_param_dict``) and read by it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from packhorse.dtype import dtype_name, from_dlpack_code, legacy_code
from packhorse.errors import ArgumentTypeError, ArtifactError
from packhorse.graph.program import MAX_RANK

__all__ = ["load_params", "param_names", "params_chunks", "raw_bytes", "save_params", "view_array"]

Array: TypeAlias = np.ndarray[Any, Any]

MAGIC = 0xF7E58D4F05049CB7
ARRAY_MAGIC = 0xDD5E40F096B4A13F
_CPU = 1
_HEAD = struct.Struct("<QQiiiBBH")
_SMALLEST_ARRAY = _HEAD.size + 8


def params_chunks(params: Mapping[str, Array]) -> Iterator[bytes | memoryview]:
    """The stream in pieces, so that weights are written without a copy of all of them.

    Raises
    ------
    ArgumentTypeError
        An array of a dtype that the format lacks.
    """
    names = [name.encode() for name in params]
    count = struct.pack("<Q", len(names))
    yield struct.pack("<QQ", MAGIC, 0) + count
    yield b"".join(struct.pack("<Q", len(name)) + name for name in names) + count
    for name, array in params.items():
        yield _array_head(name, array)
        yield raw_bytes(array)


def save_params(params: Mapping[str, Array]) -> bytes:
    """The stream as one bytes object. Raises as :func:`params_chunks`."""
    return b"".join(params_chunks(params))


def _array_head(name: str, array: Array) -> bytes:
    try:
        code, bits, lanes = legacy_code(array.dtype)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"param '{name}': {error}") from None
    head = _HEAD.pack(ARRAY_MAGIC, 0, _CPU, 0, array.ndim, code, bits, lanes)
    return head + struct.pack(f"<{array.ndim + 1}q", *array.shape, array.nbytes)


def raw_bytes(array: Array) -> memoryview:
    """The elements in row-major order, without a copy where the array is contiguous.

    Little-endian on disk: the machines packhorse runs on are; another would have to swap here.
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).data


def load_params(source: bytes | memoryview) -> dict[str, Array]:
    """Read a params stream.

    Parameters
    ----------
    source : bytes or memoryview
        Content of the file; give ``memoryview(mmap)`` to read weights when they are used.

    Returns
    -------
    dict
        Read-only views into ``source`` (they keep it alive), which need not be aligned.

    Raises
    ------
    ArtifactError
        Damaged, truncated, or not this format; says at which offset. Lengths and counts are
        compared with what is left of the stream before anything is allocated.
    MissingExtra
        The file holds bfloat16 or narrower floats and ml_dtypes is not installed.
    """
    reader = _Reader(memoryview(source).cast("B"))
    names = reader.names(_SMALLEST_ARRAY)
    start = reader.offset
    if reader.count("number of arrays", _SMALLEST_ARRAY) != len(names):
        raise ArtifactError(
            f"params have {len(names)} names but another number of arrays at {start}"
        )
    params = {name: reader.array(name) for name in names}
    if reader.offset != len(reader.data):
        raise ArtifactError(
            f"params end at offset {reader.offset}, but the file has {len(reader.data)} bytes"
        )
    return params


def param_names(source: bytes | memoryview) -> list[str]:
    """The names at the start of a params stream; what follows them may be missing.

    Raises ArtifactError as :func:`load_params`.
    """
    return _Reader(memoryview(source).cast("B")).names()


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data, self.offset = data, 0

    def take(self, size: int, what: str) -> memoryview:
        left = len(self.data) - self.offset
        if not 0 <= size <= left:
            raise ArtifactError(
                f"params are truncated or damaged at offset {self.offset}: {what} needs {size} "
                f"bytes, {left} are left"
            )
        self.offset += size
        return self.data[self.offset - size : self.offset]

    def word(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def count(self, what: str, each: int) -> int:
        """A count of items of at least ``each`` bytes, which must fit into what is left."""
        offset, count = self.offset, self.word(what)
        if count * each > len(self.data) - self.offset:
            raise ArtifactError(
                f"params are damaged at offset {offset}: {what} is {count}, more than fits into "
                f"the {len(self.data) - self.offset} bytes left"
            )
        return count

    def names(self, more: int = 0) -> list[str]:
        """Everything before the arrays; ``more`` bytes at least must follow later for each."""
        if self.word("magic number") != MAGIC:
            raise ArtifactError("these are not TVM params: the magic number at offset 0 is wrong")
        self.word("reserved word")
        count = self.count("number of names", 8 + more)
        names = [self.name(i) for i in range(count)]
        if len(set(names)) < count:
            raise ArtifactError("params hold two arrays of the same name; the file is damaged")
        return names

    def name(self, i: int) -> str:
        offset = self.offset
        raw = self.take(self.word(f"length of name {i}"), f"name {i}")
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            raise ArtifactError(f"name {i} of params at offset {offset} is not UTF-8") from None

    def array(self, name: str) -> Array:
        offset = self.offset
        where = f"param '{name:.80}' at offset {offset}"
        fields = _HEAD.unpack(self.take(_HEAD.size, where))
        magic, _, device, _, rank, code, bits, lanes = fields
        if magic != ARRAY_MAGIC or device != _CPU or not 0 <= rank <= MAX_RANK:
            raise ArtifactError(
                f"{where} is damaged: expected magic {ARRAY_MAGIC:#x}, device type {_CPU} and at "
                f"most {MAX_RANK} dimensions, found {magic:#x}, {device} and {rank}"
            )
        raw = self.take(8 * (rank + 1), where)
        *shape, nbytes = struct.unpack(f"<{rank + 1}q", raw)
        try:
            dtype = from_dlpack_code(code, bits, lanes)
        except ArgumentTypeError as error:
            raise ArtifactError(f"{where}: {error}") from None
        if any(d < 0 for d in shape) or nbytes != math.prod(shape) * dtype.itemsize:
            raise ArtifactError(
                f"{where} is damaged: {nbytes} bytes for {dtype_name(dtype)}{shape}"
            )
        return view_array(self.take(nbytes, where), dtype, shape)


def view_array(data: memoryview, dtype: np.dtype[Any], shape: list[int]) -> Array:
    """Bytes as a read-only array, in one step: files may hold many small ones."""
    if not data.nbytes:
        return _freeze(np.empty(0, dtype).reshape(_empty_shape(shape)))
    return _freeze(np.ndarray(shape, dtype, data))


def _empty_shape(shape: list[int]) -> list[int]:
    # NumPy multiplies the non-zero extents and refuses an overflow even in an empty array.
    if math.prod(d for d in shape if d) >= 1 << 62:
        raise ArtifactError(f"an empty array has the impossible shape {shape}")
    return shape


def _freeze(array: Array) -> Array:
    array.flags.writeable = False
    return array
