"""Blocks of device memory, the pool that keeps those given back, and uploads under way."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

from packhorse.device import Memory
from packhorse.errors import ArgumentTypeError, DeviceClosed

__all__ = ["ClMemory", "Pool", "Uploads", "own", "rounded"]

_log = logging.getLogger("packhorse.opencl")


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
        """A buffer of that size, kept or new. Raises what ``create`` raises."""
        size = rounded(nbytes)
        with self._lock:
            kept = self._free.get(size)
            if kept:
                buffer = kept.pop()
                self.cached -= size
            else:
                buffer = self._create(size)
            self.used += size
            self.live += 1
            self.allocations += 1
            self.peak = max(self.peak, self.used)
        return buffer

    def give(self, buffer: Any, nbytes: int) -> None:
        """Take a buffer back."""
        size = rounded(nbytes)
        with self._lock:
            self.used -= size
            self.live -= 1
            if self._closed or self.cached + size > self.limit:
                _release(buffer)
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
                _release(buffer)
        return freed

    def close(self) -> None:
        """Release what is kept and keep nothing from now on."""
        self._closed = True
        self.trim()


def _release(buffer: Any) -> None:
    """Release a buffer; of a lost device the driver may refuse even that, and nothing is left to
    do about it, least of all in a finalizer."""
    try:
        buffer.release()
    except Exception as error:
        _log.debug("a buffer could not be released: %s", error)


class Uploads:
    """Copies of host data that the device may still be reading.

    pyopencl's event of a copy that does not block holds the data, and waits for the copy when it
    is dropped: so events are kept here until a later command of the same queue was waited for.
    """

    limit = 16 << 20
    """Bytes held at most; beyond, :meth:`add` waits."""

    def __init__(self) -> None:
        self._events: list[Any] = []
        self._bytes = 0

    def add(self, event: Any, nbytes: int) -> None:
        """Hold an upload's event."""
        if self._bytes + nbytes > self.limit:
            self.clear()
        self._events.append(event)
        self._bytes += nbytes

    def clear(self) -> None:
        """Forget all uploads: they are done, or waited for here."""
        events, self._events, self._bytes = self._events, [], 0
        del events


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


def own(memory: Memory) -> Any:
    """The OpenCL buffer of a block.

    Raises
    ------
    ArgumentTypeError
        The block is another device's.
    """
    if not isinstance(memory, ClMemory):
        raise ArgumentTypeError(
            f"this block is {type(memory).__name__}, not OpenCL memory; copy it with its own device"
        )
    return memory.buffer
