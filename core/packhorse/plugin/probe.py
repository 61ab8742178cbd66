"""Asks backends which devices there are, each in a child process.

A driver that crashes or hangs then costs a row in a table and not the caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from packhorse.errors import DeviceUnavailable, MissingExtra, PackhorseError
from packhorse.plugin.checks import missing_package
from packhorse.plugin.child import Child, ChildFailed, answer
from packhorse.plugin.entries import Entry
from packhorse.plugin.info import BackendInfo, DeviceInfo, Status
from packhorse.plugin.manager import BACKENDS, PluginManager

__all__ = ["error_row", "probe_all", "probe_here", "static_row"]


def error_row(name: str, error: BaseException) -> DeviceInfo:
    """The row of a backend that could not be asked."""
    text = str(error) if isinstance(error, PackhorseError) else f"{type(error).__name__}: {error}"
    if isinstance(error, MissingExtra):
        what = f"'packhorse[{error.extra}]'" if error.extra else error.package
        reason = f"needs the package '{error.package}'"
        return DeviceInfo(name, status="not installed", reason=reason, fix=f"pip install {what}")
    status: Status = "no device" if isinstance(error, DeviceUnavailable) else "error"
    return DeviceInfo(name, status=status, reason=text)


def static_row(info: BackendInfo) -> DeviceInfo:
    """What can be said of a backend without asking it."""
    if package := missing_package(info):
        reason = f"needs the package '{package}'"
        return DeviceInfo(info.name, status="not installed", reason=reason, fix=info.fix)
    if info.needs_driver:
        return DeviceInfo(info.name, name=info.summary, status="not probed", fix="--probe")
    return DeviceInfo(info.name, name=info.summary)


def probe_here(manager: PluginManager, name: str) -> list[DeviceInfo]:
    """Ask one backend in this process. Raises whatever its plugin raises."""
    rows = manager.hook("packhorse_probe", BACKENDS, name)(name=name)
    found = list(manager.backend(name).probe() if rows is None else rows)
    for row in found:
        if not isinstance(row, DeviceInfo):
            raise TypeError(f"the probe of '{name}' gave {type(row).__name__}, not DeviceInfo")
    return found or [DeviceInfo(name, status="no device", reason="its probe found no device")]


def probe_all(
    manager: PluginManager, names: Iterable[str], timeout: float
) -> dict[str, list[DeviceInfo]]:
    """Ask several backends, all at once; never raises for a failing one.

    Built-in backends are asked in this process, the others in one child each.
    """
    found: dict[str, list[DeviceInfo]] = {}
    children: dict[str, Child] = {}
    for name in names:
        try:
            info = manager.backend_info(name)
            if missing_package(info):
                found[name] = [static_row(info)]
            elif manager.is_builtin(BACKENDS, name):
                found[name] = probe_here(manager, name)
            else:
                children[name] = _start(manager, name, timeout)
        except Exception as error:
            found[name] = [error_row(name, error)]
    return found | {name: _collect(name, child) for name, child in children.items()}


def _start(manager: PluginManager, name: str, timeout: float) -> Child:
    # The child sees no plugin but this one, which it finds by the entry we found.
    environment = {"PACKHORSE_PLUGINS": name, "PACKHORSE_DISABLE": ""}
    argument = vars(manager.entry(BACKENDS, name))
    return Child("packhorse.plugin.probe", argument, environment, timeout)


def _collect(name: str, child: Child) -> list[DeviceInfo]:
    try:
        return [DeviceInfo(**row) for row in child.result()]
    except ChildFailed as error:
        return [DeviceInfo(name, status="error", reason=f"its probe {error}")]


def _child(entry: dict[str, str]) -> list[dict[str, Any]]:
    manager = PluginManager([Entry(**entry)])
    try:
        rows = probe_here(manager, entry["name"])
    except (Exception, SystemExit) as error:
        rows = [error_row(entry["name"], error)]
    return [row.to_json() for row in rows]


if __name__ == "__main__":
    answer(_child)
