"""Every hook of packhorse, and nothing else.

A plugin is a module named by an entry point (group ``packhorse.backends``,
``packhorse.frontends``, ``packhorse.formats`` or ``packhorse.plugins``) with some of these
functions in it, each marked with ``packhorse.plugin.hookimpl``. It is imported when its name is
used for the first time and not before. An implementation may leave out arguments it does not
need. Hooks are for discovery: allocate, copy, compile and call are methods of what they return.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:  # annotations only: plugin lies below the modules named here
    import argparse

    from packhorse.device import Backend, Device
    from packhorse.graph.ir import Graph
    from packhorse.module import Module
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
    def packhorse_load_artifact(self, path: Path, head: bytes, device: Device) -> Module | None:
        """Load a compiled artifact. Group ``packhorse.formats``.

        ``head`` holds the first 64 bytes of the file. Return None when it is of another format.

        Reserved: the signature is settled, packhorse does not ask yet.
        """

    @hookspec(firstresult=True)
    def packhorse_save_artifact(self, module: Module, path: Path, fmt: str) -> Path | None:
        """Write a module in the format ``fmt`` and return the path written, or None.

        Group ``packhorse.formats``.

        Reserved: the signature is settled, packhorse does not ask yet.
        """

    @hookspec
    def packhorse_functions(self) -> Mapping[str, Callable[..., Any]]:
        """Global packed functions to register; a name taken already is refused.

        Reserved: the signature is settled, packhorse does not ask yet.
        """

    @hookspec
    def packhorse_operators(self, backend: str) -> Iterable[Operator]:
        """Operators the plugin adds to the IR, for the backend named.

        Reserved: the signature is settled, packhorse does not ask yet.
        """

    @hookspec
    def packhorse_cli(self, commands: Commands) -> None:
        """Add commands to the command line. Group ``packhorse.plugins``."""
