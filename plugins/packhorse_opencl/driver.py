"""What is asked of pyopencl before there is a device: the package, the platforms, the errors."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from packhorse.errors import (
    DeviceError,
    DeviceMemoryError,
    DeviceUnavailable,
    MissingExtra,
    PackhorseError,
)
from packhorse.plugin.info import Kind

__all__ = [
    "of_device",
    "opencl",
    "opencl_devices",
    "out_of_memory",
    "refused",
    "typed_errors",
]

_FIX = (
    "Install the driver of your GPU, or OpenCL for the CPU: pip install 'packhorse[opencl-cpu]', "
    "or on Debian: apt-get install pocl-opencl-icd"
)
# Numbers of cl.h. CL_OUT_OF_RESOURCES is no memory for some drivers and a dead context for
# others: the device finds out which, by asking for something small.
_MEMORY = frozenset({-4, -6, -61})
"""Allocation failure of a buffer, of host memory; a buffer larger than the device takes."""
_RESOURCES = -5
_LOST = -2
"""CL_DEVICE_NOT_AVAILABLE."""


def opencl() -> Any:
    """The ``pyopencl`` module.

    Raises
    ------
    MissingExtra
        It is not installed.
    """
    try:
        return importlib.import_module("pyopencl")
    except ImportError as error:
        raise MissingExtra("pyopencl", "opencl", "the device 'opencl'") from error


def opencl_devices() -> list[Any]:
    """Every OpenCL device, GPUs first, otherwise in the order of the platforms.

    Raises
    ------
    MissingExtra
        pyopencl is not installed.
    DeviceUnavailable
        There is no OpenCL platform, or none has a device.
    """
    cl = opencl()
    try:
        platforms = cl.get_platforms()
    except cl.Error as error:
        raise DeviceUnavailable(f"opencl: no OpenCL platform was found ({error}). {_FIX}") from None
    found: list[Any] = []
    for platform in platforms:
        try:
            found += platform.get_devices()
        except cl.Error:  # a platform without devices says so with an error
            continue
    if not found:
        names = ", ".join(p.name for p in platforms) or "none"
        raise DeviceUnavailable(f"opencl: no device was found; platforms: {names}. {_FIX}")
    return sorted(found, key=lambda d: not d.type & cl.device_type.GPU)


def code(error: Exception) -> int:
    """The number of an error of OpenCL; 0 for errors that have none."""
    return int(getattr(error, "code", 0))


def out_of_memory(error: Exception) -> bool:
    """Whether giving memory back could help."""
    return isinstance(error, MemoryError) or code(error) in _MEMORY


def device_kind(handle: Any) -> Kind:
    """What an OpenCL device is: PoCL and Intel's runtime offer the processor too."""
    types = opencl().device_type
    if handle.type & types.GPU:
        return "gpu"
    return "cpu" if handle.type & types.CPU else "accelerator"


def of_device(error: Exception) -> bool:
    """Whether an error says something about the device, not about what was asked of it."""
    return out_of_memory(error) or code(error) in (_LOST, _RESOURCES)


def refused(error: Exception, what: str, name: str) -> PackhorseError:
    """An error of OpenCL as one of packhorse's; ``what`` completes "refused to ..."."""
    if out_of_memory(error) or code(error) == _RESOURCES:
        return DeviceMemoryError(
            f"{name}: no memory or no resources left to {what} ({error}). Close tensors or "
            "executables, or use smaller inputs"
        )
    if code(error) == _LOST:
        return DeviceUnavailable(
            f"{name}: the device is not available; it was to {what} ({error}). Look at its driver "
            f"('packhorse doctor'), then open it again with packhorse.device('{name}')"
        )
    return DeviceError(
        f"{name}: OpenCL refused to {what} ({error}). This may be a bug of the driver or of "
        "packhorse: please report it with the output of 'packhorse doctor'"
    )


@contextmanager
def typed_errors(what: str, name: str) -> Iterator[None]:
    """Raise OpenCL's errors as packhorse's, where there is no device yet that could be lost."""
    try:
        yield
    except PackhorseError:
        raise
    except (opencl().Error, MemoryError) as error:
        raise refused(error, what, name) from error
