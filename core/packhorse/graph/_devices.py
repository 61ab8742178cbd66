"""The devices that TVM's constructors are called with: all of them must be host memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from packhorse.device import device as open_device
from packhorse.errors import ArgumentTypeError, ArgumentValueError, DeviceUnavailable

__all__ = ["Place", "host_place"]

HOST = 1
_WORDS = {
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


class Place(NamedTuple):
    """Host memory, and how many threads a parallel launch may use (0: all of the process)."""

    name: str = "cpu:0"
    threads: int = 0


def host_place(where: Sequence[Any]) -> Place:
    """The host device among TVM's device arguments.

    Parameters
    ----------
    where : sequence
        Devices, device strings, or pairs of ints ``device_type, device_id``.

    Raises
    ------
    DeviceUnavailable
        One of them is not the host.
    ArgumentTypeError, ArgumentValueError
        No device, an odd number of ints, or something else.
    """
    found = list(_places(where))
    if not found:
        raise ArgumentValueError(
            "no device was given; pass packhorse.device('cpu'), or TVM's numbers 1, 0"
        )
    return found[0]


def _places(where: Sequence[Any]) -> Iterator[Place]:
    rest = list(where)
    while rest:
        first = rest.pop(0)
        if isinstance(first, str):
            first = open_device(first)
        if hasattr(first, "dlpack_device"):
            kind, index = first.dlpack_device
            name, threads = getattr(first, "name", "cpu:0"), getattr(first, "threads", 0)
        elif isinstance(first, int | np.integer) and rest and isinstance(rest[0], int | np.integer):
            kind, index, name, threads = int(first), int(rest.pop(0)), "cpu:0", 0
        elif isinstance(first, int | np.integer):
            raise ArgumentValueError(
                f"device type {first} lacks its device id; TVM's devices are pairs such as 1, 0"
            )
        else:
            raise ArgumentTypeError(
                f"a device is a Device, a device string or two ints, not a {type(first).__name__}"
            )
        if kind != HOST:
            word = _WORDS.get(kind, "unknown")
            raise DeviceUnavailable(
                f"graphs run on host memory here (device type 1), found device type {kind} "
                f"({word}), index {index}; compile the model for the CPU"
            )
        yield Place(name, threads)
