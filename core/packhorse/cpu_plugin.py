"""What packhorse reads first of the built-in ``cpu`` backend: the two hooks and the description.

The device itself, :mod:`packhorse.cpu`, works on arrays; a list of devices does without NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from packhorse.plugin import BackendInfo, DeviceInfo, OptionSpec, hookimpl

if TYPE_CHECKING:
    from packhorse.cpu import HostDevice

__all__ = ["HOST_OPTIONS", "INFO", "CpuBackend"]

HOST_OPTIONS: Mapping[str, OptionSpec] = {
    "threads": OptionSpec(int, "threads per run (default: affinity mask and quota)", minimum=1)
}
"""Options every backend of host memory takes."""

INFO = BackendInfo(
    name="cpu",
    summary="host memory, compiled libraries and the NumPy references; compiles nothing",
    dlpack_type=1,
    needs_driver=False,
    options=HOST_OPTIONS,
    priority=0,
)


class CpuBackend:
    """The backend object of ``cpu``."""

    info = INFO

    def open(self, index: int, options: Mapping[str, Any]) -> HostDevice:
        """Open ``cpu:0``; there is no other."""
        from packhorse.cpu import HostDevice

        return HostDevice(INFO, index, options)

    def probe(self) -> Iterator[DeviceInfo]:
        """The one device that is always there."""
        from packhorse.cpu import host_name, total_memory

        yield DeviceInfo("cpu", 0, host_name(), total_memory(), driver="built in", kind="cpu")


@hookimpl
def packhorse_backend_info() -> BackendInfo:
    """Describe ``cpu``."""
    return INFO


@hookimpl
def packhorse_open_backend() -> CpuBackend:
    """Open ``cpu``."""
    return CpuBackend()
