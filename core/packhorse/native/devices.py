"""The device of the packed call in progress: what compiled code means by a device's numbers.

Code of the host that launches kernels gets tensors whose ``data`` is a handle of their device. It
says ``__tvm_set_device(4, 0)``, asks for temporary memory of ``(4, 0)``, and calls kernels with
those handles. Each of these means the device the tensors of the call lie on, which may be one of
several that were opened under the same numbers; so a call names it, per thread, while it runs, and
the memory behind every handle that its code can rightly have.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packhorse.errors import ArgumentTypeError, ArgumentValueError, DeviceClosed
from packhorse.native.runtime import ffi, remember

if TYPE_CHECKING:
    from packhorse.device import Device, Memory

__all__ = ["OnDevice", "active_device", "device_word", "memory_at", "require_same", "set_device"]

HOST = 1
_WORDS = {
    1: "cpu",
    2: "cuda",
    3: "cuda_host",
    4: "opencl",
    5: "aocl",
    6: "sdaccel",
    7: "vulkan",
    8: "metal",
    9: "vpi",
    10: "rocm",
    11: "rocm_host or opengl",
    12: "ext_dev",
    13: "cuda_managed",
    14: "oneapi or hexagon",
    15: "webgpu",
    16: "hexagon",
}
"""DLPack's device types; some numbers meant something else before TVM 0.10."""


def device_word(device_type: int) -> str:
    """What a device type is called: the word in device strings, where there is such a backend."""
    return _WORDS.get(device_type, f"of type {device_type}")


class _Current(threading.local):
    def __init__(self) -> None:
        self.device: Device | None = None
        self.blocks: Mapping[int, Memory] = {}
        self.workspaces: dict[int, Memory] = {}


_current = _Current()


class OnDevice:
    """``with OnDevice(device, blocks)``: calls of this thread work on memory of that device.

    Temporary memory that compiled code took and did not give back, because it failed, is freed at
    the end.

    Parameters
    ----------
    device : Device
    blocks : mapping of int to Memory
        By address: what ``DLTensor.data`` holds for the tensors that are passed.
    """

    __slots__ = ("_before", "blocks", "device")

    def __init__(self, device: Device, blocks: Mapping[int, Memory]) -> None:
        self.device, self.blocks = device, blocks

    def __enter__(self) -> None:
        now = _current
        self._before = now.device, now.blocks, now.workspaces
        now.device, now.blocks, now.workspaces = self.device, self.blocks, {}

    def __exit__(self, *_: object) -> None:
        now = _current
        left = now.workspaces
        now.device, now.blocks, now.workspaces = self._before
        for memory in left.values():
            memory.close()


def active_device() -> Device | None:
    """The device of the call in progress on this thread; None for calls over host memory."""
    return _current.device


def memory_at(handle: Any) -> Memory | None:
    """The memory of the call in progress that compiled code names by a handle; None if the handle
    is of something else, such as an array on the host."""
    now = _current
    return now.blocks.get(handle) or now.workspaces.get(handle)


def require_same(known: Device | None, found: Device, what: str) -> Device:
    """The device of the next tensor of a call, which must be that of the ones before.

    Raises
    ------
    ArgumentTypeError
        Another device.
    DeviceClosed
        It was closed.
    """
    if found.closed:
        raise DeviceClosed(
            f"{what} lies on '{found.name}', which was closed; open the device again and make the "
            "tensor anew"
        )
    if known is not None and known is not found:
        raise ArgumentTypeError(
            f"{what} lies on {_named(found, known)} and an argument before it on '{known.name}'; "
            f"a call works on one device: copy it with packhorse.tensor(t, device='{known.name}')"
        )
    return found


def _named(found: Device, other: Device) -> str:
    return f"'{found.name}'" if found.name != other.name else f"another opening of '{found.name}'"


def set_device(device_type: int, device_id: int) -> None:
    """``__tvm_set_device``: compiled code says where the next kernels are to run.

    Raises
    ------
    ArgumentTypeError
        The call has no tensors there.
    """
    if device_type != HOST:
        _expect(device_type, device_id)


def _expect(device_type: int, device_id: int) -> Device:
    device = _current.device
    if device is not None and device.dlpack_device == (device_type, device_id):
        return device
    word = device_word(device_type)
    if device is None:
        raise ArgumentTypeError(
            f"this function runs kernels on a device '{word}' (device type {device_type}), and no "
            "argument lies on one; copy the arrays there with "
            f"packhorse.tensor(array, device='{word}:{device_id}')"
        )
    raise ArgumentTypeError(
        f"this function runs kernels on '{word}:{device_id}' (device type {device_type}), but its "
        f"tensors lie on '{device.name}'; copy them with packhorse.tensor(t.numpy(), "
        f"device='{word}:{device_id}')"
    )


# ---------------------------------------------------------------- called by C


@ffi.def_extern(error=0)  # type: ignore[untyped-decorator]
def ph_py_workspace(device_type: int, device_id: int, nbytes: int) -> int:
    """Temporary memory of a device; what ``DLTensor.data`` holds for it."""
    try:
        memory = _expect(device_type, device_id).allocate(nbytes)
        address = memory.address
        _current.workspaces[address] = memory
    except BaseException as error:
        remember(error)
        return 0
    return address


@ffi.def_extern(error=-1)  # type: ignore[untyped-decorator]
def ph_py_workspace_free(address: int) -> int:
    """Give it back; kernels queued before may still use it, later ones are queued after them."""
    try:
        memory: Any = _current.workspaces.pop(address, None)
        if memory is None:
            raise ArgumentValueError(
                "compiled code gave back temporary memory that this call did not take"
            )
        memory.close()
    except BaseException as error:
        remember(error)
        return -1
    return 0
