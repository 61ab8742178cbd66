"""The tensors of a graph module in a device's own memory, and the steps that work on them.

Steps are host code of a library that launches kernels: it gets DLTensors whose ``data`` is the
device's handle. Steps in Python get copies on the host, and what they wrote is copied back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from packhorse.device import Device, Memory
from packhorse.errors import ArgumentTypeError, ArgumentValueError, ArtifactError
from packhorse.graph._arguments import Argument, Arguments
from packhorse.graph._segments import NativeSegment, Segment, Tensors, Timing
from packhorse.graph._state import State
from packhorse.graph._storage import Array, entry_dtype, replaceable
from packhorse.graph.program import Program, Step
from packhorse.native.devices import OnDevice
from packhorse.tensor import Tensor, empty

__all__ = ["BlockTensors", "DeviceState", "DeviceTensors"]


class BlockTensors(Tensors):
    """The argument tensors of every entry, for steps that launch kernels.

    Parameters
    ----------
    program : Program
    device : Device
    blocks : mapping of int to Memory
        By storage; somebody else's.
    """

    def __init__(self, program: Program, device: Device, blocks: Mapping[int, Memory]) -> None:
        self.device, self.where = device, device.dlpack_device
        self._handles = {block.address: block for block in blocks.values()}
        self._describe(program, {s: block.address for s, block in blocks.items()})

    def handles(self) -> Mapping[int, Memory]:
        """The memory behind every handle that a step may be given."""
        return self._handles

    def check(self, step: Step, function: Any) -> None:
        """Refuse code of the host, which would take a handle for an address."""
        if self.where[0] not in getattr(function, "devices", ()):
            raise ArtifactError(
                f"step '{step.name}' calls '{step.function}', which is code of the host: its "
                f"library holds no kernels for '{self.device.name}'. Was this library compiled "
                "with this graph, and for this device?"
            )

    def native(self, bound: Sequence[Any], threads: int) -> list[Segment]:
        """A segment per step: launches come back to Python anyway, and profiles wait for each."""
        return [_DeviceSegment([one], self, threads) for one in bound]


class DeviceTensors(BlockTensors):
    """The same with memory of its own.

    Raises
    ------
    DeviceMemoryError
        The device is out of memory.
    """

    def __init__(self, program: Program, device: Device) -> None:
        sizes = program.storage_bytes()
        self._tensors = {s: empty((n,), "uint8", device) for s, n in sizes.items()}
        blocks = {s: tensor._open_block().memory for s, tensor in self._tensors.items()}
        super().__init__(program, device, blocks)

    def tensor(self, number: int) -> Tensor:
        """An entry where it lies."""
        entry = self.program.entries[number]
        return self._tensors[entry.storage]._viewed(entry.shape, entry_dtype(entry))

    def array(self, number: int, flat: bool = False) -> Array:
        """A copy of an entry on the host."""
        found = self.tensor(number).numpy()
        return found.reshape(-1) if flat else found

    def store(self, numbers: Sequence[int], arrays: Sequence[Array]) -> None:
        """Copy back what a host function wrote."""
        for number, array in zip(numbers, arrays, strict=True):
            target = self.tensor(number)
            target.copy_from(array.reshape(target.shape))

    def point(self, number: int, memory: Any) -> None:
        """Give an entry's storage the memory of another tensor of this device."""
        storage = self.program.entries[number].storage
        self._tensors[storage], self._addresses[storage] = memory, memory.address
        self._handles = {t.address: t._open_block().memory for t in self._tensors.values()}
        for pointer in self._pointers.get(storage, ()):
            pointer.data = memory.address

    def release(self) -> None:
        """Let go of the memory; tensors that were given out keep theirs."""
        super().release()
        self._tensors, self._handles = {}, {}


class _DeviceSegment(NativeSegment):
    """One compiled step that queues kernels."""

    def __init__(self, bound: Sequence[Any], tensors: BlockTensors, threads: int) -> None:
        super().__init__(bound, tensors, threads)
        self._device = tensors.device
        self.run = partial(_run_there, tensors, self.run)

    def profile(self) -> list[Timing]:
        step = self.steps[0]
        self._device.synchronize()
        start = time.perf_counter_ns()
        self.run()
        self._device.synchronize()
        return [(step.name, step.function, (time.perf_counter_ns() - start) * 1e-3)]


def _run_there(tensors: BlockTensors, call: Callable[[], None]) -> None:
    with OnDevice(tensors.device, tensors.handles()):
        call()


class DeviceState(State):
    """The tensors between runs, as :class:`State`, on a device.

    What comes from tensors of the same device is copied there, and can be used in place; anything
    else comes through the host.
    """

    def __init__(self, program: Program, device: Device) -> None:
        self.device = device
        self.tensors: DeviceTensors = DeviceTensors(program, device)
        self._describe(program, *replaceable(program))

    def _view(self, number: int) -> Tensor:
        return self.tensors.tensor(number)

    def tensor(self, row: Argument) -> Tensor:
        """The memory of an input or output, not a copy."""
        found: Tensor = row.view
        return found.reshape(row.shape)  # of its own: the caller may close it

    def fetched(self, row: Argument) -> Tensor:
        """A copy on the host."""
        return Tensor(row.view.numpy())

    def _accept(self, row: Argument, value: Any) -> Any:
        if isinstance(value, Tensor) and value.device is self.device:
            self.inputs.check(row, value)
            return value
        return super()._accept(row, value)

    def _home(self, row: Argument) -> Any:
        if row.own is None:
            row.own = empty(row.shape, row.dtype, self.device)
        return row.own

    def _use(self, row: Argument, memory: Any) -> None:
        super()._use(row, memory)
        row.own = None  # memory of devices is scarce: weights that are shared lie there once

    def _write(self, row: Argument, value: Any) -> None:
        row.own.copy_from(value)

    def replace(self, rows: Arguments, key: Any, value: Any, instead: str) -> None:
        """Use a tensor of the caller's, which must lie on this device."""
        row = rows.find(key)
        what = f"{rows.kind} '{row.name}'"
        if not isinstance(value, Tensor) or value.device is not self.device:
            where = value.device.name if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentTypeError(
                f"{what} must be a tensor on '{self.device.name}' to be used without a copy, found "
                f"{where}; copy it there with packhorse.tensor(array, "
                f"device='{self.device.name}'), or use {instead}"
            )
        rows.check(row, value)
        if not row.replaceable:
            raise ArgumentValueError(
                f"{what} shares its memory with other tensors of the graph, so it cannot lie "
                f"elsewhere; use {instead}, which copies"
            )
        self._use(row, value.reshape(value.shape))

    def _lendable(self, row: Argument, value: Any) -> bool:
        return row.replaceable and isinstance(value, Tensor)
