"""From a :class:`~packhorse.compiler.build.Build` to a Program: entries, storages, parameters."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from packhorse.compiler.build import Build, Emitted
from packhorse.compiler.host import encode
from packhorse.compiler.memory_plan import Interval, assign_storage
from packhorse.graph.program import Entry, Program, Step
from packhorse.kernel.kernel import Buffer, contiguous
from packhorse.kernel.layout import numpy_dtype, to_storage

__all__ = ["link", "pack_params"]

Array = np.ndarray[Any, Any]
_IN_PLACE = 64 << 20
"""Bytes from which a weight is better used where it is (often a mapped file) than copied."""


def link(build: Build, metadata: Mapping[str, str]) -> Program:
    """Number the tensors, plan the memory and write down the calls."""
    graph = build.graph
    inputs = [v.name for v in graph.inputs]
    results = [build.results[v.name] for v in graph.outputs]
    pinned = [*inputs, *build.params, *dict.fromkeys(results)]
    work = [i for i in _intervals(build) if i.name not in set(pinned)]
    owner, sizes = assign_storage(work)
    storage = {name: len(sizes) + i for i, name in enumerate(pinned)} | owner

    entries: list[Entry] = []
    current: dict[str, int] = {}

    shaped = _shaped(build)

    def entry(root: str) -> int:
        buffer = build.roots[root]
        shape = buffer.shape if root in shaped else (buffer.size,)
        current[root] = len(entries)
        entries.append(Entry(root, shape, buffer.dtype, storage[root]))
        return current[root]

    for name in (*inputs, *build.params):
        entry(name)
    steps = []
    for emitted in build.steps:
        reads = tuple(current[r] for r in emitted.reads if r)
        writes = tuple(entry(w) for w in emitted.writes if w)
        attrs = encode(emitted.host) if emitted.host is not None else {}
        steps.append(Step(emitted.function, reads, writes, emitted.label, emitted.once, attrs))
    outputs = tuple(current[r] for r in results)
    return Program(
        name=graph.name,
        entries=tuple(entries),
        inputs=tuple(range(len(inputs))),
        params=tuple(range(len(inputs), len(inputs) + len(build.params))),
        steps=tuple(steps),
        outputs=outputs,
        output_names=tuple(v.name for v in graph.outputs),
        metadata=dict(metadata),
    )


def pack_params(build: Build) -> dict[str, Array]:
    """The parameters, each laid out as its kernels read it: flat, or shaped for the host.

    They lie in one block: the kernel backs a large one with large pages, which a hundred small
    ones would not get. Very large ones that are laid out right already stay where they are: a
    table of gigabytes, of which a run reads some rows, is neither read nor held twice.
    """
    shaped = _shaped(build)
    packed = {n: a.reshape(-1) for n, (a, b) in build.params.items() if _stays(a, b)}
    rest = {name: param for name, param in build.params.items() if name not in packed}
    sizes = {name: -(-_nbytes(buffer) // 128) * 128 for name, (_, buffer) in rest.items()}
    block = np.zeros(sum(sizes.values()) + 127, np.uint8)
    start = -block.ctypes.data % 128
    for name, (array, buffer) in rest.items():
        packed[name] = block[start : start + _nbytes(buffer)].view(numpy_dtype(buffer.dtype))
        start += sizes[name]
        to_storage(array, buffer, packed[name])
    shapes = {n: b.shape if n in shaped else (-1,) for n, (_, b) in build.params.items()}
    return {name: packed[name].reshape(shape) for name, shape in shapes.items()}


def _stays(array: Array, buffer: Buffer) -> bool:
    """Whether kernels can read a large weight as it is."""
    return (
        array.nbytes >= _IN_PLACE
        and array.dtype == numpy_dtype(buffer.dtype)
        and array.flags.c_contiguous
        and array.ctypes.data % 64 == 0
        and buffer == contiguous(buffer.shape, buffer.dtype, constant=buffer.constant)
    )


def _shaped(build: Build) -> set[str]:
    """What callers and steps of the host see: kernels address flat memory, those want shapes."""
    hosts = (root for step in build.steps if step.host for root in _roots(step))
    return {*(value.name for value in build.graph.inputs), *build.results.values(), *hosts}


def _intervals(build: Build) -> list[Interval]:
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for position, step in enumerate(build.steps):
        for root in _roots(step):
            first.setdefault(root, position)
            last[root] = position
    return [
        Interval(root, _nbytes(build.roots[root]), first[root], last[root],
                 _group(build.roots[root]))
        for root in first
    ]  # fmt: skip


def _roots(step: Emitted) -> list[str]:
    return [name for name in (*step.reads, *step.writes) if name]


def _nbytes(buffer: Buffer) -> int:
    return buffer.size * numpy_dtype(buffer.dtype).itemsize


def _group(buffer: Buffer) -> Hashable:
    """Bordered buffers share storage only with buffers of the very same geometry."""
    return buffer if buffer.size > int(np.prod(buffer.shape)) else None
