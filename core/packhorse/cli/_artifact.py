"""What ``packhorse inspect`` and ``compile`` say of an artifact's content: targets and files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packhorse.artifact import SUFFIX, Artifact
from packhorse.cli._output import bytes_text, print_section, print_table
from packhorse.graph.program import Program

__all__ = ["is_artifact", "print_stored", "stored"]

_LIBRARY = "shared library"


def is_artifact(path: str) -> bool:
    """Whether it has the form of one: a ``.packhorse`` file, or a folder."""
    return Path(path).suffix == SUFFIX or Path(path).is_dir()


def stored(artifact: Artifact) -> dict[str, Any]:
    """Targets, files and signature as plain data."""
    program = artifact.program()
    entries = program.entries
    outputs = zip(program.output_names, program.outputs, strict=True)
    return {
        "inputs": [_value(entries[i].name, entries[i]) for i in program.inputs],
        "outputs": [_value(name, entries[i]) for name, i in outputs],
        "targets": [_target(artifact, target) for target in artifact.targets],
        "parameter_bytes": sum(array.nbytes for array in artifact.params.values()),
        "files": [
            {"name": name, "bytes": member.size, "sha256": member.sha256}
            for name, member in artifact.members.items()
        ],
    }


def _value(name: str, entry: Any) -> dict[str, Any]:
    return {"name": name, "dtype": entry.dtype, "shape": list(entry.shape)}


def _target(artifact: Artifact, target: str) -> dict[str, Any]:
    program = artifact.program(target)
    has_code = target in artifact.libraries
    return {
        "name": target,
        "compiled_for": program.metadata.get("device", artifact.device),
        "code": artifact.kinds.get(target, _LIBRARY) if has_code else None,
        "steps": sum(not step.once for step in program.steps),
        "parameters": len(program.params),
        "parameter_bytes": sum(program.entries[i].nbytes for i in program.params),
        "shared_parameters": len(_shared(artifact, target, program)),
    }


def _shared(artifact: Artifact, target: str, program: Program) -> set[str]:
    """Its weights that another target uses too."""
    own = {program.entries[i].name for i in program.params}
    others = [p for name, p in artifact.programs.items() if name != target]
    return own & {p.entries[i].name for p in others for i in p.params}


def print_stored(found: Mapping[str, Any]) -> None:
    """The tables of both."""
    print_section("targets")
    rows = [
        (f"  {t['name']}", t["compiled_for"] or "unknown", t["code"] or "none", str(t["steps"]),
         f"{t['parameters']} ({t['shared_parameters']} shared)", bytes_text(t["parameter_bytes"]))
        for t in found["targets"]
    ]  # fmt: skip
    print_table(("  target", "compiled for", "code", "steps", "weights", ""), rows)
    if found["files"]:
        print_section("files")
        files = [(f"  {file['name']}", bytes_text(file["bytes"])) for file in found["files"]]
        print_table(("", ""), files)
