"""The steps of a program, bound: native plans with calls of host functions between them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from packhorse.errors import ArgumentError, ArtifactError, FunctionNotFound, did_you_mean
from packhorse.graph._storage import Array, Placement, address, entry_dtype, view
from packhorse.graph.program import NOP, Program, Step
from packhorse.native.plan import Plan, Slot
from packhorse.native.runtime import Abi

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

    where = (1, 0)
    """DLPack's device type and number: host memory."""

    def __init__(self, program: Program, placement: Placement) -> None:
        self._memory: dict[int, Array] = dict(placement.memory)
        self._describe(program, {s: address(array) for s, array in self._memory.items()})

    def _describe(self, program: Program, addresses: dict[int, int]) -> None:
        self.program, self._addresses = program, addresses
        self._pointers: dict[int, list[Any]] = {}
        self._slots = [self._slot(i, e.shape) for i, e in enumerate(program.entries)]

    def _slot(self, number: int, shape: tuple[int, ...], abi: Abi = "legacy") -> Slot:
        entry = self.program.entries[number]
        place = self._addresses.get(entry.storage, 0)
        slot = Slot(shape, entry_dtype(entry).name, place, self.where, abi)
        self._pointers.setdefault(entry.storage, []).append(slot.pointer)
        return slot

    def arguments(self, step: Step, abi: Abi = "legacy") -> list[Slot]:
        """The Slots a step is called with."""
        numbers, flat = (*step.inputs, *step.outputs), _flattened(step)
        if not flat and abi == "legacy":
            return [self._slots[i] for i in numbers]
        shapes = [self.program.entries[i].shape for i in numbers]
        if flat:
            shapes = [(math.prod(shape),) for shape in shapes]
        return [self._slot(i, shape, abi) for i, shape in zip(numbers, shapes, strict=True)]

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

    def store(self, numbers: Sequence[int], arrays: Sequence[Array]) -> None:
        """What a host function wrote into :meth:`array`: there already, on the host."""

    def check(self, step: Step, function: Any) -> None:
        """Refuse a function that cannot work on this memory: none of them, on the host."""

    def native(self, bound: Sequence[tuple[Step, _Code]], threads: int) -> list[Segment]:
        """Segments for a stretch of compiled steps."""
        return [NativeSegment(bound, self, threads)]


class _Code(NamedTuple):
    """Where a compiled function is, and how it is called."""

    address: int
    abi: Abi


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

    def __init__(self, bound: Sequence[tuple[Step, _Code]], tensors: Tensors, threads: int) -> None:
        super().__init__([step for step, _ in bound])
        calls = [(at, tensors.arguments(step, abi), abi) for step, (at, abi) in bound]
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
    outputs = [tensors.array(i, flat) for i in step.outputs]
    runner(step, inputs, outputs)
    tensors.store(step.outputs, outputs)


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
    resolved = list(_resolve(steps, tensors, module, host))
    for native, group in groupby(resolved, key=lambda pair: isinstance(pair[1], _Code)):
        if native:
            bound = [(step, target) for step, target in group if isinstance(target, _Code)]
            found += tensors.native(bound, threads)
        else:
            found += [HostSegment(s, target, tensors) for s, target in group if callable(target)]
    return found


def _resolve(
    steps: Sequence[Step], tensors: Tensors, module: ModuleLike | None, host: HostRunner | None
) -> Iterator[tuple[Step, _Code | HostRunner]]:
    """Each step with its address, or with the Python function that runs it."""
    program = tensors.program
    known: dict[str, tuple[_Code | HostRunner, Any]] = {}
    for step in steps:
        if step.function == NOP:
            _check_nop(step, program)
            continue
        if step.function not in known:
            known[step.function] = _target(step, tensors, module, host)
        target, signature = known[step.function]
        if signature is not None:
            _check_signature(signature, step, program)
        yield step, target


def _target(
    step: Step, tensors: Tensors, module: ModuleLike | None, host: HostRunner | None
) -> tuple[_Code | HostRunner, Any]:
    """What runs a step, and what the library says it takes (None: nothing)."""
    if step.function == COPY:
        return _copy, None
    if step.function.startswith(HOST_PREFIX) and host is not None:
        return host, None
    function = _look_up(step, module)
    native = getattr(function, "address", None)
    if not isinstance(native, int):
        return partial(_call_packed, function), None
    tensors.check(step, function)
    code = _Code(native, getattr(function, "abi", "legacy"))
    return code, getattr(function, "signature", None)


class _Described(NamedTuple):
    """A tensor as far as a signature looks at it."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def _check_signature(signature: Any, step: Step, program: Program) -> None:
    """A graph of another library would have compiled code read beyond its tensors."""
    entries = [program.entries[i] for i in (*step.inputs, *step.outputs)]
    flat = _flattened(step)
    shapes = [(math.prod(e.shape),) if flat else e.shape for e in entries]
    args = [_Described(s, entry_dtype(e)) for s, e in zip(shapes, entries, strict=True)]
    try:
        signature.check(args, f"function '{step.function}'")
    except ArgumentError as error:
        raise ArtifactError(
            f"step '{step.name}' does not fit its function: {error}. Was this library compiled "
            "with this graph?"
        ) from error


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
