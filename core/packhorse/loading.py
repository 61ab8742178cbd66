"""``load`` and ``compile``: from files to models and executables.

>>> import packhorse as ph                                        # doctest: +SKIP
>>> model = ph.load("mobilenet.onnx")                             # doctest: +SKIP
>>> y = model(image, device="llvm-cpu")                           # doctest: +SKIP
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packhorse.compiler.placement import Placement
from packhorse.device import Device
from packhorse.errors import (
    ArgumentTypeError,
    ArtifactError,
    ModelError,
    ModelFormatError,
    PluginError,
)
from packhorse.executable import DeviceLike, Executable
from packhorse.graph.ir import Graph
from packhorse.model import Model

__all__ = ["compile", "load"]

_FOLDER = "part of an artifact; load its folder: packhorse.load('{folder}')"
_PARTS = {".json": _FOLDER, ".params": _FOLDER}
"""What is said about a file that is no model by itself."""
_LIBRARIES = frozenset((".so", ".dll", ".dylib", ".dso"))
"""Single-file libraries: a graph factory or a Relax executable."""


def load(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    device: str | Device | None = None,
) -> Model | Executable:
    """Load a model or a compiled artifact.

    Parameters
    ----------
    path : str or path-like
        A model file (``.onnx``), or an artifact: a folder with ``deploy.json``, a ``.packhorse``
        file, or a single library that TVM or packhorse wrote (``.so``).
    format : str, optional
        Name of the frontend when the file's suffix does not tell it.
    device : str or Device, optional
        Where it runs when a call names no device; default: ``$PACKHORSE_DEVICE``, else the best
        that works here, for artifacts among those that they hold code for.

    Returns
    -------
    Model
        For model files: compiled when called, for the device of the call.
    Executable
        For artifacts: loaded on the device now. Code of the host runs on ``cpu`` with nothing
        else installed.

    Raises
    ------
    ModelFormatError
        No such file, or not a model.
    ArtifactError
        A damaged artifact.
    DeviceError
        The device cannot be used here, or the artifact holds no code for it.
    CompileError
        The device cannot run the artifact's code.
    ArgumentTypeError
        ``path`` is no path.
    MissingExtra
        The frontend's package is not installed.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentTypeError(f"load takes the path of a file or folder, not {_kind(path)}")
    where = Path(path)
    if not where.exists():
        raise ModelFormatError(
            f"'{where}' does not exist. Give the path of a model file, of a folder with "
            "deploy.json, or of a .packhorse file"
        )
    try:
        return _load(where, format, device)
    except (ModelError, ArtifactError) as error:
        if str(where) not in str(error):  # parsers below see bytes, people want a file name
            error.args = (f"'{where}': {error}", *error.args[1:])
        raise


def _load(where: Path, format: str | None, on: str | Device | None) -> Model | Executable:
    if where.suffix == ".packhorse" or where.is_dir():
        from packhorse.artifact import load_artifact

        return Executable.from_artifact(load_artifact(where), on)
    if format is None and where.suffix in _LIBRARIES:
        return Executable.from_library(where, on)
    if format is None and where.suffix in _PARTS:
        raise ModelFormatError(f"'{where}' is {_PARTS[where.suffix].format(folder=where.parent)}")
    from packhorse.plugin import default_manager

    manager = default_manager()
    try:
        frontend = manager.frontend(format) if format else manager.frontend_for(where)
    except ModelError as error:
        return _of_other_format(where, format, on, error)
    return Model(frontend.import_model(where, format), on)


def _of_other_format(
    where: Path, format: str | None, on: str | Device | None, unknown: ModelError
) -> Executable:
    """What a plugin of the group ``packhorse.formats`` reads; raises ``unknown`` if none does."""
    from packhorse.artifact import Artifact
    from packhorse.plugin import default_manager
    from packhorse.plugin.formats import read_artifact

    artifact, notes = read_artifact(default_manager(), where, format)
    if artifact is None:
        if notes:
            unknown.args = (f"{str(unknown).rstrip('.')}.{notes}", *unknown.args[1:])
        raise unknown
    if not isinstance(artifact, Artifact):
        raise PluginError(
            f"a plugin read '{where}' as {type(artifact).__name__}, not as packhorse.artifact."
            "Artifact",
            "Report it to the plugin's author",
        )
    return Executable.from_artifact(artifact, on)


def compile(
    model: Model | Graph | str | os.PathLike[str],
    device: DeviceLike = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, Any] | None = None,
) -> Executable:
    """Compile a model, a graph or a model file; :meth:`Model.compile` says what the rest means.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        Not a model, or an argument that does not fit it.
    ModelFormatError, ArtifactError
        The file is no model.
    DeviceError, CompileError
        The device cannot be had, or cannot run the model.
    """
    if isinstance(model, Graph):
        model = Model(model)
    if isinstance(model, (str, os.PathLike)):
        # artifacts are opened for that device alone
        one = None if isinstance(device, (Mapping, Placement)) else device
        return load(model, device=one).compile(device, shapes=shapes, values=values)
    if not isinstance(model, (Model, Executable)):
        raise ArgumentTypeError(
            f"compile takes a Model, a Graph or the path of a model file, not {_kind(model)}"
        )
    return model.compile(device, shapes=shapes, values=values)


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
