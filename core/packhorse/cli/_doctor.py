"""``packhorse doctor``: everything one needs to know when something does not work."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator

from packhorse import _config
from packhorse._devices import default_devices
from packhorse._version import __version__
from packhorse.cli import _host, _plugins
from packhorse.cli._devices import what
from packhorse.cli._output import bytes_text, print_json, print_section, print_table
from packhorse.plugin.child import ChildFailed

__all__ = ["configure", "run"]

_PACKAGES = ("numpy", "cffi", "pluggy", "llvmlite", "onnx", "rich")
_SECRETS = ("PACKHORSE_RPC_TOKEN",)


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    parser.add_argument(
        "--timeout", type=float, default=20.0, metavar="SECONDS", help="limit for each probe"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the report; exit code 1 when a device that is there fails its check."""
    sections = {
        "Versions": dict(_versions()),
        "Host": dict(_host.facts()),
        "Cache": dict(_cache()),
        "Environment": dict(_environment()),
        "Plugins": dict(_plugins.rows(arguments.timeout)),
    }
    checks = list(_checks(arguments.timeout))
    failed = any(verdict == "FAIL" for _, verdict, _ in checks)
    if arguments.json:
        found = [{"device": d, "verdict": v, "reason": r} for d, v, r in checks]
        print_json({**sections, "Devices": found})
        return int(failed)
    print(f"packhorse {__version__}")
    for title, facts in sections.items():
        print_section(title)
        rows = [(f"  {key}", value) for key, value in facts.items()]
        print_table(("", ""), rows or [("  nothing set", "")])
    print_section("Devices")
    print_table(("", "", ""), [(f"  {device}", *rest) for device, *rest in checks])
    return int(failed)


def _versions() -> Iterator[tuple[str, str]]:
    yield "packhorse", __version__
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "platform", platform.platform()
    yield "executable", sys.executable or "unknown"
    for package in _PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"


def _cache() -> Iterator[tuple[str, str]]:
    folder = _config.cache_dir()
    files, size = _config.cache_usage()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    yield "directory", str(folder)
    yield "content", f"{files} files, {bytes_text(size)}"
    yield "writable", "yes" if os.access(existing, os.W_OK) else "no"


def _environment() -> Iterator[tuple[str, str]]:
    for name in sorted(os.environ):
        if name in _config.ENVIRONMENT:
            yield name, "(set)" if name in _SECRETS else os.environ[name]
        elif name.startswith("PACKHORSE_"):
            yield name, "unknown: packhorse does not read it"


def _checks(timeout: float) -> Iterator[tuple[str, str, str]]:
    for row in default_devices().rows(probe=True, timeout=timeout):
        if row.status != "ok":
            absent = row.status in ("not installed", "no driver", "no device")
            yield row.device, "skip" if absent else "FAIL", what(row)
            continue
        try:
            reason = _plugins.ask({"device": row.device}, timeout).result()
        except ChildFailed as error:
            reason = f"its check {error}"
        yield row.device, "FAIL" if reason else "PASS", reason or row.name
