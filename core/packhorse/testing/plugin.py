"""The pytest plugin: options, and the report. It does nothing unless one of them is used.

Loaded through the entry point ``pytest11``; else with ``pytest -p packhorse.testing.plugin``.
Nothing of packhorse's machinery is imported when pytest starts.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

__all__ = ["UNSUPPORTED"]

UNSUPPORTED = "unsupported: "
"""What the reasons of tests begin with that end in a refusal, as the class said."""
_RESULTS = pytest.StashKey[dict[str, list[dict[str, Any]]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--packhorse-device`` and ``--packhorse-report``."""
    group = parser.getgroup("packhorse", "conformance of packhorse backends")
    group.addoption(
        "--packhorse-device",
        metavar="DEVICE",
        help="the device that `--pyargs packhorse.testing` tests, such as acme:0",
    )
    group.addoption(
        "--packhorse-sample",
        metavar="N",
        type=int,
        help="with --packhorse-device: only N operator cases, the same ones every time",
    )
    group.addoption(
        "--packhorse-report",
        metavar="FILE",
        help="write the conformance results of the device as JSON",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Room for the results."""
    config.stash[_RESULTS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note how a conformance test went."""
    report = yield
    device = getattr(getattr(item, "cls", None), "packhorse_device", None)
    if device is None or not (report.when == "call" or report.outcome != "passed"):
        return report
    if report.when == "teardown" and report.outcome == "passed":
        return report
    outcome, reason = _outcome(report)
    name = getattr(item, "originalname", item.name)
    row = {
        "name": item.name if item.name.startswith(name) else name,
        "outcome": outcome,
        "reason": reason,
        "seconds": report.duration,
        "tier": name.removeprefix("test_"),
    }
    item.config.stash[_RESULTS].setdefault(str(device), []).append(row)
    return report


def _outcome(report: pytest.TestReport) -> tuple[str, str]:
    reason = str(getattr(report, "wasxfail", "")).removeprefix("reason: ")
    if report.outcome == "skipped" and reason:
        said = reason.startswith(UNSUPPORTED)
        return ("unsupported" if said else "xfailed"), reason.removeprefix(UNSUPPORTED)
    if report.outcome == "skipped":
        where = report.longrepr
        return "skipped", str(where[2] if isinstance(where, tuple) else where)
    if report.outcome == "failed":
        lines = str(report.longrepr).strip().splitlines()
        return "failed", (lines[-1] if lines else "")[:300]
    return "passed", ""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report that was asked for."""
    path = session.config.getoption("packhorse_report", None)
    results = session.config.stash.get(_RESULTS, {})
    if not path or not results:
        return
    if len(results) > 1:
        raise pytest.UsageError(
            f"a report is of one device, the tests ran on {', '.join(sorted(results))}. "
            "Run one file or class at a time"
        )
    from packhorse.device import parse
    from packhorse.testing.report import Result, write

    for device, rows in results.items():
        write(path, str(parse(device)), "conformance", [Result(**row) for row in rows])
