"""What was loaded, on the other devices it holds code for: opened when a call first names one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from packhorse.device import Device, device
from packhorse.errors import ArgumentValueError, DeviceClosed

if TYPE_CHECKING:
    from packhorse.artifact import Artifact
    from packhorse.executable import Executable

__all__ = ["Elsewhere"]

_CACHED_STRINGS = 256
"""Device strings remembered: they may come from outside."""


class Elsewhere:
    """The executables of one artifact or library besides the first, by device. Thread-safe.

    Parameters
    ----------
    home : str
        The device of the first.
    reopen : callable, optional
        Makes one for a device. None: it was compiled here, for its one device.
    artifact : Artifact, optional
        Says which device a list or ``auto`` means.
    """

    def __init__(
        self,
        home: str,
        reopen: Callable[[Device], Executable] | None = None,
        artifact: Artifact | None = None,
    ) -> None:
        self.home, self.reopen, self._artifact = home, reopen, artifact
        self.meanings: dict[str, str] = {}
        self._made: dict[str, Executable] = {}
        self._lock = threading.Lock()
        self._closed = False

    def on(self, wanted: str | Device) -> Executable | None:
        """The executable for a device; None for the device of the first.

        Raises
        ------
        ArgumentValueError
            It was compiled here, for another device.
        DeviceClosed
            After :meth:`close`.
        DeviceError, ArtifactError, CompileError
            As :meth:`Executable.from_artifact`.
        """
        if isinstance(wanted, str) and wanted in self.meanings:
            if self.meanings[wanted] == self.home:
                return None
            known = self._made.get(self.meanings[wanted])
            if known is not None and known.usable:
                return known
        found = self._meant(wanted)
        if isinstance(wanted, str) and len(self.meanings) < _CACHED_STRINGS:
            self.meanings[wanted] = found.name
        return None if found.name == self.home else self._opened(found)

    def _meant(self, wanted: str | Device) -> Device:
        if self._artifact is None:
            return device(wanted)
        from packhorse.executable_artifact import device_for

        return device_for(self._artifact, wanted)

    def _opened(self, where: Device) -> Executable:
        with self._lock:
            if self._closed:
                raise DeviceClosed("this executable is closed; compile or load it again")
            if self.reopen is None:
                raise ArgumentValueError(
                    f"this executable was compiled for '{self.home}', not for '{where.name}'. "
                    "Load the model and compile it for that device"
                )
            made = self._made.get(where.name)
            if made is None or not made.usable:
                if made is not None:  # its device was closed, and opened anew
                    made.close()
                made = self._made[where.name] = self.reopen(where)
            return made

    def close(self) -> None:
        """Close all; idempotent."""
        with self._lock:
            self._closed, self.reopen, self._artifact = True, None, None
            made, self._made = self._made, {}
        for other in made.values():
            other.close()
