"""``packhorse devices``: what is installed, which driver was found, what can be used."""

from __future__ import annotations

import argparse

from packhorse.cli._output import bytes_text, own_stdout, print_json, print_table
from packhorse.device import DeviceInfo, devices

__all__ = ["configure", "run"]

_HEADER = ("device", "kind", "installed", "driver", "usable", "memory", "what")
_WORDS: dict[str, tuple[str, str, str]] = {
    # status: installed, driver, usable
    "ok": ("yes", "yes", "yes"),
    "not probed": ("yes", "?", "?"),
    "not installed": ("no", "-", "no"),
    "no driver": ("yes", "no", "no"),
    "no device": ("yes", "yes", "no"),
    "denied": ("yes", "yes", "no"),
    "error": ("yes", "?", "no"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", action="store_true", help="write a JSON list instead of a table")
    parser.add_argument(
        "--probe", action="store_true", help="ask the drivers, each in a process of its own"
    )
    parser.add_argument(
        "--timeout", type=float, default=20.0, metavar="SECONDS", help="limit for each probe"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the devices."""
    with own_stdout():
        rows = devices(probe=arguments.probe, timeout=arguments.timeout)
    if arguments.json:
        print_json([{"device": row.device, **row.to_json()} for row in rows])
        return 0
    print_table(_HEADER, [_cells(row) for row in rows])
    if any(row.status == "not probed" for row in rows):
        print("\n? = not asked: packhorse devices --probe loads the drivers")
    if any(row.status == "error" for row in rows):
        print("\nerror: all other devices work; PACKHORSE_DISABLE=name switches a plugin off")
    return 0


def _cells(row: DeviceInfo) -> tuple[str, ...]:
    installed, driver, usable = _WORDS[row.status]
    return (
        row.device,
        row.kind,
        installed,
        row.driver or driver,
        usable,
        bytes_text(row.memory),
        what(row),
    )


def what(row: DeviceInfo) -> str:
    """The device's name, or why it cannot be used and what to do about it."""
    if row.status in ("ok", "not probed"):
        return row.name
    reason = row.reason or row.status
    return f"{reason}; {row.fix[:1].lower()}{row.fix[1:]}" if row.fix else reason
