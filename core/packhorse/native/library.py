"""Loading shared libraries and filling in the functions they expect of their runtime.

Libraries are never unloaded: compiled code caches function handles for life, and tensors may
point into its constants.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakMethod

from packhorse.errors import ArtifactError, FunctionNotFound
from packhorse.native.elf import Symbol, read_symbols
from packhorse.native.runtime import (
    ffi,
    lib,
    new_context,
    runtime_addresses,
    slot_addresses,
)

__all__ = ["Library", "set_global_lookup"]

CONTEXT = "__tvm_module_ctx"

_lock = threading.Lock()
_loaded: dict[tuple[int, int, int, int], _Loaded] = {}
_global_lookup: Callable[[str], int | None] = lambda name: None  # noqa: E731


def set_global_lookup(lookup: Callable[[str], int | None]) -> None:
    """What answers when compiled code asks for a function its module's imports lack."""
    global _global_lookup
    _global_lookup = lookup


class _Loaded:
    """One file in this process, shared by every Library of it."""

    def __init__(self, path: Path, private: bool) -> None:
        self.path = path
        self.symbols = {s.name: s for s in read_symbols(path) if s.name}
        _refuse_unresolved(path, self.symbols)
        self.handle = _open_copy(path) if private else _open(path)
        self.resolvers: list[WeakMethod[Callable[[str], int | None]]] = []
        self.context = new_context(self.resolve)
        for name, address in {**slot_addresses(), CONTEXT: self.context}.items():
            self._fill(name, address)

    def _fill(self, name: str, value: int) -> None:
        symbol = self.symbols.get(name)
        if symbol is None or not symbol.defined or symbol.kind == "function" or symbol.size != 8:
            return
        address = lib.ph_dlsym(self.handle, name.encode())
        if address:
            ffi.cast("uintptr_t *", address)[0] = value

    def resolve(self, name: str) -> int:
        """What compiled code gets for ``name``: a module's import, else a global function."""
        for reference in self.resolvers:
            resolver = reference()
            found = resolver(name) if resolver else None
            if found:
                return found
        handle = _global_lookup(name)
        if handle is None:
            raise FunctionNotFound(
                f"'{self.path.name}' calls '{name}', which is neither in its imported modules "
                "nor a global function; register it with packhorse.register_func"
            )
        return handle


class Library:
    """A shared library with the runtime's functions filled in.

    The same unchanged file is loaded once per process. A file that was overwritten in place is
    loaded from a private copy, because the system's loader would return the old code.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    ArtifactError
        No such file, not a shared library of this machine, truncated, or the system's loader
        refuses it (a missing dependency, for example).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
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
            if key not in _loaded:
                # dlopen would return the old handle for a file changed in place, and also for
                # a new file under an old name: it compares names before inodes
                changed = any(known[:2] == key[:2] for known in _loaded) or any(
                    os.path.abspath(other.path) == os.path.abspath(self.path)
                    for other in _loaded.values()
                )
                _loaded[key] = _Loaded(self.path, private=changed)
            self._shared = _loaded[key]

    def symbol(self, name: str) -> int | None:
        """Address of a symbol the library defines; None if it defines none of that name."""
        symbol = self._shared.symbols.get(name)
        if symbol is None or not symbol.defined:
            return None
        return lib.ph_dlsym(self._shared.handle, name.encode()) or None

    def symbols(self) -> list[str]:
        """Names of the symbols the library defines, in file order."""
        return [s.name for s in self._shared.symbols.values() if s.defined]

    def describe(self, name: str) -> Symbol | None:
        """The symbol's entry in the file: kind, size, defined or imported."""
        return self._shared.symbols.get(name)

    def read(self, name: str) -> bytes | None:
        """The bytes of a data symbol, up to its size; None if there is no such data."""
        symbol, address = self.describe(name), self.symbol(name)
        if symbol is None or address is None or symbol.kind == "function":
            return None
        return bytes(ffi.buffer(ffi.cast("char *", address), symbol.size))

    def add_resolver(self, method: Callable[[str], int | None]) -> None:
        """Ask this bound method first when the library's code wants a function by name.

        It returns a function handle or None. Its object is held weakly.
        """
        with _lock:
            alive = [known for known in self._shared.resolvers if known() is not None]
            self._shared.resolvers = [WeakMethod(method), *alive]

    def __repr__(self) -> str:
        return f"Library('{self.path}')"


def _refuse_unresolved(path: Path, symbols: dict[str, Symbol]) -> None:
    missing = sorted(name for name in runtime_addresses() if _imports(symbols.get(name)))
    if missing:  # binding is lazy: the first call would end the process
        raise ArtifactError(
            f"'{path}' imports {', '.join(missing)} from a TVM runtime instead of offering slots "
            "for them (TVM's 'c' target does); compile it for the 'llvm' target"
        )


def _imports(symbol: Symbol | None) -> bool:
    return symbol is not None and not symbol.defined


def _open(path: Path) -> int:
    # An absolute path: the loader searches the system's folders for names without a slash.
    handle: int = lib.ph_dlopen(os.fsencode(path.absolute()))
    if not handle:
        raise ArtifactError(f"the system's loader refused '{path}': {_reason(lib.ph_dlerror())}")
    return handle


def _open_copy(path: Path) -> int:
    with tempfile.TemporaryDirectory(prefix="packhorse-") as folder:
        return _open(Path(shutil.copyfile(path, Path(folder) / path.name)))


def _reason(text: Any) -> str:
    if text == ffi.NULL:
        return "it gave no reason"
    return str(ffi.string(text).decode("utf-8", "replace"))
