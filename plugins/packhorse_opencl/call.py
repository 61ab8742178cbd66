"""A kernel bound to its arguments: enqueued by a call without arguments, timed when asked."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packhorse_opencl.device import OpenClDevice

__all__ = ["ClCall"]


class ClCall:
    """Enqueues one kernel on buffers that were set before.

    Parameters
    ----------
    device : OpenClDevice
        Whose queue it goes to.
    name : str
        For errors.
    kernel : pyopencl.Kernel
        With all its arguments set; not shared with another call.
    total, group : int
        Work-items in all and of a group.
    held : object
        What must live as long as the call: the memory behind the arguments.

    Attributes
    ----------
    kernel : pyopencl.Kernel
    sizes : ((total,), (group,))
        As ``pyopencl.enqueue_nd_range_kernel`` takes them.
    """

    __slots__ = ("_cl_error", "_device", "_enqueue", "_held", "_name", "kernel", "sizes")

    def __init__(
        self, device: OpenClDevice, name: str, kernel: Any, total: int, group: int, held: object
    ) -> None:
        self._device, self._name, self._held = device, name, held
        self._cl_error = device.cl.Error
        self.kernel, self.sizes = kernel, ((total,), (group,))
        self._enqueue = self._on(device.queue)

    def __call__(self) -> Any:
        """Enqueue, and return the ``pyopencl.Event``.

        Raises
        ------
        DeviceMemoryError
            The device has no memory or resources left for it.
        DeviceUnavailable
            The device was lost.
        DeviceClosed
            The device was closed.
        """
        try:
            return self._enqueue()
        except self._cl_error as error:
            return self._device.rescue(error, self._what, self._enqueue)

    def nanoseconds(self) -> int:
        """Run the kernel once, after all that is queued, and return how long the device took.

        Raises as a call does.
        """
        device = self._device
        device.synchronize()
        call = self._on(device.timing_queue)
        return int(device.drive(self._what, lambda: _duration(call())))

    @property
    def _what(self) -> str:
        return f"run kernel '{self._name}'"

    def _on(self, queue: Any) -> functools.partial[Any]:
        enqueue = self._device.cl.enqueue_nd_range_kernel
        return functools.partial(enqueue, queue, self.kernel, *self.sizes)


def _duration(event: Any) -> int:
    event.wait()
    return int(event.profile.end - event.profile.start)
