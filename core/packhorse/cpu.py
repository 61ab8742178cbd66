"""The device of the built-in ``cpu`` backend: host memory and the NumPy references.

:class:`HostDevice` is what other backends of host memory build on. The backend is registered
through the same table as every other plugin, by :mod:`packhorse.cpu_plugin`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from packhorse import _config
from packhorse.cpu_plugin import HOST_OPTIONS, INFO, CpuBackend
from packhorse.device import BackendInfo, DeviceMixin, Memory, MemoryStats, check_range, check_size
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DeviceClosed,
    DeviceError,
    DeviceMemoryError,
    DeviceUnavailable,
)

__all__ = ["HOST_OPTIONS", "INFO", "CpuBackend", "HostDevice", "HostMemory", "host_name"]


class _Counters:
    """Allocation counters shared by a device and its blocks (which may outlive it)."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # finalizers may run while it is held
        self.used = self.peak = self.live = self.allocations = 0

    def add(self, nbytes: int) -> None:
        with self.lock:
            self.used += nbytes
            self.live += 1
            self.allocations += 1
            self.peak = max(self.peak, self.used)

    def remove(self, nbytes: int) -> None:
        with self.lock:
            self.used -= nbytes
            self.live -= 1


class HostMemory:
    """A block of host memory, aligned to 128 bytes (part of TVM's ABI).

    Attributes
    ----------
    array : numpy.ndarray
        The bytes, uint8, shape (nbytes,). Views of it keep the memory alive after ``close``.
    """

    def __init__(self, array: np.ndarray[Any, Any], counters: _Counters) -> None:
        self._array: np.ndarray[Any, Any] | None = array
        self.nbytes = int(array.nbytes)
        counters.add(self.nbytes)
        self._finalizer = weakref.finalize(self, counters.remove, self.nbytes)
        self._finalizer.atexit = False  # counters of a process that ends interest nobody

    @property
    def array(self) -> np.ndarray[Any, Any]:
        """The bytes; :class:`DeviceClosed` after :meth:`close`."""
        if self._array is None:
            raise DeviceClosed(f"this block of {self.nbytes} bytes was closed; allocate another")
        return self._array

    @property
    def address(self) -> int:
        """Address of the first byte."""
        return int(self.array.ctypes.data)

    def close(self) -> None:
        """Let go of the memory; idempotent."""
        self._finalizer()
        self._array = None


class HostDevice(DeviceMixin):
    """A device whose memory is host memory. Subclasses add ``compile``, ``target``, ``check``.

    Attributes
    ----------
    threads : int
        Threads per run: the option, else ``$PACKHORSE_NUM_THREADS``, else what the affinity mask
        and the cgroup quota allow.
    """

    def __init__(self, info: BackendInfo, index: int, options: Mapping[str, Any]) -> None:
        if index != 0:
            raise DeviceUnavailable(
                f"{info.name}:{index}: this machine has one such device ({info.name}:0 "
                f"{host_name()}); index {index} does not exist. Use '{info.name}:0'"
            )
        super().__init__(info, index, options)
        self._counters = _Counters()
        self.threads = int(options.get("threads") or default_threads())

    def allocate(self, nbytes: int) -> HostMemory:
        """Uninitialised memory, aligned to 128 bytes.

        Raises
        ------
        ArgumentTypeError, ArgumentValueError
            ``nbytes`` is not a whole number, or negative.
        DeviceMemoryError
            The system refused.
        """
        self.require_open()
        nbytes = check_size(nbytes)
        try:
            return HostMemory(_native().aligned_empty(nbytes), self._counters)
        except (MemoryError, OverflowError, ValueError) as error:
            total = total_memory()
            of = f"; the machine has {total} bytes in all" if total else ""
            raise DeviceMemoryError(
                f"{self.name}: could not allocate {nbytes} bytes ({self._counters.used} in use "
                f"here{of}). Close tensors or executables, or use smaller inputs"
            ) from error

    def copy_from_host(self, memory: Memory, data: np.ndarray[Any, Any], offset: int = 0) -> None:
        """Copy a C-contiguous array to ``offset`` bytes into the block."""
        self.require_open()
        check_range(memory, data, offset)
        _host(memory)[offset : offset + data.nbytes] = data.reshape(-1).view(np.uint8)

    def copy_to_host(self, memory: Memory, data: np.ndarray[Any, Any], offset: int = 0) -> None:
        """Fill a C-contiguous array from ``offset`` bytes into the block."""
        self.require_open()
        check_range(memory, data, offset, fill=True)
        data.reshape(-1).view(np.uint8)[:] = _host(memory)[offset : offset + data.nbytes]

    def memory(self) -> MemoryStats:
        """Counters of the blocks allocated from this device."""
        self.require_open()
        c = self._counters
        return MemoryStats(c.used, c.peak, c.live, c.allocations, 0, total_memory())

    def check(self) -> None:
        """Compute ``[1, 2, 3] * 2`` in device memory.

        Raises
        ------
        DeviceError
            The result is wrong.
        """
        a, b = self.allocate(12), self.allocate(12)
        try:
            self.copy_from_host(a, np.array([1, 2, 3], np.float32))
            np.multiply(a.array.view(np.float32), np.float32(2), out=b.array.view(np.float32))
            result = np.empty(3, np.float32)
            self.copy_to_host(b, result)
        finally:
            a.close()
            b.close()
        if result.tolist() != [2.0, 4.0, 6.0]:
            raise DeviceError(f"{self.name}: [1, 2, 3] * 2 gave {result.tolist()}")


def host_name() -> str:
    """The processor's name as the system gives it, else the machine type."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Hardware", "cpu model"):
                    return " ".join(value.split())
    except OSError:
        pass
    import platform  # 5 ms; only where there is no /proc/cpuinfo

    return platform.processor() or platform.machine() or "CPU"


def total_memory() -> int | None:
    """Bytes of physical memory, where the system says."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def default_threads() -> int:
    """Threads when none are asked for: ``$PACKHORSE_NUM_THREADS``, else what the machine grants.

    Raises
    ------
    ArgumentValueError
        The variable is not a positive whole number.
    """
    text = _config.setting("PACKHORSE_NUM_THREADS")
    if text is None:
        return int(_native().thread_count())
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentValueError(f"PACKHORSE_NUM_THREADS must be a number from 1, not '{text}'")
    return int(text)


def _host(memory: Memory) -> np.ndarray[Any, Any]:
    if not isinstance(memory, HostMemory):
        raise ArgumentTypeError(
            f"this block is {type(memory).__name__}, not host memory; copy it with its own device"
        )
    return memory.array


def _native() -> Any:
    try:
        from packhorse import native
    except ImportError as error:
        raise DeviceUnavailable(
            f"the native core of packhorse could not be loaded ({error}). Reinstall it: "
            "pip install --force-reinstall packhorse"
        ) from error
    return cast(Any, native)
