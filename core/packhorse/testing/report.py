"""What was tested on a device and how it went, as JSON that can be kept and compared."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from packhorse._version import __version__
from packhorse.errors import ArtifactError

__all__ = ["FORMAT", "OUTCOMES", "Report", "Result", "counts", "read", "write"]

FORMAT = 1
_SLOW = 1.0
OUTCOMES = ("passed", "unsupported", "xfailed", "skipped", "failed")
"""``unsupported``: refused with a typed error, as expected or said; ``xfailed``: known to be
wrong; both carry a reason."""


@dataclass(frozen=True)
class Result:
    """How one test went. ``host``: nodes that ran by their NumPy reference instead, and
    ``hosted``: their operators, ``"NonZero, Unique"``. ``operator``: what the test is about."""

    name: str
    outcome: str
    reason: str = ""
    seconds: float = 0.0
    tier: str = ""
    host: int = 0
    hosted: str = ""
    operator: str = ""


@dataclass(frozen=True)
class Report:
    """The results of one suite (``conformance`` or ``onnx``) on one device."""

    device: str
    suite: str
    results: tuple[Result, ...]
    versions: Mapping[str, str]

    @property
    def counts(self) -> dict[str, int]:
        """Outcome -> number of tests; every outcome is there."""
        return counts(self.results)

    @property
    def failed(self) -> list[Result]:
        """What went wrong."""
        return [r for r in self.results if r.outcome == "failed"]


def counts(results: Iterable[Result]) -> dict[str, int]:
    """Outcome -> number of tests; every outcome is there."""
    found = Counter(result.outcome for result in results)
    return {outcome: found[outcome] for outcome in OUTCOMES}


def _versions() -> dict[str, str]:
    found = {
        "packhorse": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    for package in ("onnx", "llvmlite", "pyopencl"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write(
    path: str | os.PathLike[str], device: str, suite: str, results: Sequence[Result]
) -> Report:
    """Write a report and return it.

    Raises
    ------
    ArtifactError
        It cannot be written there.
    """
    report = Report(device, suite, tuple(results), _versions())
    rows = [_row(result) for result in report.results]
    content = {
        "format": FORMAT,
        "device": device,
        "suite": suite,
        "versions": report.versions,
        "counts": report.counts,
    }
    # one line per test: short, and a change of one test is one line of a diff
    head = json.dumps(content, indent=1)[:-2]
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(f'{head},\n "tests": [\n{lines}\n ]\n}}\n', encoding="utf-8")
    except OSError as error:
        raise ArtifactError(
            f"the report '{path}' could not be written: {error.strerror or error}. "
            "Give a path in a folder you may write to"
        ) from error
    return report


def _row(result: Result) -> dict[str, Any]:
    row = {key: value for key, value in asdict(result).items() if value and key != "seconds"}
    if result.seconds >= _SLOW:  # times of quick tests would only make reports differ
        row["seconds"] = round(result.seconds, 1)
    return row


def read(path: str | os.PathLike[str]) -> Report:
    """Read a report.

    Raises
    ------
    ArtifactError
        No such file, not a report, or one of a newer format.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ArtifactError(
                f"the report '{path}' is of format {content['format']}, this packhorse reads "
                f"{FORMAT}. Update it: pip install -U packhorse"
            )
        results = tuple(Result(**row) for row in content["tests"])
        return Report(content["device"], content["suite"], results, content["versions"])
    except OSError as error:
        raise ArtifactError(
            f"the report '{path}' could not be read: {error.strerror or error}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(
            f"'{path}' is no conformance report ({type(error).__name__}: {error}). Make one with "
            "--packhorse-report or packhorse testing onnx --report"
        ) from error
