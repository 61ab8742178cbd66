"""Loading shared libraries and filling in the functions they expect of their runtime.

Libraries are never unloaded: compiled code caches function handles for life, and tensors may
point into its constants.
"""

from __future__ import annotations

import functools
import mmap
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakMethod

from packhorse.errors import ArtifactError, FunctionNotFound
from packhorse.native.abi import CONTEXTS, AbiInfo, choose_abi
from packhorse.native.elf import Elf, Symbol, read_elf
from packhorse.native.imports import (
    ImportTable,
    has_search_path,
    is_runtime_name,
    read_imports,
    weakened,
)
from packhorse.native.runtime import (
    Abi,
    collect_symbols,
    ffi,
    lib,
    new_context,
    runtime_addresses,
    slot_addresses,
)
from packhorse.native.signature import Signature, read_signatures

__all__ = ["Library", "set_global_lookup"]

Resolver = Callable[[str, Abi], int | None]

_OTHER: dict[str, Abi] = {"legacy": "ffi", "ffi": "legacy"}
_REGISTER = "RegisterSystemLibSymbol"  # part of the names that static constructors call

_lock = threading.Lock()
_loaded: dict[tuple[int, int, int, int, str], _Loaded] = {}
_paths: set[str] = set()
_global_lookup: Resolver = lambda name, abi: None  # noqa: E731


def set_global_lookup(lookup: Resolver) -> None:
    """What answers when compiled code asks for a function its module's imports lack."""
    global _global_lookup
    _global_lookup = lookup


class _Loaded:
    """One file in this process, shared by every Library of it."""

    def __init__(self, path: Path, elf: Elf, info: AbiInfo, private: bool) -> None:
        self.path, self.info = path, info
        self.symbols = {s.name: s for s in elf.symbols if s.name}
        self.registered: dict[str, int] = {}  # by constructors of a system library
        self.resolvers: list[WeakMethod[Resolver]] = []
        self.handle = self._open(elf, private)
        self.context = new_context(self.resolve)
        # Slots of the other ABI too: a library may have both.
        slots = {**slot_addresses(_OTHER[info.abi]), **slot_addresses(info.abi)}
        for name, address in {**slots, **dict.fromkeys(CONTEXTS, self.context)}.items():
            self._fill(name, address)

    def _open(self, elf: Elf, private: bool) -> int:
        abi = self.info.abi
        known = {**runtime_addresses(_OTHER[abi]), **runtime_addresses(abi)}
        names = {s.name for s in elf.symbols if not s.defined and is_runtime_name(s.name)}
        missing = sorted(names - set(known))
        if missing:  # binding is lazy: the first call would end the process
            raise ArtifactError(
                f"'{self.path}' imports {', '.join(missing)} from a TVM runtime, which packhorse "
                "does not offer; compile it for the 'llvm' target, or without what needs it"
            )
        if not names:
            return self._open_plain(elf, private)
        table = read_imports(self.path, elf, names)
        system = any(_REGISTER in name for name in names)
        handle = _open_copy(self.path, weakened(self.path, elf, names, system))
        self._link(handle, table, known, system)
        return handle

    def _open_plain(self, elf: Elf, private: bool) -> int:
        """A library with slots is ours alone: a TVM in this process may load the same file, and
        would share the slots."""
        slots = set(slot_addresses("legacy")) | set(slot_addresses("ffi"))
        hooks = any(s.defined and s.name in slots for s in elf.symbols)
        if private or (hooks and not has_search_path(self.path, elf)):
            return _open_copy(self.path, self.path.read_bytes())
        return _open(self.path)

    def _link(self, handle: int, table: ImportTable, known: dict[str, int], system: bool) -> None:
        base = lib.ph_dlbase(handle)
        if not base:
            raise ArtifactError(f"the system does not say where it loaded '{self.path}'")
        for name, slots in table.slots.items():
            for slot in slots:
                ffi.cast("uintptr_t *", base + slot)[0] = known[name]
        if system:
            array, count = table.constructors
            self.registered = collect_symbols(base + array, count)

    def _fill(self, name: str, value: int) -> None:
        symbol = self.symbols.get(name)
        fits = symbol is not None and symbol.defined and symbol.kind != "function"
        address = 0
        if fits and symbol is not None and symbol.size == 8:
            address = lib.ph_dlsym(self.handle, name.encode())
        for place in (address, self.registered.get(name, 0)):
            if place:
                ffi.cast("uintptr_t *", place)[0] = value

    def resolve(self, name: str, abi: Abi) -> int:
        """What compiled code gets for ``name``: a module's import, else a global function."""
        for reference in self.resolvers:
            resolver = reference()
            found = resolver(name, abi) if resolver else None
            if found:
                return found
        handle = _global_lookup(name, abi)
        if handle is None:
            raise FunctionNotFound(
                f"'{self.path.name}' calls '{name}', which is neither in its imported modules "
                "nor a global function; register it with packhorse.register_func"
            )
        return handle


class Library:
    """A shared library with the runtime's functions filled in.

    The same unchanged file is loaded once per process, from a private copy where it must not be
    shared: with slots, which a TVM in the same process would fill too, and when the file was
    overwritten or replaced, because the system's loader would return the old code.

    Parameters
    ----------
    path : path-like
    abi : str, optional
        "legacy" or "ffi", for files that do not show which one they have.

    Raises
    ------
    ArtifactError
        No such file, not a shared library of this machine, truncated, of another ABI than said,
        or the system's loader refuses it (a missing dependency, for example).
    ArgumentValueError
        ``abi`` is neither.
    """

    def __init__(self, path: str | os.PathLike[str], abi: str | None = None) -> None:
        self.path = Path(path)
        try:
            stat = self.path.stat()
        except OSError as error:
            raise ArtifactError(
                f"'{self.path}' cannot be opened: {error.strerror}. Check the path; it is relative "
                "to the current directory"
            ) from error
        key = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
        with _lock:
            known = next((m for k, m in _loaded.items() if k[:4] == key and not abi), None)
            self._shared = known or self._load(key, abi)

    def _load(self, key: tuple[int, int, int, int], abi: str | None) -> _Loaded:
        elf = read_elf(self.path)
        info = choose_abi(self.path, {s.name: s for s in elf.symbols if s.name}, abi)
        full = (*key, info.abi)
        if full not in _loaded:
            # The loader knows files by path and by inode, and would return the handle it has: of
            # content that was replaced, or of another ABI.
            path = str(self.path.absolute())
            private = any(k[:2] == key[:2] for k in _loaded) or path in _paths
            _paths.add(path)
            _loaded[full] = _Loaded(self.path, elf, info, private)
        found = _loaded[full]
        if not found.info.certain:
            found.info = info  # perhaps the caller knows it this time
        return found

    @property
    def info(self) -> AbiInfo:
        """Its ABI."""
        return self._shared.info

    def symbol(self, name: str) -> int | None:
        """Address of a symbol the library defines or registers; None if there is none."""
        registered = self._shared.registered.get(name)
        if registered:
            return registered
        symbol = self._shared.symbols.get(name)
        if symbol is None or not symbol.defined:
            return None
        return lib.ph_dlsym(self._shared.handle, name.encode()) or None

    def symbols(self) -> list[str]:
        """Names of the symbols the library defines or registers, in file order."""
        defined = [s.name for s in self._shared.symbols.values() if s.defined]
        return list(dict.fromkeys([*defined, *self._shared.registered]))

    def describe(self, name: str) -> Symbol | None:
        """The symbol's entry in the file: kind, size, defined or imported."""
        return self._shared.symbols.get(name)

    def is_function(self, name: str) -> bool:
        """Whether a symbol is code, as far as can be told."""
        symbol = self.describe(name)
        if symbol is not None and symbol.defined:
            return symbol.kind == "function"
        return name in self._shared.registered and not name.startswith(("__TVM", "__tvm"))

    def read(self, name: str) -> bytes | None:
        """The bytes of a data symbol, up to its size; None if there is no such data."""
        symbol, address = self.describe(name), self.symbol(name)
        if symbol is None or address is None or symbol.kind == "function":
            return None
        return bytes(ffi.buffer(ffi.cast("char *", address), symbol.size))

    def read_blob(self) -> bytes | None:
        """The modules within the library as one blob, its size in front; None if it has none.

        Raises
        ------
        ArtifactError
            The size it begins with is larger than the symbol.
        """
        name = self.info.blob
        found = self.read(name)
        if found is not None:
            return found
        address = self.symbol(name)
        if not address:
            return None
        # A constructor registered it by address alone: its size is what it says.
        size = int.from_bytes(ffi.buffer(ffi.cast("char *", address), 8)[:], "little")
        return bytes(ffi.buffer(ffi.cast("char *", address), 8 + size))

    @functools.cached_property
    def signatures(self) -> dict[str, Signature]:
        """What functions of it take, by symbol, where the file says; read at the first use."""
        try:
            with open(self.path, "rb") as file, _mapped(file.fileno()) as data:
                return read_signatures(data)
        except (OSError, ValueError):  # removed or emptied meanwhile: the loaded code goes on
            return {}

    def add_resolver(self, method: Resolver) -> None:
        """Ask this bound method first when the library's code wants a function by name.

        It gets the name and the ABI of the handle it returns, or returns None. Its object is
        held weakly.
        """
        with _lock:
            alive = [known for known in self._shared.resolvers if known() is not None]
            self._shared.resolvers = [WeakMethod(method), *alive]

    def __repr__(self) -> str:
        return f"Library('{self.path}')"


def _mapped(descriptor: int) -> mmap.mmap:
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)


def _open(path: Path) -> int:
    # An absolute path: the loader searches the system's folders for names without a slash.
    handle: int = lib.ph_dlopen(os.fsencode(path.absolute()))
    if not handle:
        raise ArtifactError(f"the system's loader refused '{path}': {_reason(lib.ph_dlerror())}")
    return handle


def _open_copy(path: Path, data: bytes) -> int:
    try:
        with tempfile.TemporaryDirectory(prefix="packhorse-") as folder:
            copy = Path(folder) / path.name
            copy.write_bytes(data)
            return _open(copy)
    except (OSError, ArtifactError):
        # Nowhere to write, or the folder forbids code: memory is left, where there is such a file.
        if not hasattr(os, "memfd_create"):
            raise
    return _open_in_memory(path, data)


def _open_in_memory(path: Path, data: bytes) -> int:
    with open(os.memfd_create(path.name), "wb", closefd=False) as file:
        file.write(data)
        place = f"/proc/self/fd/{file.fileno()}"
    # It stays open for good: the loader would take the next file of that number for this one.
    handle: int = lib.ph_dlopen(place.encode())
    if not handle:
        reason = _reason(lib.ph_dlerror())
        os.close(int(place.rpartition("/")[2]))
        raise ArtifactError(f"the system's loader refused '{path}': {reason}")
    return handle


def _reason(text: Any) -> str:
    if text == ffi.NULL:
        return "it gave no reason"
    return str(ffi.string(text).decode("utf-8", "replace"))
