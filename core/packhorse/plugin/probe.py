"""What each backend says of its devices: as it describes itself, or asked in a child process.

A plugin or a driver that crashes or hangs when asked then costs a row in a table and not the
caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from packhorse.errors import DeviceUnavailable, MissingExtra, PackhorseError, PluginError
from packhorse.plugin.checks import missing_package
from packhorse.plugin.entries import Entry
from packhorse.plugin.info import BackendInfo, DeviceInfo, Status
from packhorse.plugin.manager import BACKENDS, PluginManager

if TYPE_CHECKING:
    from packhorse.plugin.child import Child

__all__ = ["Answer", "described", "error_row", "probe_all"]

_LAST = -(1 << 31)


@dataclass(frozen=True)
class Answer:
    """Rows of one backend, and its priority in ``auto`` (the lowest when it could not say)."""

    rows: list[DeviceInfo]
    priority: int = _LAST


def error_row(name: str, error: BaseException) -> DeviceInfo:
    """The row of a backend that could not be asked."""
    if isinstance(error, MissingExtra):
        what = f"'packhorse[{error.extra}]'" if error.extra else error.package
        reason = f"needs the package '{error.package}'"
        return DeviceInfo(name, status="not installed", reason=reason, fix=f"pip install {what}")
    if isinstance(error, PluginError):
        reason = " ".join(error.reason.split())  # compilers and pluggy write several lines
        return DeviceInfo(name, status="error", reason=reason, fix=error.fix)
    text = str(error) if isinstance(error, PackhorseError) else f"{type(error).__name__}: {error}"
    status: Status = "no device" if isinstance(error, DeviceUnavailable) else "error"
    return DeviceInfo(name, status=status, reason=text)


def described(manager: PluginManager, name: str) -> Answer:
    """What can be said of a backend without loading its driver; never raises for a broken one."""
    try:
        info = manager.backend_info(name)
    except PackhorseError as error:
        return Answer([error_row(name, error)])
    return Answer([_static_row(info)], info.priority)


def _static_row(info: BackendInfo) -> DeviceInfo:
    if package := missing_package(info):
        reason = f"needs the package '{package}'"
        return DeviceInfo(info.name, status="not installed", reason=reason, fix=info.fix)
    row = DeviceInfo(info.name, name=info.summary, kind="cpu" if info.is_host else "")
    return replace(row, status="not probed", fix="--probe") if info.needs_driver else row


def _probed(manager: PluginManager, name: str) -> Answer:
    """Ask one backend in this process."""
    answer = described(manager, name)
    if answer.rows[0].status not in ("ok", "not probed"):
        return answer
    try:
        rows = manager.hook("packhorse_probe", BACKENDS, name)(name=name)
        found = list(manager.backend(name).probe() if rows is None else rows)
        for row in found:
            if not isinstance(row, DeviceInfo):
                raise TypeError(f"the probe of '{name}' gave {type(row).__name__}, not DeviceInfo")
    except (Exception, SystemExit) as error:
        found = [error_row(name, error)]
    nothing = DeviceInfo(name, status="no device", reason="its probe found no device")
    return Answer(found or [nothing], answer.priority)


def probe_all(manager: PluginManager, names: Iterable[str], timeout: float) -> dict[str, Answer]:
    """Ask several backends, all at once; never raises for a failing one.

    Built-in backends are asked in this process. The others are imported and asked in one child
    each: nothing of them runs here.
    """
    found: dict[str, Answer] = {}
    children: dict[str, tuple[Entry, Child]] = {}
    for name in names:
        try:
            entry = manager.entry(BACKENDS, name)
        except PackhorseError as error:  # two packages offer it
            found[name] = Answer([error_row(name, error)])
            continue
        if manager.is_builtin(BACKENDS, name):
            found[name] = _probed(manager, name)
        else:
            children[name] = entry, _start(entry, timeout)
    return found | {name: _collect(*asked) for name, asked in children.items()}


def _start(entry: Entry, timeout: float) -> Child:
    from packhorse.plugin.child import Child  # lists without probing need no subprocess

    # The child sees no plugin but this one, which it finds by the entry we found.
    environment = {"PACKHORSE_PLUGINS": entry.name, "PACKHORSE_DISABLE": ""}
    return Child("packhorse.plugin.probe", vars(entry), environment, timeout)


def _collect(entry: Entry, child: Child) -> Answer:
    from packhorse.plugin.child import ChildFailed

    try:
        found = child.result()
        return Answer([DeviceInfo(**row) for row in found["rows"]], found["priority"])
    except ChildFailed as error:
        reason = f"its probe {error}"
        fix = f"Update it: pip install -U {entry.dist}, or set PACKHORSE_DISABLE={entry.name}"
        return Answer([DeviceInfo(entry.name, status="error", reason=reason, fix=fix)])


def _child(entry: dict[str, str]) -> dict[str, Any]:
    answer = _probed(PluginManager([Entry(**entry)]), entry["name"])
    return {"rows": [row.to_json() for row in answer.rows], "priority": answer.priority}


if __name__ == "__main__":
    from packhorse.plugin.child import answer

    answer(_child)
