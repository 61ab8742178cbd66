"""The manifest of an artifact: what it is made of, for which targets, with which hashes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from packhorse._version import __version__
from packhorse.errors import ArgumentValueError, ArtifactError
from packhorse.graph import _json as js
from packhorse.graph.program import Program

__all__ = ["FORMAT_VERSION", "Manifest", "Member", "check_kind", "check_target", "read_manifest"]

FORMAT_VERSION = 2
"""Of the manifest. Readers refuse a higher one, and writers write the lowest that says it all:
2 has ``kinds``, the targets whose library is no shared library."""
_KIND = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_TARGET = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Member:
    """Length in bytes, sha256 and CRC-32 of a file of the artifact.

    The CRC is the one in the zip's headers: they are compared with it, not with the content,
    which the sha256 vouches for.
    """

    size: int
    sha256: str
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """``programs`` and ``libraries`` map targets to member names, ``kinds`` to the form of the
    library where it is no shared library of the host."""

    device: str
    programs: Mapping[str, str]
    libraries: Mapping[str, str]
    params: str
    members: Mapping[str, Member]
    metadata: Mapping[str, str]
    packhorse_version: str = __version__
    kinds: Mapping[str, str] = field(default_factory=dict)

    def render(self, described: Mapping[str, Program]) -> bytes:
        """The JSON text. ``described`` are the programs by target, for people who read it."""
        document = {
            "format": "packhorse",
            "format_version": 2 if self.kinds else 1,
            "packhorse_version": self.packhorse_version,
            "device": self.device,
            "programs": dict(self.programs),
            "libraries": dict(self.libraries),
            "params": self.params,
            "signatures": {target: _signature(p) for target, p in described.items()},
            "members": {
                name: {"size": m.size, "sha256": m.sha256, "crc32": m.crc32}
                for name, m in self.members.items()
            },
            "metadata": dict(self.metadata),
            **({"kinds": dict(self.kinds)} if self.kinds else {}),
        }
        return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def _signature(program: Program) -> dict[str, Any]:
    entries = program.entries
    inputs = [(entries[i].name, entries[i]) for i in program.inputs]
    names = zip(program.output_names, program.outputs, strict=True)
    outputs = [(name, entries[i]) for name, i in names]
    return {
        word: [{"name": n, "dtype": e.dtype, "shape": list(e.shape)} for n, e in listed]
        for word, listed in (("inputs", inputs), ("outputs", outputs))
    }


def check_target(target: str) -> None:
    """Targets become file names: raise ArgumentValueError for anything that could not."""
    if not _TARGET.fullmatch(target):
        raise ArgumentValueError(
            f"'{target:.80}' is not a target name; use up to 64 letters, digits and _ + - ."
        )


def check_kind(kind: str) -> None:
    """Raise ArgumentValueError for what is no word for a form of code."""
    if not _KIND.fullmatch(kind):
        raise ArgumentValueError(
            f"'{kind:.80}' is no kind of code; use up to 64 lower-case letters, digits and _ - ."
        )


def read_manifest(source: bytes, what: str) -> Manifest:
    """Parse and check a manifest.

    Raises
    ------
    ArtifactError
        Damaged, or of a newer format.
    """
    found = js.parse(source, what)
    if found.get("format") != "packhorse":
        raise ArtifactError(f"{what} is not the manifest of a packhorse artifact")
    version = js.integer(found.get("format_version"), f"format_version of {what}", 1, 1 << 31)
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{what} has format version {version}, this packhorse {__version__} reads up to "
            f"{FORMAT_VERSION}; upgrade it: pip install -U packhorse"
        )
    manifest = Manifest(
        device=js.text(found.get("device"), f"device of {what}"),
        programs=_targets(found, "programs", what),
        libraries=_targets(found, "libraries", what),
        params=js.text(found.get("params"), f"params of {what}"),
        members=_members(found, what),
        metadata=_strings(found, "metadata", what),
        packhorse_version=js.text(found.get("packhorse_version"), f"version of {what}"),
        kinds=_kinds(found, what) if version > 1 else {},
    )
    _check_names(manifest, what)
    return manifest


def _strings(found: dict[str, Any], key: str, what: str) -> dict[str, str]:
    pairs = js.mapping(found.get(key), f"{key} of {what}")
    for name, value in pairs.items():
        js.text(value, f"{key}.{js.text(name, f'a key of {key} of {what}'):.80} of {what}")
    return dict(pairs)


def _targets(found: dict[str, Any], key: str, what: str) -> dict[str, str]:
    pairs = _strings(found, key, what)
    for target in pairs:
        if not _TARGET.fullmatch(target):
            raise ArtifactError(f"{key} of {what} has the impossible target {target!r:.80}")
    return pairs


def _kinds(found: dict[str, Any], what: str) -> dict[str, str]:
    kinds = _targets(found, "kinds", what)
    for target, kind in kinds.items():
        if not _KIND.fullmatch(kind):
            raise ArtifactError(f"the kind of '{target}' in {what} is the impossible {kind!r:.80}")
    return kinds


def _members(found: dict[str, Any], what: str) -> dict[str, Member]:
    members = {}
    for name, value in js.mapping(found.get("members"), f"members of {what}").items():
        where = f"member {js.text(name, f'a member of {what}'):.80} of {what}"
        pair = js.mapping(value, where)
        digest = js.text(pair.get("sha256"), f"sha256 of {where}")
        if not _HASH.fullmatch(digest):
            raise ArtifactError(f"sha256 of {where} is not a hash of 64 hex digits")
        size = js.integer(pair.get("size"), f"size of {where}", 0, 1 << 62)
        crc = js.integer(pair.get("crc32"), f"crc32 of {where}", 0, 1 << 32)
        members[name] = Member(size, digest, crc)
    return members


def _check_names(manifest: Manifest, what: str) -> None:
    named = {*manifest.programs.values(), *manifest.libraries.values(), manifest.params}
    if named != set(manifest.members):
        odd = sorted(named ^ set(manifest.members))[0]
        raise ArtifactError(f"{what} names '{odd:.80}' among members or uses, but not both")
    if not manifest.programs or not set(manifest.libraries) <= set(manifest.programs):
        raise ArtifactError(f"{what} lacks a program for one of its targets")
    if not set(manifest.kinds) <= set(manifest.libraries):
        raise ArtifactError(f"{what} says the kind of a library that it does not list")
