"""Compiling one model for several devices: a part each, and the values that cross them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from packhorse.compiler.compile import build_for, compile_static
from packhorse.compiler.placement import Placement, node_name, partition
from packhorse.compiler.result import Compiled
from packhorse.compiler.specialize import specialize
from packhorse.device import Device, Memory
from packhorse.errors import CompileError, UnsupportedOperator
from packhorse.graph.device_executor import DeviceExecutor
from packhorse.graph.ir import Graph, TensorType, walk
from packhorse.graph.parts import Part, PartsExecutor
from packhorse.graph.program import Entry
from packhorse.ops.registry import NotStatic

__all__ = ["compile_parts"]


def compile_parts(
    graph: Graph,
    placement: Placement,
    types: Mapping[str, TensorType],
    values: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> Compiled:
    """Compile a graph for the devices of a placement; parameters as for ``compile_graph``.

    Raises
    ------
    ArgumentValueError
        The placement does not fit the graph.
    CompileError
        A shape or a condition depends on data, so that the graph cannot be cut beforehand; or a
        device could not compile a kernel.
    UnsupportedOperator
        A node has no implementation at all.
    """
    placement.check(graph)
    start = time.perf_counter()
    try:
        static = specialize(graph, types, values or {})
    except NotStatic as error:
        raise CompileError(
            f"'{graph.name}' cannot be cut into parts for {placement.name}: {error}. Name one "
            "device"
        ) from error
    able = {
        k: _able(static, where)
        for k, (where, rule) in enumerate(zip(placement.devices, placement.rules, strict=True))
        if rule == "auto"
    }
    assigned = placement.assign(static, able, {node_name(node) for node in walk(graph)})
    parts = [(placement.devices[k], part) for k, part in partition(static, assigned)]
    timings = {"specialize and cut": time.perf_counter() - start}
    return _compiled(static, parts, placement, timings)


def _able(static: Graph, where: Device) -> Collection[str]:
    """Labels of the nodes that a device runs itself: by a kernel, or all where it has none."""
    every = {node.label for node in static.nodes}
    if "compile" not in where.capabilities:
        return every
    try:
        build = build_for(static, where)
    except UnsupportedOperator:  # a node that nothing can run: compiling says which
        return every
    return every - {label for step in build.steps if step.host for label in step.nodes}


def _compiled(
    static: Graph,
    parts: Sequence[tuple[Device, Graph]],
    placement: Placement,
    timings: dict[str, float],
) -> Compiled:
    finals = {value.name for value in static.outputs}
    resident: dict[tuple[str, str], Memory] = {}
    """(device, value) -> where it lies there once the parts before have run."""
    done: list[Compiled] = []
    ready: list[Part] = []
    try:
        for number, (where, part) in enumerate(parts):
            names = [value.name for value in part.inputs]
            given = {n: resident[where.name, n] for n in names if (where.name, n) in resident}
            fetch, keep = _seam(where, part, parts[number + 1 :], finals)
            made = compile_static(part, where, given=given, fetch=fetch, keep=keep)
            done.append(made)
            if isinstance(made.executor, DeviceExecutor):
                block = made.executor.block
                new = [*(n for n in names if n not in given), *(v.name for v in part.outputs)]
                resident |= {(where.name, name): block(name) for name in new}
            takes = tuple(name for name in names if name not in given)
            gives = tuple(value.name for value in part.outputs if value.name in fetch)
            ready.append(Part(where.name, made.executor, takes, gives))
            for phase, seconds in made.timings.items():
                timings[phase] = timings.get(phase, 0.0) + seconds
    except BaseException:
        for made in reversed(done):
            made.executor.close()
        raise
    types = [(v.name, static.type_of(v.name)) for v in static.inputs]
    inputs = [Entry(name, t.dims, str(t.dtype), k) for k, (name, t) in enumerate(types)]
    executor = PartsExecutor(ready, inputs, [v.name for v in static.outputs])
    return Compiled(
        executor, [row for made in done for row in made.report], timings=timings,
        parts=tuple(done), placement=placement,
    )  # fmt: skip


def _seam(
    where: Device, part: Graph, later: Sequence[tuple[Device, Graph]], finals: Collection[str]
) -> tuple[set[str], set[str]]:
    """The outputs of a part that come to the host, and those that its device's later parts read.

    All of them come where the device has no memory of its own, or computes on the host.
    """
    outputs = {value.name for value in part.outputs}
    if where.info.is_host or "compile" not in where.capabilities:
        return outputs, set()
    here = {v.name for other, graph in later if other is where for v in graph.inputs}
    elsewhere = {v.name for other, graph in later if other is not where for v in graph.inputs}
    return outputs & (elsewhere | set(finals)), outputs & here
