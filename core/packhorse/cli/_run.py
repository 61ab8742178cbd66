"""``packhorse run``: run a model or an artifact once and say what comes out."""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from packhorse.cli._inputs import add_input_options, read_inputs
from packhorse.cli._output import print_section, print_table
from packhorse.cli._session import Session, add_device_options, duration, wanted_device
from packhorse.errors import ArgumentValueError

__all__ = ["configure", "run"]

Array = np.ndarray[Any, Any]
_TOP = 5


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("path", metavar="MODEL", help="a model file, or an artifact")
    add_device_options(parser, "where to run (default: the best that works here)")
    add_input_options(parser, "Inputs not named are an error.")
    parser.add_argument("--output", "-o", type=Path, metavar="DIR", help="save outputs as .npy")
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="run N times and print the median"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run and print the outputs."""
    if arguments.repeat < 1:
        raise ArgumentValueError(f"--repeat {arguments.repeat}: run at least once")
    session = Session(arguments.path, wanted_device(arguments))
    feeds = read_inputs(session.inputs, arguments.input, arguments.seed)
    session.prepare(feeds)
    times = []
    for _ in range(arguments.repeat):
        start = time.perf_counter()
        outputs = session.run(feeds)
        times.append(time.perf_counter() - start)
    print(_summary(session, times))
    print_outputs(outputs)
    if arguments.output:
        save_outputs(arguments.output, outputs)
    return 0


def _summary(session: Session, times: list[float]) -> str:
    parts = [f"{session.device_name}:"]
    if session.compile_seconds is not None:
        parts.append(f"compiled in {duration(session.compile_seconds)},")
    if len(times) == 1:
        return " ".join([*parts, f"run in {duration(times[0])}"])
    median = duration(statistics.median(times))
    return " ".join([*parts, f"{len(times)} runs, median {median}, first {duration(times[0])}"])


def print_outputs(outputs: Mapping[str, Array]) -> None:
    """A table of the outputs, and the largest values of those that are one vector."""
    print()
    header = ("output", "dtype", "shape", "min", "mean", "max")
    print_table(header, [(name, *_cells(array)) for name, array in outputs.items()])
    for name, array in outputs.items():
        if array.dtype.kind == "f" and array.size > _TOP and array.size == array.shape[-1]:
            values = array.reshape(-1).astype(np.float64)
            best = np.argsort(-values, kind="stable")[:_TOP]
            print_section(f"largest values of '{name}'")
            print_table(("index", "value"), [(str(i), f"{values[i]:.6g}") for i in best])


def _cells(array: Array) -> tuple[str, ...]:
    shape = "x".join(map(str, array.shape)) or "scalar"
    if not array.size:
        return array.dtype.name, shape, "-", "-", "-"
    values = array.astype(np.float64)
    wrong = int(array.size - np.count_nonzero(np.isfinite(values)))
    note = f"  ({wrong} of {array.size} not finite)" if wrong else ""
    with np.errstate(all="ignore"):  # inf - inf is part of what is reported
        facts = [float(found) for found in (values.min(), values.mean(), values.max())]
    return array.dtype.name, shape, f"{facts[0]:.6g}", f"{facts[1]:.6g}", f"{facts[2]:.6g}{note}"


def save_outputs(folder: Path, outputs: Mapping[str, Array]) -> None:
    """One .npy per output; characters a file name may not have become ``_``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        print()
        for name, array in outputs.items():
            path = folder / (re.sub(r"[^\w.-]", "_", name) + ".npy")
            np.save(path, array)
            print(f"wrote {path}")
    except OSError as error:
        raise ArgumentValueError(
            f"the outputs could not be written to '{folder}': {error.strerror or error}. "
            "Give a folder that can be written: --output DIR"
        ) from None
