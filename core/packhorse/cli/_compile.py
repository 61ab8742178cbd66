"""``packhorse compile``: a model into an artifact that runs with nothing but the core."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from packhorse.artifact import SUFFIX, save_artifact
from packhorse.artifact_join import join_artifacts
from packhorse.cli._artifact import print_stored, stored
from packhorse.cli._inputs import add_shape_options, read_signature
from packhorse.cli._output import bytes_text, print_table
from packhorse.cli._progress import progress
from packhorse.cli._session import Session, duration
from packhorse.device import parse
from packhorse.errors import ArgumentValueError
from packhorse.model import Executable

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("path", metavar="MODEL", help="a model file")
    parser.add_argument(
        "--device",
        "-d",
        metavar="D[,D2]",
        help="for which device (default: the best one here), or for which several: one "
        "NAME.packhorse then serves all of them",
    )
    parser.add_argument(
        "--output",
        "-o",
        required=True,
        metavar="PATH",
        help="a folder for deploy.json, deploy.params and the code, a file NAME.packhorse, or a "
        "library NAME.so that holds everything",
    )
    add_shape_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compile, save, and say where the time went."""
    names = _devices(arguments)
    session = Session(arguments.path, names[0])
    if session.model is None:
        raise ArgumentValueError(
            f"'{arguments.path}' is compiled already; give the model it was made from"
        )
    values, shapes = read_signature(session.inputs, arguments)
    made = [session.prepare(values, shapes)]
    for name in names[1:]:
        with progress(f"compiling for {name}"):
            made.append(session.model.compile(name, shapes=shapes, values=values))
    start = time.perf_counter()
    with progress(f"writing {arguments.output}"):
        if len(made) == 1:
            made[0].save(arguments.output)
        else:
            joined = join_artifacts([one.artifact() for one in made])
            save_artifact(arguments.output, joined)
    saved = time.perf_counter() - start
    print(f"compiled '{arguments.path}' for {', '.join(one.device.name for one in made)}\n")
    _print_times(session.load_seconds, made, saved)
    if len(made) > 1:
        print_stored(stored(joined))
    print()
    print_table(("file", "size"), _files(Path(arguments.output)))
    print(f"\nrun it: packhorse run {arguments.output} --input random")
    return 0


def _devices(arguments: argparse.Namespace) -> list[str | None]:
    """The devices to compile for; several are refused where they cannot be saved."""
    names = [name.strip() for name in (arguments.device or "").split(",")]
    if len(names) > 1 and Path(arguments.output).suffix != SUFFIX:
        raise ArgumentValueError(
            f"'{arguments.output}' can hold code for one device, {len(names)} were named. Write "
            f"one file for all of them: --output {Path(arguments.output).stem}{SUFFIX}"
        )
    backends = [parse(name).backend for name in names] if len(names) > 1 else []
    twice = [name for name in backends if backends.count(name) > 1]
    if twice:
        raise ArgumentValueError(
            f"--device {arguments.device} names '{twice[0]}' twice; a file holds code for each "
            "backend once"
        )
    return [name or None for name in names]


def _print_times(load: float, made: Sequence[Executable], save: float) -> None:
    """Seconds of each phase, a column for each device."""
    names = [one.device.name for one in made]
    phases = list(dict.fromkeys(phase for one in made for phase in one.timings))
    rows = [
        (phase, *(duration(t[phase]) if phase in t else "" for t in (o.timings for o in made)))
        for phase in phases
    ]
    whole = [("load", duration(load)), ("save", duration(save))]
    ends = [(name, took, *[""] * (len(made) - 1)) for name, took in whole]
    print_table(("phase", *(names if len(made) > 1 else ["time"])), [ends[0], *rows, ends[1]])


def _files(path: Path) -> list[tuple[str, str]]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(str(file), bytes_text(file.stat().st_size)) for file in files]
