"""Where Relax executables are found: in a loaded library, with the functions they call."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from packhorse.errors import ArtifactError, FunctionNotFound
from packhorse.function import PackedFunction, get_global_func
from packhorse.graph.relax_arguments import constant_view
from packhorse.graph.relax_builtins import BUILTINS
from packhorse.graph.relax_file import FunctionKind, RelaxFile, parse_relax
from packhorse.graph.relax_text import as_text
from packhorse.graph.relax_values import Callee
from packhorse.module_base import Module
from packhorse.module_blob import Opaque

__all__ = ["KIND", "disassemble", "global_callee", "loaded", "own_functions"]

KIND = "relax.VMExecutable"
"""TVM's name of modules that hold an executable."""


def disassemble(module: Module) -> str:
    """The bytecode in the form of TVM's own listing; also of what cannot be run here.

    Raises
    ------
    ArtifactError
        The module holds no Relax executable, or a damaged one.
    """
    return as_text(loaded(module)[0])


def own_functions(module: Module, file: RelaxFile) -> dict[str, Callee]:
    """The packed functions that the library itself has, which then need the module no longer."""
    found = {}
    for row in file.functions:
        if row.kind is FunctionKind.PACKED and row.name not in BUILTINS:
            with suppress(FunctionNotFound):
                found[row.name] = _callee(row.name, module.get_function(row.name, True))
    return found


def global_callee(name: str, caller: str) -> Callee:
    """A global function; FunctionNotFound says who called it."""
    function = get_global_func(name, allow_missing=True)
    if function is None:
        hint = (
            "packhorse does not have this function of TVM's VM"
            if name.startswith("vm.builtin.")
            else "register it with packhorse.register_func"
        )
        raise FunctionNotFound(
            f"the Relax executable of '{caller}' calls '{name}', which is neither in the library "
            f"nor a global function; {hint}"
        )
    return _callee(name, function)


def _callee(name: str, function: PackedFunction) -> Callee:
    return Callee(name, function, function.address, getattr(function, "abi", "ffi"))


_files: WeakKeyDictionary[Any, tuple[RelaxFile, list[Any]]] = WeakKeyDictionary()
_files_lock = threading.Lock()


def loaded(module: Module) -> tuple[RelaxFile, list[Any]]:
    """The parsed executable of a module and its constants, made once per module.

    The module's payload is empty from then on: the weights in it would be in memory twice.
    """
    with _files_lock:
        holder = _holder(module)
        if holder not in _files:
            file = parse_relax(holder.payload.data)
            constants = [
                constant_view(c) if isinstance(c, np.ndarray) else c for c in file.constants
            ]
            _files[holder] = file, constants
            holder.payload = Opaque(b"")
        return _files[holder]


def _holder(module: Module) -> Any:
    """The module that holds an executable: this one, or one that it imports."""
    waiting, kinds = [module], []
    while waiting:
        found = waiting.pop()
        payload = getattr(found, "payload", None)
        if found.kind == KIND and isinstance(payload, Opaque):
            return found
        kinds.append(found.kind)
        waiting += found.imports
    raise ArtifactError(
        f"'{module.name}' holds no Relax executable, but {', '.join(kinds)}; load a library that "
        "TVM 0.22 to 0.27 compiled from a Relax module"
    )
