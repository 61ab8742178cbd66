"""Zip files that can be mapped: every member stored, its data on a 64-byte boundary.

Written so that ``unzip`` and :mod:`zipfile` read them. Read far more strictly than those: each
byte of the file belongs to one member or to the directory, nothing is compressed, encrypted,
overlapping, repeated or named outside the archive. (APPNOTE 6.3.10; zip64 beyond 4 GiB.)
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from packhorse.errors import ArtifactError

__all__ = ["ALIGNMENT", "Part", "Stored", "read_zip", "zip_chunks"]

ALIGNMENT = 64
"""Of the data of every member: what a mapped weight needs to be used in place."""
_MAX_MEMBERS = 4096

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_VERSION, _UNIX, _DATE, _MODE = 45, 3 << 8, 0x21, 0o100644 << 16  # 1980-01-01: reproducible files
_UTF8 = 0x800
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "look into the zip64 field"
_LIMIT = _FULL32  # sizes and offsets from here on go into zip64 fields
_NAME = re.compile(r"(?:[A-Za-z0-9_+-][A-Za-z0-9_.+-]*/)*[A-Za-z0-9_+-][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Part:
    """A member to be written: its name, its content in pieces, length and CRC-32."""

    name: str
    chunks: Sequence[bytes | memoryview]
    size: int
    crc: int


@dataclass(frozen=True)
class Stored:
    """A member that was read: its content is a view into the file."""

    name: str
    data: memoryview
    crc: int
    offset: int


# ---------------------------------------------------------------- writing


def zip_chunks(parts: Sequence[Part]) -> Iterator[bytes | memoryview]:
    """The file in pieces."""
    offset, directory = 0, []
    for part in parts:
        head = _local_header(part, offset)
        directory.append(_central_header(part, offset))
        yield head
        yield from part.chunks
        offset += len(head) + part.size
    central = b"".join(directory)
    yield central + _end(len(parts), len(central), offset)


def _local_header(part: Part, offset: int) -> bytes:
    name, big = part.name.encode("ascii"), part.size >= _LIMIT
    extra = struct.pack("<2H2Q", 1, 16, part.size, part.size) if big else b""
    padding = -(offset + _LOCAL.size + len(name) + len(extra) + 4) % ALIGNMENT
    extra += struct.pack("<2H", 0xD935, padding) + bytes(padding)  # the field zipalign uses
    size = _FULL32 if big else part.size
    return (
        _LOCAL.pack(
            b"PK\3\4", _VERSION, 0, 0, 0, _DATE, part.crc, size, size, len(name), len(extra)
        )
        + name
        + extra
    )


def _central_header(part: Part, offset: int) -> bytes:
    name, wide = part.name.encode("ascii"), []
    size, where = part.size, offset
    if size >= _LIMIT:
        wide += [size, size]
        size = _FULL32
    if where >= _LIMIT:
        wide.append(where)
        where = _FULL32
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    fixed = (b"PK\1\2", _UNIX | _VERSION, _VERSION, 0, 0, 0, _DATE, part.crc, size, size)
    return _CENTRAL.pack(*fixed, len(name), len(extra), 0, 0, 0, _MODE, where) + name + extra


def _end(count: int, size: int, offset: int) -> bytes:
    if offset < _LIMIT and size < _LIMIT:
        return _END.pack(b"PK\5\6", 0, 0, count, count, size, offset, 0)
    place = offset + size
    return (
        _END64.pack(b"PK\6\6", 44, _UNIX | _VERSION, _VERSION, 0, 0, count, count, size, offset)
        + _LOCATOR.pack(b"PK\6\7", 0, place, 1)
        + _END.pack(b"PK\5\6", 0, 0, count, count, _FULL32, _FULL32, 0)
    )


# ---------------------------------------------------------------- reading


def read_zip(data: memoryview) -> list[Stored]:
    """The members in file order. Contents are not compared with their CRCs here.

    Raises
    ------
    ArtifactError
        Not a zip, truncated, or not as strict as this module demands; says which member, where.
    """
    count, offset, size = _directory(data)
    found, position, end = [], offset, offset + size
    for _ in range(count):
        fields = _unpack(_CENTRAL, data, position, end, b"PK\1\2", "the zip directory")
        name_end = position + _CENTRAL.size + fields[10]
        extra_end = name_end + fields[11]
        if extra_end + fields[12] > end:
            raise ArtifactError(f"the zip directory is damaged at offset {position}: it overflows")
        name = _name(data[position + _CENTRAL.size : name_end], position)
        found.append(_member(data, name, fields, data[name_end:extra_end], offset))
        position = extra_end + fields[12]
    if position != end:
        raise ArtifactError(f"the zip directory has unexpected bytes at offset {position}")
    found.sort(key=lambda pair: pair[0])
    _check_cover(found, offset)
    return [member for _, member in found]


def _directory(data: memoryview) -> tuple[int, int, int]:
    """Number of members, offset and size of the central directory."""
    end = len(data) - _END.size
    if len(data) < 4 or bytes(data[:4]) != b"PK\3\4":
        raise ArtifactError("this is not a .packhorse file: it does not begin with a zip member")
    what = "the end of the zip file (it is truncated, or bytes follow it)"
    _, disk, start_disk, here, count, size, offset, comment = _unpack(
        _END, data, end, len(data), b"PK\5\6", what
    )
    if _FULL32 in (size, offset) or count == _FULL16:
        place = end - _LOCATOR.size
        locator = _unpack(_LOCATOR, data, place, end, b"PK\6\7", "the zip64 locator")
        end = place - _END64.size
        record = _unpack(_END64, data, end, place, b"PK\6\6", "the zip64 record")
        if locator[1:] != (0, end, 1) or record[1] != 44:
            raise ArtifactError(f"the zip64 record at offset {end} is damaged")
        _, _, _, _, disk, start_disk, here, count, size, offset = record
    if disk or start_disk or comment or here != count or not 0 < count <= _MAX_MEMBERS:
        raise ArtifactError(f"the zip directory is damaged: {count} members, {comment} comment")
    if offset + size != end:
        raise ArtifactError(
            f"the zip directory should end at offset {end}, not at {offset + size}; the file is "
            "truncated or damaged"
        )
    return count, offset, size


def _unpack(
    layout: struct.Struct, data: memoryview, start: int, end: int, magic: bytes, what: str
) -> tuple[int, ...]:
    if start < 0 or start + layout.size > end or bytes(data[start : start + 4]) != magic:
        raise ArtifactError(f"{what} is missing or damaged at offset {max(0, start)}")
    return layout.unpack_from(data, start)


def _name(raw: memoryview, position: int) -> str:
    name = bytes(raw).decode("ascii", "replace")
    if not _NAME.fullmatch(name):
        raise ArtifactError(
            f"the zip member {name!r:.80} at offset {position} has a name packhorse never writes; "
            "expected a relative path of plain characters"
        )
    return name


def _member(
    data: memoryview, name: str, fields: tuple[int, ...], extra: memoryview, limit: int
) -> tuple[int, Stored]:
    """A member and where its local header begins, both headers compared."""
    _, _, _, flags, method, _, _, crc, packed, size, *_, start = fields
    packed, size, start = _wide(name, extra, packed, size, start)
    if method or flags & ~_UTF8 or packed != size:
        raise ArtifactError(
            f"zip member '{name}' is compressed, encrypted or streamed (method {method}, flags "
            f"{flags:#x}); members must be stored: zip -0"
        )
    local = _unpack(_LOCAL, data, start, limit, b"PK\3\4", f"the header of zip member '{name}'")
    name_at = start + _LOCAL.size
    begin = name_at + local[9] + local[10]
    if begin + size > limit:
        raise ArtifactError(
            f"zip member '{name}' of {size} bytes at offset {begin} runs past the directory at "
            f"{limit}; the file is damaged"
        )
    inner = data[name_at + local[9] : begin]
    sizes = _wide(name, inner, local[7], local[8], 0)[:2]
    same = (local[2] & ~_UTF8, local[3], local[6], *sizes) == (0, 0, crc, size, size)
    if not same or bytes(data[name_at : name_at + local[9]]) != name.encode("ascii"):
        raise ArtifactError(f"the header of zip member '{name}' at offset {start} is damaged")
    return start, Stored(name, data[begin : begin + size], crc, begin)


def _wide(name: str, extra: memoryview, packed: int, size: int, start: int) -> tuple[int, int, int]:
    """Sizes and offset with the zip64 field put in where the headers say so."""
    values = [size, packed, start]  # in the order of the field
    missing = [i for i, value in enumerate(values) if value == _FULL32]
    position = 0
    while missing and position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1 and 8 * len(missing) <= length <= len(extra) - position - 4:
            for k, i in enumerate(missing):
                values[i] = struct.unpack_from("<Q", extra, position + 4 + 8 * k)[0]
            return values[1], values[0], values[2]
        position += 4 + length
    if missing:
        raise ArtifactError(f"zip member '{name}' lacks its zip64 field; the file is damaged")
    return packed, size, start


def _check_cover(found: Sequence[tuple[int, Stored]], limit: int) -> None:
    """No overlap, no gap, no name twice: so sizes add up to no more than the file."""
    position, names = 0, set()
    for start, member in found:
        if start != position:
            raise ArtifactError(
                f"zip member '{member.name}' begins at offset {start}, expected {position}; "
                "members must neither overlap nor leave gaps"
            )
        if member.name in names:
            raise ArtifactError(f"the zip holds two members called '{member.name}'")
        names.add(member.name)
        position = member.offset + len(member.data)
    if position != limit:
        raise ArtifactError(f"bytes at offset {position} belong to no member of the zip")
