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

__all__ = ["opencl", "opencl_devices", "refused", "typed_errors"]

_FIX = (
    "Install the driver of your GPU, or OpenCL for the CPU: pip install 'packhorse[opencl-cpu]', "
    "or on Debian: apt-get install pocl-opencl-icd"
)
_MEMORY = ("MEM_OBJECT_ALLOCATION_FAILURE", "OUT_OF_RESOURCES", "OUT_OF_HOST_MEMORY",
           "INVALID_BUFFER_SIZE")  # fmt: skip


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


def refused(error: Exception, what: str, name: str) -> PackhorseError:
    """An error of OpenCL as one of packhorse's."""
    text = str(error)
    if isinstance(error, MemoryError) or any(word in text for word in _MEMORY):
        return DeviceMemoryError(
            f"{name}: no memory or no resources left to {what} ({text}). Close tensors or "
            "executables, or use smaller inputs"
        )
    if "DEVICE_NOT_AVAILABLE" in text:
        return DeviceUnavailable(f"{name}: the device was lost while it was to {what} ({text})")
    return DeviceError(f"{name}: OpenCL refused to {what} ({text})")


@contextmanager
def typed_errors(what: str, name: str) -> Iterator[None]:
    """Raise OpenCL's errors as packhorse's; ``what`` completes "refused to ..."."""
    try:
        yield
    except PackhorseError:
        raise
    except Exception as error:
        if not isinstance(error, (opencl().Error, MemoryError)):
            raise
        raise refused(error, what, name) from error
