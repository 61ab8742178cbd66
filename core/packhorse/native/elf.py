"""Reading the symbols of an ELF shared library, every offset checked before use.

A library is inspected before it is loaded: a truncated file would load and crash later, one of
another machine would fail with the loader's words. Source: the System V ABI, chapters 4 and 5.
"""

from __future__ import annotations

import mmap
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from packhorse.errors import ArtifactError

__all__ = ["Elf", "Symbol", "read_elf", "read_symbols"]

Kind: TypeAlias = Literal["function", "object", "other"]
_MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_HERE = {"amd64": "x86_64", "arm64": "aarch64"}
_SHT_DYNSYM, _PT_LOAD, _ET_DYN = 11, 1, 3
Headers: TypeAlias = list[tuple[int, ...]]
_KINDS: dict[int, Kind] = {1: "object", 2: "function", 10: "function"}
_SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)


@dataclass(frozen=True)
class Symbol:
    """A dynamic symbol. ``defined`` is False for what the library imports."""

    name: str
    kind: Kind
    defined: bool
    value: int
    size: int


@dataclass(frozen=True)
class Elf:
    """What the loader must know of a library, read from the file.

    Attributes
    ----------
    segments : list of tuple
        Program headers: type, flags, offset, vaddr, paddr, file size, memory size, alignment.
    sections : list of tuple
        Section headers: name, type, flags, address, offset, size, link, info, alignment, entry.
    """

    machine: int
    segment_offset: int
    segments: Headers
    sections: Headers
    symbols: list[Symbol]


class _Reader:
    """Bounds-checked access to the bytes of one file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data = path, data

    def fail(self, found: str) -> ArtifactError:
        return ArtifactError(
            f"'{self.path}' is not a usable shared library: {found}. Copy or build it again"
        )

    def region(self, offset: int, nbytes: int, what: str) -> tuple[int, int]:
        if offset + nbytes > len(self.data):
            raise self.fail(
                f"it is truncated: {what} ends at byte {offset + nbytes} "
                f"but the file has {len(self.data)}"
            )
        return offset, offset + nbytes

    def fields(self, layout: str, offset: int, what: str) -> tuple[int, ...]:
        start, _ = self.region(offset, struct.calcsize(layout), what)
        return struct.unpack_from(layout, self.data, start)


def read_symbols(path: Path) -> list[Symbol]:
    """The dynamic symbols of a shared library, in file order. Raises as :func:`read_elf`."""
    return read_elf(path).symbols


def read_elf(path: Path) -> Elf:
    """Headers and dynamic symbols of a shared library.

    Raises
    ------
    ArtifactError
        Not a 64-bit little-endian ELF shared library for this machine, or damaged; says which.
    """
    try:
        with open(path, "rb") as file, _mapped(file.fileno()) as data:
            return _read(_Reader(path, data))
    except ValueError as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"'{path}' is empty; copy or build it again") from None
    except OSError as error:
        raise ArtifactError(f"'{path}' cannot be read: {error.strerror}") from error


def _mapped(descriptor: int) -> mmap.mmap:
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)


def _read(r: _Reader) -> Elf:
    if r.data[:4] != b"\x7fELF":
        raise r.fail(f"it is not an ELF file but {_other_format(r.data[:8])}")
    ident = r.fields("<4x2B", 0, "the ELF header")
    if ident != (2, 1):
        raise r.fail(f"it is not 64-bit little-endian (class {ident[0]}, data {ident[1]})")
    kind, machine, _, _, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, _ = r.fields(
        "<HHIQQQIHHHHHH", 16, "the ELF header"
    )
    if kind != _ET_DYN:
        raise r.fail(f"it is an object or an executable (ELF type {kind}); link it with -shared")
    here = platform.machine().lower()
    if _MACHINES.get(machine) != _HERE.get(here, here):
        found = _MACHINES.get(machine, f"ELF machine {machine}")
        raise r.fail(f"it was compiled for {found} and this is {here}")
    segments = _segments(r, phoff, phentsize, phnum)
    if shnum and shentsize != 64:
        raise r.fail(f"section headers of {shentsize} bytes instead of 64")
    r.region(shoff, shnum * shentsize, "the section table")
    sections = [r.fields("<IIQQQQIIQQ", shoff + i * 64, "a section") for i in range(shnum)]
    symbols = [x for s in sections if s[1] == _SHT_DYNSYM for x in _table(r, s, sections)]
    return Elf(machine, phoff, segments, sections, symbols)


def _segments(r: _Reader, offset: int, size: int, count: int) -> Headers:
    if count and size != 56:
        raise r.fail(f"program headers of {size} bytes instead of 56")
    found = [r.fields("<IIQQQQQQ", offset + i * 56, "a program header") for i in range(count)]
    for kind, _, start, _, _, nbytes, _, _ in found:
        if kind == _PT_LOAD:  # the loader maps it unchecked: reading past the end is SIGBUS
            r.region(start, nbytes, "a segment")
    return found


def _table(
    r: _Reader, section: tuple[int, ...], sections: list[tuple[int, ...]]
) -> Iterator[Symbol]:
    start, end = r.region(section[4], section[5], "the symbol table")
    if section[6] >= len(sections):
        raise r.fail(f"its symbol table names section {section[6]} of {len(sections)}")
    strings = sections[section[6]]
    text_start, text_end = r.region(strings[4], strings[5], "the string table")
    text = r.data[text_start:text_end]
    count = (end - start) // _SYMBOL.itemsize
    entries: list[tuple[int, ...]] = np.frombuffer(r.data[start:end], _SYMBOL, count)[1:].tolist()
    for at, info, _, index, value, size in entries:
        stop = text.find(b"\0", at)
        if at >= len(text) or stop < 0:
            raise r.fail("a symbol's name lies outside the string table")
        name = text[at:stop].decode("utf-8", "replace")
        yield Symbol(name, _KINDS.get(info & 15, "other"), index != 0, value, size)


def _other_format(magic: bytes) -> str:
    known = {
        b"MZ": "a Windows library; build it for Linux",
        b"\xcf\xfa\xed\xfe": "a macOS library; build it for Linux",
        b"\xca\xfe\xba\xbe": "a macOS library; build it for Linux",
        b"!<arch>\n": "a static archive; link it into a shared library",
        b"PK\x03\x04": "a zip archive",
        b"BC\xc0\xde": "LLVM bitcode; compile it first",
    }
    for prefix, name in known.items():
        if magic.startswith(prefix):
            return name
    return f"something that begins with {bytes(magic[:4])!r}"
