"""What commands print with: tables through rich on a terminal if it is installed, else plain."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["bytes_text", "fail", "print_json", "print_section", "print_table"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STYLES = {"PASS": "green", "ok": "green", "yes": "green", "FAIL": "red", "error": "red"}


def fail(message: str) -> None:
    """Write one error message to stderr."""
    print(f"packhorse: error: {message}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Write a value as indented JSON."""
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


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows under a header; an empty header row is left out."""
    if sys.stdout.isatty() and _print_rich(header, rows):
        return
    every = [list(header), *map(list, rows)] if any(header) else [list(row) for row in rows]
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
    Console(width=shutil.get_terminal_size().columns).print(table)
    return True
