"""DeviceExecutor: runs a Program whose tensors lie in a device's own memory.

Storages are allocated on the device and weights uploaded once. A run uploads the inputs, queues
every kernel without waiting for any, and downloads the outputs. A step of the host gets copies of
what it reads, and what it writes is uploaded only if a kernel reads it: :meth:`report` lists
these copies.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Protocol, TypeAlias

import numpy as np

from packhorse.device import Device, Memory
from packhorse.errors import ArtifactError, DeviceClosed
from packhorse.graph._base import HOST_MEMORY, Copy, ProgramExecutor, check_repeat
from packhorse.graph._device_state import BlockTensors
from packhorse.graph._inputs import Inputs
from packhorse.graph._segments import (
    HOST_PREFIX,
    ExecutorReport,
    HostRunner,
    ModuleLike,
    segments,
)
from packhorse.graph._storage import Array, check_weights, entry_dtype
from packhorse.graph.program import NOP, Program, Step, check
from packhorse.tensor import Tensor

__all__ = ["DeviceExecutor", "DeviceFunction", "DeviceReport"]

_Call: TypeAlias = tuple[Step, Callable[[], Any]]


class DeviceFunction(Protocol):
    """What the module of a device's kernels gives."""

    def bind_memory(self, blocks: Sequence[Memory]) -> Callable[[], Any]:
        """A call without arguments that queues the kernel on these blocks, in argument order.

        It may have a method ``nanoseconds() -> int``: run once, wait, and tell the time by the
        device's own clock. Profiles use it.
        """


@dataclass(frozen=True)
class DeviceReport(ExecutorReport):
    """What an executor consists of, and the copies between host and device of each run."""

    copies: tuple[Copy, ...] = ()

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"copied: {copy}" for copy in self.copies)])


class DeviceExecutor(ProgramExecutor):
    """Runs a Program on a device; used like a :class:`GraphExecutor`.

    Parameters
    ----------
    program : Program
        What to run.
    module : Module
        Where the kernels are: functions with ``bind_memory``, or code of the host that launches
        them (libraries of TVM).
    params : mapping of str to ndarray
        The weights by name, uploaded here.
    device : Device
        Whose memory is used; its queue runs calls in order.
    host : callable, optional
        ``host(step, inputs, outputs)`` runs the steps ``packhorse.op.*``.
    given : mapping of str to Memory, optional
        Inputs that lie on the device already, in memory of somebody else: runs neither take nor
        upload them.
    fetch : collection of str, optional
        The outputs that a run downloads and returns; default all.
    keep : collection of str, optional
        Outputs that somebody reads on the device, out of :meth:`block`.

    Raises
    ------
    ArgumentTypeError, ArgumentValueError
        A param is missing or does not fit.
    ArtifactError
        The program cannot be run, or not on this device.
    DeviceMemoryError
        The device is out of memory.
    """

    _report: DeviceReport

    def __init__(
        self,
        program: Program,
        module: ModuleLike,
        params: Mapping[str, Array],
        device: Device,
        *,
        host: HostRunner | None = None,
        given: Mapping[str, Memory] | None = None,
        fetch: Collection[str] | None = None,
        keep: Collection[str] = (),
    ) -> None:
        check(program)
        super().__init__(program)
        self._device, self._host = device, host
        self._lock, self._closed = threading.Lock(), False
        self._keep: ModuleLike | None = module
        self._params = {i: params[program.entries[i].name] for i in program.params
                        if program.entries[i].name in params}  # fmt: skip
        self._mirror: dict[int, Array] = {}
        """Entries that steps of the host wrote in this run."""
        outputs = list(zip(program.output_names, program.outputs, strict=True))
        self._needed = self._read_by_kernels() | {i for name, i in outputs if name in keep}
        self._in = {program.entries[i].name: i for i in program.inputs}
        self._fetch = [i for name, i in outputs if fetch is None or name in fetch]
        self._shared = {program.entries[self._in.pop(name)].storage: block
                        for name, block in (given or {}).items()}  # fmt: skip
        self._blocks: dict[int, Memory] = dict(self._shared)
        try:
            self._allocate(params)
            once = [step for step in program.steps if step.once]
            for _, call in self._bound(once, module):
                call()
            steps = [step for step in program.steps if not step.once]
            self._queue: list[_Call] = list(self._bound(steps, module))
        except BaseException:
            self._free()
            raise
        self._report = self._counted(len(once))

    def _allocate(self, params: Mapping[str, Array]) -> None:
        weights = check_weights(self.program, params)
        for storage, nbytes in self.program.storage_bytes().items():
            if storage not in self._shared:
                self._blocks[storage] = self._device.allocate(nbytes)
        for storage, array in weights.items():
            self._device.copy_from_host(self._blocks[storage], array)

    def block(self, name: str) -> Memory:
        """The memory of an input or output, which each run overwrites."""
        program = self.program
        outputs = dict(zip(program.output_names, program.outputs, strict=True))
        number = self._in[name] if name in self._in else outputs[name]
        return self._blocks[program.entries[number].storage]

    def _read_by_kernels(self) -> set[int]:
        """Entries that must be on the device."""
        steps = [s for s in self.program.steps if not s.function.startswith(HOST_PREFIX)]
        return {i for step in steps for i in step.inputs}

    def _bound(self, steps: Sequence[Step], module: ModuleLike) -> Iterator[_Call]:
        entries = self.program.entries
        for step in steps:
            if step.function == NOP:
                continue
            if step.function.startswith(HOST_PREFIX) and self._host is not None:
                # no bound method: that cycle would keep the memory until a collection
                yield step, partial(_call_host, self._host, step, self._state())
                continue
            function = module.get_function(step.function)
            if getattr(function, "devices", ()):  # of a library: it launches kernels itself
                tensors = BlockTensors(self.program, self._device, self._blocks)
                yield from ((step, s.run) for s in segments([step], tensors, module, None, 0))
                continue
            if not hasattr(function, "bind_memory"):
                raise ArtifactError(
                    f"step '{step.name}' calls '{step.function}', which is no kernel of "
                    f"{self._device.name}. Compile the model for this device"
                )
            numbers = (*step.inputs, *step.outputs)
            yield step, function.bind_memory([self._blocks[entries[i].storage] for i in numbers])

    def _state(self) -> _State:
        return _State(
            self.program, self._device, self._blocks, self._params, self._mirror, self._needed
        )

    def run(self, inputs: Inputs) -> list[Array]:
        """Run the program: inputs up, all kernels queued, outputs down.

        Parameters, results and errors as for :meth:`GraphExecutor.run`; inputs may also be
        tensors on this device, which stay there.
        """
        with self._lock:
            self._upload(inputs)
            for _, call in self._queue:
                call()
            return self._download()

    def _upload(self, inputs: Inputs) -> None:
        if self._closed:
            raise DeviceClosed("this executor was closed; create another to run the program")
        named = inputs
        if type(named) is not dict or len(named) != len(self._in):
            named = self.signature.by_name(inputs)
        accepted = [(i, self.signature.accept(named, name, self._device))
                    for name, i in self._in.items()]  # fmt: skip
        self._mirror.clear()
        for number, array in accepted:
            block = self._blocks[self.program.entries[number].storage]
            if isinstance(array, Tensor):
                self._copy_here(array, block)
            else:
                self._device.copy_from_host(block, array)

    def _copy_here(self, tensor: Tensor, block: Memory) -> None:
        """From memory of this device; through the host where the device has no better way."""
        if "copy" in self._device.capabilities:
            source = tensor._open_block().memory
            self._device.copy(source, block, tensor.nbytes)  # type: ignore[attr-defined]
        else:
            self._device.copy_from_host(block, tensor.numpy())

    def _download(self) -> list[Array]:
        found = []
        state = self._state()
        for number in self._fetch:
            array = state.read(number)
            known = number in self._mirror or number in self._params  # ours, not the caller's
            found.append(array.copy() if known else array)
        self._mirror.clear()
        return found

    def profile(self, inputs: Inputs, repeat: int = 10) -> list[tuple[str, str, float]]:
        """Time every step, waiting for each: (step name, function, median microseconds).

        The device's own clock is asked where it has one.

        Raises as :meth:`run`; ArgumentValueError when ``repeat`` is less than 1.
        """
        check_repeat(repeat)
        rounds: list[list[float]] = []
        with self._lock:
            for _ in range(repeat):
                self._upload(inputs)
                rounds.append([self._timed(call) for _, call in self._queue])
        return [
            (step.name, step.function, median(times))
            for (step, _), times in zip(self._queue, zip(*rounds, strict=True), strict=True)
        ]

    def _timed(self, call: Callable[[], Any]) -> float:
        timer = getattr(call, "nanoseconds", None)
        if timer is not None:
            return float(timer()) * 1e-3
        self._device.synchronize()
        start = time.perf_counter_ns()
        call()
        self._device.synchronize()
        return (time.perf_counter_ns() - start) * 1e-3

    def _counted(self, once: int) -> DeviceReport:
        hosts = [s for s, _ in self._queue if s.function.startswith(HOST_PREFIX)]
        kernels = len(self._queue) - len(hosts)
        entries = self.program.entries
        weights = sum(entries[i].nbytes for i in self.program.params)
        total = sum(b.nbytes for s, b in self._blocks.items() if s not in self._shared)
        return DeviceReport(
            self.program.name, total - weights, weights, kernels, kernels, once,
            tuple((s.name, s.function) for s in hosts), tuple(self._copies(hosts)),
        )  # fmt: skip

    def _copies(self, hosts: Sequence[Step]) -> Iterator[Copy]:
        """What every run moves between host and device."""
        entries, there = self.program.entries, self._device.name
        made = {i for s in hosts for i in s.outputs}
        for name, i in self._in.items():
            yield Copy(f"'{name}'", HOST_MEMORY, there, entries[i].nbytes)
        for step in hosts:
            down = set(step.inputs) - made - set(self.program.params)
            moves = (
                (there, HOST_MEMORY, down),
                (HOST_MEMORY, there, self._needed.intersection(step.outputs)),
            )
            for source, target, numbers in moves:
                nbytes = sum(entries[i].nbytes for i in numbers)
                if nbytes:
                    yield Copy(f"step '{step.name}'", source, target, nbytes)
        names = dict(zip(self.program.outputs, self.program.output_names, strict=True))
        for i in self._fetch:
            if i not in made:
                yield Copy(f"'{names[i]}'", there, HOST_MEMORY, entries[i].nbytes)

    @property
    def copies(self) -> tuple[Copy, ...]:
        """What runs copy between host and device; and what :attr:`signature` counted."""
        return (*super().copies, *self._report.copies)

    def _free(self) -> None:
        for storage, block in self._blocks.items():
            if storage not in self._shared:
                block.close()
        self._blocks.clear()

    def close(self) -> None:
        """Free the device memory; waits for a run in progress. Closing twice is fine."""
        with self._lock:
            self._closed = True
            self._queue, self._in = [], {}
            self._params, self._keep, self._shared = {}, None, {}
            self._mirror.clear()
            self._free()


@dataclass
class _State:
    """What a step of the host reaches: tensors by entry number."""

    program: Program
    device: Device
    blocks: dict[int, Memory]
    params: dict[int, Array]
    mirror: dict[int, Array]
    needed: set[int]

    def read(self, number: int) -> Array:
        """An entry's value: where the host has it already, else a copy."""
        entry = self.program.entries[number]
        for known in (self.mirror, self.params):
            if number in known:
                return np.asarray(known[number]).reshape(entry.shape)
        array = np.empty(entry.shape, entry_dtype(entry))
        self.device.copy_to_host(self.blocks[entry.storage], array)
        return array


def _call_host(host: HostRunner, step: Step, state: _State) -> None:
    program = state.program
    inputs = [state.read(i) for i in step.inputs]
    outputs = [np.empty(program.entries[i].shape, entry_dtype(program.entries[i]))
               for i in step.outputs]  # fmt: skip
    host(step, inputs, outputs)
    for number, array in zip(step.outputs, outputs, strict=True):
        state.mirror[number] = array
        if number in state.needed:
            state.device.copy_from_host(state.blocks[program.entries[number].storage], array)
