"""Plugins: how a package adds a backend, a frontend or a command to packhorse.

A whole backend plugin, ``packhorse_acme/plugin.py``::

    from packhorse.plugin import BackendInfo, hookimpl

    INFO = BackendInfo("acme", "Acme accelerator cards", dlpack_type=12, api=(1, 0))

    @hookimpl
    def packhorse_backend_info():
        return INFO

    @hookimpl
    def packhorse_open_backend(context):
        from packhorse_acme.backend import AcmeBackend  # the driver is loaded here, not above
        return AcmeBackend(INFO)

and in its ``pyproject.toml``::

    [project.entry-points."packhorse.backends"]
    acme = "packhorse_acme.plugin"

``packhorse.device("acme:0")`` then works. :mod:`packhorse.plugin.spec` documents every hook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packhorse.plugin.info import (
    API,
    BackendInfo,
    DeviceInfo,
    FrontendInfo,
    OptionSpec,
    PluginContext,
)

if TYPE_CHECKING:
    from packhorse.plugin.manager import PluginManager, default_manager
    from packhorse.plugin.spec import hookimpl

__all__ = [
    "API",
    "BackendInfo",
    "DeviceInfo",
    "FrontendInfo",
    "OptionSpec",
    "PluginContext",
    "PluginManager",
    "default_manager",
    "hookimpl",
]

_LAZY = {"hookimpl": "spec", "PluginManager": "manager", "default_manager": "manager"}


def __getattr__(name: str) -> Any:
    # pluggy costs 20 ms to import; `import packhorse` reads device strings without it.
    if name in _LAZY:
        from importlib import import_module

        value = getattr(import_module(f"packhorse.plugin.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'packhorse.plugin' has no attribute '{name}'")
