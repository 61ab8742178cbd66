"""Every hook of packhorse, and nothing else.

A plugin is a module named by an entry point (group ``packhorse.backends``,
``packhorse.frontends``, ``packhorse.formats`` or ``packhorse.plugins``) with some of these
functions in it, each marked with ``packhorse.plugin.hookimpl``. It is imported when its name is
used for the first time and not before. An implementation may leave out arguments it does not
need. Hooks are for discovery: allocate, copy, compile and call are methods of what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:  # annotations only: plugin lies below the modules named here
    import argparse
    from pathlib import Path

    from packhorse.artifact import Artifact
    from packhorse.device import Backend
    from packhorse.graph.ir import Graph
    from packhorse.ops.registry import Operator
    from packhorse.plugin.info import BackendInfo, DeviceInfo, FrontendInfo, PluginContext

__all__ = ["Commands", "Hooks", "hookimpl", "hookspec"]

hookspec = pluggy.HookspecMarker("packhorse")
hookimpl = pluggy.HookimplMarker("packhorse")
"""Marks a function of a plugin as the implementation of the hook of the same name."""


class Commands(Protocol):
    """What :meth:`Hooks.packhorse_cli` is given."""

    def add(
        self,
        name: str,
        help: str,
        configure: Callable[[argparse.ArgumentParser], None],
        run: Callable[[argparse.Namespace], int],
    ) -> None:
        """Add ``packhorse <name>``; ``run`` returns the exit code."""


class Hooks(Protocol):
    """The hooks. Write them as module-level functions, without ``self``.

    A Protocol only so that the bodies may be empty; nothing derives from it.
    """

    @hookspec(firstresult=True)
    def packhorse_backend_info(self, name: str) -> BackendInfo | None:
        """Describe the backend: static data, no driver, no shared library, nothing heavy.

        Group ``packhorse.backends``, required. Called once per name.

        Parameters
        ----------
        name : str
            The entry-point name, for modules that offer several backends.

        Raises
        ------
        MissingExtra
            An optional package is missing: the backend is then listed as not installed.
        """

    @hookspec(firstresult=True)
    def packhorse_open_backend(self, name: str, context: PluginContext) -> Backend | None:
        """Return the backend object; the only way to get one. Called once per name.

        Group ``packhorse.backends``, required. The driver may be loaded here.

        Raises
        ------
        MissingExtra, DeviceUnavailable
            What it needs is missing; the message says what to install.
        """

    @hookspec(firstresult=True)
    def packhorse_probe(self, name: str) -> Iterable[DeviceInfo] | None:
        """List the devices that are there, with the reason for each that cannot be used.

        Group ``packhorse.backends``, optional: without it ``Backend.probe`` is asked. It may be
        slow, and it may crash: it runs in a child process with a time limit.
        """

    @hookspec(firstresult=True)
    def packhorse_frontend_info(self, name: str) -> FrontendInfo | None:
        """Describe the frontend: static data. Group ``packhorse.frontends``, required."""

    @hookspec(firstresult=True)
    def packhorse_import_model(
        self, source: Any, fmt: str | None, options: Mapping[str, Any]
    ) -> Graph | None:
        """Read a model. Group ``packhorse.frontends``, required.

        Parameters
        ----------
        source : Path, bytes or the framework's own object
            What the caller gave.
        fmt : str or None
            The format's word when the caller named it.
        options : mapping
            Keyword arguments for this frontend; unknown ones are refused by it.

        Returns
        -------
        Graph or None
            None when the source is not of this frontend's format.

        Raises
        ------
        ModelError
            The source is of this format but cannot be used.
        """

    @hookspec(firstresult=True)
    def packhorse_load_artifact(self, path: Path, head: bytes) -> Artifact | None:
        """Read a compiled model. Group ``packhorse.formats``.

        ``packhorse.load`` asks when no frontend reads files with that suffix, the plugin whose
        entry point is named like the suffix first; ``load(path, format=name)`` asks one alone.

        Parameters
        ----------
        path : Path
            A file that can be read.
        head : bytes
            Its first 64 bytes (:data:`packhorse.plugin.formats.HEAD`), to tell the format.

        Returns
        -------
        Artifact or None
            None when the file is of another format.

        Raises
        ------
        ArtifactError
            The file is of this format, but damaged.
        """

    @hookspec(firstresult=True)
    def packhorse_save_artifact(self, artifact: Artifact, path: Path) -> Path | None:
        """Write a compiled model and return the path written; None when this is not offered.

        Group ``packhorse.formats``. ``executable.save("x.acme")`` asks the plugin whose entry
        point is named ``acme``. What was at ``path`` before must be kept whole on failure.

        Raises
        ------
        ArtifactError
            It cannot be written there.
        """

    @hookspec
    def packhorse_functions(self) -> Mapping[str, Callable[..., Any]]:
        """Global packed functions, by name; a name taken already is refused.

        Called once, when a function is looked up that is not there, or all are listed. Plugins of
        the group ``packhorse.plugins`` are loaded for it, those of other groups are asked once
        they have been loaded.
        """

    @hookspec
    def packhorse_operators(self) -> Iterable[Operator]:
        """Operators to add: :func:`packhorse.ops.define`, :func:`packhorse.ops.maps.define_map`.

        Called once, when a model has an operator that is not there; a name taken already is
        refused. Group ``packhorse.plugins``: plugins of other groups are asked too, but may be
        loaded only after the model was read.
        """

    @hookspec
    def packhorse_cli(self, commands: Commands) -> None:
        """Add commands to the command line. Group ``packhorse.plugins``."""
