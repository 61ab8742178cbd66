"""Relax executables on devices with memory of their own: the same bytecode, other buffers.

Code of the library gets tensors of the device and launches kernels on them. Functions written in
Python, conditions and shapes that are read from tensors get copies on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from packhorse.device import Device
from packhorse.errors import ArtifactError, DeviceUnavailable
from packhorse.graph.relax_plan import as_output
from packhorse.graph.relax_values import Array, Buffer, Bytes, Source, Step, Trace, View
from packhorse.module_base import Module
from packhorse.module_device import device_types
from packhorse.native.devices import device_word
from packhorse.tensor import Tensor, empty

__all__ = ["DeviceBuffer", "DeviceMemory", "DeviceReplay", "memory_for"]


class DeviceBuffer(Buffer):
    """A stretch of a device's memory: ``tensor`` is all of it, as uint8."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor, source: Source, number: int = -1) -> None:
        self.tensor, self.source, self.number = tensor, source, number
        self.size = tensor.size

    @property
    def memory(self) -> Bytes:  # type: ignore[override]
        """A copy on the host, read-only."""
        found = self.tensor.numpy()
        found.flags.writeable = False
        return found

    def view(self, view: View) -> Tensor:
        """A tensor in this buffer, as the device's code takes it.

        Raises
        ------
        ArtifactError
            It does not begin where the buffer does: handles have no offsets.
        """
        if view.offset:
            raise ArtifactError(
                f"the executable puts a tensor {view.offset} bytes into a storage of "
                f"'{self.tensor.device.name}', whose handles have no offsets; compile the model "
                "again with static memory planning"
            )
        return self.tensor._viewed(view.shape, view.dtype)


class DeviceMemory:
    """Where the tensors of an executable lie, and how its steps are run there."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def storage(self, nbytes: int, source: Source = Source.PLANNED, number: int = -1) -> Buffer:
        """A new buffer. Raises DeviceMemoryError."""
        return DeviceBuffer(empty((nbytes,), "uint8", self.device), source, number)

    def uploaded(self, value: Any) -> Any:
        """Constants and inputs of the machine, their tensors copied to the device."""
        if isinstance(value, list):
            return [self.uploaded(item) for item in value]
        if not isinstance(value, View) or isinstance(value.buffer, DeviceBuffer):
            return value
        source, number = value.buffer.source, value.buffer.number
        buffer = self.storage(value.nbytes, source, number)
        assert isinstance(buffer, DeviceBuffer)
        buffer.tensor.copy_from(np.ascontiguousarray(value.array).reshape(-1).view(np.uint8))
        return View(buffer, 0, value.shape, value.dtype)

    def run(self, steps: Sequence[Step]) -> None:
        """Run native steps now."""
        for step in steps:
            self.bound(step)()

    def bound(self, step: Step) -> Callable[[], Any]:
        """A step as a call without arguments.

        Raises
        ------
        ArtifactError, ArgumentError
            The library's function does not take tensors of this device.
        """
        function: Any = step.callee.function
        if not step.native and not self.launches(step):
            return partial(_call_on_host, step)
        call: Callable[[], Any] = function.bind(*map(_placed, step.args))
        return call

    def launches(self, step: Step) -> bool:
        """Whether a step is code that launches kernels of this device."""
        return self.device.dlpack_device[0] in getattr(step.callee.function, "devices", ())


def _placed(arg: Any) -> Any:
    if not isinstance(arg, View):
        return arg
    return arg.buffer.view(arg) if isinstance(arg.buffer, DeviceBuffer) else arg.array


def _call_on_host(step: Step) -> Any:
    """Call a Python function with copies, and copy back what it wrote."""
    args = [np.array(arg.array) if isinstance(arg, View) else arg for arg in step.args]
    before = [arg.tobytes() if isinstance(arg, np.ndarray) else b"" for arg in args]
    result = step.callee.function(*args)
    for view, array, old in zip(step.args, args, before, strict=True):
        if not isinstance(view, View) or array.tobytes() == old:
            continue
        if isinstance(view.buffer, DeviceBuffer):
            view.buffer.view(view).copy_from(array)
        else:
            view.array[...] = array
    return result


def memory_for(module: Module, device: Device | None) -> DeviceMemory | None:
    """Where an executable's tensors lie: on the device its library has kernels for, else None.

    Raises
    ------
    DeviceUnavailable
        The library has kernels for another kind of device, or none.
    """
    types = device_types([module])
    where = 1 if device is None else device.dlpack_device[0]
    if where not in (types or {1}):
        words = ", ".join(f"'{device_word(kind)}'" for kind in sorted(types)) or "'cpu'"
        raise DeviceUnavailable(
            f"this Relax executable was compiled for a device {words}, found "
            f"'{device.name if device else 'cpu:0'}'; load it for a device of that kind"
        )
    return DeviceMemory(device) if types and device is not None else None


class DeviceReplay:
    """Runs the calls of a trace for other inputs of the same shapes, on the trace's own buffers:
    TVM planned them.

    Attributes
    ----------
    native_calls, native_steps, host_steps, memory_bytes : int
        As :class:`packhorse.graph.relax_plan.Replay`.
    """

    def __init__(self, trace: Trace, memory: DeviceMemory) -> None:
        self._leaves, self._device = trace.result, memory.device
        self._calls = [memory.bound(step) for step in trace.steps]
        views = [view for step in trace.steps for view in step.views()]
        views += [leaf for leaf in trace.result if isinstance(leaf, View)]
        buffers = {view.buffer for view in views}
        self._inputs = [b for b in buffers if b.source is Source.INPUT]
        planned = [b for b in buffers if b.source is Source.PLANNED]
        self.memory_bytes = sum(buffer.size for buffer in (*self._inputs, *planned))
        self.native_steps = self.native_calls = sum(map(memory.launches, trace.steps))
        self.host_steps = len(trace.steps) - self.native_steps

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run once: inputs up, every kernel queued, results down.

        Parameters, results and errors as :meth:`packhorse.graph.relax_plan.Replay.run`.
        """
        for buffer in self._inputs:
            assert isinstance(buffer, DeviceBuffer)
            buffer.tensor.copy_from(arrays[buffer.number].reshape(-1).view(np.uint8))
        for call in self._calls:
            call()
        return [as_output(leaf) for leaf in self._leaves]
