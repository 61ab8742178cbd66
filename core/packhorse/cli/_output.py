"""What commands print with: tables, headings, JSON, one line for an error."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

__all__ = ["bytes_text", "fail", "own_stdout", "print_json", "print_section", "print_table"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_GREEN, _RED = 32, 31
_COLOURS = {"PASS": _GREEN, "ok": _GREEN, "yes": _GREEN, "FAIL": _RED, "error": _RED}


def fail(message: str) -> None:
    """Write one error message to stderr."""
    print(f"packhorse: error: {message}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Write a value as indented JSON."""
    import json  # tables do without

    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_section(title: str) -> None:
    """Write a heading, with an empty line before it."""
    print(f"\n{title}")


def bytes_text(count: int | None) -> str:
    """A number of bytes for people: ``1.5 GiB``; empty for None."""
    if count is None:
        return ""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{count} B"


@contextmanager
def own_stdout() -> Iterator[None]:
    """Send to stderr what plugins print while they load: stdout is for the answer alone."""
    sys.stdout.flush()
    try:
        real = os.dup(1)
    except OSError:  # closed
        with redirect_stdout(sys.stderr):
            yield
        return
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(real, 1)
        os.close(real)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows under a header; an empty header row is left out.

    One line a row, whole, where a program or a pager reads. On a terminal the last column is
    folded and words such as PASS are coloured (``NO_COLOR`` is heeded).
    """
    rows = [[cell.replace("\n", " ") for cell in row] for row in rows]
    every = [list(header), *rows] if any(header) else rows
    widths = [max((len(row[i]) for row in every), default=0) for i in range(len(header))]
    terminal = sys.stdout.isatty()
    left = sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = shutil.get_terminal_size().columns - left if terminal else 0
    coloured = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for row in every:
        *cells, last = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        if coloured:
            cells = [_colour(cell) for cell in cells]
        # what leaves no column worth the name is left to the terminal
        folded = textwrap.wrap(last, room, break_on_hyphens=False) if room >= 20 else [last]
        for i, part in enumerate(folded or [""]):
            print(("  ".join([*cells, part]) if not i else " " * left + part).rstrip())


def _colour(cell: str) -> str:
    code = _COLOURS.get(cell.strip())
    return cell if code is None else f"\x1b[{code}m{cell}\x1b[0m"
