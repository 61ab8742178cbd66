"""A trace as a static plan: memory allocated once, one native call per stretch of kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np

from packhorse.dtype import dtype_name
from packhorse.graph.relax_values import FFI_ALIGNMENT, Buffer, Bytes, Source, Step, Trace, View
from packhorse.native.memory import ALIGNMENT, address_of, aligned_array, aligned_empty
from packhorse.native.plan import Plan, Slot
from packhorse.native.runtime import Abi, ffi

__all__ = ["Replay", "as_output", "pack", "run_native"]

Array: TypeAlias = np.ndarray[Any, Any]
_UINTPTR, _U8 = ffi.typeof("uintptr_t"), np.dtype(np.uint8)
_cast, _from_buffer, _ndarray, _empty = ffi.cast, ffi.from_buffer, np.ndarray, np.empty
_NOTHING = np.empty(0, np.uint8)
_ROUNDING = 256  # a storage may be this much larger than the tensor in it


def _slot(view: View, abi: Abi) -> Slot:
    address = address_of(view.buffer.memory) + view.offset
    return Slot(view.shape, dtype_name(view.dtype), address, abi=abi)


def _plan(steps: Sequence[tuple[Step, list[Slot]]]) -> Plan:
    calls = [(step.callee.address or 0, slots, step.callee.abi) for step, slots in steps]
    return Plan(calls, [step.callee.name for step, _ in steps])


def run_native(steps: Sequence[Step], threads: int) -> None:
    """Run native steps now, on the memory their tensors have. Raises as :meth:`Replay.run`."""
    bound = [(s, [_slot(view, s.callee.abi) for view in s.views()]) for s in steps]
    _plan(bound).run(threads)


def as_output(leaf: Any) -> Array:
    """A leaf of a returned value as an array of its own; shapes become int64."""
    if isinstance(leaf, View):
        return np.array(leaf.array)
    return np.asarray(leaf, np.int64) if isinstance(leaf, tuple) else np.asarray(leaf)


class Replay:
    """Runs the calls of a trace for other inputs of the same shapes.

    Parameters
    ----------
    trace : Trace
        Not a dynamic one. Its buffers get other memory.
    threads : int
        Of a parallel launch; 0 means all this process may use.

    Attributes
    ----------
    native_calls, native_steps, host_steps : int
        Stretches of kernels, kernels, and Python functions among the calls.
    """

    def __init__(self, trace: Trace, threads: int) -> None:
        self._steps, self._leaves = trace.steps, trace.result
        fresh = _fresh(trace)
        self._arena = _place(trace, set(fresh))
        inputs = {v.buffer: v.dtype for v in _views(trace) if v.buffer.source is Source.INPUT}
        self._pointers: dict[Buffer, list[tuple[Any, int]]] = {b: [] for b in (*inputs, *fresh)}
        self._slots: dict[Any, Slot] = {}
        self._scratch: dict[int, Array] = {}
        self._calls = self._bind(threads)
        self._in = [(b, b.number, _carrier(d), self._pointers[b]) for b, d in inputs.items()]
        self._new = [
            (b, b.size + ALIGNMENT, leaf.dtype, leaf.shape, self._pointers[b])
            for b, leaf in fresh.items()
        ]
        where = {id(leaf): k for k, leaf in enumerate(fresh.values())}
        self._order = [where.get(id(leaf), -1) for leaf in self._leaves]
        self._plain = self._order == list(range(len(fresh)))
        self.native_steps = sum(step.native for step in self._steps)
        self.host_steps = len(self._steps) - self.native_steps
        self.native_calls = len(self._calls) - self.host_steps
        # libraries of packhorse have the older ABI, whose code may assume 128 bytes
        legacy = any(step.callee.abi == "legacy" for step in self._steps)
        self._mask = (ALIGNMENT if legacy else FFI_ALIGNMENT) - 1
        self._lends = self.host_steps > 0 or not self._plain
        self._forget()

    def _bind(self, threads: int) -> list[Callable[[], Any]]:
        calls: list[Callable[[], Any]] = []
        for native, group in groupby(self._steps, key=lambda step: step.native):
            steps = list(group)
            if native:
                bound = [(s, [self._slot(v, s.callee.abi) for v in s.views()]) for s in steps]
                calls.append(partial(_plan(bound).run, threads))
            else:
                calls += [step.call for step in steps]
        return calls

    def _slot(self, view: View, abi: Abi) -> Slot:
        key = (*view.key, abi)
        if key not in self._slots:
            slot = self._slots[key] = _slot(view, abi)
            if view.buffer in self._pointers:
                self._pointers[view.buffer].append((slot.pointer, view.offset))
        return self._slots[key]

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory held between runs."""
        return self._arena.nbytes + sum(array.nbytes for array in self._scratch.values())

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once.

        Parameters
        ----------
        arrays : sequence of ndarray
            Every tensor of the arguments, in order, of the traced shapes, C-contiguous. They are
            read in place where they are aligned to 64 bytes, else copied.

        Returns
        -------
        list of ndarray
            New arrays.

        Raises
        ------
        PackhorseError
            A kernel failed.
        Exception
            Whatever a Python function among the calls raises.
        """
        for buffer, number, carrier, pointers in self._in:
            array = arrays[number]
            data = int(_cast(_UINTPTR, _from_buffer(array.view(carrier) if carrier else array)))
            if data & self._mask and pointers:
                array = self._realign(number, array)
                data = address_of(array)
            for pointer, offset in pointers:
                pointer.data = data + offset
            if self._lends:
                buffer.memory = array.reshape(-1).view(np.uint8)
        outputs: list[Array] = []
        for buffer, size, dtype, shape, pointers in self._new:
            block = _empty(size, _U8)
            data = int(_cast(_UINTPTR, _from_buffer(block)))
            skip = -data & (ALIGNMENT - 1)
            for pointer, offset in pointers:
                pointer.data = data + skip + offset
            outputs.append(_ndarray(shape, dtype, block, skip))
            if self._lends:
                buffer.memory = block[skip:]
        if self._lends:
            return self._run_lent(outputs)
        for call in self._calls:
            call()
        return outputs

    def _run_lent(self, outputs: list[Array]) -> list[Array]:
        """The rest of a run whose calls or results look at the memory of buffers."""
        try:
            for call in self._calls:
                call()
            pairs = zip(self._order, self._leaves, strict=True)
            return [outputs[k] if k >= 0 else as_output(leaf) for k, leaf in pairs]
        finally:
            self._forget()

    def _realign(self, number: int, array: Array) -> Array:
        if number not in self._scratch:
            self._scratch[number] = aligned_array(array.shape, array.dtype)
        np.copyto(self._scratch[number], array)
        return self._scratch[number]

    def _forget(self) -> None:
        for buffer in self._pointers:
            buffer.memory = _NOTHING


def _carrier(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """An integer dtype of the same size for dtypes the buffer protocol lacks (bfloat16)."""
    return None if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")


def _views(trace: Trace) -> Iterator[View]:
    for step in trace.steps:
        yield from step.views()
    yield from (leaf for leaf in trace.result if isinstance(leaf, View))


def _fresh(trace: Trace) -> dict[Buffer, View]:
    """Planned buffers that are made anew for each run, because an output fills them.

    An output that shares its buffer, or fills a small part of it, is copied instead: arrays of
    the caller neither alias nor hold on to more than their own memory.
    """
    shared: dict[Buffer, list[View]] = {}
    for leaf in trace.result:
        if isinstance(leaf, View) and leaf.buffer.source is Source.PLANNED:
            shared.setdefault(leaf.buffer, []).append(leaf)
    return {
        buffer: views[0]
        for buffer, views in shared.items()
        if len(views) == 1 and views[0].offset == 0 and buffer.size <= views[0].nbytes + _ROUNDING
    }


def _place(trace: Trace, fresh: Set[Buffer]) -> Bytes:
    """Give every planned buffer that lives within a run its part of one block."""
    spans: dict[Buffer, tuple[int, int]] = {}
    last = len(trace.steps)
    uses = [(i, view) for i, step in enumerate(trace.steps) for view in step.views()]
    uses += [(last, leaf) for leaf in trace.result if isinstance(leaf, View)]
    for i, view in uses:
        if view.buffer.source is Source.PLANNED and view.buffer not in fresh:
            spans[view.buffer] = spans.get(view.buffer, (i, i))[0], i
    sizes = [(buffer.size, *span) for buffer, span in spans.items()]
    offsets, total = pack(sizes)
    arena = aligned_empty(total)
    for buffer, offset in zip(spans, offsets, strict=True):
        buffer.memory = arena[offset : offset + buffer.size]
    return arena


def pack(sizes: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """Offsets of (bytes, first use, last use), and the total; what is in use never overlaps.

    Largest first, each at the lowest offset that is free while it is used. Offsets are multiples
    of 128.
    """
    offsets = [0] * len(sizes)
    placed: list[tuple[int, int, int, int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
        size, first, last = sizes[i]
        at = 0
        for start, end, begin, until in sorted(placed):
            if begin <= last and first <= until:
                if start - at >= size:
                    break
                at = max(at, -(-end // ALIGNMENT) * ALIGNMENT)
        offsets[i] = at
        placed.append((at, at + size, first, last))
    return offsets, max((end for _, end, _, _ in placed), default=0)
