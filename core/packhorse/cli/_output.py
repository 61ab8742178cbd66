"""What commands print with: tables through rich on a terminal if it is installed, else plain."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

__all__ = ["bytes_text", "fail", "own_stdout", "print_json", "print_section", "print_table"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STYLES = {"PASS": "green", "ok": "green", "yes": "green", "FAIL": "red", "error": "red"}


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

    One line a row, whole, where a program or a pager reads; folded on a terminal.
    """
    rows = [[cell.replace("\n", " ") for cell in row] for row in rows]
    if sys.stdout.isatty() and _print_rich(header, rows):
        return
    every = [list(header), *rows] if any(header) else rows
    widths = [max((len(row[i]) for row in every), default=0) for i in range(len(header))]
    for row in every:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _print_rich(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(box=None, pad_edge=False, show_header=any(header), padding=(0, 2, 0, 0))
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        # Text, not str: a "[" in a reason ('packhorse[onnx]') must not be taken for markup
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console().print(table)
    return True
