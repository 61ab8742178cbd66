"""Compiling a graph for a device: specialise, build, generate code, link into an executor."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from statistics import median
from typing import Any, TypeAlias

import numpy as np

from packhorse.compiler.build import Build, Builder, Scheduler
from packhorse.compiler.host import run_step
from packhorse.compiler.link import link, pack_params
from packhorse.compiler.reference import ReferenceExecutable, TimedReferences
from packhorse.compiler.result import HOST, Compiled, NodeReport, Runner
from packhorse.compiler.specialize import specialize
from packhorse.device import Device, Memory
from packhorse.errors import DeviceMemoryError, UnsupportedOperator
from packhorse.graph._base import HOST_MEMORY, Copy, check_repeat
from packhorse.graph._segments import HOST_PREFIX
from packhorse.graph.device_executor import DeviceExecutor
from packhorse.graph.executor import GraphExecutor
from packhorse.graph.ir import Graph, TensorType
from packhorse.graph.program import Program
from packhorse.kernel.kernel import Buffer, Kernel
from packhorse.ops.registry import NotStatic
from packhorse.tensor import Tensor

__all__ = ["build_for", "compile_graph", "compile_static"]

_log = logging.getLogger("packhorse.compiler")
Array: TypeAlias = np.ndarray[Any, Any]


def compile_graph(
    graph: Graph,
    device: Device,
    types: Mapping[str, TensorType],
    values: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> Compiled:
    """Compile a graph for one input signature.

    Parameters
    ----------
    graph : Graph
        As imported; symbolic dimensions allowed.
    device : Device
        With ``compile``, kernels are generated; without, the NumPy references run.
    types : mapping of input name to TensorType
        Static types of all inputs.
    values : mapping of input name to array, optional
        Inputs whose values the shapes or conditions need.

    Raises
    ------
    UnsupportedOperator
        A node has no implementation at all.
    CompileError
        The device could not compile a kernel.
    """
    if "compile" not in device.capabilities:
        return _by_reference(graph, device, "")
    clock = _Clock()
    try:
        static = specialize(graph, types, values or {})
        clock.lap("specialize")
        made = compile_static(static, device)
    except (NotStatic, UnsupportedOperator) as error:
        _log.warning("'%s' runs by its NumPy references on %s: %s", graph.name, device.name, error)
        return _by_reference(graph, device, str(error))
    made.timings = clock.laps | made.timings
    _log.info("compiled '%s' for %s in %.2f s", graph.name, device.name, sum(made.timings.values()))
    return made


def compile_static(
    static: Graph,
    device: Device,
    *,
    given: Mapping[str, Memory] | None = None,
    fetch: Collection[str] | None = None,
    keep: Collection[str] = (),
) -> Compiled:
    """Compile a specialised graph.

    Parameters
    ----------
    given, fetch, keep
        For graphs that are parts of another, as :class:`DeviceExecutor` takes them; executors of
        the host have no use for them.

    Raises
    ------
    UnsupportedOperator
        A node has no implementation at all.
    CompileError
        The device could not compile a kernel.
    DeviceMemoryError
        The device has not enough memory.
    """
    if "compile" not in device.capabilities:
        return _by_reference(static, device, "")
    clock = _Clock()
    build = build_for(static, device)
    program = link(build, {"device": device.name})
    clock.lap("build")
    _check_memory(program, device)
    params = pack_params(build)
    clock.lap("pack weights")
    functions = [(name, kernel, plan) for name, (kernel, plan) in build.functions.items()]
    module = device.compile(functions)  # type: ignore[attr-defined]
    clock.lap("generate code")
    executor: Runner
    if device.info.is_host:  # by native plans
        threads = getattr(device, "threads", 0)
        executor = GraphExecutor(program, module, params, threads=threads, host=run_step)
    else:
        executor = DeviceExecutor(
            program, module, params, device, host=run_step, given=given, fetch=fetch, keep=keep
        )
    clock.lap("link")
    return Compiled(executor, _report(build, device), program, module, params, clock.laps)


def _check_memory(program: Program, device: Device) -> None:
    """Refuse what cannot be allocated before compiling it."""
    needed, total = sum(program.storage_bytes().values()), device.memory().total
    if total is not None and needed > total:
        raise DeviceMemoryError(
            f"{device.name}: '{program.name}' needs {needed / 2**30:.1f} GiB for these input "
            f"shapes, the machine has {total / 2**30:.1f} GiB. Use smaller inputs or batches"
        )


def build_for(static: Graph, device: Device) -> Build:
    """Lower a specialised graph for a device: its schedules, and only the dtypes it has.

    Raises
    ------
    UnsupportedOperator
        A node has no implementation at all.
    """
    refuses = getattr(getattr(device, "target", None), "refuses", None)
    return Builder(static, _scheduler(device), refuses).build()


def _scheduler(device: Device) -> Scheduler:
    """Schedules and packs for the device's target; without one kernels come as they are."""
    if "target" not in device.capabilities:
        return lambda kernel: (None, {})
    target = device.target  # type: ignore[attr-defined]
    if target.kind == "gpu":
        return _gpu_scheduler(target)
    from packhorse.compiler.schedule import pack_constants, schedule

    def plan(kernel: Kernel) -> tuple[Any, dict[str, Buffer]]:
        chosen = schedule(kernel, target)
        return chosen, pack_constants(kernel, chosen)

    return plan


def _gpu_scheduler(target: Any) -> Scheduler:
    from packhorse.compiler.gpu_schedule import gpu_schedule, pack_gpu

    def plan(kernel: Kernel) -> tuple[Any, dict[str, Buffer]]:
        chosen = gpu_schedule(kernel, target)
        return chosen, pack_gpu(kernel, chosen)

    return plan


def _by_reference(graph: Graph, device: Device, note: str) -> Compiled:
    where = HOST if note else device.name
    report = [NodeReport(node.label, where, node.name) for node in graph.nodes]
    return Compiled(_References(graph), report, note=note)


class _References:
    """The reference executor behind the interface of compiled ones."""

    def __init__(self, graph: Graph) -> None:
        self._inner = ReferenceExecutable(graph)
        self._copied: dict[str, Copy] = {}

    def run(self, inputs: Mapping[str, Any]) -> list[Array]:
        arrays = {name: self._on_host(name, value) for name, value in inputs.items()}
        found = self._inner.run(arrays)
        names = [value.name for value in self._inner.graph.outputs]
        return [found[n].copy() if n in names[:k] else found[n] for k, n in enumerate(names)]

    def profile(self, inputs: Mapping[str, Any], repeat: int = 10) -> list[tuple[str, str, float]]:
        """Time every node: (name, operator, median microseconds)."""
        check_repeat(repeat)
        graph = self._inner.graph
        timed = TimedReferences(graph)
        arrays = {name: self._on_host(name, value) for name, value in inputs.items()}
        for _ in range(repeat):
            timed.run(arrays)
        return [
            (node.name or node.outputs[0], f"{HOST_PREFIX}{node.op}", median(times) * 1e-3)
            for node, times in zip(graph.nodes, timed.nanoseconds, strict=True)
        ]

    @property
    def copies(self) -> tuple[Copy, ...]:
        """Inputs that were given as tensors of a device."""
        return tuple(self._copied.values())

    def _on_host(self, name: str, value: Any) -> Any:
        if isinstance(value, Tensor) and value.on_device:
            source = value.device.name
            self._copied[name] = Copy(f"'{name}'", source, HOST_MEMORY, value.nbytes)
            return value.numpy()
        return value

    def close(self) -> None:
        """Nothing is held."""


def _report(build: Build, device: Device) -> list[NodeReport]:
    rows: dict[str, NodeReport] = {}
    for step in build.steps:
        where = HOST if step.host is not None else device.name
        for node in step.nodes:
            rows[node] = NodeReport(node, where, step.function)
    return list(rows.values())


class _Clock:
    """Names the time spent since the last lap."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._start
        self._start = now
