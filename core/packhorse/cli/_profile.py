"""``packhorse profile``: which step of a model takes how long, and where each of them runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from packhorse.cli._inputs import add_input_options, read_inputs
from packhorse.cli._output import bytes_text, print_json, print_section, print_table
from packhorse.cli._session import Session, add_device_options, duration, wanted_device
from packhorse.compiler.result import NodeReport
from packhorse.errors import ArgumentValueError
from packhorse.graph._segments import HOST_PREFIX

__all__ = ["configure", "run"]

_HOST = "host"


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("path", metavar="MODEL", help="a model file, or an artifact")
    add_device_options(parser, "where to run (default: the best that works here)")
    add_input_options(parser, "Inputs not named are random.")
    parser.add_argument(
        "--repeat", type=int, default=10, metavar="N", help="runs; the medians are shown"
    )
    parser.add_argument(
        "--top", type=int, metavar="N", help="only the N steps that take longest, longest first"
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Run step by step and print a row for each."""
    if arguments.repeat < 1 or (arguments.top is not None and arguments.top < 1):
        raise ArgumentValueError("--repeat and --top must be at least 1")
    session = Session(arguments.path, wanted_device(arguments))
    feeds = read_inputs(session.inputs, arguments.input, arguments.seed, "random")
    executable = session.prepare(feeds)
    # by position: an input may have any name, "repeat" included
    rows = executable.profile(*(feeds[name] for name in session.inputs), repeat=arguments.repeat)
    report = executable.report()
    found = {
        "path": arguments.path,
        "device": session.device_name,
        "repeat": arguments.repeat,
        "total_microseconds": sum(microseconds for *_, microseconds in rows),
        "steps": _steps(rows, report, session.device_name),
        "copies": [asdict(copy) for copy in report.copies],
    }
    session.close()
    if arguments.json:
        print_json(found)
    else:
        _print(found, arguments.top)
    return 0


def _steps(
    rows: Sequence[tuple[str, str, float]], report: Sequence[NodeReport], otherwise: str
) -> list[dict[str, Any]]:
    """The rows with where each ran: on a device, or by its NumPy reference on the host."""
    places = {row.step: row.device for row in report}
    total = sum(microseconds for *_, microseconds in rows) or 1.0
    return [
        {
            "step": name,
            "where": places.get(function, otherwise) if _compiled(function) else _HOST,
            "function": function,
            "microseconds": microseconds,
            "share": microseconds / total,
        }
        for name, function, microseconds in rows
    ]


def _compiled(function: str) -> bool:
    return not function.startswith(HOST_PREFIX)


def _print(found: Mapping[str, Any], top: int | None) -> None:
    steps, total = found["steps"], duration(found["total_microseconds"] * 1e-6)
    hosts = sum(step["where"] == _HOST for step in steps)
    on_host = f", {hosts} of them by the NumPy references on the host" if hosts else ""
    print(f"{found['device']}: {len(steps)} steps{on_host}, {total}, medians of {found['repeat']}")
    listed = steps
    if top is not None:
        listed = sorted(steps, key=lambda step: -step["microseconds"])[:top]
    print()
    header = ("us", "share", "where", "function", "step")
    print_table(header, [_cells(step) for step in listed])
    if len(listed) < len(steps):
        print(f"... and {len(steps) - len(listed)} more")
    if found["copies"]:
        print_section("copied in each run, not in the times above")
        moves = [
            (f"  {copy['what']}", f"{copy['source']} -> {copy['target']}",
             bytes_text(copy["nbytes"]))
            for copy in found["copies"]
        ]  # fmt: skip
        print_table(("", "", ""), moves)


def _cells(step: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{step['microseconds']:.1f}",
        f"{step['share']:.1%}",
        step["where"],
        step["function"].removeprefix(HOST_PREFIX),
        step["step"],
    )
