"""The command line: ``packhorse <command>``, the same as ``python -m packhorse``.

A command is a module with ``configure(parser)`` and ``run(arguments) -> exit code``, named in
:data:`COMMANDS`; it is imported when it is used. Plugins of the group ``packhorse.plugins`` add
theirs through the hook ``packhorse_cli``. Exit codes: 0 done, 1 a check failed, 2 an error.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from packhorse import _config
from packhorse._version import __version__
from packhorse.cli._output import fail
from packhorse.errors import ArgumentValueError, PackhorseError, PluginError

__all__ = ["COMMANDS", "main"]

COMMANDS: Mapping[str, tuple[str, str]] = {
    "devices": ("packhorse.cli._devices", "list backends and devices, and what is missing"),
    "doctor": ("packhorse.cli._doctor", "check this installation and every device"),
    "demo": ("packhorse.cli._demo", "say what type files are, with a real model, on two devices"),
    "run": ("packhorse.cli._run", "run a model or an artifact once"),
    "compile": ("packhorse.cli._compile", "compile a model into an artifact"),
    "inspect": ("packhorse.cli._inspect", "show what is in a model, an artifact or a library"),
    "bench": ("packhorse.cli._bench", "measure a model: time, throughput, memory"),
    "profile": ("packhorse.cli._profile", "time each step of a model, kernel by kernel"),
    "new-backend": ("packhorse.cli._new_backend", "write a package that adds a device"),
    "testing": ("packhorse.cli._testing", "run ONNX's tests on a device, show reports"),
}
"""Command -> (module, one line of help)."""

Configure = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], int]


class _PluginCommands:
    """Collects the commands of plugins (the ``Commands`` of the hook ``packhorse_cli``)."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[str, Configure, Run]] = {}

    def add(self, name: str, help: str, configure: Configure, run: Run) -> None:
        """Add ``packhorse <name>``; a name that is taken is refused."""
        if name in COMMANDS or name in self.found:
            raise PluginError(f"a plugin wants to add the command '{name}', which is taken")
        self.found[name] = help, configure, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    An error of packhorse's own is one message on stderr; ``PACKHORSE_DEBUG=1`` adds the traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _set_up_logging()
        return _dispatch(arguments)
    except PackhorseError as error:
        if _config.flag("PACKHORSE_DEBUG"):
            raise
        fail(str(error))
        return 2
    except KeyboardInterrupt:
        fail("interrupted")
        return 130
    except BrokenPipeError:
        # The reader (head, less) has left; keep the interpreter from flushing into the void.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(arguments: list[str]) -> int:
    command = next((word for word in arguments if not word.startswith("-")), None)
    # Plugins are asked only when the command is not ours: `packhorse devices` must work with
    # a broken one, and without the time it takes to import it.
    extra = _PluginCommands() if command in COMMANDS else _plugin_commands()
    parser = argparse.ArgumentParser(
        prog="packhorse", description="Carries deep-learning models to any device."
    )
    parser.add_argument("--version", action="version", version=f"packhorse {__version__}")
    choices = parser.add_subparsers(dest="command", metavar="command", required=True)
    run: Run | None = None
    for name, (module, help) in COMMANDS.items():
        sub = choices.add_parser(name, help=help, description=help[:1].upper() + help[1:] + ".")
        if name == command:
            found = importlib.import_module(module)
            found.configure(sub)
            run = found.run
    for name, (help, configure, plugin_run) in extra.found.items():
        sub = choices.add_parser(name, help=help, description=help)
        if name == command:
            configure(sub)
            run = plugin_run
    parsed = parser.parse_args(arguments)  # ends the process for --help and for wrong usage
    assert run is not None, "argparse accepts no other command"
    return run(parsed)


def _plugin_commands() -> _PluginCommands:
    from packhorse.plugin import default_manager

    commands = _PluginCommands()
    # A plugin that fails is logged; the commands of the others, and our own, still work.
    default_manager().ask("packhorse_cli", commands=commands)
    return commands


def _set_up_logging() -> None:
    word = _config.setting("PACKHORSE_LOG") or "warning"
    level = logging.getLevelNamesMapping().get(word.upper())
    if level is None:
        raise ArgumentValueError(f"PACKHORSE_LOG is '{word}'; use debug, info, warning or error")
    logging.basicConfig(level=level, format="packhorse: %(levelname)s: %(message)s")
