"""The devices that TVM's constructors are called with, and the one of them a graph is for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from packhorse.device import Device
from packhorse.device import device as open_device
from packhorse.errors import ArgumentTypeError, ArgumentValueError, DeviceUnavailable
from packhorse.graph.program import Program
from packhorse.module_base import Module
from packhorse.module_device import device_types
from packhorse.native.devices import HOST, device_word

__all__ = ["Place", "backend_of", "device_type", "place_of", "require_host"]

_BACKENDS = frozenset(("cuda", "opencl", "vulkan", "metal", "rocm", "webgpu"))
"""Words of device types that are words of device strings too."""


class Place(NamedTuple):
    """Where a graph runs. ``threads``: how many a parallel launch may use (0: all of the process).
    ``device`` is None for host memory."""

    name: str = "cpu:0"
    threads: int = 0
    device: Device | None = None


def device_type(program: Program) -> int | None:
    """DLPack type of the device a graph was compiled for; None where it does not say."""
    found = program.metadata.get("device_type", "")
    return int(found) if found.isdecimal() else None


def backend_of(program: Program | None, module: Module | None = None) -> str:
    """The backend that a graph, or else its library, was compiled for; ``cpu`` if neither says."""
    kind = None if program is None else device_type(program)
    if kind is None and module is not None:
        kind = min(device_types([module]), default=None)
    word = device_word(kind or HOST)
    return word if word in _BACKENDS else "cpu"


def place_of(program: Program, where: Sequence[Any]) -> Place:
    """The one of TVM's device arguments that a graph runs on.

    Parameters
    ----------
    program : Program
        Says in ``metadata["device_type"]`` what it was compiled for; else it is the first.
    where : sequence
        Devices, device strings, or pairs of ints ``device_type, device_id``.

    Raises
    ------
    DeviceUnavailable
        None of them is what the graph was compiled for.
    DeviceError
        One cannot be opened.
    ArgumentTypeError, ArgumentValueError
        No device, an odd number of ints, or something else.
    """
    found, wanted = list(_listed(where)), device_type(program)
    if not found:
        raise ArgumentValueError(
            "no device was given; pass packhorse.device('cpu'), or TVM's numbers 1, 0"
        )
    for kind, index, given in found:
        if wanted in (None, kind):
            return _opened(kind, index, given)
    word, others = device_word(wanted or HOST), [f"{device_word(k)}:{i}" for k, i, _ in found]
    raise DeviceUnavailable(
        f"this graph was compiled for a device '{word}' (device type {wanted}), found "
        f"{', '.join(others)}; pass packhorse.device('{word}:0')"
    )


def require_host(kind: int, index: int) -> None:
    """Refuse a pair of TVM's numbers that is not the host: DeviceUnavailable."""
    if kind != HOST:
        raise DeviceUnavailable(
            f"the results are copied to the host (device type {HOST}, index 0), found device type "
            f"{kind} ({device_word(kind)}), index {index}; pass {HOST}, 0"
        )


def _listed(where: Sequence[Any]) -> Iterator[tuple[int, int, Device | None]]:
    """Type, number, and the device itself where it was given. Numbers are not opened yet."""
    rest = list(where)
    while rest:
        first = rest.pop(0)
        if isinstance(first, int | np.integer):
            if not rest or not isinstance(rest[0], int | np.integer):
                raise ArgumentValueError(
                    f"device type {first} lacks its device id; TVM's devices are pairs such as 1, 0"
                )
            yield int(first), int(rest.pop(0)), None
        elif isinstance(first, str | Device):
            found = open_device(first)
            yield (*found.dlpack_device, found)
        elif hasattr(first, "dlpack_device"):  # as compiled code names a device
            yield (*first.dlpack_device, None)
        else:
            raise ArgumentTypeError(
                f"a device is a Device, a device string or two ints, not a {type(first).__name__}"
            )


def _opened(kind: int, index: int, given: Device | None) -> Place:
    if kind == HOST:
        return Place() if given is None else Place(given.name, getattr(given, "threads", 0))
    word = device_word(kind)
    if given is None and word not in _BACKENDS:
        raise DeviceUnavailable(
            f"graphs do not run on device type {kind} ({word}), index {index}; give one of those "
            "that 'packhorse devices' lists"
        )
    found = given or open_device(f"{word}:{index}")
    return Place(found.name, 0, found)
