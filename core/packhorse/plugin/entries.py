"""Which plugins are installed: entry points, read without importing anything they name."""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from packhorse._device_string import is_backend_word
from packhorse._version import __version__
from packhorse.errors import PluginError, did_you_mean, update_or_remove

__all__ = [
    "BUILTINS",
    "GROUPS",
    "KNOWN",
    "Entry",
    "Known",
    "Selection",
    "installed",
    "normalized",
    "unknown",
]

GROUPS = ("packhorse.backends", "packhorse.frontends", "packhorse.formats", "packhorse.plugins")
"""Entry-point groups; the last one is loaded eagerly, the others name by name."""


@dataclass(frozen=True)
class Entry:
    """One entry point: ``name`` in ``group`` leads to the object ``value`` of a distribution.

    ``problem`` says why it cannot be used, where that is seen without importing anything.
    """

    group: str
    name: str
    value: str
    dist: str = "packhorse"
    version: str = __version__
    problem: str = ""

    @property
    def is_ours(self) -> bool:
        """True for what packhorse itself installs: no other package may take these names."""
        return normalized(self.dist) == "packhorse"

    def load(self) -> object:
        """Import the object; raises whatever the plugin raises."""
        module, _, attributes = self.value.partition(":")
        found: object = importlib.import_module(module.strip())
        for attribute in filter(None, attributes.strip().split(".")):
            found = getattr(found, attribute)
        return found


BUILTINS: tuple[Entry, ...] = (Entry("packhorse.backends", "cpu", "packhorse.cpu_plugin"),)
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
    """All entry points of :data:`GROUPS`, those with damaged metadata included.

    Of a distribution found twice on ``sys.path`` the first counts, as for imports. The folders
    are read here: ``importlib.metadata`` brings an e-mail parser, 15 ms for every process.
    """
    entries: list[Entry] = []
    seen: set[str] = set()
    for place in dict.fromkeys(path or os.curdir for path in sys.path):
        names, read = _listed(place)
        for folder in names:
            # "~": what an interrupted pip left behind
            if not folder.endswith((".dist-info", ".egg-info")) or folder.startswith("~"):
                continue
            try:
                data = read(f"{folder}/entry_points.txt")
            except (OSError, KeyError):
                continue  # most have none; what cannot be read cannot be said to be a plugin
            if b"packhorse." not in data:
                continue
            dist, version = _identity(folder, read)
            if normalized(dist) not in seen:
                seen.add(normalized(dist))
                entries.extend(_parsed(data, dist, version))
    return entries


def _listed(place: str) -> tuple[Iterable[str], Callable[[str], bytes]]:
    """The names in a folder, or in a zip file, and what reads a file of it."""
    try:
        return os.listdir(place), functools.partial(_read, place)
    except NotADirectoryError:
        import zipfile  # rare, and slow to import

        if zipfile.is_zipfile(place):
            archive = zipfile.ZipFile(place)
            return dict.fromkeys(n.partition("/")[0] for n in archive.namelist()), archive.read
    except OSError:  # sys.path may name what is not there
        pass
    return (), functools.partial(_read, place)


def _read(place: str, name: str) -> bytes:
    with open(os.path.join(place, name), "rb") as file:
        return file.read()


def _identity(folder: str, read: Callable[[str], bytes]) -> tuple[str, str]:
    """Name and version of a distribution; from the folder's name where its metadata is damaged."""
    fields: dict[str, str] = {}
    for file in ("METADATA", "PKG-INFO"):
        try:
            text = read(f"{folder}/{file}").decode(errors="replace")
        except (OSError, KeyError):
            continue
        for line in text.partition("\n\n")[0].splitlines():
            key, colon, value = line.partition(":")
            if colon:
                fields.setdefault(key.strip().lower(), value.strip())
    name, _, version = folder.rpartition(".")[0].partition("-")
    return fields.get("name") or name, fields.get("version") or version or "of unknown version"


def _parsed(data: bytes, dist: str, version: str) -> Iterator[Entry]:
    group = ""
    for line in map(str.strip, data.decode(errors="replace").splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif group in GROUPS and line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            # extras after the object ("module:attr [extra]") are deprecated and carry no meaning
            name, value = name.strip().lower(), value.partition("[")[0].strip()
            yield Entry(group, name, value, dist, version, _problem(group, name, value, line))


def _problem(group: str, name: str, value: str, line: str) -> str:
    if not name or not value or "\ufffd" in line:
        return f"its entry_points.txt is damaged: {line[:80]!r} is not 'name = module'"
    if group == "packhorse.backends" and not is_backend_word(name):
        return (
            f"'{name}' can be no backend in a device string: that is a letter, then letters and "
            "digits, joined by '-'"
        )
    return ""


def sort_entries(
    entries: Iterable[Entry], selection: Selection
) -> tuple[dict[tuple[str, str], list[Entry]], list[Entry], dict[tuple[str, str], str]]:
    """Entries by (group, name), those with a problem, and the settings that switch some off."""
    allowed: list[Entry] = []
    named: dict[tuple[str, str], list[Entry]] = {}
    unusable: list[Entry] = []
    refused: dict[tuple[str, str], str] = {}
    for entry in entries:
        if reason := selection.refusal(entry, entry in BUILTINS):
            refused[entry.group, entry.name] = reason
        else:
            allowed.append(entry)
    ours = {(entry.group, entry.name) for entry in allowed if entry.is_ours}
    for entry in allowed:
        key = entry.group, entry.name
        if key in ours and not entry.is_ours:
            text = f"it offers '{entry.name}', which is a name of packhorse itself"
            entry = replace(entry, problem=text)
        if entry.problem:
            unusable.append(entry)
        else:
            named.setdefault(key, []).append(entry)
    return named, unusable, refused


def damaged(unusable: Iterable[Entry], group: str) -> dict[str, PluginError]:
    """One error for each package with entries of a group that have a problem."""
    found: dict[str, list[Entry]] = {}
    for entry in unusable:
        if entry.group == group:
            found.setdefault(normalized(entry.dist), []).append(entry)
    return {
        name: PluginError(
            f"{entries[0].dist} {entries[0].version}: {'; '.join(e.problem for e in entries)}",
            update_or_remove(entries[0].dist),
        )
        for name, entries in found.items()
    }


def unknown(group: str, name: str, names: Sequence[str], switch: str = "") -> str:
    """What is said of a name that no plugin offers.

    ``names`` are those installed; ``switch`` is the setting that switches this one off.
    """
    known = [word for found, word in KNOWN if found == group]
    hint = did_you_mean(name, [*names, *known])
    kind = group.partition(".")[2].removesuffix("s")
    text = f"no {kind} '{name}'{hint}. Installed: {', '.join(names) or 'none'}. "
    absent = [w for w in known if w not in names and (w == name or f"'{w}'" in hint)]
    if switch:
        return f"{text}'{name}' is installed, but {switch} switches it off"
    if absent:
        extra = KNOWN[group, absent[0]].extra
        return f"{text}'{absent[0]}' comes with: pip install 'packhorse[{extra}]'"
    return f"{text}Other packages may offer it as an entry point of the group '{group}'"
