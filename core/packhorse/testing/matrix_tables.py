"""A support matrix in numbers: the tables of docs/conformance.md, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from packhorse.testing.matrix import Cell, Matrix
from packhorse.testing.onnx_cases import TIERS
from packhorse.testing.report import OUTCOMES, Report, Result, counts

__all__ = ["to_markdown"]

_SUMS: tuple[tuple[str, Callable[[Cell], int]], ...] = (
    ("all", lambda cell: cell.passed),
    ("of these with help of the host", lambda cell: cell.host),
    ("refused with a typed error", lambda cell: counts(cell.results)["unsupported"]),
    ("wrong results", lambda cell: counts(cell.results)["failed"]),
)
"""The last rows: name, and what they count."""


def to_markdown(matrix: Matrix, reports: Sequence[Report]) -> str:
    """Two tables: ONNX's tests by tier, and the kit; each only where there are reports of it.

    Parameters
    ----------
    matrix : Matrix
        Made of the reports.
    reports : sequence of Report
    """
    parts = [list(_onnx(matrix, reports)), list(_kit(reports))]
    return "\n".join("\n".join(part) + "\n" for part in parts if part)


def _onnx(matrix: Matrix, reports: Sequence[Report]) -> Iterator[str]:
    found = {r.device: r.results for r in reports if r.suite == "onnx"}
    if not found:
        return
    devices = [device for device in matrix.devices if device in found]
    yield _row("tier", "what it needs", "tests", *(f"`{device}`" for device in devices))
    yield "|---" * (3 + len(devices)) + "|"
    for tier, needs in TIERS.items():
        cells = [_cell(found[device], tier) for device in devices]
        number = max(len(cell.results) for cell in cells)
        if number:
            yield _row(tier, needs, number, *(cell.passed for cell in cells))
    every = [_cell(found[device]) for device in devices]
    for name, count in _SUMS:
        total = str(max(len(cell.results) for cell in every)) if name == "all" else ""
        yield _row(name, "", total, *map(count, every))


def _cell(results: Sequence[Result], tier: str = "") -> Cell:
    return Cell(tuple(r for r in results if tier in ("", r.tier)))


def _kit(reports: Sequence[Report]) -> Iterator[str]:
    found = [report for report in reports if report.suite == "conformance"]
    if not found:
        return
    yield _row("device", "tests", *OUTCOMES)
    yield "|---" * (2 + len(OUTCOMES)) + "|"
    for report in found:
        yield _row(f"`{report.device}`", len(report.results), *report.counts.values())


def _row(*cells: object) -> str:
    return "|" + "".join(f" {cell} |" if cell != "" else " |" for cell in cells)
