"""Loads plugins: lazily by name, one at a time, each isolated from the failures of the others."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from packhorse import _config
from packhorse.errors import (
    DeviceUnavailable,
    MissingExtra,
    ModelError,
    PackhorseError,
    PluginError,
    PluginLoadError,
    UnknownBackend,
    update_or_remove,
)
from packhorse.plugin.checks import (
    REQUIRED,
    check_api,
    check_info,
    check_packages,
    new_pluggy,
    register,
    trace_call,
    trace_result,
)
from packhorse.plugin.entries import (
    BUILTINS,
    Entry,
    Selection,
    installed,
    sort_entries,
    unknown,
)
from packhorse.plugin.frontend import Frontend, choose_frontend
from packhorse.plugin.info import BackendInfo, FrontendInfo, PluginContext

if TYPE_CHECKING:  # annotations only: the device lies above the plugins, and lists are quick
    from pathlib import Path

    from packhorse.device import Backend

__all__ = ["BACKENDS", "FORMATS", "FRONTENDS", "PLUGINS", "PluginManager", "default_manager"]

BACKENDS, FRONTENDS = "packhorse.backends", "packhorse.frontends"
FORMATS, PLUGINS = "packhorse.formats", "packhorse.plugins"

_T = TypeVar("_T", BackendInfo, FrontendInfo)
_log = logging.getLogger("packhorse.plugin")


class PluginManager:
    """The plugins of one set of rules. An object, so that tests can have an empty one.

    Parameters
    ----------
    entries : iterable of Entry, optional
        What is installed; default: the built-ins and every entry point found.
    only, disable : iterable of str, optional
        Names to allow or to refuse; default: ``PACKHORSE_PLUGINS``, ``PACKHORSE_DISABLE``.
    trace : bool, optional
        Write hook calls to stderr; default: ``PACKHORSE_TRACE_PLUGINS``.

    Notes
    -----
    Thread-safe. A failure is remembered and raised again without another import.
    """

    def __init__(
        self,
        entries: Iterable[Entry] | None = None,
        *,
        only: Iterable[str] | None = None,
        disable: Iterable[str] | None = None,
        trace: bool | None = None,
    ) -> None:
        if only is None and (text := _config.setting("PACKHORSE_PLUGINS")) is not None:
            only = _config.names(text)
        if disable is None:
            disable = _config.names(_config.setting("PACKHORSE_DISABLE"))
        self.selection = Selection.of(only, disable)
        self.lock = threading.RLock()
        self._plugins: dict[tuple[str, str], object] = {}
        self._failures: dict[tuple[str, str], PackhorseError] = {}
        self._complaints: dict[tuple[str, str], PluginError] = {}
        self._asked: set[tuple[str, int]] = set()
        self._infos: dict[tuple[str, str], BackendInfo | FrontendInfo] = {}
        self._backends: dict[str, Backend] = {}
        self._eager = False
        found = [*BUILTINS, *installed()] if entries is None else entries
        self._entries, self.unusable, self.refused = sort_entries(found, self.selection)
        self._pluggy = new_pluggy()
        if _config.flag("PACKHORSE_TRACE_PLUGINS") if trace is None else trace:
            self._pluggy.add_hookcall_monitoring(trace_call, trace_result)

    # -- names and loading -------------------------------------------------------------------

    def names(self, group: str) -> list[str]:
        """Names of a group, sorted; nothing is imported."""
        return sorted(name for found, name in self._entries if found == group)

    def entry(self, group: str, name: str) -> Entry:
        """The entry point of a name.

        Raises
        ------
        UnknownBackend, PluginError
            There is none (the former in the group of backends), or several distributions offer it.
        """
        found = self._entries.get((group, name), [])
        if not found:
            raise self._unknown(group, name)
        if len(found) > 1:
            dists = " and ".join(f"{e.dist} {e.version}" for e in found)
            raise PluginError(
                f"'{name}' in {group} is offered by {dists}, and only one of them may be",
                f"Remove one (pip uninstall {found[-1].dist}) or switch it off: "
                f"PACKHORSE_DISABLE={found[-1].dist}",
            )
        return found[0]

    def load(self, group: str, name: str) -> object:
        """Import and check one plugin; the same object when asked again.

        Raises
        ------
        PluginLoadError
            Importing it failed, a hook is misspelt, missing or has wrong arguments.
        MissingExtra
            It says which optional package it lacks.
        PluginTooNew, PluginTooOld
            It was written for another plugin API.
        """
        with self.lock:
            self._load_eager()
            return self._load(group, name)

    def _load(self, group: str, name: str) -> object:
        key = group, name
        if key in self._failures:
            raise self._failures[key].with_traceback(None)
        if key not in self._plugins:
            entry = self.entry(group, name)
            try:
                plugin = entry.load()
                register(self._pluggy, entry, plugin)
            except (Exception, SystemExit) as error:
                self._fail(entry, error)
            self._plugins[key] = plugin
        return self._plugins[key]

    def _load_eager(self) -> None:
        if not self._eager:
            self._eager = True  # set first: an eager plugin may use the manager while it loads
            for name in self.names(PLUGINS):
                try:
                    self._load(PLUGINS, name)
                except PackhorseError as error:
                    _log.warning("%s", error)

    def _fail(self, entry: Entry, error: BaseException) -> NoReturn:
        """Remember and raise what went wrong, as an error of ours that names the plugin."""
        key = entry.group, entry.name
        if isinstance(error, (MissingExtra, PluginError)):
            self._failures[key] = error
            raise error
        self._failures[key] = PluginLoadError(entry.name, entry.dist, entry.version, error)
        raise self._failures[key] from error

    def hook(self, hook: str, group: str, name: str) -> Callable[..., Any]:
        """Caller of one plugin's hook, with the wrappers of eager plugins unless those fail."""
        plugin = self.load(group, name)
        eager = {id(found): key for key, found in self._plugins.items() if key[0] == PLUGINS}
        others = [other for other in self._pluggy.get_plugins() if other is not plugin]
        mine = [other for other in others if id(other) not in eager]
        wrapped = self._pluggy.subset_hook_caller(hook, mine)
        around = [eager[id(i.plugin)] for i in wrapped.get_hookimpls() if id(i.plugin) in eager]
        if not around:
            return wrapped
        alone = self._pluggy.subset_hook_caller(hook, others)

        def guarded(**arguments: Any) -> Any:
            try:
                return wrapped(**arguments)
            except Exception as error:
                result = alone(**arguments)  # raises when the plugin that was asked is to blame
                for key in around:
                    self.complain(self.entry(*key), hook, error)
                return result

        return guarded

    def ask(self, hook: str, *, once: bool = False, **arguments: Any) -> list[tuple[Entry, Any]]:
        """What every plugin loaded so far gives, eager ones included, each asked by itself.

        A hook that fails is logged, and stands among :meth:`failures`; the others are asked all
        the same. With ``once`` plugins that were asked before are left out.
        """
        found = []
        with self.lock:
            self._load_eager()
            for key, plugin in list(self._plugins.items()):
                if once:
                    if (hook, id(plugin)) in self._asked:
                        continue
                    self._asked.add((hook, id(plugin)))  # first: hooks may look something up
                others = [other for other in self._pluggy.get_plugins() if other is not plugin]
                entry = self.entry(*key)
                try:
                    results = self._pluggy.subset_hook_caller(hook, others)(**arguments)
                except (Exception, SystemExit) as error:
                    self.complain(entry, hook, error)
                else:
                    found += [(entry, result) for result in results]
        return found

    def extend(self, hook: str, accept: Callable[[Any], object]) -> None:
        """Pass on what plugins add through a hook: pairs of a mapping, or the items of a list.

        Every plugin is asked once, when it has been loaded. What ``accept`` refuses is logged,
        and stands among :meth:`failures`; the plugin's other items are none the worse.
        """
        with self.lock:  # another thread that misses the same name waits until it is there
            for entry, offer in self.ask(hook, once=True):
                # what is neither is one item, for accept to refuse
                listed = list(offer) if isinstance(offer, Iterable) else [offer]
                for item in offer.items() if isinstance(offer, Mapping) else listed:
                    try:
                        accept(item)
                    except Exception as error:
                        self.complain(entry, hook, error)

    def complain(self, entry: Entry, hook: str, error: BaseException) -> None:
        """Log and remember what is wrong with something a plugin adds; it can be used otherwise."""
        ours = isinstance(error, PackhorseError)
        text = str(error) if ours else f"{type(error).__name__}: {error}"
        before = self._complaints.get((entry.group, entry.name))
        who = f"plugin '{entry.name}' of {entry.dist} {entry.version}"
        reason = before.reason if before else who
        if f"{hook}: {text}" not in reason:  # hooks that fail in every call are named once
            reason += f"{';' if before else ':'} {hook}: {text}"
        found = PluginError(reason, update_or_remove(entry.dist))
        self._complaints[entry.group, entry.name] = found
        _log.warning("%s", found)

    def is_builtin(self, group: str, name: str) -> bool:
        """True for the plugins of packhorse's core."""
        return self.entry(group, name) in BUILTINS

    def failures(self) -> dict[tuple[str, str], PackhorseError]:
        """What went wrong so far, with whole plugins or with what they add: (group, name)."""
        return self._complaints | self._failures

    # -- backends ----------------------------------------------------------------------------

    def backend_info(self, name: str) -> BackendInfo:
        """Static description of a backend, by name or alias. Raises as :meth:`load`."""
        if (BACKENDS, name) not in self._entries:
            return self._by_alias(name)
        return self._info(BACKENDS, name, BackendInfo)

    def backend_infos(self) -> list[BackendInfo]:
        """Descriptions of all sound backends, best first for ``auto``."""
        found = []
        for name in self.names(BACKENDS):
            try:
                found.append(self.backend_info(name))
            except PackhorseError as error:
                _log.debug("skipping backend '%s': %s", name, error)
        return sorted(found, key=lambda info: (-info.priority, info.name))

    def backend(self, name: str) -> Backend:
        """The backend object; its plugin may load the driver now.

        Raises
        ------
        MissingExtra, DeviceUnavailable
            What it needs is not installed or not there.
        PluginError
            As :meth:`load`, or the plugin failed to open it.
        """
        with self.lock:
            info = self.backend_info(name)
            if info.name not in self._backends:
                check_packages(info)
                entry = self.entry(BACKENDS, info.name)
                call = self.hook("packhorse_open_backend", BACKENDS, info.name)
                try:
                    backend = call(name=info.name, context=self.context(entry))
                    if backend is None:
                        raise TypeError("packhorse_open_backend returned None")
                except (MissingExtra, DeviceUnavailable):
                    raise  # may be mended while we run, so it is not remembered
                except (Exception, SystemExit) as error:
                    self._fail(entry, error)
                self._backends[info.name] = backend
            return self._backends[info.name]

    def context(self, entry: Entry) -> PluginContext:
        """What the plugin of an entry point is told about itself."""
        from pathlib import Path

        module = sys.modules.get(entry.value.partition(":")[0].strip())
        return PluginContext(
            entry.dist,
            entry.version,
            Path(getattr(module, "__file__", None) or ".").resolve().parent,
            _config.cache_dir(entry.name),
            logging.getLogger(f"packhorse.plugin.{entry.name}"),
        )

    def _by_alias(self, alias: str) -> BackendInfo:
        matches = [info for info in self.backend_infos() if alias in info.aliases]
        if not matches:
            raise self._unknown(BACKENDS, alias)
        if len(matches) > 1:
            names = ", ".join(info.name for info in matches)
            raise UnknownBackend(f"'{alias}' may mean any of {names}; name one of them")
        return matches[0]

    # -- frontends ---------------------------------------------------------------------------

    def frontend_info(self, name: str) -> FrontendInfo:
        """Static description of a frontend. Raises as :meth:`load`."""
        return self._info(FRONTENDS, name, FrontendInfo)

    def frontend(self, name: str) -> Frontend:
        """The frontend of a format word.

        Raises
        ------
        ModelError
            No such frontend; the message lists those installed.
        MissingExtra, PluginError
            It lacks a package, or as :meth:`load`.
        """
        info = self.frontend_info(name)
        check_packages(info)
        return Frontend(info, self.hook("packhorse_import_model", FRONTENDS, name))

    def frontend_for(self, path: str | Path) -> Frontend:
        """The frontend for a file, by its suffix (the longest one that fits).

        Raises
        ------
        ModelFormatError
            None reads such files, or several do.
        MissingExtra, PluginError
            The one that does lacks a package or is broken.
        """
        infos: list[FrontendInfo] = []
        broken: list[PackhorseError] = []
        for name in self.names(FRONTENDS):
            try:
                infos.append(self.frontend_info(name))
            except PackhorseError as error:
                broken.append(error)
        return self.frontend(choose_frontend(os.path.basename(path), infos, broken))

    # -- shared ------------------------------------------------------------------------------

    def _info(self, group: str, name: str, kind: type[_T]) -> _T:
        with self.lock:
            known = self._infos.get((group, name))
            if isinstance(known, kind):
                return known
            hook = REQUIRED[group][0]
            call = self.hook(hook, group, name)
            entry = self.entry(group, name)
            try:
                info = call(name=name)
                if not isinstance(info, kind):
                    raise TypeError(f"{hook} returned {type(info).__name__}, not {kind.__name__}")
                check_api(entry, info)
                check_info(info)
                if info.name != name:
                    raise ValueError(f"{hook} says '{info.name}', its entry point says '{name}'")
            except (Exception, SystemExit) as error:
                self._fail(entry, error)
            self._infos[group, name] = info
            return info

    def _unknown(self, group: str, name: str) -> PackhorseError:
        text = unknown(group, name, self.names(group), self.refused.get((group, name), ""))
        if group == BACKENDS:
            return UnknownBackend(text)
        return ModelError(text) if group == FRONTENDS else PluginError(text)


@functools.cache
def default_manager() -> PluginManager:
    """The manager everything uses unless another is passed; made at first use."""
    return PluginManager()
