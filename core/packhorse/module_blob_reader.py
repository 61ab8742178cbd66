"""Reading dmlc streams: integers little-endian, strings, lists and maps counted by a u64."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np

from packhorse.dtype import from_dlpack_code
from packhorse.errors import ArgumentTypeError, ArtifactError

__all__ = ["SMALLEST_ARRAY", "Array", "BlobReader", "FunctionInfo", "type_bytes"]

Array: TypeAlias = np.ndarray[Any, Any]
T = TypeVar("T")

_WORD = struct.Struct("<Q")
_DTYPE = struct.Struct("<BBH")
_ARRAY_HEAD = struct.Struct("<QQiiiBBH")
SMALLEST_ARRAY = _ARRAY_HEAD.size + 8
"""Bytes of an array without elements."""
_ARRAY_MAGIC = 0xDD5E40F096B4A13F
_MAX_RANK = 32
_CPU = 1
_TYPE = re.compile(r"(?:type(\d{1,3})_|([a-z]+))(\d{0,3})(?:x(\d{1,4}))?")
_KINDS = {0: "int", 1: "uint", 2: "float", 3: "handle", 4: "bfloat", 5: "complex", 6: "bool"}


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """How a device kernel is launched.

    Attributes
    ----------
    name : str
        Of the kernel in its program.
    arg_types : tuple of str
        ``handle`` for buffers, ``int32`` and so on for scalars, in the order of the arguments.
    launch_tags : tuple of str
        ``blockIdx.x``, ``threadIdx.x`` ...: what the int64 arguments that follow mean.
    extra_tags : tuple of int
        One per argument, since 0.21.
    """

    name: str
    arg_types: tuple[str, ...]
    launch_tags: tuple[str, ...]
    extra_tags: tuple[int, ...] = ()


class BlobReader:
    """A position in a stream; every method that reads raises ArtifactError with the offset.

    Parameters
    ----------
    data : bytes or memoryview
    what : str
        What errors call the stream.
    extra_tags : bool
        FunctionInfo has the field that 0.21 added.
    """

    def __init__(
        self, data: bytes | memoryview, what: str, *, extra_tags: bool = False, offset: int = 0
    ) -> None:
        self.data, self.what, self.offset = memoryview(data).cast("B"), what, offset
        self._extra_tags = extra_tags

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self.data) - self.offset

    def error(self, found: str, offset: int | None = None) -> ArtifactError:
        """The exception for damage at ``offset``, or here."""
        at = self.offset if offset is None else offset
        return ArtifactError(
            f"the {self.what} is damaged at offset {at}: {found}. Copy or build the file again"
        )

    def finish(self) -> None:
        """Refuse a stream with bytes left over."""
        if self.left:
            raise self.error(f"{self.left} bytes are left over")

    def take(self, size: int, what: str) -> memoryview:
        """The next ``size`` bytes."""
        if size > self.left:
            raise self.error(f"{what} needs {size} bytes, {self.left} are left")
        self.offset += size
        return self.data[self.offset - size : self.offset]

    def word(self, what: str) -> int:
        """An unsigned integer of 8 bytes."""
        value: int = _WORD.unpack(self.take(8, what))[0]
        return value

    def count(self, what: str, each: int) -> int:
        """How many items of at least ``each`` bytes follow."""
        start, count = self.offset, self.word(what)
        if count * each > self.left:
            raise self.error(f"{what} is {count}, more than {self.left} bytes can hold", start)
        return count

    def words(self, what: str) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """A list of unsigned integers."""
        return np.frombuffer(self.take(8 * self.count(what, 8), what), "<u8")

    def raw(self, what: str) -> bytes:
        """A string of any bytes."""
        return bytes(self.take(self.word(f"length of {what}"), what))

    def text(self, what: str) -> str:
        """A string of UTF-8."""
        start, raw = self.offset, self.raw(what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8", start) from None

    def texts(self, what: str, more: int = 0) -> list[str]:
        """A list of strings; ``more`` bytes at least must follow later for each."""
        return [self.text(what) for _ in range(self.count(f"number of {what}s", 8 + more))]

    def mapping(self, what: str, read: Callable[[str], T]) -> dict[str, T]:
        """A map of strings to what ``read`` reads."""
        found: dict[str, T] = {}
        for _ in range(self.count(f"number of {what}s", 16)):
            name = self.text(f"{what} name")
            found[name] = read(what)
        return found

    def functions(self) -> Mapping[str, FunctionInfo]:
        """A map of names to FunctionInfo."""
        found = self.mapping("function", self._function)
        for name, info in found.items():
            if not info.name:
                found[name] = replace(info, name=name)
        return found

    def _function(self, what: str) -> FunctionInfo:
        name = self.text("function name")
        raw = self.take(4 * self.count("number of argument types", 4), "argument types")
        types = tuple(_type_name(*fields) for fields in _DTYPE.iter_unpack(raw))
        tags = tuple(self.texts("launch tag"))
        extra: tuple[int, ...] = ()
        if self._extra_tags:
            raw = self.take(4 * self.count("number of argument tags", 4), "argument tags")
            extra = struct.unpack(f"<{len(raw) // 4}i", raw)
        return FunctionInfo(name, types, tags, extra)

    def arrays(self, names: Sequence[str], count: int) -> dict[str, Array]:
        """``count`` NDArrays under their names, as read-only views."""
        if count != len(names):
            raise self.error(f"{len(names)} names but {count} arrays")
        if len(set(names)) < count:
            raise self.error("two arrays have the same name")
        return {name: self.array(f"array '{name:.60}'") for name in names}

    def array(self, what: str) -> Array:
        """One NDArray of host memory."""
        start = self.offset
        head = _ARRAY_HEAD.unpack(self.take(_ARRAY_HEAD.size, what))
        magic, _, device, _, rank, code, bits, lanes = head
        if magic != _ARRAY_MAGIC or device != _CPU or not 0 <= rank <= _MAX_RANK:
            raise self.error(
                f"{what} has magic {magic:#x}, device type {device} and {rank} dimensions", start
            )
        *shape, nbytes = struct.unpack(f"<{rank + 1}q", self.take(8 * (rank + 1), what))
        try:
            dtype = from_dlpack_code(code, bits, lanes)
        except ArgumentTypeError as error:
            raise self.error(f"{what}: {error}", start) from None
        if any(d < 0 for d in shape) or nbytes != math.prod(shape) * dtype.itemsize:
            raise self.error(f"{what} has {nbytes} bytes for {dtype}{shape}", start)
        if nbytes == 0 and math.prod(d for d in shape if d) >= 1 << 62:
            raise self.error(f"{what} has the impossible shape {shape}", start)
        raw = self.take(nbytes, what)
        made = np.ndarray(shape, dtype, raw) if nbytes else np.empty(shape, dtype)
        made.flags.writeable = False
        return made


def _type_name(code: int, bits: int, lanes: int) -> str:
    kind = _KINDS.get(code, f"type{code}_")
    if kind in ("handle", "bool") or (code, bits) == (1, 1):
        return "handle" if kind == "handle" else "bool"
    return f"{kind}{bits}" + (f"x{lanes}" if lanes > 1 else "")


def type_bytes(name: str) -> bytes:
    """The DLDataType of a name in :attr:`FunctionInfo.arg_types`; ArtifactError if it is none."""
    match = _TYPE.fullmatch(name)
    number, word, digits, lanes = match.groups() if match else ("256", "", "", "")
    code = int(number) if number else {kind: code for code, kind in _KINDS.items()}.get(word, 256)
    bits = int(digits or {"handle": 64, "bool": 8}.get(word, 0))
    if code > 255 or not 0 < bits < 256:
        raise ArtifactError(f"a kernel takes an argument of type '{name:.40}', which is none")
    return _DTYPE.pack(code, bits, int(lanes or 1))
