"""Modules: containers of packed functions with imports, loaded from a file or compiled.

>>> lib = load_module("deploy.so")  # doctest: +SKIP
>>> lib["myadd"](x, y, out)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from packhorse.errors import ArgumentValueError, ArtifactError
from packhorse.function import (
    NativeFunction,
    PackedFunction,
    add_value_type,
    get_global_func,
)
from packhorse.module_base import Module, PythonModule
from packhorse.module_blob import (
    DeviceCode,
    ModuleTree,
    Opaque,
    Payload,
    read_device_code,
    read_legacy_blob,
    read_modern_blob,
)
from packhorse.module_device import (
    CODE_SUFFIXES,
    DEVICE_TYPES,
    DeviceModule,
    device_types,
    load_code,
)
from packhorse.module_kernel import KernelFunction
from packhorse.native.call import lookup_handle
from packhorse.native.library import Library, set_global_lookup
from packhorse.native.memory import ALIGNMENT
from packhorse.native.runtime import Abi
from packhorse.native.signature import Signature

__all__ = [
    "SUFFIXES",
    "AddressModule",
    "DeviceModule",
    "EmbeddedModule",
    "KernelFunction",
    "Module",
    "NativeModule",
    "PythonModule",
    "load_module",
    "register_module_kind",
]

SUFFIXES = (".so", ".dylib", ".dll", ".dso")
"""What :func:`load_module` takes for a shared library."""

_MAIN = {"legacy": "__tvm_main__", "ffi": "main"}
_RESERVED = ("__", "_init", "_fini")  # of compilers and their helper routines
_ALIGNMENT = {"legacy": ALIGNMENT, "ffi": 64}
"""What TVM's compilers assume of tensors: 128 bytes in 0.7 to 0.9, 64 before and after."""
_OURS, _OUR_ALIGNMENT = "__packhorse_abi", 4
"""What our own libraries export, and what they assume."""


class AddressModule(Module):
    """Functions at known addresses: what a JIT compiler hands over.

    Parameters
    ----------
    functions : mapping of str to int
        Name -> address of a packed function of TVM's legacy ABI.
    keepalive : object
        Owner of the code: held by the module and by each function.
    alignment : int
        What the code assumes of tensor addresses; arrays that lack it are copied around calls.
    """

    kind = "jit"
    abi = "legacy"

    def __init__(
        self,
        functions: Mapping[str, int],
        keepalive: object = None,
        name: str = "jit",
        alignment: int = ALIGNMENT,
    ) -> None:
        super().__init__(name)
        self._addresses, self._keepalive = dict(functions), keepalive
        self._alignment = alignment

    def _names(self) -> list[str]:
        return list(self._addresses)

    def _find(self, name: str) -> PackedFunction | None:
        address = self._addresses.get(name)
        if address is None:
            return None
        return NativeFunction(address, name, self._keepalive, alignment=self._alignment)

    def _release(self) -> None:
        self._addresses, self._keepalive = {}, None


class NativeModule(Module):
    """A shared library of packed functions: compiled by packhorse, or by TVM 0.2 to 0.27.

    Its code may call functions of imported modules and global functions by name. Where those are
    kernels for devices, its functions take tensors of such a device: those that launch kernels.
    Code of 0.2 to 0.20 that does not would take their handles for addresses, and cannot be told.

    Arguments are checked before the call as far as the library says what it takes: TVM's llvm
    target of 0.2 to 0.20 leaves count, kinds, ranks and dtypes in it, not extents. Code of 0.22
    and newer, and ours, checks everything itself. Code of the 'c' target of 0.2 to 0.20 neither
    says nor checks anything: with wrong arguments it ends the process, in TVM as here. Graph
    modules and Relax executables call such code with what the compiler meant for it.

    Raises
    ------
    ArtifactError
        Nobody knows the library's ABI: give it to :class:`Library`.
    """

    kind = "library"

    def __init__(self, library: Library, imports: Sequence[Module] = ()) -> None:
        super().__init__(library.path.name, imports)
        library.info.require_certain(library.path)
        self.library = library
        self._devices = device_types(imports)  # shared with the functions: it may grow
        self._lookups = _Lookups(library, imports)
        library.add_resolver(self._lookups.find)

    def import_module(self, module: Module) -> None:
        """Add an import, as every Module does; its kernels widen what the functions take."""
        super().import_module(module)
        self._devices |= device_types([module])
        self._lookups.modules.append(module)

    @property
    def abi(self) -> Abi:
        """``"legacy"`` or ``"ffi"``: how its functions are called."""
        return self.library.info.abi

    @property
    def generation(self) -> str:
        """Which compilers write such libraries: ``"TVM 0.26 or newer"``."""
        return self.library.info.generation

    def _names(self) -> list[str]:
        names = [name for symbol in self.library.symbols() if (name := self._name(symbol))]
        main = self._entry_name()
        return [*names, main] if main and main not in names else names

    def _name(self, symbol: str) -> str | None:
        if not self.library.is_function(symbol):
            return None
        name = self.library.info.name_of(symbol)
        plain = not self.library.info.prefix
        return None if name and plain and name.startswith(_RESERVED) else name

    def _entry_symbol(self) -> str | None:
        """The entry function's symbol; TVM's llvm target of 0.2 to 0.20 has its name as data."""
        main = self.library.info.main
        if self.library.is_function(main):
            return main
        raw = self.library.read(main)
        return raw.split(b"\0")[0].decode("utf-8", "replace") if raw else None

    def _entry_name(self) -> str | None:
        return _MAIN[self.abi] if self._entry_symbol() else None

    def _symbol(self, name: str) -> str | None:
        if name == _MAIN[self.abi] and (entry := self._entry_symbol()):
            return entry
        symbol = self.library.info.prefix + name
        return symbol if self._name(symbol) == name else None

    def _find(self, name: str) -> PackedFunction | None:
        symbol = self._symbol(name)
        address = self.library.symbol(symbol) if symbol else None
        if symbol is None or not address or not self.library.is_function(symbol):
            return None
        library, abi = self.library, self.abi
        ours = library.describe(_OURS) is not None
        return NativeFunction(
            address,
            name,
            self._lookups,
            alignment=_OUR_ALIGNMENT if ours else _ALIGNMENT[abi],
            abi=abi,
            signature=lambda: library.signatures.get(symbol),
            devices=self._devices,
        )

    def signature(self, name: str) -> Signature | None:
        """What a function takes, if the library says. None if not, or if there is none."""
        return self.library.signatures.get(self._symbol(name) or "")

    def _title(self, name: str) -> str:
        known = self.signature(name)
        return name if known is None else f"{name}({known})"


class _Lookups:
    """What a library's own code finds by name; lives as long as its module or a function of it."""

    def __init__(self, library: Library, modules: Sequence[Module]) -> None:
        self.library, self.modules = library, list(modules)

    def find(self, name: str, abi: Abi) -> int | None:
        """A handle of an imported function."""
        found = (module._look_up(name, True) for module in self.modules)
        function = next((f for f in found if f is not None), None)
        return lookup_handle(function, abi) if function else None


class EmbeddedModule(Module):
    """A module within a library that holds no functions: bytecode, constants, source text.

    Attributes
    ----------
    payload : Payload
        What :mod:`packhorse.module_blob` read of it. Bytecode is let go of once it was parsed.
    """

    def __init__(self, kind: str, payload: Payload, imports: Sequence[Module] = ()) -> None:
        super().__init__(kind, imports)
        self.kind, self.payload = kind, payload

    def _names(self) -> list[str]:
        return []

    def _find(self, name: str) -> PackedFunction | None:
        return None


add_value_type(AddressModule)
add_value_type(NativeModule)
add_value_type(EmbeddedModule)

ModuleMaker: TypeAlias = Callable[[str, Payload, Sequence[Module]], Module]
"""``make(kind, payload, imports)``: the module of something found in a library."""

_makers: dict[str, ModuleMaker | str] = dict.fromkeys(
    ("GraphExecutorFactory", "GraphRuntimeFactory"), "packhorse.graph.factory:from_payload"
)
"""By kind; a str names "module:function", imported when a library holds such a module."""


def register_module_kind(kind: str, make: ModuleMaker | str) -> None:
    """Say what makes a module of a kind found in libraries; kernels are :class:`DeviceModule`.

    Parameters
    ----------
    kind : str
        TVM's type key.
    make : callable or str
        ``make(kind, payload, imports)``, or where it is: ``"package.module:function"``.
    """
    _makers[kind] = make


def _make(kind: str, payload: Payload, imports: Sequence[Module]) -> Module:
    make = _makers.get(kind)
    if make is None and isinstance(payload, DeviceCode):
        return DeviceModule(kind, payload, imports)
    if make is None:
        return EmbeddedModule(kind, payload, imports)
    if isinstance(make, str):
        place, _, name = make.partition(":")
        loaded: ModuleMaker = getattr(importlib.import_module(place), name)
        make = _makers[kind] = loaded
    return make(kind, payload, imports)


def load_module(
    path: str | os.PathLike[str], fmt: str | None = None, *, abi: str | None = None
) -> Module:
    """Load a compiled library: ours, or TVM's of 0.2 to 0.27.

    Loading runs code of the file: load only what you trust.

    Parameters
    ----------
    path : path-like
    fmt : str, optional
        ``so``, ``dll``, ``dylib`` or ``dso``, for files of another suffix. It is a shared library
        of this machine in any case. Or one of TVM's formats of device code: ``cl``, ``ptx`` ...
    abi : str, optional
        ``"legacy"`` (TVM 0.2 to 0.20) or ``"ffi"`` (0.21 and newer), for libraries that do not
        show which they are. Needed for some of TVM's 'c' target.

    Returns
    -------
    Module
        A :class:`NativeModule`, or the module that imports it when the library has other modules
        within: a graph executor factory, a Relax executable. A :class:`DeviceModule` for
        ``kernels.cl`` and its kin, which lie beside ``kernels.tvm_meta.json``.

    Raises
    ------
    ArtifactError
        No such file, not a library of this machine, truncated, or of an ABI that cannot be told.
        The message says which.
    ArgumentValueError
        ``fmt`` or ``abi`` is none of those above.
    """
    file = Path(path)
    suffix = file.suffix.lower() if fmt is None else f".{fmt.lower().lstrip('.')}"
    if suffix in CODE_SUFFIXES:
        return load_code(file, suffix)
    if fmt is not None and suffix not in SUFFIXES:
        known = ", ".join(s[1:] for s in (*SUFFIXES, *CODE_SUFFIXES))
        raise ArgumentValueError(f"fmt is '{fmt}'; load_module takes {known}")
    if suffix not in SUFFIXES and ".so." not in file.name:
        raise ArtifactError(
            f"'{file.name}' has no suffix of a compiled library; load_module takes "
            f"{', '.join(SUFFIXES)}, or any name with fmt='so'. Models are read with packhorse.load"
        )
    library = Library(file, abi)
    library.info.require_certain(file)
    blob = library.read_blob()
    if blob is None:
        return NativeModule(library)
    read = read_modern_blob if library.info.abi == "ffi" else read_legacy_blob
    try:
        return _assemble(library, read(blob))
    except ArtifactError as error:
        raise ArtifactError(f"'{file}' cannot be used: {error}") from error


def _assemble(library: Library, tree: ModuleTree) -> Module:
    """The root of the tree, every module made after those that it imports."""
    made: dict[int, Module] = {}
    waiting = [0]
    while waiting:
        node = tree.nodes[waiting[-1]]
        missing = [i for i in node.imports if i not in made]
        if missing:
            waiting += missing
            continue
        index = waiting.pop()
        if index in made:
            continue
        imports = [made[i] for i in node.imports]
        if node.payload is None:
            made[index] = NativeModule(library, imports)
        else:
            payload = _payload(node.kind, node.payload)
            made[index] = _make(node.kind, payload, imports)
    return made[0]


def _payload(kind: str, payload: Payload) -> Payload:
    if isinstance(payload, Opaque) and kind in DEVICE_TYPES:
        return read_device_code(kind, payload.data)
    return payload


def _global_handle(name: str, abi: Abi) -> int | None:
    found = get_global_func(name, allow_missing=True)
    return lookup_handle(found, abi) if found else None


set_global_lookup(_global_handle)
