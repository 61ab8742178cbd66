"""A check of ``packhorse doctor`` in a process of its own: a device, a plugin, or all plugins."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from packhorse.errors import PackhorseError
from packhorse.plugin.child import answer
from packhorse.plugin.entries import GROUPS, Entry

__all__: list[str] = []


def _check(asked: dict[str, Any]) -> Any:
    if "device" in asked:
        return _device(asked["device"])
    return _plugin(Entry(**asked["plugin"])) if "plugin" in asked else _together()


def _device(name: str) -> str:
    """What went wrong, or an empty string."""
    from packhorse.device import device

    try:
        device(name).check()
    except Exception as error:
        # Whatever a backend does wrong belongs into the report.
        return f"{type(error).__name__}: {error}"
    return ""


def _plugin(entry: Entry) -> str:
    """What is wrong with a plugin by itself, or an empty string."""
    from packhorse.plugin.checks import check_packages
    from packhorse.plugin.manager import BACKENDS, FRONTENDS, PluginManager

    manager = PluginManager([entry], only=[entry.name])
    try:
        if entry.group == BACKENDS:
            check_packages(manager.backend_info(entry.name))
        elif entry.group == FRONTENDS:
            check_packages(manager.frontend_info(entry.name))
        else:
            manager.load(entry.group, entry.name)
    except PackhorseError as error:
        return str(error)
    return ""


def _together() -> list[tuple[str, str, str]]:
    """What is wrong with plugins that add to what others have: (group, name, reason)."""
    from packhorse import ops
    from packhorse.function import list_global_func_names
    from packhorse.plugin.manager import default_manager

    manager = default_manager()
    for group in GROUPS:
        for name in manager.names(group):
            with suppress(PackhorseError):
                manager.load(group, name)
    ops.names()
    list_global_func_names()
    return [(group, name, str(e)) for (group, name), e in manager.failures().items()]


if __name__ == "__main__":
    answer(_check)
