"""Which operator works on which device: reports of several devices as one table.

>>> from packhorse.testing import matrix, matrix_page, report
>>> found = matrix.build([report.read("onnx-cpu.json")])  # doctest: +SKIP
>>> page = matrix_page.to_html(found)  # doctest: +SKIP
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

from packhorse.errors import ArgumentValueError
from packhorse.testing.report import Report, Result

__all__ = ["STATES", "Cell", "Matrix", "Row", "State", "build"]

State: TypeAlias = Literal["pass", "partly", "none", "wrong", "unrun"]
STATES: Mapping[State, tuple[str, str, str]] = {
    "pass": ("✓", "all pass", "every test passed"),
    "partly": ("◐", "partly", "some tests were refused with a typed error, none was wrong"),
    "none": ("–", "unsupported", "every test was refused with a typed error"),
    "wrong": ("✗", "wrong", "a test gave a wrong result"),
    "unrun": ("·", "not run", "no test was run"),
}
"""State of a cell -> its sign, its word, what it means. Best first."""

_EXPANDED = re.compile(r"(?P<base>.+?)_expanded(_ver\d+)?")
_OPERATOR_CASE = re.compile(r"test_operator\[(?P<operator>\w+)")
_WRONG = ("failed", "xfailed")


@dataclass(frozen=True)
class Cell:
    """The results of some tests on one device."""

    results: tuple[Result, ...]

    @cached_property
    def run(self) -> tuple[Result, ...]:
        """Those that were not skipped."""
        return tuple(r for r in self.results if r.outcome != "skipped")

    @cached_property
    def passed(self) -> int:
        """Number of tests that passed."""
        return sum(r.outcome == "passed" for r in self.run)

    @cached_property
    def host(self) -> int:
        """Number of those that ran a node by its NumPy reference on the host."""
        return sum(r.outcome == "passed" and r.host > 0 for r in self.run)

    @cached_property
    def problems(self) -> tuple[Result, ...]:
        """Tests that did not pass, the wrong ones first."""
        found = [r for r in self.results if r.outcome != "passed"]
        return tuple(sorted(found, key=lambda r: (r.outcome not in _WRONG, r.name)))

    @property
    def state(self) -> State:
        """What the results come to."""
        if not self.run:
            return "unrun"
        if any(r.outcome in _WRONG for r in self.run):
            return "wrong"
        if self.passed == len(self.run):
            return "pass"
        return "partly" if self.passed else "none"


@dataclass(frozen=True)
class Row:
    """One operator (or tier, or kind of test) on every device."""

    name: str
    cells: tuple[Cell, ...]

    @property
    def clean(self) -> bool:
        """Whether every test passed wherever it was run."""
        return not any(cell.problems for cell in self.cells)


@dataclass(frozen=True)
class Matrix:
    """Everything the reports say.

    Attributes
    ----------
    devices : tuple of str
        The columns.
    versions : tuple of mappings
        What the reports of each device were made with.
    operators : tuple of Row
        By name: the operator cases of the kit and ONNX's tests of the operator together.
    behaviour : tuple of Row
        The other tests of the kit, by kind.
    tiers : tuple of Row
        ONNX's tests by tier, as ``onnx: dense``, and the kit as ``conformance``.
    """

    devices: tuple[str, ...]
    versions: tuple[Mapping[str, str], ...]
    operators: tuple[Row, ...]
    behaviour: tuple[Row, ...]
    tiers: tuple[Row, ...]

    def count(self, column: int) -> dict[State, int]:
        """Number of operators in each state on a device."""
        states = [row.cells[column].state for row in self.operators]
        return {state: states.count(state) for state in STATES}


def build(reports: Sequence[Report]) -> Matrix:
    """Put reports side by side; both suites of a device are one column.

    Raises
    ------
    ArgumentValueError
        No report, or two of the same suite and device.
    """
    if not reports:
        raise ArgumentValueError("a matrix is made of reports, none was given")
    devices = tuple(dict.fromkeys(report.device for report in reports))
    found: dict[tuple[str, str], Report] = {}
    for report in reports:
        key = (report.device, report.suite)
        if key in found:
            raise ArgumentValueError(
                f"two reports are of the suite '{report.suite}' on {report.device}. "
                "Give one of each"
            )
        found[key] = report
    versions = tuple(
        {k: v for r in reports if r.device == device for k, v in r.versions.items()}
        for device in devices
    )
    bases = {r.name: r.operator for report in reports for r in report.results if r.operator}

    def operator(suite: str, result: Result) -> str:
        return _operator(suite, result, bases)

    def behaviour(suite: str, result: Result) -> str:
        return "" if operator(suite, result) else result.tier.replace("_", " ") or suite

    def tier(suite: str, result: Result) -> str:
        return f"ONNX: {result.tier}" if suite == "onnx" else "conformance kit"

    tiers = _rows(reports, devices, tier)
    return Matrix(
        devices,
        versions,
        tuple(sorted(_rows(reports, devices, operator), key=lambda row: row.name.casefold())),
        tuple(sorted(_rows(reports, devices, behaviour), key=lambda row: row.name)),
        tuple(sorted(tiers, key=lambda row: -max(len(c.results) for c in row.cells))),
    )


def _operator(suite: str, result: Result, bases: Mapping[str, str]) -> str:
    """What a test is about. One of an operator's expansion is about the operator."""
    if suite == "conformance":
        match = _OPERATOR_CASE.match(result.name)
        return match["operator"] if match else ""
    expanded = _EXPANDED.fullmatch(result.name)
    return (expanded and bases.get(expanded["base"])) or result.operator


def _rows(
    reports: Iterable[Report], devices: Sequence[str], name: Callable[[str, Result], str]
) -> list[Row]:
    """Rows by what ``name(suite, result)`` gives; the empty name is left out."""
    found: defaultdict[str, dict[str, list[Result]]] = defaultdict(dict)
    for report in reports:
        for result in report.results:
            if key := name(report.suite, result):
                found[key].setdefault(report.device, []).append(result)
    return [
        Row(key, tuple(Cell(tuple(cells.get(device, ()))) for device in devices))
        for key, cells in found.items()
    ]
