"""Bounds-checked reading of what TVM 0.22 - 0.27 stores in a library, little endian."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from packhorse.errors import ArtifactError

__all__ = ["BLOB", "Reader", "find_executable"]

BLOB = "__tvm_ffi__library_bin"
"""The symbol with the modules of a library."""
KIND = "relax.VMExecutable"


class Reader:
    """Bounds-checked access; errors carry the offset."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.offset = data, 0

    def fail(self, offset: int, found: str) -> ArtifactError:
        return ArtifactError(
            f"the Relax executable is truncated or damaged at offset {offset}: {found}. Export "
            "the library again"
        )

    def take(self, size: int, what: str) -> memoryview:
        left = len(self.data) - self.offset
        if not 0 <= size <= left:
            raise self.fail(self.offset, f"{what} needs {size} bytes, {left} are left")
        self.offset += size
        return self.data[self.offset - size : self.offset]

    def number(self, form: str, what: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form), what))[0]

    def count(self, each: int, what: str) -> int:
        """A count of items of at least ``each`` bytes, which must fit into what is left."""
        offset, count = self.offset, self.number("Q", what)
        left = len(self.data) - self.offset
        if count * each > left:
            raise self.fail(offset, f"{count} {what} cannot lie in the {left} bytes left")
        return int(count)

    def text(self, what: str) -> str:
        offset = self.offset
        raw = self.take(self.count(1, f"bytes of {what}"), what)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            raise self.fail(offset, f"{what} is not UTF-8") from None

    def words(self, what: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        raw = self.take(8 * self.count(8, what), what)
        return np.frombuffer(raw, "<i8")


def find_executable(blob: bytes | memoryview) -> memoryview:
    """The bytes of the Relax executable among the modules of ``__tvm_ffi__library_bin``.

    The layout is ``u64 bytes | vec<u64> indptr | vec<u64> children`` and per module its kind and,
    unless that is ``_lib``, ``u64 bytes`` with them (TVM 0.22 - 0.27, ffi/src/ffi/extra).

    Raises
    ------
    ArtifactError
        There is none, or the blob is truncated or damaged; the message has the offset.
    """
    reader = Reader(memoryview(blob).cast("B"))
    size = reader.number("Q", "the size of the library's modules")
    reader.take(size, "the library's modules")
    reader.data, reader.offset = reader.data[: 8 + size], 8
    modules = max(0, len(reader.words("offsets of the import tree")) - 1)
    reader.words("the import tree")
    kinds = []
    for _ in range(modules):
        kinds.append(reader.text("the kind of a module"))
        if kinds[-1] == "_lib":
            continue
        data = reader.take(reader.count(1, f"bytes of module '{kinds[-1]:.80}'"), "a module")
        if kinds[-1] == KIND:
            return data
    raise ArtifactError(
        f"the library holds no Relax executable; its modules are {', '.join(kinds) or 'none'}"
    )
