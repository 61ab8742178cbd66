"""Modules: containers of packed functions with imports, loaded from a file or compiled.

>>> lib = load_module("deploy.so")  # doctest: +SKIP
>>> lib["myadd"](x, y, out)  # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from packhorse.errors import (
    ArgumentTypeError,
    ArtifactError,
    DeviceClosed,
    FunctionNotFound,
    did_you_mean,
)
from packhorse.function import (
    NativeFunction,
    PackedFunction,
    add_value_type,
    get_global_func,
)
from packhorse.native.library import Library, set_global_lookup
from packhorse.native.memory import ALIGNMENT

__all__ = ["SUFFIXES", "AddressModule", "Module", "NativeModule", "PythonModule", "load_module"]

SUFFIXES = (".so", ".dylib", ".dll", ".dso")
"""What :func:`load_module` takes for a shared library."""

MAIN = "__tvm_main__"
_RESERVED = ("__", "_init", "_fini")  # of compilers and their helper routines


class Module:
    """A container of packed functions. Subclasses write ``_names`` and ``_find``.

    Attributes
    ----------
    name : str
        What errors call it.
    imports : tuple of Module
        Asked after the module itself when ``query_imports`` is set, and by compiled code.
    """

    def __init__(self, name: str, imports: Sequence[Module] = ()) -> None:
        self.name = name
        self._imports = list(imports)
        self._known: dict[str, PackedFunction] = {}
        self._closed = False

    def _names(self) -> list[str]:
        """Names of its own functions."""
        raise NotImplementedError

    def _find(self, name: str) -> PackedFunction | None:
        """One of its own functions; called once per name."""
        raise NotImplementedError

    def _release(self) -> None:
        """What a subclass lets go of on close; called once."""

    @property
    def functions(self) -> list[str]:
        """Names of its own functions, in the order of the file."""
        self._require_open()
        return self._names()

    @property
    def imports(self) -> tuple[Module, ...]:
        """The modules it imports."""
        return tuple(self._imports)

    def import_module(self, module: Module) -> None:
        """Add an import; its functions are found after those of earlier imports."""
        if not isinstance(module, Module):
            raise ArgumentTypeError(f"a Module is imported, not a {type(module).__name__}")
        self._imports.append(module)

    def get_function(self, name: str, query_imports: bool = False) -> PackedFunction:
        """The function of that name.

        Parameters
        ----------
        name : str
        query_imports : bool
            Ask the imported modules too, depth first.

        Raises
        ------
        FunctionNotFound
            There is none of that name.
        DeviceClosed
            The module was closed.
        """
        found = self._known.get(name) or self._look_up(name, query_imports)
        if found is None:
            names = self.functions
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            raise FunctionNotFound(
                f"module '{self.name}' has no function '{name}'{did_you_mean(name, names)}; it has "
                f"{len(names)}: {shown or 'none'}"
            )
        return found

    def __getitem__(self, name: str) -> PackedFunction:
        """``module["name"]``; raises as :meth:`get_function`."""
        return self.get_function(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._look_up(name, False) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.functions)

    def _look_up(self, name: str, query_imports: bool) -> PackedFunction | None:
        self._require_open()
        if name not in self._known:
            own = self._find(name)
            if own is not None:
                self._known[name] = own
        if name in self._known or not query_imports:
            return self._known.get(name)
        return self._imported(name)

    def _imported(self, name: str) -> PackedFunction | None:
        found = (m._look_up(name, True) for m in self._imports)
        return next((function for function in found if function is not None), None)

    def _require_open(self) -> None:
        if self._closed:
            raise DeviceClosed(f"module '{self.name}' was used after close(); load it again")

    def close(self) -> None:
        """Let go of everything; idempotent. Functions taken from it before go on working."""
        if not self._closed:
            self._closed = True
            self._known.clear()
            self._imports.clear()
            self._release()

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._names())} functions"
        return f"<{type(self).__name__} {self.name}: {state}>"


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


class PythonModule(Module):
    """Packed functions written in Python under one roof, for instance to import elsewhere."""

    def __init__(
        self, functions: Mapping[str, Callable[..., object]], name: str = "python"
    ) -> None:
        super().__init__(name)
        self._functions = dict(functions)

    def _names(self) -> list[str]:
        return list(self._functions)

    def _find(self, name: str) -> PackedFunction | None:
        call = self._functions.get(name)
        if call is None or isinstance(call, PackedFunction):
            return call
        return PackedFunction(call, name)

    def _release(self) -> None:
        self._functions = {}


class NativeModule(Module):
    """A shared library of packed functions: compiled by packhorse, or by TVM 0.2 to 0.20.

    Its code may call functions of imported modules and global functions by name. Note that TVM
    exports no signatures: calling with other arguments than it was compiled for is undefined.
    """

    def __init__(self, library: Library, imports: Sequence[Module] = ()) -> None:
        super().__init__(library.path.name, imports)
        _check_abi(library)
        self.library = library
        library.add_resolver(self._resolve)

    def _names(self) -> list[str]:
        names = [name for name in self.library.symbols() if self._is_function(name)]
        return [*names, MAIN] if self._main() and MAIN not in names else names

    def _is_function(self, name: str) -> bool:
        symbol = self.library.describe(name)
        return symbol is not None and symbol.kind == "function" and not name.startswith(_RESERVED)

    def _main(self) -> str | None:
        """Name of the entry function: data in TVM's llvm target, a function in its c target."""
        raw = self.library.read(MAIN)
        return raw.split(b"\0")[0].decode("utf-8", "replace") if raw else None

    def _find(self, name: str) -> PackedFunction | None:
        entry = self._main() if name == MAIN else None
        symbol = self.library.describe(entry or name)
        if symbol is None or symbol.kind != "function":
            return None
        if name != MAIN and name.startswith(_RESERVED):
            return None
        address = self.library.symbol(symbol.name)
        return NativeFunction(address, name, self.library) if address else None

    def _resolve(self, name: str) -> int | None:
        """For the library's own code: a handle of an imported function."""
        found = None if self._closed else self._imported(name)
        return found.__packed_handle__() if found else None


add_value_type(AddressModule)
add_value_type(PythonModule)
add_value_type(NativeModule)


def load_module(path: str | os.PathLike[str]) -> NativeModule:
    """Load a compiled library: ours, or TVM's of 0.2 to 0.20 (llvm target).

    Loading runs code of the file: load only what you trust.

    Raises
    ------
    ArtifactError
        No such file, not a library of this machine, truncated, or of an ABI this version cannot
        call. The message says which.
    """
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES and ".so." not in file.name:
        raise ArtifactError(
            f"'{file.name}' has no suffix of a compiled library; load_module takes "
            f"{', '.join(SUFFIXES)}. Models are read with packhorse.load"
        )
    return NativeModule(Library(file))


def _check_abi(library: Library) -> None:
    """Calling a function of another ABI crashes: refuse what is known not to be the legacy one."""
    prefix = "__tvm_ffi_"
    names = set(library.symbols())
    modern = [n for n in names if n.startswith(prefix)]
    if any(n[len(prefix) :] in names for n in modern):
        return  # carries both ABIs
    if modern or any(n.startswith("__TVMFFI") for n in names):
        raise ArtifactError(
            f"'{library.path}' was compiled by TVM 0.21 or newer for the tvm-ffi ABI, which this "
            "version of packhorse cannot call; compile it with TVM 0.2 to 0.20"
        )


def _global_handle(name: str) -> int | None:
    found = get_global_func(name, allow_missing=True)
    return found.__packed_handle__() if found else None


set_global_lookup(_global_handle)
