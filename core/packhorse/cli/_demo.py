"""``packhorse demo``: a real trained model says what files are, on two devices."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from packhorse.cli._magika import FileType, Rules, find_model
from packhorse.cli._output import print_table
from packhorse.cli._progress import progress
from packhorse.cli._session import duration
from packhorse.device import device
from packhorse.errors import PackhorseError
from packhorse.loading import load
from packhorse.model import Model

__all__ = ["configure", "run"]

Array = np.ndarray[Any, Any]
_DEVICES = "llvm-cpu,cpu"
_RUNS = 20
_TOLERANCE = 1e-3
_OWN = ("README.md", "pyproject.toml", ".ci/run", "docs/architecture.svg")
"""Files of a checkout to show when none are named."""


@dataclass(frozen=True)
class _Result:
    """One device's answers, in the order of the files, and its times in seconds."""

    device: str
    types: list[FileType]
    first: float
    median: float


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("files", nargs="*", type=Path, help="what to look at (default: our own)")
    parser.add_argument(
        "--device",
        "-d",
        default=_DEVICES,
        metavar="D[,D2]",
        help=f"devices to run on, one after the other (default: {_DEVICES})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print types, times and whether the devices agree; 1 when they do not or one is missing."""
    path, rules = find_model()
    files = arguments.files or _own_files(path)
    prepared = [rules.prepare(file) for file in files]
    model = load(path)
    assert isinstance(model, Model)
    results: list[_Result] = []
    failures: list[str] = []
    for name in arguments.device.split(","):
        try:
            results.append(_identify(model, name.strip(), prepared, rules))
        except PackhorseError as error:
            failures.append(str(error))
    if results:
        print(f"{len(files)} files, by the model {path}\n")
        _print_types(files, results)
        print()
        _print_times(results)
    for failure in failures:
        print(f"\nnot run: {failure}", file=sys.stderr)
    agreed = len(results) < 2 or _print_agreement(results)
    return 0 if agreed and not failures else 1


def _own_files(model: Path) -> Sequence[Path]:
    """Files of different types that exist wherever packhorse does."""
    here, package = Path.cwd(), Path(__file__).resolve().parents[1]
    roots = [r for r in (here, package.parents[1]) if (r / "examples" / "magika").is_dir()]
    found = [roots[0] / name for name in _OWN if (roots[0] / name).is_file()] if roots else []
    found += [model.with_name("config.min.json"), model, Path(__file__)]
    found += sorted((package / "native").glob("_core*.so"))[:1]
    return [f.relative_to(here) if f.is_relative_to(here) else f for f in found]


def _identify(
    model: Model, name: str, prepared: Sequence[Array | FileType], rules: Rules
) -> _Result:
    """Run the files that need the model one by one, as a service would."""
    target = device(name)
    feeds = [x[np.newaxis] for x in prepared if not isinstance(x, FileType)]
    times: list[float] = []

    def answer(feed: Array) -> Array:
        start = time.perf_counter()
        (scores,) = np.asarray(model(feed, device=target))
        times.append(time.perf_counter() - start)
        return np.asarray(scores)

    with progress(f"compiling for {target.name}"):
        for feed in feeds[:1]:
            answer(feed)
    answers = [answer(feed) for feed in feeds * (1 + _RUNS // max(1, len(feeds)))]
    scores = iter(answers)
    types = [x if isinstance(x, FileType) else rules.decide(next(scores)) for x in prepared]
    return _Result(target.name, types, (times or [0.0])[0], statistics.median(times[1:] or [0.0]))


def _print_types(files: Sequence[Path], results: Sequence[_Result]) -> None:
    """A row for each file; where devices differ, the row shows both types."""
    rows = []
    for file, *kinds in zip(files, *(result.types for result in results), strict=True):
        labels = dict.fromkeys(kind.label for kind in kinds)
        what = dict.fromkeys(kind.description for kind in kinds)
        scores = (f"{kind.score:.1%}" for kind in kinds)
        rows.append((str(file), " / ".join(labels), " / ".join(what), *scores))
    print_table(("file", "type", "what it is", *(result.device for result in results)), rows)


def _print_times(results: Sequence[_Result]) -> None:
    rows = [
        (r.device, duration(r.first), duration(r.median), f"{1 / r.median:.0f}")
        for r in results
        if r.median  # 0 when no file needed the model
    ]
    print_table(("device", "first file (compiles)", "then (median)", "files/s"), rows)


def _print_agreement(results: Sequence[_Result]) -> bool:
    """Say how far the other devices are from the first; false when a type or score differs."""
    first, *others = results
    agreed = True
    for other in others:
        pairs = list(zip(first.types, other.types, strict=True))
        same = sum(a.label == b.label for a, b in pairs)
        apart = max(abs(a.score - b.score) for a, b in pairs)
        good = same == len(pairs) and apart <= _TOLERANCE
        agreed = agreed and good
        print(
            f"\n{first.device} and {other.device} {'agree' if good else 'DISAGREE'}: same type for "
            f"{same} of {len(pairs)} files, confidence at most {apart:.1g} apart"
        )
    return agreed
