"""Files of other formats than ours: plugins of the group ``packhorse.formats`` read and write them.

A plugin is asked when nothing else knows the file: the one whose entry point is named like the
suffix first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.errors import (
    ArtifactError,
    ModelFormatError,
    PackhorseError,
    PluginError,
    update_or_remove,
)
from packhorse.plugin.manager import FORMATS, PluginManager

if TYPE_CHECKING:  # annotations only: artifacts lie above the plugins
    from packhorse.artifact import Artifact

__all__ = ["HEAD", "read_artifact", "write_artifact"]

HEAD = 64
"""Bytes of a file that plugins see to tell its format."""


def read_artifact(
    manager: PluginManager, path: Path, fmt: str | None = None
) -> tuple[Artifact | None, str]:
    """What a plugin reads from a file; None when it is of no format that one knows.

    Parameters
    ----------
    fmt : str, optional
        Name of the only plugin to ask.

    Returns
    -------
    Artifact or None, and sentences about the plugins that were asked or could not be.

    Raises
    ------
    ArtifactError
        The file is of a plugin's format, and damaged; or it cannot be read.
    ModelFormatError
        ``fmt`` names a plugin, and the file is not of its format.
    PluginError, MissingExtra
        A plugin failed while it read the file; the one of ``fmt`` is broken.
    """
    suffix, names, notes = path.suffix[1:].lower(), manager.names(FORMATS), ""
    if fmt is not None:
        names = [name for name in names if name == fmt]
    elif names:
        notes = f" Formats of plugins: {', '.join(names)}."
    for name in sorted(names, key=lambda n: n != suffix):
        try:
            manager.load(FORMATS, name)
        except PackhorseError as error:
            if fmt is not None:
                raise
            notes += f" Not usable: {error}."
            continue
        found = _ask(manager, name, "packhorse_load_artifact", path=path, head=_head(path))
        if found is not None:
            return found, ""
        if fmt is not None:
            raise ModelFormatError(f"'{path}' is not a file of the format '{fmt}'")
    return None, notes


def write_artifact(manager: PluginManager, path: Path, artifact: Artifact) -> Path | None:
    """Have the plugin named like the path's suffix write an artifact.

    Returns
    -------
    Path or None
        What was written; None when there is no such plugin, or it does not write.

    Raises
    ------
    PluginError
        The plugin is broken, or failed while it wrote.
    """
    name = path.suffix[1:].lower()
    if name not in manager.names(FORMATS):
        return None
    manager.load(FORMATS, name)
    found = _ask(manager, name, "packhorse_save_artifact", artifact=artifact, path=path)
    return None if found is None else Path(found)


def _ask(manager: PluginManager, name: str, hook: str, **arguments: Any) -> Any:
    try:
        return manager.hook(hook, FORMATS, name)(**arguments)
    except PackhorseError:
        raise
    except (Exception, SystemExit) as error:
        entry = manager.entry(FORMATS, name)
        raise PluginError(
            f"plugin '{name}' of {entry.dist} {entry.version} failed on '{arguments['path']}': "
            f"{type(error).__name__}: {error}",
            update_or_remove(entry.dist),
        ) from error


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError as error:
        raise ArtifactError(
            f"'{path}' cannot be read: {error.strerror or error}; check the path"
        ) from error
