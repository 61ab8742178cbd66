"""Which plugins are installed: entry points, read without importing anything they name."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from packhorse._version import __version__

__all__ = ["BUILTINS", "GROUPS", "KNOWN", "Entry", "Known", "Selection", "installed"]

GROUPS = ("packhorse.backends", "packhorse.frontends", "packhorse.formats", "packhorse.plugins")
"""Entry-point groups; the last one is loaded eagerly, the others name by name."""


@dataclass(frozen=True)
class Entry:
    """One entry point: ``name`` in ``group`` leads to the object ``value`` of a distribution."""

    group: str
    name: str
    value: str
    dist: str = "packhorse"
    version: str = __version__

    def load(self) -> object:
        """Import the object; raises whatever the plugin raises."""
        module, _, attributes = self.value.partition(":")
        found: object = importlib.import_module(module.strip())
        for attribute in filter(None, attributes.strip().split(".")):
            found = getattr(found, attribute)
        return found


BUILTINS: tuple[Entry, ...] = (Entry("packhorse.backends", "cpu", "packhorse.cpu"),)
"""Plugins that come without an entry point; from here on they are treated like the others."""


@dataclass(frozen=True)
class Known:
    """A plugin packhorse itself offers: the extra that brings what it needs, and that package."""

    extra: str
    package: str
    summary: str


KNOWN: Mapping[tuple[str, str], Known] = {
    ("packhorse.backends", "llvm-cpu"): Known(
        "llvm-cpu", "llvmlite", "this machine's CPU, kernels compiled with LLVM"
    ),
    ("packhorse.backends", "opencl"): Known(
        "opencl", "pyopencl", "any device with an OpenCL driver"
    ),
    ("packhorse.frontends", "onnx"): Known("onnx", "onnx", "ONNX models"),
}
"""What to install for words that are not installed: (group, name) -> extra."""


@dataclass(frozen=True)
class Selection:
    """Which of the installed plugins may be used.

    ``only=None`` allows all; words are entry-point names or distribution names. Built-ins are
    not subject to ``only``, so there is always a cpu unless it is disabled by name.
    """

    only: frozenset[str] | None = None
    disable: frozenset[str] = frozenset()

    @classmethod
    def of(cls, only: Iterable[str] | None, disable: Iterable[str] = ()) -> Selection:
        """From the words of ``PACKHORSE_PLUGINS`` (``off`` allows none) and ``_DISABLE``."""
        if only is not None:
            only = frozenset(only) - {"off"}
        return cls(only, frozenset(disable))

    def refusal(self, entry: Entry, builtin: bool = False) -> str:
        """Which setting switches the entry off; empty when it may be used."""
        words = {entry.name, normalized(entry.dist)}
        if words & self.disable:
            return "PACKHORSE_DISABLE"
        if self.only is not None and not builtin and not words & self.only:
            return "PACKHORSE_PLUGINS"
        return ""


def normalized(dist: str) -> str:
    """A distribution name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", dist).lower()


def installed() -> list[Entry]:
    """All entry points of :data:`GROUPS`; a distribution with damaged metadata is left out.

    Of a distribution found twice on ``sys.path`` the first counts, as for imports.
    """
    entries: list[Entry] = []
    seen: set[str] = set()
    for dist in importlib.metadata.distributions():
        try:
            text = dist.read_text("entry_points.txt") or ""
            if "packhorse." not in text:
                continue
            fields = dist.metadata  # its typed protocol has no get()
            name = fields["Name"] if "Name" in fields else ""  # noqa: SIM401
            if not name:
                continue
            if normalized(name) not in seen:
                seen.add(normalized(name))
                entries.extend(_parsed(text, name, str(dist.version)))
        except (OSError, UnicodeDecodeError, KeyError):
            continue  # not ours to mend: pip check reports it, and the others must go on working
    return entries


def _parsed(text: str, dist: str, version: str) -> Iterator[Entry]:
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif group in GROUPS and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            # extras after the object ("module:attr [extra]") are deprecated and carry no meaning
            yield Entry(group, name.strip().lower(), value.partition("[")[0].strip(), dist, version)
