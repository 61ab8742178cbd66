"""Blocks of device memory, and the pool that keeps those given back."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from packhorse.errors import DeviceClosed

__all__ = ["ClMemory", "Pool"]


class Pool:
    """Buffers given back, by size, for the next who asks; and the counters of the device.

    Parameters
    ----------
    create : callable
        ``create(nbytes)`` makes a buffer.
    limit : int
        Bytes kept for reuse; above it buffers are released at once.
    """

    def __init__(self, create: Callable[[int], Any], limit: int = 256 << 20) -> None:
        self._create, self.limit = create, limit
        self._lock = threading.RLock()  # finalizers may run while it is held
        self._free: dict[int, list[Any]] = {}
        self.used = self.peak = self.live = self.allocations = self.cached = 0
        self._closed = False

    def take(self, nbytes: int) -> Any:
        """A buffer of that size, kept or new; the cache is emptied where memory runs out."""
        size = rounded(nbytes)
        with self._lock:
            kept = self._free.get(size)
            if kept:
                buffer = kept.pop()
                self.cached -= size
            else:
                buffer = self._new(size)
            self.used += size
            self.live += 1
            self.allocations += 1
            self.peak = max(self.peak, self.used)
        return buffer

    def _new(self, size: int) -> Any:
        try:
            return self._create(size)
        except Exception:
            if not self.trim():
                raise
            return self._create(size)

    def give(self, buffer: Any, nbytes: int) -> None:
        """Take a buffer back."""
        size = rounded(nbytes)
        with self._lock:
            self.used -= size
            self.live -= 1
            if self._closed or self.cached + size > self.limit:
                buffer.release()
                return
            self._free.setdefault(size, []).append(buffer)
            self.cached += size

    def trim(self) -> int:
        """Release what is kept; returns the bytes."""
        with self._lock:
            freed, self.cached = self.cached, 0
            kept, self._free = self._free, {}
        for buffers in kept.values():
            for buffer in buffers:
                buffer.release()
        return freed

    def close(self) -> None:
        """Release what is kept and keep nothing from now on."""
        self._closed = True
        self.trim()


def rounded(nbytes: int) -> int:
    """The size of the buffer behind a block: OpenCL has none of no bytes."""
    return max(128, -(-nbytes // 128) * 128)


class ClMemory:
    """A block of device memory.

    Attributes
    ----------
    nbytes : int
    """

    def __init__(self, pool: Pool, nbytes: int) -> None:
        self.nbytes = nbytes
        self._buffer: Any = pool.take(nbytes)
        self._finalizer = weakref.finalize(self, pool.give, self._buffer, nbytes)
        self._finalizer.atexit = False  # the driver may be gone by then

    @property
    def buffer(self) -> Any:
        """The ``pyopencl.Buffer``; :class:`DeviceClosed` after :meth:`close`."""
        if self._buffer is None:
            raise DeviceClosed(f"this block of {self.nbytes} bytes was closed; allocate another")
        return self._buffer

    @property
    def address(self) -> int:
        """The ``cl_mem`` handle: what DLPack's OpenCL tensors hold."""
        return int(self.buffer.int_ptr)

    def close(self) -> None:
        """Give the memory back; idempotent."""
        self._finalizer()
        self._buffer = None
