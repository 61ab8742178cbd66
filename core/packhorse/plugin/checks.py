"""What is checked of a plugin before it is used: hooks, API version, packages it needs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pluggy

from packhorse._version import __version__
from packhorse.errors import MissingExtra, PluginTooNew, PluginTooOld, did_you_mean
from packhorse.plugin import spec
from packhorse.plugin.entries import Entry
from packhorse.plugin.info import API, BackendInfo, FrontendInfo, OptionSpec

__all__ = [
    "REQUIRED",
    "check_api",
    "check_info",
    "check_packages",
    "missing_package",
]

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "packhorse.backends": ("packhorse_backend_info", "packhorse_open_backend"),
    "packhorse.frontends": ("packhorse_frontend_info", "packhorse_import_model"),
}
"""Hooks a plugin of a group must have; the first one describes it."""


def new_pluggy() -> pluggy.PluginManager:
    """A pluggy manager that knows the hooks of :mod:`packhorse.plugin.spec`."""
    manager = pluggy.PluginManager("packhorse")
    manager.add_hookspecs(spec.Hooks)
    return manager


def register(manager: pluggy.PluginManager, entry: Entry, plugin: object) -> None:
    """Register a plugin; one with misspelt, missing or unmarked hooks is refused and leaves no
    trace.

    Raises
    ------
    AttributeError
        A hook is unknown, missing, or not marked.
    pluggy.PluginValidationError
        A hook has unknown arguments.
    PluginTooNew, PluginTooOld
        They are those of another API version, which explains more.
    """
    if manager.is_registered(plugin):  # a module may be named by several entries
        _check_required(manager, entry, plugin)
        return
    try:
        manager.register(plugin, f"{entry.group}:{entry.name}")
        manager.check_pending()
        _check_required(manager, entry, plugin)
    except Exception as error:
        if manager.is_registered(plugin):  # newer versions of pluggy register all of it or nothing
            manager.unregister(plugin)
        if isinstance(error, pluggy.PluginValidationError):
            _check_described_api(entry, plugin)
            _check_names(manager, entry, plugin)
        raise


def _check_described_api(entry: Entry, plugin: object) -> None:
    """Refuse another API version where a plugin with wrong hooks can still say which."""
    describe = getattr(plugin, REQUIRED.get(entry.group, ("",))[0], None)
    info = None
    with suppress(Exception):
        info = describe()  # type: ignore[misc]  # not callable: then it says nothing
    if info is not None:
        check_api(entry, info)


def _check_names(manager: pluggy.PluginManager, entry: Entry, plugin: object) -> None:
    known = [name for name in dir(spec.Hooks) if name.startswith("packhorse_")]
    for name in dir(plugin):
        if manager.parse_hookimpl_opts(plugin, name) is not None and name not in known:
            raise AttributeError(
                f"{entry.value} has an unknown hook '{name}'{did_you_mean(name, known)}"
            )


def _check_required(manager: pluggy.PluginManager, entry: Entry, plugin: object) -> None:
    found = {caller.name for caller in manager.get_hookcallers(plugin) or ()}
    for hook in REQUIRED.get(entry.group, ()):
        if hook not in found:
            there = hasattr(plugin, hook)
            marked = " (it is there, but not marked with @hookimpl)" if there else ""
            raise AttributeError(f"{entry.value} has no hook {hook}{marked}")
    if not found:
        raise AttributeError(
            f"{entry.value} has no hook of packhorse; a function is one when it is marked with "
            "@hookimpl"
        )


def check_api(entry: Entry, info: object) -> None:
    """Compare API versions before the plugin is asked to touch anything native.

    Raises
    ------
    PluginTooNew, PluginTooOld
        A newer (major, minor) than ours, or another major.
    TypeError
        ``info.api`` is no pair of numbers.
    """
    api = getattr(info, "api", None)
    try:
        major, minor = map(int, api)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"its api is {api!r}, expected a pair such as {API}") from None
    text = (
        f"plugin '{entry.name}' of {entry.dist} {entry.version} was written for plugin API "
        f"{major}.{minor}; packhorse {__version__} offers {API[0]}.{API[1]}"
    )
    if (major, minor) > API:
        raise PluginTooNew(text, "Update packhorse: pip install -U packhorse")
    if major != API[0]:
        raise PluginTooOld(text, f"Update the plugin: pip install -U {entry.dist}")


def check_info(info: BackendInfo | FrontendInfo) -> None:
    """Refuse a description that would fail later, far from the plugin that made it.

    Raises
    ------
    TypeError
        Names the field, what it holds and what it should.
    """
    for key in ("aliases", "requires", "suffixes"):
        value = getattr(info, key, ())
        words = isinstance(value, (tuple, list)) and all(isinstance(word, str) for word in value)
        if not words:  # a bare str is a sequence of its letters
            raise TypeError(f"its {key} is {value!r}, expected a tuple of str")
    for key in ("priority", "dlpack_type"):
        if not isinstance(getattr(info, key, 0), int):
            raise TypeError(f"its {key} is {getattr(info, key)!r}, expected an int")
    options = getattr(info, "options", {})
    sound = isinstance(options, Mapping) and all(
        isinstance(spec, OptionSpec) for spec in options.values()
    )
    if not sound:
        raise TypeError(f"its options are {options!r}, expected a mapping of str to OptionSpec")


def missing_package(info: BackendInfo | FrontendInfo) -> str | None:
    """The first package of ``info.requires`` that is not installed; imports none of them."""
    for module in info.requires:
        try:
            if importlib.util.find_spec(module) is None:
                return module
        except Exception:  # its parent package is missing, or fails when it is imported
            return module
    return None


def check_packages(info: BackendInfo | FrontendInfo) -> None:
    """Raise :class:`MissingExtra`, with the pip line, unless all it requires is installed."""
    package = missing_package(info)
    if package is None:
        return
    kind = "backend" if isinstance(info, BackendInfo) else "frontend"
    error = MissingExtra(package, info.extra or "", f"the {kind} '{info.name}'")
    if not info.extra:  # a plugin of another distribution: packhorse has no extra for it
        error.msg = (
            f"the {kind} '{info.name}' needs the package '{package}', which is not installed. "
            f"Install it with: {info.fix or f'pip install {package}'}"
        )
    raise error


def trace_call(hook: str, impls: Any, arguments: Mapping[str, Any]) -> None:
    """Write a hook call to stderr (``PACKHORSE_TRACE_PLUGINS``)."""
    words = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    print(f"packhorse trace: {hook}({words})", file=sys.stderr)


def trace_result(outcome: Any, hook: str, impls: Any, arguments: Mapping[str, Any]) -> None:
    """Write what a hook call gave to stderr."""
    error = outcome.exception
    text = f"raised {error!r}" if error is not None else f"-> {outcome.get_result()!r}"
    print(f"packhorse trace: {hook} {text}", file=sys.stderr)
