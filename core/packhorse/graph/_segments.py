"""The steps of a program, bound: native plans with calls of host functions between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol, TypeAlias

import numpy as np

from packhorse.errors import ArtifactError, FunctionNotFound, did_you_mean
from packhorse.graph._storage import Array, Placement, address, entry_dtype, view
from packhorse.graph.program import NOP, Program, Step
from packhorse.native.plan import Plan, Slot

__all__ = [
    "HOST_PREFIX",
    "ExecutorReport",
    "HostRunner",
    "ModuleLike",
    "Segment",
    "Tensors",
    "segments",
]

HOST_PREFIX = "packhorse.op."
"""Functions of this prefix are operators of the IR, run by their reference on the host."""
COPY = "__copy"

HostRunner: TypeAlias = Callable[[Step, list[Array], list[Array]], None]
"""``host(step, inputs, outputs)``: writes the outputs in place."""
Timing: TypeAlias = tuple[str, str, float]


@dataclass(frozen=True)
class ExecutorReport:
    """What an executor consists of: ``print(executor.report())``.

    ``memory_bytes`` were allocated, ``weight_bytes`` are weights used where they were loaded.
    ``host_steps`` are the (step, function) pairs that run in Python.
    """

    name: str
    memory_bytes: int
    weight_bytes: int
    native_steps: int
    native_calls: int
    once_steps: int
    host_steps: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [
            f"program {self.name or '(unnamed)'}: {self.native_steps} compiled steps in "
            f"{self.native_calls} native calls, {len(self.host_steps)} steps on the host, "
            f"{self.once_steps} run once",
            f"memory: {self.memory_bytes} bytes planned, {self.weight_bytes} bytes of weights "
            "used in place",
        ]
        return "\n".join(lines + [f"on the host: {name} ({f})" for name, f in self.host_steps])


class ModuleLike(Protocol):
    """What the executor needs of a :class:`packhorse.module.Module`."""

    def get_function(self, name: str, query_imports: bool = False) -> Any:
        """A packed function, native ones with an ``address``; raises FunctionNotFound."""


class Tensors:
    """The argument tensors of every entry: DLTensors for plans, arrays for host functions.

    Memory that comes with each run is put in with :meth:`bind`.
    """

    def __init__(self, program: Program, placement: Placement) -> None:
        self.program, self._memory = program, dict(placement.memory)
        self._addresses = {s: address(array) for s, array in self._memory.items()}
        self._pointers: dict[int, list[Any]] = {}
        self._slots = [self._slot(i, e.shape) for i, e in enumerate(program.entries)]

    def _slot(self, number: int, shape: tuple[int, ...]) -> Slot:
        entry = self.program.entries[number]
        slot = Slot(shape, entry_dtype(entry).name, self._addresses.get(entry.storage, 0))
        self._pointers.setdefault(entry.storage, []).append(slot.pointer)
        return slot

    def arguments(self, step: Step) -> list[Slot]:
        """The Slots a step is called with."""
        numbers = (*step.inputs, *step.outputs)
        if not _flattened(step):
            return [self._slots[i] for i in numbers]
        entries = self.program.entries
        return [self._slot(i, (int(np.prod(entries[i].shape, dtype=np.int64)),)) for i in numbers]

    def pointers(self, number: int) -> tuple[Any, ...]:
        """Every DLTensor in the storage of an entry: what a run sets ``data`` of."""
        return tuple(self._pointers[self.program.entries[number].storage])

    def bind(self, number: int, array: Array | None) -> None:
        """Give an entry's storage the memory of an array for this run; None takes it away."""
        storage = self.program.entries[number].storage
        if array is None:
            self._memory.pop(storage, None)
        else:
            self._memory[storage] = array.reshape(-1).view(np.uint8)

    def point(self, number: int, array: Array) -> None:
        """Give an entry's storage other memory for good: every DLTensor in it points there."""
        storage = self.program.entries[number].storage
        flat = array.reshape(-1).view(np.uint8)
        self._memory[storage], self._addresses[storage] = flat, address(flat)
        for pointer in self._pointers.get(storage, ()):
            pointer.data = self._addresses[storage]

    def release(self) -> None:
        """Let go of the memory."""
        self._memory, self._addresses, self._slots, self._pointers = {}, {}, [], {}

    def array(self, number: int, flat: bool = False) -> Array:
        """The tensor of an entry as an array over its memory."""
        entry = self.program.entries[number]
        found = view(self._memory[entry.storage], entry)
        return found.reshape(-1) if flat else found


class Segment:
    """A stretch of steps that runs in one go. ``run`` is set by the subclasses: it is hot."""

    run: Callable[[], None]
    host = False

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)

    def profile(self) -> list[Timing]:
        """Run once; (step name, function, microseconds) of every step."""
        raise NotImplementedError


class NativeSegment(Segment):
    """Compiled steps: one native call, the GIL released."""

    def __init__(self, bound: Sequence[tuple[Step, int]], tensors: Tensors, threads: int) -> None:
        super().__init__([step for step, _ in bound])
        calls = [(function, tensors.arguments(step)) for step, function in bound]
        self._plan, self._threads = Plan(calls, [step.name for step in self.steps]), threads
        self.run = partial(self._plan.run, threads)

    def profile(self) -> list[Timing]:
        seconds = self._plan.profile(self._threads)
        return [
            (step.name, step.function, float(s) * 1e6)
            for step, s in zip(self.steps, seconds, strict=True)
        ]


class HostSegment(Segment):
    """One step that runs in Python, over arrays."""

    host = True

    def __init__(self, step: Step, runner: HostRunner, tensors: Tensors) -> None:
        super().__init__([step])
        # Not a bound method: that would be a cycle, and keep the memory until a collection.
        self.run = partial(_call_host, step, runner, tensors)

    def profile(self) -> list[Timing]:
        start, step = time.perf_counter_ns(), self.steps[0]
        self.run()
        return [(step.name, step.function, (time.perf_counter_ns() - start) * 1e-3)]


def _call_host(step: Step, runner: HostRunner, tensors: Tensors) -> None:
    flat = _flattened(step)
    inputs = [tensors.array(i, flat) for i in step.inputs]
    runner(step, inputs, [tensors.array(i, flat) for i in step.outputs])


def segments(
    steps: Sequence[Step],
    tensors: Tensors,
    module: ModuleLike | None,
    host: HostRunner | None,
    threads: int,
) -> list[Segment]:
    """Steps as few segments: one per maximal run of compiled steps, one per host step.

    Raises
    ------
    FunctionNotFound
        A step's function is neither in the module nor registered.
    ArtifactError
        A ``__nop`` whose output does not share the memory of its input.
    """
    found: list[Segment] = []
    resolved = list(_resolve(steps, tensors.program, module, host))
    for native, group in groupby(resolved, key=lambda pair: isinstance(pair[1], int)):
        if native:
            bound = [(step, target) for step, target in group if isinstance(target, int)]
            found.append(NativeSegment(bound, tensors, threads))
        else:
            found += [HostSegment(s, target, tensors) for s, target in group if callable(target)]
    return found


def _resolve(
    steps: Sequence[Step], program: Program, module: ModuleLike | None, host: HostRunner | None
) -> Iterator[tuple[Step, int | HostRunner]]:
    """Each step with its address, or with the Python function that runs it."""
    known: dict[str, int | HostRunner] = {}
    for step in steps:
        if step.function == NOP:
            _check_nop(step, program)
            continue
        if step.function not in known:
            known[step.function] = _target(step, module, host)
        yield step, known[step.function]


def _target(step: Step, module: ModuleLike | None, host: HostRunner | None) -> int | HostRunner:
    if step.function == COPY:
        return _copy
    if step.function.startswith(HOST_PREFIX) and host is not None:
        return host
    function = _look_up(step, module)
    native = getattr(function, "address", None)
    return native if isinstance(native, int) else partial(_call_packed, function)


def _look_up(step: Step, module: ModuleLike | None) -> Any:
    if module is not None:
        try:
            return module.get_function(step.function, query_imports=True)
        except FunctionNotFound:
            pass
    from packhorse.function import get_global_func  # only graphs with such steps need it

    function = get_global_func(step.function, allow_missing=True)
    if function is None:
        known = tuple(getattr(module, "functions", ()))
        raise FunctionNotFound(
            f"step '{step.name}' calls '{step.function}', which is neither in the module"
            f"{did_you_mean(step.function, known)} nor registered as a global function; was this "
            "library compiled with this graph?"
        )
    return function


def _call_packed(function: Any, _: Step, inputs: list[Array], outputs: list[Array]) -> None:
    function(*inputs, *outputs)


def _copy(_: Step, inputs: list[Array], outputs: list[Array]) -> None:
    np.copyto(outputs[0], inputs[0])


def _check_nop(step: Step, program: Program) -> None:
    for number in step.outputs:
        source, target = program.entries[step.inputs[0]], program.entries[number]
        if source.storage != target.storage or target.nbytes > source.nbytes:
            raise ArtifactError(
                f"step '{step.name}' is {NOP}, but its output {target} does not lie in the "
                f"memory of its input {source}"
            )


def _flattened(step: Step) -> bool:
    return step.attrs.get("flatten_data") == "1"
