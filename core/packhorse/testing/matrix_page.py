"""A support matrix as one HTML page: no scripts, nothing fetched, readable in dark and light."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib.resources import files

from packhorse.errors import ArtifactError
from packhorse.testing.matrix import STATES, Cell, Matrix, Row, State
from packhorse.testing.report import Result

__all__ = ["to_html"]

_OUTCOMES: Mapping[str, tuple[State, str]] = {
    "failed": ("wrong", "wrong"),
    "xfailed": ("wrong", "known to be wrong"),
    "unsupported": ("none", "refused"),
    "skipped": ("unrun", "not run"),
}
"""Outcome of a test -> the state it is shown as, and its word."""
_FITTING = 6
"""Columns that fit a wide screen: there the head of the table stays in sight."""
_SHOWN = ("packhorse", "onnx", "numpy", "python", "machine")


def to_html(matrix: Matrix, title: str = "Support matrix") -> str:
    """The page.

    Parameters
    ----------
    matrix : Matrix
    title : str
        Its heading. Like every text out of the reports it is escaped.

    Returns
    -------
    str
        A whole document in UTF-8, the same for the same reports.

    Raises
    ------
    ArtifactError
        The style sheet is missing from this installation.
    """
    sheet = files("packhorse.testing") / "matrix.css"
    if not sheet.is_file():
        raise ArtifactError(
            "matrix.css is missing from packhorse.testing: the installation is damaged. "
            "Mend it: pip install --force-reinstall packhorse"
        )
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)} · packhorse</title>",
            f"<style>\n{sheet.read_text(encoding='utf-8')}</style>\n</head>\n<body>",
            *_body(matrix, title),
            "</body>\n</html>\n",
        ]
    )


def _body(matrix: Matrix, title: str) -> Iterator[str]:
    yield f"<header>\n<h1>{escape(title)}</h1>"
    yield (
        f"<p>{len(matrix.operators)} operators on {_count(len(matrix.devices), 'device')}, as "
        "tested by packhorse's conformance kit and ONNX's own backend tests.</p>"
    )
    yield "</header>\n<main>"
    yield from _cards(matrix)
    yield from _legend()
    yield "<h2>Operators</h2>"
    yield from _filter()
    yield from _table(matrix, "operator", matrix.operators, "operators")
    if matrix.behaviour:
        yield "<h2>Memory, models, errors, threads</h2>"
        yield from _table(matrix, "kind of test", matrix.behaviour, "")
    yield "<h2>Tests by tier</h2>"
    yield from _table(matrix, "tier", matrix.tiers, "", why=False)
    yield from _versions(matrix)
    yield "</main>"


def _cards(matrix: Matrix) -> Iterator[str]:
    """What there is of each device: a bar, and the same in words."""
    yield '<section class="cards" aria-label="Devices">'
    for column, device in enumerate(matrix.devices):
        counts = matrix.count(column)
        tests = Cell(tuple(r for row in matrix.tiers for r in row.cells[column].results))
        words = [
            f"<span>{number} {STATES[state][1]}</span>"
            for state, number in counts.items()
            if number
        ]
        yield f'<article>\n<h3>{escape(device)}</h3>\n<div class="bar" aria-hidden="true">'
        yield "".join(
            f'<i class="{state}" style="flex-grow:{number}"></i>'
            for state, number in counts.items()
            if number
        )
        yield f"</div>\n<p>Operators: {', '.join(words) or 'none tested'}</p>"
        yield f"<p>Tests: {tests.passed:,} of {len(tests.run):,} passed{_hosted(tests)}</p>"
        yield "</article>"
    yield "</section>"


def _hosted(cell: Cell) -> str:
    return f", {cell.host:,} with help of the host" if cell.host else ""


def _legend() -> Iterator[str]:
    yield '<dl class="legend">'
    for state, (sign, word, meaning) in STATES.items():
        yield (
            f'<div><dt class="{state}"><span aria-hidden="true">{sign}</span> {word}</dt>'
            f"<dd>{meaning}</dd></div>"
        )
    yield (
        '<div><dt><small class="host">host</small></dt><dd>a test passed, with a node run by its '
        "NumPy reference on the host</dd></div>\n</dl>"
    )


def _filter() -> Iterator[str]:
    """Radio buttons that the style sheet listens to."""
    yield '<fieldset class="filter"><legend>Show</legend>'
    for value, text in (("all", "every operator"), ("open", "what does not pass everywhere")):
        checked = " checked" if value == "all" else ""
        yield (f'<label><input type="radio" name="show" id="show-{value}"{checked}> {text}</label>')
    yield "</fieldset>"


def _table(
    matrix: Matrix, corner: str, rows: Iterable[Row], name: str, why: bool = True
) -> Iterator[str]:
    wide = " wide" if len(matrix.devices) > _FITTING else ""
    yield f'<div class="scroll{wide}" tabindex="0" role="region" aria-label="by {corner}">'
    columns = f"--columns:{len(matrix.devices)}"
    yield f'<table class="{name}" style="{columns}">\n<thead><tr><th scope="col">{corner}</th>'
    yield "".join(f'<th scope="col">{escape(device)}</th>' for device in matrix.devices)
    yield "</tr></thead>"
    for row in rows:
        label = f' id="{escape(row.name)}"' if name else ""
        yield f'<tbody{label} class="{"clean" if row.clean else "open"}">'
        yield f'<tr><th scope="row">{escape(row.name)}</th>{"".join(map(_cell, row.cells))}</tr>'
        if why and not row.clean:
            yield f'<tr class="why"><td colspan="{1 + len(matrix.devices)}">'
            yield from _why(matrix, row)
            yield "</td></tr>"
        yield "</tbody>"
    yield "</table>\n</div>"


def _cell(cell: Cell) -> str:
    state = cell.state
    sign, word, meaning = STATES[state]
    number, total = cell.passed, len(cell.run)
    text = "" if state == "unrun" else f"{total:,}" if state == "pass" else f"{number:,}/{total:,}"
    tip = f"{word}: {number} of {total} passed{_hosted(cell)}" if total else meaning
    host = '<small class="host">host</small>' if cell.host else ""
    return (
        f'<td class="{state}" title="{escape(tip)}"><span aria-hidden="true">{sign}</span>'
        f'<span class="vh">{word}</span> {text}{host}</td>'
    )


def _why(matrix: Matrix, row: Row) -> Iterator[str]:
    """The tests that did not pass, told once where devices and tests say the same."""
    devices: dict[tuple[str, str, str], list[str]] = {}
    heads: dict[str, list[str]] = {}
    for device, cell in zip(matrix.devices, row.cells, strict=True):
        for result in cell.problems:
            devices.setdefault((result.outcome, result.reason, result.name), []).append(device)
        if cell.problems:
            heads.setdefault(_summary(cell.problems), []).append(device)
    words = (f"{what} on {_where(matrix, where)}" for what, where in heads.items())
    yield f"<details><summary>{escape(' · '.join(words))}</summary>\n<ul>"
    tests: dict[tuple[str, str, str], list[str]] = {}
    for (outcome, reason, name), where in devices.items():
        tests.setdefault((outcome, reason, _where(matrix, where)), []).append(name)
    for (outcome, reason, place), names in tests.items():
        state, word = _OUTCOMES[outcome]
        yield (
            f'<li><b class="{state}">{STATES[state][0]} {word}</b> on {escape(place)}: '
            f"{', '.join(f'<code>{escape(name)}</code>' for name in names)}"
            f"<br>{escape(reason) or 'no reason was given'}</li>"
        )
    yield "</ul></details>"


def _where(matrix: Matrix, devices: list[str]) -> str:
    every = len(devices) == len(matrix.devices) > 1
    return "every device" if every else ", ".join(devices)


def _summary(problems: Iterable[Result]) -> str:
    outcomes = [result.outcome for result in problems]
    counts = ((outcomes.count(outcome), word) for outcome, (_, word) in _OUTCOMES.items())
    return ", ".join(f"{number} {word}" for number, word in counts if number)


def _versions(matrix: Matrix) -> Iterator[str]:
    yield "<h2>Made with</h2>\n<ul>"
    for device, versions in zip(matrix.devices, matrix.versions, strict=True):
        words = (f"{name} {versions[name]}" for name in _SHOWN if name in versions)
        yield f"<li>{escape(device)}: {escape(', '.join(words))}</li>"
    yield "</ul>"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
