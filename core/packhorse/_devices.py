"""Opens devices through a plugin manager and remembers them by canonical name.

Behind :func:`packhorse.device.device`; a module of its own because it imports pluggy.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

from packhorse import _config
from packhorse.device import (
    BackendInfo,
    Device,
    DeviceInfo,
    DeviceMixin,
    DeviceString,
    check_device,
    parse_choice,
)
from packhorse.errors import (
    ArgumentTypeError,
    DeviceError,
    DeviceStringError,
    DeviceUnavailable,
    MissingExtra,
    PackhorseError,
    PluginError,
    UnknownBackend,
    did_you_mean,
)
from packhorse.plugin.entries import KNOWN, damaged
from packhorse.plugin.manager import BACKENDS, PluginManager, default_manager
from packhorse.plugin.probe import described, error_row, probe_all

__all__ = ["Devices", "default_devices"]

_log = logging.getLogger("packhorse.device")
_PROBE_SECONDS = 20.0
_NEXT = (UnknownBackend, DeviceUnavailable, MissingExtra, PluginError)
"""What makes a list or ``auto`` go on to the next device; a malformed string is not among them."""


class Devices:
    """The open devices of one plugin manager. Thread-safe."""

    def __init__(self, manager: PluginManager) -> None:
        self.manager = manager
        self._lock = threading.RLock()
        self._open: dict[str, Device] = {}  # by canonical name
        self._texts: dict[str, Device] = {}  # by what was written; also what was chosen for it
        self._probed: dict[str, list[DeviceInfo]] = {}

    def open(self, name: str | Device | None = None) -> Device:
        """See :func:`packhorse.device.device`."""
        known = self._texts.get(name) if isinstance(name, str) else None
        if known is not None and not known.closed:
            return known
        if name is None:
            return self._default()
        if not isinstance(name, str):
            return _as_device(name)
        choice = parse_choice(name)
        if len(choice) > 1:
            device = self._first(name, choice)
        elif choice[0].is_auto and not choice[0].hops:
            device = self._first(name, self._candidates(choice[0].backend))
        else:
            device = self._one(choice[0])
        if len(self._texts) < 4096:  # strings may come from outside: bound what they can fill
            self._texts[name] = device
        return device

    def _default(self) -> Device:
        """What the environment names, else the best; errors say where the name stands."""
        name = _config.setting("PACKHORSE_DEVICE")
        if name is None:
            return self.open("auto")
        try:
            return self.open(name)
        except DeviceError as error:
            error.args = (f"PACKHORSE_DEVICE={name}: {error}", *error.args[1:])
            raise

    def rows(self, probe: bool = False, timeout: float = _PROBE_SECONDS) -> list[DeviceInfo]:
        """See :func:`packhorse.device.devices`."""
        manager, names = self.manager, self.manager.names(BACKENDS)
        if probe:
            found = probe_all(manager, names, timeout)
        else:
            found = {name: described(manager, name) for name in names}
        ordered = sorted(names, key=lambda name: (-found[name].priority, name))
        rows = [row for name in ordered for row in found[name].rows]
        rows += [
            error_row(name, error) for name, error in damaged(manager.unusable, BACKENDS).items()
        ]
        return [*rows, *self._absent(set(names))]

    def close(self) -> None:
        """Close every device; idempotent."""
        with self._lock:
            for device in self._open.values():
                device.close()
            self._open.clear()
            self._texts.clear()

    def reset_locks(self) -> None:
        """After a fork: another thread of the parent may have held a lock."""
        self._lock, self.manager.lock = threading.RLock(), threading.RLock()

    def _one(self, wanted: DeviceString) -> Device:
        if wanted.hops:
            return self._remote(wanted)
        info = self.manager.backend_info(wanted.backend)
        options, texts = _checked_options(info, wanted)
        canonical = str(DeviceString((), info.name, wanted.index, texts))
        return self._cached(
            canonical, lambda: self.manager.backend(info.name).open(wanted.index, options)
        )

    def _remote(self, wanted: DeviceString) -> Device:
        # A backend named rpc opens what lies behind a hop; option checks are the far side's.
        backend = self.manager.backend("rpc")
        opener = getattr(backend, "open_remote", None)
        if opener is None:
            raise DeviceUnavailable(
                f"{wanted}: the installed 'rpc' backend opens no remote devices. "
                "Update it: pip install -U packhorse"
            )
        return self._cached(str(wanted), lambda: opener(wanted))

    def _cached(self, canonical: str, opener: Any) -> Device:
        with self._lock:
            known = self._open.get(canonical)
            if known is not None and not known.closed:
                return known
            try:
                device = check_device(opener(), canonical)
                found = device.name
            except PackhorseError:
                raise
            except Exception as error:
                raise DeviceUnavailable(
                    f"{canonical}: opening it failed with {type(error).__name__}: {error}. "
                    "Run 'packhorse doctor' for what is there"
                ) from error
            if found != canonical:
                raise PluginError(
                    f"the backend of '{canonical}' gave a device that calls itself '{found}'; "
                    "it must keep index and options. Report it to the plugin's author"
                )
            self._open[canonical] = device
            return device

    def _first(self, text: str, candidates: Iterable[DeviceString | DeviceInfo]) -> Device:
        """The first device that opens; the only place where more than one is tried."""
        reasons: list[str] = []
        for candidate in candidates:
            if isinstance(candidate, DeviceInfo):  # found unusable already
                reasons.append(f"{candidate.backend}: {candidate.status} ({candidate.reason})")
                continue
            try:
                device = self._one(candidate)
            except _NEXT as error:
                level = logging.DEBUG if text.startswith("auto") else logging.WARNING
                _log.log(level, "'%s': %s is passed over: %s", text, candidate, error)
                reasons.append(f"{candidate}: {error}")
                continue
            _log.info("'%s' is %s", text, device.name)
            return device
        listed = "".join(f"\n  {reason}" for reason in reasons) or " nothing is installed for it"
        raise DeviceUnavailable(f"none of the devices '{text}' stands for can be used:{listed}")

    def _candidates(self, kind: str) -> Iterator[DeviceString | DeviceInfo]:
        """Devices for ``auto``, best first; drivers are asked in a child process before."""
        for info in self.manager.backend_infos():
            if kind != "auto" and info.is_host != (kind == "auto:cpu"):
                continue
            if not info.needs_driver:
                yield DeviceString((), info.name)
                continue
            for row in self._ask(info):
                if row.status != "ok":
                    yield row
                elif kind == "auto:gpu" and row.kind == "cpu":  # PoCL and its like
                    reason = f"{row.device} is a processor: {row.name}"
                    yield replace(row, status="no device", reason=reason)
                else:
                    yield DeviceString((), row.backend, row.index)

    def _ask(self, info: BackendInfo) -> list[DeviceInfo]:
        if info.name not in self._probed:
            self._probed[info.name] = probe_all(self.manager, [info.name], _PROBE_SECONDS)[
                info.name
            ].rows
        return self._probed[info.name]

    def _absent(self, names: set[str]) -> Iterator[DeviceInfo]:
        """Rows of what packhorse offers but is not here."""
        for (group, name), known in KNOWN.items():
            if group == BACKENDS and name not in names:
                switch = self.manager.refused.get((group, name))
                reason = f"switched off by {switch}" if switch else "the plugin is not installed"
                fix = f"unset {switch}" if switch else f"pip install 'packhorse[{known.extra}]'"
                yield DeviceInfo(name, 0, known.summary, None, "not installed", reason, fix)


def _as_device(value: Any) -> Device:
    # the protocol's own check looks at every attribute: 10 us, and devices are named per call
    if not isinstance(value, (DeviceMixin, Device)):
        raise ArgumentTypeError(
            f"device must be a device string, a Device or None, not {type(value).__name__}"
        )
    if value.closed:
        raise DeviceError(f"device '{value.name}' is closed; open it again by its name")
    return cast(Device, value)


def _checked_options(
    info: BackendInfo, wanted: DeviceString
) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    values, texts = {}, {}
    for key, text in wanted.options:
        spec = info.options.get(key)
        if spec is None:
            known = ", ".join(sorted(info.options)) or "none"
            raise DeviceStringError(
                f"device '{wanted}': backend '{info.name}' has no option '{key}'"
                f"{did_you_mean(key, info.options)}. Options it takes: {known}"
            )
        try:
            values[key] = spec.parse(text)
            texts[key] = spec.format(values[key])
        except ValueError as error:
            raise DeviceStringError(
                f"device '{wanted}': option {key}={text}: {error} ({spec.help})"
            ) from None
    return values, tuple(sorted(texts.items()))


@functools.cache
def default_devices() -> Devices:
    """The devices of the default plugin manager."""
    devices = Devices(default_manager())
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=devices.reset_locks)
    return devices
