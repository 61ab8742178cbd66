"""Compiled code on its way to disk: as the device loads it, linked, or with the graph within."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from packhorse import export, export_relax
from packhorse.device import Device
from packhorse.errors import ArtifactError, CompileError
from packhorse.graph.params import Array
from packhorse.graph.program import Program
from packhorse.module_base import Module

__all__ = ["code_of", "save_library"]


def code_of(module: Module, where: Device) -> tuple[str, bytes]:
    """The compiled code: as the device loads it, or a shared library of kind "".

    Raises
    ------
    CompileError
        It has no form on disk, or no linker was found.
    ArtifactError
        It could not be linked: no space.
    """
    if "load" in where.capabilities:
        return module.save_blob()
    if where.info.is_host:
        return "", _linked(module)
    raise CompileError(
        f"nothing was saved: the backend of '{where.name}' loads no saved code (its devices have "
        "no load(blob, kind)). Keep the model file, or compile it for another device, such as "
        "'llvm-cpu'"
    )


def save_library(
    path: Path, form: str, program: Program, params: Mapping[str, Array], module: Module
) -> Path:
    """Write one library with graph and weights; ``form`` is ``"graph"`` or ``"relax"``.

    Raises
    ------
    CompileError
        The code is not the host's, no linker was found, or Relax cannot run a step.
    ArtifactError
        It cannot be written there.
    """
    if form == "relax":
        blob = {export_relax.BLOB: export_relax.relax_blob(program, params)}
    else:
        export.warn_of_host_operators(program, f"'{path}'")
        blob = {export.BLOB: export.factory_blob(program, params)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        module.export_library(path, blob)
    except OSError as error:
        raise ArtifactError(
            f"'{path}' could not be written: {error.strerror or error}; what was there before "
            "is unchanged. Free some space or save elsewhere"
        ) from error
    return path


def _linked(module: Module) -> bytes:
    try:
        with tempfile.TemporaryDirectory(prefix="packhorse-") as folder:
            file = Path(folder) / "deploy.so"
            module.export_library(file)
            return file.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"the library could not be linked in '{tempfile.gettempdir()}': "
            f"{error.strerror or error}; nothing was saved. Free some space there, or set "
            "TMPDIR to another folder"
        ) from error
