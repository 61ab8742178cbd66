"""``packhorse bench``: how fast a model runs, on one device or on several side by side."""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from packhorse._version import __version__
from packhorse.cli._inputs import add_input_options, read_inputs
from packhorse.cli._output import bytes_text, print_json, print_table
from packhorse.cli._session import Session, duration
from packhorse.cpu import host_name
from packhorse.errors import ArgumentValueError

__all__ = ["configure", "run"]

_FEWEST_RUNS = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("path", metavar="MODEL", help="a model file, or an artifact")
    parser.add_argument(
        "--device", "-d", metavar="D[,D2]", help="devices to measure, one after the other"
    )
    add_input_options(parser, "Inputs not named are random.")
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="runs not counted")
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="measure for about S seconds"
    )
    parser.add_argument("--runs", type=int, metavar="N", help="exactly N runs instead of --seconds")
    parser.add_argument("--json", action="store_true", help="write one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Measure each device and print a row for each."""
    no_runs = arguments.runs is not None and arguments.runs < 1
    if no_runs or arguments.warmup < 0 or not arguments.seconds > 0:
        raise ArgumentValueError("--runs and --seconds must be positive, --warmup at least 0")
    names = arguments.device.split(",") if arguments.device else [None]
    rows = [_measure(arguments, name) for name in names]
    if arguments.json:
        host = {"processor": host_name(), "platform": platform.platform()}
        print_json({"packhorse": __version__, "model": arguments.path, **host, "devices": rows})
        return 0
    header = ("device", "compile", "first", "median", "p90", "runs/s", "peak memory", "runs")
    print_table(header, [_cells(row) for row in rows])
    return 0


def _measure(arguments: argparse.Namespace, name: str | None) -> dict[str, Any]:
    _reset_peak()
    session = Session(arguments.path, name.strip() if name else None)
    feeds = read_inputs(session.inputs, arguments.input, arguments.seed, "random")
    session.prepare(feeds)
    first = _timed(session, feeds)
    for _ in range(arguments.warmup):
        session.run(feeds)
    times = _times(session, feeds, arguments)
    found = {
        "device": session.device_name,
        "inputs": {n: [a.dtype.name, *a.shape] for n, a in feeds.items()},
        "load_seconds": session.load_seconds,
        "compile_seconds": session.compile_seconds,
        "compile_phases": session.timings,
        "first_seconds": first,
        "median_seconds": float(np.median(times)),
        "p90_seconds": float(np.percentile(times, 90)),
        "minimum_seconds": min(times),
        "runs_per_second": len(times) / sum(times),
        "runs": len(times),
        "work_bytes": session.ready.memory_bytes,
        "peak_bytes": _peak(),
    }
    session.close()
    return found


def _times(
    session: Session, feeds: Mapping[str, Any], arguments: argparse.Namespace
) -> list[float]:
    if arguments.runs:
        return [_timed(session, feeds) for _ in range(arguments.runs)]
    times: list[float] = []
    end = time.perf_counter() + arguments.seconds
    while len(times) < _FEWEST_RUNS or time.perf_counter() < end:
        times.append(_timed(session, feeds))
    return times


def _timed(session: Session, feeds: Mapping[str, Any]) -> float:
    start = time.perf_counter()
    session.run(feeds)
    return time.perf_counter() - start


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    compiled = row["compile_seconds"]
    return (
        row["device"],
        "-" if compiled is None else duration(compiled),
        duration(row["first_seconds"]),
        duration(row["median_seconds"]),
        duration(row["p90_seconds"]),
        f"{row['runs_per_second']:.1f}",
        bytes_text(row["peak_bytes"]),
        str(row["runs"]),
    )


def _reset_peak() -> None:
    """Start the process's memory high-water mark anew, so that each device has its own."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return  # not Linux, or not allowed: the peak is then that of the whole process


def _peak() -> int:
    """Largest resident set of the process since :func:`_reset_peak`, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
