"""A trace as a static plan: memory allocated once, one native call per stretch of kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np

from packhorse.dtype import dlpack_code, dtype_name
from packhorse.graph.relax_values import FFI_ALIGNMENT, Buffer, Bytes, Source, Step, Trace, View
from packhorse.native.memory import ALIGNMENT, address_of, aligned_array, aligned_empty
from packhorse.native.plan import Plan, Slot

__all__ = ["Replay", "as_output", "pack", "run_native"]

Array: TypeAlias = np.ndarray[Any, Any]
_MASK = FFI_ALIGNMENT - 1
_NOTHING = np.empty(0, np.uint8)
_ROUNDING = 256  # a storage may be this much larger than the tensor in it


def _slot(view: View) -> Slot:
    slot = Slot(view.shape, dtype_name(view.dtype), address_of(view.buffer.memory) + view.offset)
    # this ABI has a bool of its own, the older one an unsigned integer of 1 bit
    slot.pointer.dtype.code, slot.pointer.dtype.bits, _ = dlpack_code(view.dtype)
    return slot


def _plan(steps: Sequence[tuple[Step, list[Slot]]]) -> Plan:
    calls = [(step.callee.address or 0, slots, "ffi") for step, slots in steps]
    return Plan(calls, [step.callee.name for step, _ in steps])


def run_native(steps: Sequence[Step], threads: int) -> None:
    """Run native steps now, on the memory their tensors have. Raises as :meth:`Replay.run`."""
    _plan([(step, [_slot(view) for view in step.views()]) for step in steps]).run(threads)


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
        self._fresh = {buffer: k for k, buffer in enumerate(_fresh(trace))}
        self._sizes = [len(buffer.memory) for buffer in self._fresh]
        self._arena = _place(trace, self._fresh)
        self._given = {
            view.buffer: view.buffer.number
            for view in _views(trace)
            if view.buffer.source is Source.INPUT
        }
        self._in: dict[int, list[Any]] = {number: [] for number in self._given.values()}
        self._out: list[list[tuple[Any, int]]] = [[] for _ in self._fresh]
        self._scratch: dict[int, Array] = {}
        self._slots: dict[Any, Slot] = {}
        self._calls = self._bind(threads)
        self._results = [self._result(leaf) for leaf in self._leaves]
        self.native_steps = sum(step.native for step in self._steps)
        self.host_steps = len(self._steps) - self.native_steps
        self.native_calls = len(self._calls) - self.host_steps
        self._lends = self.host_steps > 0 or any(
            isinstance(leaf, View) and leaf.buffer in self._given for leaf in self._leaves
        )
        self._forget()

    def _bind(self, threads: int) -> list[Callable[[], Any]]:
        calls: list[Callable[[], Any]] = []
        for native, group in groupby(self._steps, key=lambda step: step.native):
            steps = list(group)
            if native:
                bound = [(step, [self._slot(view) for view in step.views()]) for step in steps]
                calls.append(partial(_plan(bound).run, threads))
            else:
                calls += [step.call for step in steps]
        return calls

    def _slot(self, view: View) -> Slot:
        if view.key not in self._slots:
            slot = self._slots[view.key] = _slot(view)
            if view.buffer in self._given:
                self._in[view.buffer.number].append(slot.pointer)
            elif view.buffer in self._fresh:
                self._out[self._fresh[view.buffer]].append((slot.pointer, view.offset))
        return self._slots[view.key]

    def _result(self, leaf: Any) -> Callable[[list[Bytes]], Array]:
        """What makes an output, given the memory that was made for this run."""
        number = self._fresh.get(leaf.buffer) if isinstance(leaf, View) else None
        if number is None:
            return lambda blocks: as_output(leaf)
        nbytes, dtype, shape = leaf.nbytes, leaf.dtype, leaf.shape
        return lambda blocks: blocks[number][:nbytes].view(dtype).reshape(shape)

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
        held = self._point_at(arrays)
        blocks = self._new_outputs()
        if self._lends:
            self._lend(held, blocks)
        try:
            for call in self._calls:
                call()
            return [result(blocks) for result in self._results]
        finally:
            if self._lends:
                self._forget()

    def _point_at(self, arrays: Sequence[Array]) -> dict[int, Array]:
        held = {}
        for number, pointers in self._in.items():
            array = arrays[number]
            data = address_of(array)
            if data & _MASK:
                array = self._realign(number, array)
                data = address_of(array)
            held[number] = array
            for pointer in pointers:
                pointer.data = data
        return held

    def _realign(self, number: int, array: Array) -> Array:
        if number not in self._scratch:
            self._scratch[number] = aligned_array(array.shape, array.dtype)
        np.copyto(self._scratch[number], array)
        return self._scratch[number]

    def _new_outputs(self) -> list[Bytes]:
        blocks = []
        for size, pointers in zip(self._sizes, self._out, strict=True):
            block = np.empty(size + _MASK, np.uint8)
            address = address_of(block)
            skip = -address & _MASK
            blocks.append(block[skip : skip + size])
            for pointer, offset in pointers:
                pointer.data = address + skip + offset
        return blocks

    def _lend(self, held: Mapping[int, Array], blocks: Sequence[Bytes]) -> None:
        """Give the buffers of this run their memory, for calls and results that see arrays."""
        for buffer, number in self._given.items():
            buffer.memory = held[number].reshape(-1).view(np.uint8)
        for buffer, block in zip(self._fresh, blocks, strict=True):
            buffer.memory = block

    def _forget(self) -> None:
        for buffer in (*self._given, *self._fresh):
            buffer.memory = _NOTHING


def _views(trace: Trace) -> Iterator[View]:
    for step in trace.steps:
        yield from step.views()
    yield from (leaf for leaf in trace.result if isinstance(leaf, View))


def _fresh(trace: Trace) -> list[Buffer]:
    """Planned buffers that are made anew for each run, because an output fills them.

    An output that shares its buffer, or fills a small part of it, is copied instead: arrays of
    the caller neither alias nor hold on to more than their own memory.
    """
    shared: dict[Buffer, list[View]] = {}
    for leaf in trace.result:
        if isinstance(leaf, View) and leaf.buffer.source is Source.PLANNED:
            shared.setdefault(leaf.buffer, []).append(leaf)
    return [
        buffer
        for buffer, views in shared.items()
        if len(views) == 1
        and views[0].offset == 0
        and len(buffer.memory) <= views[0].nbytes + _ROUNDING
    ]


def _place(trace: Trace, fresh: Mapping[Buffer, int]) -> Bytes:
    """Give every planned buffer that lives within a run its part of one block."""
    spans: dict[Buffer, tuple[int, int]] = {}
    last = len(trace.steps)
    uses = [(i, view) for i, step in enumerate(trace.steps) for view in step.views()]
    uses += [(last, leaf) for leaf in trace.result if isinstance(leaf, View)]
    for i, view in uses:
        if view.buffer.source is Source.PLANNED and view.buffer not in fresh:
            spans[view.buffer] = spans.get(view.buffer, (i, i))[0], i
    sizes = [(len(buffer.memory), *span) for buffer, span in spans.items()]
    offsets, total = pack(sizes)
    arena = aligned_empty(total)
    for buffer, offset in zip(spans, offsets, strict=True):
        buffer.memory = arena[offset : offset + len(buffer.memory)]
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
