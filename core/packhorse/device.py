"""Devices: the strings that name them, the protocols they follow, and how one is opened.

>>> import packhorse as ph
>>> with ph.device("cpu") as cpu:
...     cpu.name
'cpu:0'

Importing this module imports no plugin; :func:`device` imports exactly the one it needs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, cast, runtime_checkable

from packhorse._device_string import AUTO, DeviceString, Hop, parse, parse_choice
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DeviceClosed,
    PluginError,
    did_you_mean,
)
from packhorse.plugin.info import API, BackendInfo, DeviceInfo, OptionSpec, Status

if TYPE_CHECKING:  # annotations only: naming a device needs no arrays
    import numpy as np

    from packhorse._devices import Devices

__all__ = [
    "API",
    "AUTO",
    "CAPABILITIES",
    "Backend",
    "BackendInfo",
    "Device",
    "DeviceInfo",
    "DeviceMixin",
    "DeviceString",
    "Hop",
    "Memory",
    "MemoryStats",
    "OptionSpec",
    "Status",
    "best_device",
    "check_device",
    "check_range",
    "check_size",
    "device",
    "devices",
    "parse",
    "parse_choice",
]

CAPABILITIES: Mapping[str, str] = {
    "compile": "compiles kernels into a Module",
    "load": "load(blob, kind) makes a Module of what Module.save_blob gave, or of another library",
    "record": "record(bound_calls) makes one callable of many calls",
    "target": "what the compiler must know of the device",
    "copy": "copy(source, target, nbytes) copies between two of its own blocks, in queue order",
    "copy_peer": "copies to another device without passing through the host",
}
"""Optional attributes of a Device, looked up once when it is opened."""


@dataclass(frozen=True)
class MemoryStats:
    """Counters of a device, in bytes and numbers of allocations."""

    used: int = 0
    peak: int = 0
    live: int = 0
    allocations: int = 0
    cached: int = 0
    total: int | None = None


class Memory(Protocol):
    """A block of device memory. ``address`` is what ``DLTensor.data`` holds for it."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""

    @property
    def address(self) -> int:
        """Pointer or handle; aligned to 128 bytes where it is a pointer."""

    def close(self) -> None:
        """Give the block back; idempotent."""


@runtime_checkable
class Device(Protocol):
    """A place that holds memory and runs code. :class:`DeviceMixin` has defaults.

    What it can do beyond this is optional: see :data:`CAPABILITIES`.
    """

    @property
    def name(self) -> str:
        """Canonical device string."""

    @property
    def info(self) -> BackendInfo:
        """The backend's static description."""

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """(DLDeviceType, index), as in ``__dlpack_device__``."""

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Which of :data:`CAPABILITIES` it has."""

    def allocate(self, nbytes: int) -> Memory:
        """Uninitialised memory. DeviceMemoryError when there is not enough."""

    def copy_from_host(self, memory: Memory, data: np.ndarray[Any, Any], offset: int = 0) -> None:
        """Copy a C-contiguous host array to ``offset`` bytes into the block."""

    def copy_to_host(self, memory: Memory, data: np.ndarray[Any, Any], offset: int = 0) -> None:
        """Fill a C-contiguous writable host array from ``offset`` bytes into the block."""

    def synchronize(self) -> None:
        """Return when everything queued has been done."""

    def memory(self) -> MemoryStats:
        """Memory counters."""

    def trim(self) -> int:
        """Give cached memory back to the system; returns the bytes freed."""

    def check(self) -> None:
        """Really compute something small; raises what goes wrong."""

    def close(self) -> None:
        """Free everything; idempotent. Used by ``with``."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class Backend(Protocol):
    """What ``packhorse_open_backend`` returns."""

    @property
    def info(self) -> BackendInfo:
        """The same as ``packhorse_backend_info`` returns."""

    def open(self, index: int, options: Mapping[str, Any]) -> Device:
        """Open a device. ``options`` are checked and converted by ``info.options`` already.

        Raises
        ------
        DeviceUnavailable
            The device cannot be used; says what was found and how to mend it.
        """

    def probe(self) -> Iterable[DeviceInfo]:
        """The devices that are there."""


class DeviceMixin:
    """Defaults for a :class:`Device`: name, context manager, close, capabilities.

    A subclass writes ``allocate``, ``copy_from_host``, ``copy_to_host``, ``check``, and what it
    needs of ``synchronize``, ``trim``, ``memory`` and ``_release``.
    """

    def __init__(self, info: BackendInfo, index: int, options: Mapping[str, Any]) -> None:
        self.info, self.index, self.options = info, index, dict(options)
        texts = {key: _option_text(info, key, value) for key, value in options.items()}
        self.name = str(DeviceString((), info.name, index, tuple(sorted(texts.items()))))
        self._closed = False
        self.capabilities = frozenset(name for name in CAPABILITIES if hasattr(self, name))

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """(DLDeviceType, index)."""
        return self.info.dlpack_type, self.index

    @property
    def closed(self) -> bool:
        """True after :meth:`close`."""
        return self._closed

    def require_open(self) -> None:
        """Raise :class:`DeviceClosed` after :meth:`close`."""
        if self._closed:
            raise DeviceClosed(
                f"device '{self.name}' is closed; open it again with "
                f"packhorse.device('{self.name}')"
            )

    def synchronize(self) -> None:
        """Nothing is queued unless a subclass says so."""
        self.require_open()

    def trim(self) -> int:
        """Nothing is cached unless a subclass says so."""
        self.require_open()
        return 0

    def memory(self) -> MemoryStats:
        """Nothing is counted unless a subclass does."""
        self.require_open()
        return MemoryStats()

    def close(self) -> None:
        """Free everything; idempotent."""
        if not self._closed:
            self._closed = True
            self._release()

    def _release(self) -> None:
        """What a subclass frees on close; called once."""

    def __enter__(self) -> Self:
        self.require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}{' closed' if self._closed else ''}>"


def _option_text(info: BackendInfo, key: str, value: Any) -> str:
    spec = info.options.get(key)
    return spec.format(value) if spec else str(value)


_MEMBERS = tuple(name for name in vars(Device) if not name.startswith("_"))


def check_device(found: Any, name: str) -> Device:
    """What a backend opened under a name, if it is a Device.

    Raises
    ------
    PluginError
        It is none; names what is missing and what it has instead.
    """
    if found is None:
        raise PluginError(f"the backend of '{name}' opened None. Its open() must return the Device")
    for member in _MEMBERS:
        if not hasattr(found, member):
            close = did_you_mean(member, (m for m in dir(found) if m not in _MEMBERS))
            raise PluginError(
                f"the backend of '{name}' opened a {type(found).__name__}, which has no "
                f"'{member}'{close.replace('did you mean', 'misspelt as')}. Give it what "
                "packhorse.device.Device lists, or derive it from DeviceMixin"
            )
    return cast(Device, found)


def check_size(nbytes: object) -> int:
    """The size of a block to allocate.

    Raises
    ------
    ArgumentTypeError
        It is no whole number.
    ArgumentValueError
        It is negative.
    """
    if isinstance(nbytes, bool) or not hasattr(nbytes, "__index__"):
        raise ArgumentTypeError(f"nbytes must be an int, not {type(nbytes).__name__}")
    size = operator.index(nbytes)
    if size < 0:
        raise ArgumentValueError(f"nbytes must not be negative, got {size}")
    return size


def check_range(
    memory: Memory, data: np.ndarray[Any, Any], offset: int, *, fill: bool = False
) -> None:
    """Refuse a copy between a block and a host array that cannot be done.

    Raises
    ------
    ArgumentTypeError
        The array holds Python objects.
    ArgumentValueError
        It is not C-contiguous, does not fit, or is to be filled and read-only.
    """
    if data.dtype.hasobject:
        raise ArgumentTypeError("arrays of Python objects have no bytes to copy; convert them")
    if fill and not data.flags.writeable:
        raise ArgumentValueError("the array to fill is read-only; pass a writable one")
    if not data.flags.c_contiguous:
        raise ArgumentValueError(
            "copies take C-contiguous arrays; pass numpy.ascontiguousarray(array)"
        )
    if offset < 0 or offset + data.nbytes > memory.nbytes:
        raise ArgumentValueError(
            f"a copy of {data.nbytes} bytes at offset {offset} does not fit a block of "
            f"{memory.nbytes} bytes"
        )


def device(name: str | Device | None = None) -> Device:
    """Open a device, or return the one opened before under the same canonical name.

    Parameters
    ----------
    name : str, Device or None
        A device string (``"llvm-cpu?threads=2"``), a list in order of preference
        (``"cuda,cpu"``), ``"auto"``, ``"auto:cpu"`` or ``"auto:gpu"``. None means
        ``$PACKHORSE_DEVICE``, else ``auto``. A Device is returned as it is.

    Raises
    ------
    DeviceStringError
        The string does not follow the grammar; unknown or unfitting options.
    UnknownBackend
        No such backend is installed; the message lists those that are.
    DeviceUnavailable
        It is installed but cannot be used here; says why. Only a list or ``auto`` tries others.
    PluginError, MissingExtra
        Its plugin is broken, of another API version, or lacks a package.
    """
    return (_opened or _devices())().open(name)


def best_device() -> Device:
    """The best device that works here: ``device("auto")``."""
    return device("auto")


def devices(probe: bool = False, timeout: float = 20.0) -> list[DeviceInfo]:
    """What is installed and, with ``probe``, what works. Never raises for a broken plugin.

    Parameters
    ----------
    probe : bool
        Ask the drivers, each in a child process, so that a crash or a hang becomes a row.
        Without it no driver is loaded and its devices are ``not probed``.
    timeout : float
        Seconds each probe may take.
    """
    return (_opened or _devices())().rows(probe=probe, timeout=timeout)


_opened: Callable[[], Devices] | None = None
"""``default_devices`` once it was needed: an import, even of what is there, takes 0.3 us a call."""


def _devices() -> Callable[[], Devices]:
    global _opened
    from packhorse._devices import default_devices

    _opened = default_devices
    return default_devices
