"""What every module is: named packed functions, and other modules that it imports."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from packhorse.errors import (
    ArgumentTypeError,
    CompileError,
    DeviceClosed,
    FunctionNotFound,
    did_you_mean,
)
from packhorse.function import PackedFunction, add_value_type

__all__ = ["Module", "PythonModule"]


class Module:
    """A container of packed functions. Subclasses write ``_names`` and ``_find``.

    Attributes
    ----------
    name : str
        What errors call it.
    kind : str
        ``library``, ``jit``, ``python``, or TVM's name of what a library holds within.
    imports : tuple of Module
        Asked after the module itself when ``query_imports`` is set, and by compiled code.
    """

    kind = "module"
    __packed_kind__ = "module"

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

    @property
    def abi(self) -> str | None:
        """``"legacy"`` or ``"ffi"``: how compiled functions of it or its imports are called."""
        return next((found for m in self._imports if (found := m.abi)), None)

    @property
    def generation(self) -> str | None:
        """Which compilers write such libraries, if it or an import is one."""
        return next((found for m in self._imports if (found := m.generation)), None)

    @property
    def entry(self) -> PackedFunction:
        """Its entry function.

        Raises
        ------
        FunctionNotFound
            It has none.
        DeviceClosed
            The module was closed.
        """
        return self.get_function(self._entry_name() or "__tvm_main__")

    def _entry_name(self) -> str | None:
        """What the entry function is looked up by; None when there is none."""
        return None

    def __call__(self, *args: Any) -> Any:
        """Call the entry function."""
        return self.entry(*args)

    def describe(self) -> list[str]:
        """What it is, line by line: kind, ABI, entry, functions, imports, devices."""
        self._require_open()
        kinds = list(dict.fromkeys(m.kind for m in _walk(self) if m.is_device_code))
        names = self._names()
        lines = [
            f"module: {self.name} ({self.kind})",
            *(
                [f"abi: {self.abi}", f"compiled by: {self.generation or 'unknown'}"]
                if self.abi
                else []
            ),
            f"entry: {self._entry_name() or 'none'}",
            f"functions: {len(names)}",
            *(f"  {self._title(name)}" for name in names),
            f"imports: {', '.join(f'{m.name} ({m.kind})' for m in self._imports) or 'none'}",
        ]
        return lines + ([f"device kernels: {', '.join(kinds)}"] if kinds else [])

    is_device_code = False
    """Whether its functions run on a device other than the host."""

    def _title(self, name: str) -> str:
        """A function's name, with its parameters if they are known."""
        return name

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

    def save_blob(self) -> tuple[str, bytes]:
        """Its code as an artifact holds it, for devices that have ``load(blob, kind)``.

        A backend whose modules can be saved overrides this.

        Returns
        -------
        kind : str
            The word by which ``Device.load`` knows the form: lower case, digits, ``-``, ``_``
            and ``.``, up to 64 characters, with the name of the backend in it.
        blob : bytes
            The code. It should not depend on the driver's version nor on the path of any file.

        Raises
        ------
        CompileError
            The code has no form on disk.
        """
        raise CompileError(
            f"the code of module '{self.name}' ({self.kind}) cannot be saved: its backend offers "
            "no form on disk. Keep the model file, or compile it for another device, such as "
            "'llvm-cpu'"
        )

    def export_library(
        self, path: str | os.PathLike[str], data: Mapping[str, Any] | None = None
    ) -> Path:
        """Write it as a shared library. Only modules of machine code of the host can.

        Raises
        ------
        CompileError
            There is no such form of it.
        """
        raise CompileError(
            f"'{path}' was not written: module '{self.name}' ({self.kind}) has no form as a shared "
            "library. Save the model as a .packhorse file, or compile it for 'llvm-cpu'"
        )

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


def _walk(module: Module) -> Iterator[Module]:
    yield module
    for imported in module.imports:
        yield from _walk(imported)


class PythonModule(Module):
    """Packed functions written in Python under one roof, for instance to import elsewhere."""

    kind = "python"

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


add_value_type(PythonModule)
