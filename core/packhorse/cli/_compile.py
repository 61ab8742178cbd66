"""``packhorse compile``: a model into an artifact that runs with nothing but the core."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from packhorse.cli._inputs import add_shape_options, read_signature
from packhorse.cli._output import bytes_text, print_table
from packhorse.cli._progress import progress
from packhorse.cli._session import Session, duration
from packhorse.errors import ArgumentValueError

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("path", metavar="MODEL", help="a model file")
    parser.add_argument("--device", "-d", help="for which device (default: the best one here)")
    parser.add_argument(
        "--output",
        "-o",
        required=True,
        metavar="PATH",
        help="a folder for deploy.json, deploy.params and deploy.so, a file NAME.packhorse, or a "
        "library NAME.so that holds everything",
    )
    add_shape_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compile, save, and say where the time went."""
    session = Session(arguments.path, arguments.device)
    if session.model is None:
        raise ArgumentValueError(
            f"'{arguments.path}' is compiled already; give the model it was made from"
        )
    executable = session.prepare(*read_signature(session.inputs, arguments))
    start = time.perf_counter()
    with progress(f"writing {arguments.output}"):
        executable.save(arguments.output)
    saved = time.perf_counter() - start
    phases = {"load": session.load_seconds, **session.timings, "save": saved}
    print(f"compiled '{arguments.path}' for {session.device_name}\n")
    print_table(("phase", "time"), [(name, duration(took)) for name, took in phases.items()])
    print()
    print_table(("file", "size"), _files(Path(arguments.output)))
    print(f"\nrun it: packhorse run {arguments.output} --input random")
    return 0


def _files(path: Path) -> list[tuple[str, str]]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(str(file), bytes_text(file.stat().st_size)) for file in files]
