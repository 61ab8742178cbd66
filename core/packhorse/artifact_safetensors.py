"""The safetensors format: a JSON header and raw little-endian arrays, made to be mapped.

::

    u64 length of the header, header {name: {dtype, shape, data_offsets}}, data without gaps

Arrays of dtypes the format lacks are stored as bytes (U8, one more dimension), their dtype's
name under ``__metadata__``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from packhorse.dtype import dtype, dtype_name
from packhorse.errors import ArgumentTypeError, ArtifactError
from packhorse.graph import _json as js
from packhorse.graph.params import Array, raw_bytes, view_array
from packhorse.graph.program import MAX_RANK

__all__ = ["load_safetensors", "safetensors_chunks"]

_ALIGNMENT = 64
_CODES: Mapping[str, str] = {
    "bool": "BOOL",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}
_NAMES = {code: name for name, code in _CODES.items()}
_OTHER = "packhorse.dtype."


def safetensors_chunks(params: Mapping[str, Array]) -> list[bytes | memoryview]:
    """The file in pieces; arrays are not copied where they are contiguous.

    Arrays whose length is a multiple of 64 bytes come first, so all of those begin on a 64-byte
    boundary of the file (the format allows no gaps): weights can be used where they are mapped.

    Raises
    ------
    ArgumentTypeError
        An array of objects, strings or another dtype that is not data.
    """
    header: dict[str, Any] = {}
    others: dict[str, str] = {}
    chunks: list[bytes | memoryview] = []
    offset = 0
    for name in sorted(params, key=lambda n: params[n].nbytes % _ALIGNMENT != 0):
        array = params[name]
        code, shape = _code(name, array, others)
        end = offset + array.nbytes
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, end]}
        chunks.append(raw_bytes(array))
        offset = end
    if others:
        header = {"__metadata__": others, **header}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return [len(text).to_bytes(8, "little") + text, *chunks]


def _code(name: str, array: Array, others: dict[str, str]) -> tuple[str, list[int]]:
    try:
        word = dtype_name(array.dtype)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"param '{name}': {error}") from None
    if word in _CODES:
        return _CODES[word], list(array.shape)
    others[_OTHER + name] = word
    return "U8", [*array.shape, array.itemsize]


def load_safetensors(source: memoryview, what: str = "safetensors") -> dict[str, Array]:
    """Read a safetensors file.

    Returns
    -------
    dict
        Read-only views into ``source``, which they keep alive.

    Raises
    ------
    ArtifactError
        Damaged, truncated or not this format. Lengths are compared with the file's before
        anything is allocated.
    MissingExtra
        The file holds bfloat16 or narrower types and ml_dtypes is not installed.
    """
    source = source.cast("B")
    size = int.from_bytes(source[:8], "little") if len(source) >= 8 else -1
    if not 0 <= size <= min(len(source) - 8, js.MAX_TEXT):
        raise ArtifactError(
            f"{what}: the header at offset 0 claims {size} bytes, {len(source)} are in the file; "
            "it is damaged or truncated"
        )
    header = js.parse(bytes(source[8 : 8 + size]), f"the header of {what}")
    data = source[8 + size :]
    others = js.mapping(header.pop("__metadata__", {}), f"__metadata__ of {what}")
    params, used = {}, []
    for name, value in header.items():
        where = f"'{js.text(name, f'a name in {what}'):.80}' in {what}"
        found = js.mapping(value, where)
        start, end = _span(found, where, len(data))
        used.append((start, end))
        kind, shape = _type(found, where, others.get(_OTHER + name))
        if end - start != math.prod(shape) * kind.itemsize:
            raise ArtifactError(f"{where} has {end - start} bytes for {kind}{shape}")
        params[name] = view_array(data[start:end], kind, shape)
    _check_cover(sorted(used), len(data), what)
    return params


def _span(found: dict[str, Any], where: str, limit: int) -> tuple[int, int]:
    offsets = js.integers(found.get("data_offsets"), f"data_offsets of {where}", 0, limit + 1)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ArtifactError(f"data_offsets of {where} must be [begin, end], found {offsets!s:.80}")
    return offsets[0], offsets[1]


def _type(found: dict[str, Any], where: str, other: Any) -> tuple[np.dtype[Any], list[int]]:
    code = js.text(found.get("dtype"), f"dtype of {where}")
    shape = js.integers(found.get("shape"), f"shape of {where}", 0, 1 << 48)
    if len(shape) > MAX_RANK:
        raise ArtifactError(f"{where} has {len(shape)} dimensions, at most {MAX_RANK} are possible")
    if code not in _NAMES:
        raise ArtifactError(f"{where} has the unknown dtype '{code:.40}'; update packhorse")
    if other is None:
        return dtype(_NAMES[code]), shape
    try:
        kind = dtype(js.text(other, f"dtype of {where}"))
    except ArgumentTypeError as error:
        raise ArtifactError(f"{where}: {error}") from None
    if code != "U8" or shape[-1:] != [kind.itemsize]:
        raise ArtifactError(f"{where} is {kind} but stored as {code}{shape}; it is damaged")
    return kind, shape[:-1]


def _check_cover(spans: list[tuple[int, int]], size: int, what: str) -> None:
    position = 0
    for start, end in spans:
        if start != position:
            raise ArtifactError(f"arrays of {what} overlap or leave a gap at offset {position}")
        position = end
    if position != size:
        raise ArtifactError(
            f"{what} holds {size} bytes of data, its arrays take {position}; it is damaged"
        )
