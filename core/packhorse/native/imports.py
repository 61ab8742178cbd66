"""Libraries that import the runtime's functions by name: TVM's 'c' target, and TVM from 0.24 on.

Exporting those names to the whole process would capture the calls of a real TVM loaded later. So
a library gets them where its own calls read them: in its global offset table. The loader would
insist on finding them first (``-z now``, functions whose address is taken), make the table
read-only, or run constructors that call them; so a private copy of the file is loaded in which
these symbols are weak, the table stays writable, and such constructors are ours to run.

Source: the System V ABI, chapters 4 and 5, and its x86-64 and AArch64 supplements.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from packhorse.errors import ArtifactError
from packhorse.native.elf import Elf

__all__ = ["ImportTable", "has_search_path", "is_runtime_name", "read_imports", "weakened"]

_SHT_RELA, _SHT_DYNSYM, _SHT_DYNAMIC, _SHT_INIT_ARRAY = 4, 11, 6, 14
_SHF_ALLOC = 2
_PT_NULL, _PT_RELRO = 0, 0x6474E552
_DT_INIT_ARRAYSZ, _DT_RPATH, _DT_RUNPATH = 27, 15, 29
_WEAK = 2 << 4
_X86, _ARM = 62, 183
_SLOTS = {_X86: {1, 6, 7}, _ARM: {257, 1025, 1026}}
"""R_*_64, R_*_GLOB_DAT, R_*_JUMP_SLOT: relocations that put a function's address somewhere."""
_RELA = struct.Struct("<QQq")
_DYNAMIC = struct.Struct("<qQ")
_SYMBOL_BYTES = 24
_PREFIXES = ("TVMBackend", "TVMFFI", "TVMFunc", "TVMAPI", "TVMMod", "TVMArray", "TVMCb")


def is_runtime_name(name: str) -> bool:
    """Whether a symbol looks like a function of TVM's runtime."""
    return name.startswith(_PREFIXES)


@dataclass(frozen=True)
class ImportTable:
    """Where a library keeps the addresses of what it imports.

    Attributes
    ----------
    slots : dict
        Name -> addresses, relative to where the library is loaded, that hold the function's.
    constructors : tuple of int
        Relative address and length of the array of static constructors.
    """

    slots: dict[str, tuple[int, ...]]
    constructors: tuple[int, int]


def read_imports(path: Path, elf: Elf, names: Collection[str]) -> ImportTable:
    """The slots of the undefined symbols of these names.

    Raises
    ------
    ArtifactError
        A name is imported in a way that has no slot, or the file is damaged.
    """
    data = path.read_bytes()
    slots: dict[str, list[int]] = {name: [] for name in names}
    for offset, kind, symbol in _relocations(data, elf):
        name = elf.symbols[symbol].name if symbol < len(elf.symbols) else ""
        if name not in slots:
            continue
        if kind not in _SLOTS.get(elf.machine, ()):
            raise _unusable(path, f"it reaches '{name}' by a relocation of type {kind}")
        if not any(s[0] == 1 and s[3] <= offset <= s[3] + s[6] - 8 for s in elf.segments):
            raise _unusable(path, f"the slot of '{name}' lies outside its segments")
        slots[name].append(offset)
    arrays = [(s[3], s[5] // 8) for s in elf.sections if s[1] == _SHT_INIT_ARRAY]
    found = {name: tuple(places) for name, places in slots.items()}
    return ImportTable(found, (arrays or [(0, 0)])[0])


def _unusable(path: Path, found: str) -> ArtifactError:
    return ArtifactError(
        f"'{path}' cannot be given packhorse's functions: {found}. Compile it for the 'llvm' "
        "target, or link it with -fPIC -shared"
    )


def _section(data: bytes | bytearray, header: tuple[int, ...], item: int) -> range:
    """Offsets of the items of a section that lie in the file."""
    start, size = header[4], header[5]
    return range(start, max(start, min(start + size, len(data)) - item + 1), item)


def _dynamic(data: bytes, elf: Elf) -> Iterator[tuple[int, int, int]]:
    """(file offset, tag, value) of the dynamic section."""
    for header in elf.sections:
        if header[1] == _SHT_DYNAMIC:
            for at in _section(data, header, _DYNAMIC.size):
                yield (at, *_DYNAMIC.unpack_from(data, at))


def _relocations(data: bytes, elf: Elf) -> Iterator[tuple[int, int, int]]:
    """(address, type, index into elf.symbols) of what the loader relocates."""
    for header in elf.sections:
        if header[1] == _SHT_RELA and header[2] & _SHF_ALLOC:
            for at in _section(data, header, _RELA.size):
                offset, info, _ = _RELA.unpack_from(data, at)
                if info >> 32:  # entry 0 of the symbol table is no symbol and was left out
                    yield offset, info & 0xFFFFFFFF, (info >> 32) - 1


def has_search_path(path: Path, elf: Elf) -> bool:
    """Whether a library finds others relative to where it lies, so that no copy would do."""
    data = path.read_bytes()
    return any(tag in (_DT_RPATH, _DT_RUNPATH) for _, tag, _ in _dynamic(data, elf))


def weakened(path: Path, elf: Elf, names: Collection[str], constructors: bool) -> bytes:
    """The file, changed so that the loader can do without these symbols.

    Parameters
    ----------
    constructors : bool
        Keep the loader from running static constructors.
    """
    data = bytearray(path.read_bytes())
    for header in elf.sections:
        if header[1] == _SHT_DYNSYM:
            for i, at in enumerate(list(_section(data, header, _SYMBOL_BYTES))[1:]):
                if i < len(elf.symbols) and elf.symbols[i].name in names:
                    data[at + 4] = _WEAK | data[at + 4] & 15
    for i, segment in enumerate(elf.segments):
        if segment[0] == _PT_RELRO:
            struct.pack_into("<I", data, elf.segment_offset + i * 56, _PT_NULL)
    if constructors:
        for at, tag, _ in list(_dynamic(bytes(data), elf)):
            if tag == _DT_INIT_ARRAYSZ:
                struct.pack_into("<Q", data, at + 8, 0)
    return bytes(data)
