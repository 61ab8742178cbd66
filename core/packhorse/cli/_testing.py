"""``packhorse testing``: ONNX's own tests on a device, and what reports say."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from packhorse.cli._output import print_section, print_table
from packhorse.device import device as open_device
from packhorse.errors import ArtifactError

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    choices = parser.add_subparsers(dest="what", metavar="what", required=True)
    onnx = choices.add_parser("onnx", help="run ONNX's backend tests on a device")
    onnx.add_argument("--device", "-d", required=True, help="the device, such as llvm-cpu")
    onnx.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="only N tests, the same ones every time, spread over the operators",
    )
    onnx.add_argument(
        "--tier", action="append", default=[], help="only this tier; may be given several times"
    )
    onnx.add_argument("--report", metavar="FILE", help="write the results as JSON")
    report = choices.add_parser("report", help="show JSON reports side by side")
    report.add_argument("files", nargs="+", metavar="REPORT", help="what --report wrote")
    report.add_argument("--html", metavar="FILE", help="write the support matrix as a page")
    report.add_argument("--markdown", metavar="FILE", help="write tables of the counts")


def run(arguments: argparse.Namespace) -> int:
    """Exit code 1 when a test gave a wrong result."""
    if arguments.what == "onnx":
        return _onnx(arguments)
    return _show(arguments.files, arguments.html, arguments.markdown)


def _onnx(arguments: argparse.Namespace) -> int:
    from packhorse.testing.onnx_cases import TIERS
    from packhorse.testing.onnx_suite import run_suite
    from packhorse.testing.report import counts, write

    device = open_device(arguments.device)
    show = _counter() if sys.stderr.isatty() else None
    results = run_suite(device, sample=arguments.sample, tiers=arguments.tier, progress=show)
    rows = []
    for tier in TIERS:
        found = counts(result for result in results if result.tier == tier)
        if any(found.values()):
            rows.append(_row(tier, found))
    print(f"ONNX backend tests on {device.name}\n")
    print_table(_HEADER, [*rows, _row("all", counts(results))])
    on_host = [r.hosted.split(", ") for r in results if r.outcome == "passed" and r.host]
    if on_host:
        print(
            f"\n{len(on_host)} of those that passed ran a node by its NumPy reference on the host"
        )
        tests = Counter(operator for operators in on_host for operator in operators)
        print_table(("", ""), [(f"  {name}", f"{n} tests") for name, n in tests.most_common()])
    failed = [result for result in results if result.outcome == "failed"]
    if failed:
        print_section("wrong results")
        print_table(("", ""), [(f"  {r.name}", r.reason[:100]) for r in failed])
    if arguments.report:
        write(arguments.report, device.name, "onnx", results)
        print(f"\nwrote {arguments.report}")
    return int(bool(failed))


_HEADER = ("tier", "tests", "passed", "unsupported", "failed")


def _row(tier: str, found: dict[str, int]) -> tuple[str, ...]:
    shown = (sum(found.values()), found["passed"], found["unsupported"], found["failed"])
    return (tier, *map(str, shown))


def _counter() -> Callable[[int, int, str], None]:
    def show(number: int, count: int, name: str) -> None:
        end = "\n" if number + 1 == count else ""
        print(f"\r{number + 1}/{count} {name[:60]:<60}", end=end, file=sys.stderr, flush=True)

    return show


def _show(files: Sequence[str], page: str | None, tables: str | None) -> int:
    from packhorse.testing.matrix import build
    from packhorse.testing.report import read

    found = build(reports := [read(Path(file)) for file in files])
    if page is not None:
        from packhorse.testing.matrix_page import to_html

        _write(to_html(found), Path(page))
    if tables is not None:
        from packhorse.testing.matrix_tables import to_markdown

        _write(to_markdown(found, reports), Path(tables))
    rows = [
        (row.name, *(f"{c.passed}/{len(c.run)}" if c.run else "" for c in row.cells))
        for row in found.tiers
    ]
    print_table(("passed of", *found.devices), rows)
    failed = [(report.device, result) for report in reports for result in report.failed]
    if failed:
        print_section("failed")
        print_table(("", "", ""), [(f"  {d}", r.name, r.reason[:80]) for d, r in failed])
    return int(bool(failed))


def _write(text: str, path: Path) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArtifactError(
            f"'{path}' could not be written: {error.strerror or error}. "
            "Give a path in a folder you may write to"
        ) from error
    print(f"wrote {path}\n")
