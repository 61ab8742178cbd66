"""Entry point of the ``opencl`` backend (group ``packhorse.backends``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from packhorse.plugin import BackendInfo, DeviceInfo, OptionSpec, hookimpl

if TYPE_CHECKING:
    from packhorse_opencl.device import OpenClDevice

__all__ = ["INFO", "OpenClBackend"]

INFO = BackendInfo(
    name="opencl",
    summary="any device with an OpenCL driver",
    dlpack_type=4,
    extra="opencl",
    requires=("pyopencl",),
    options={
        "max_group": OptionSpec(
            int, "work-items of a group at most (default: what the device allows)", minimum=1
        ),
    },
    priority=50,  # after llvm-cpu: an OpenCL device may be this very CPU
)


class OpenClBackend:
    """The backend object of ``opencl``."""

    info = INFO

    def open(self, index: int, options: Mapping[str, Any]) -> OpenClDevice:
        """Open ``opencl:index``: GPUs come first.

        Raises
        ------
        MissingExtra
            pyopencl is not installed.
        DeviceUnavailable
            No OpenCL driver is, or it has no such device.
        """
        from packhorse_opencl.device import OpenClDevice

        return OpenClDevice(INFO, index, options)

    def probe(self) -> Iterator[DeviceInfo]:
        """Every device of every platform; one row that says why when there is none."""
        from packhorse.errors import DeviceUnavailable
        from packhorse_opencl.driver import device_kind, opencl_devices

        try:
            found = opencl_devices()
        except DeviceUnavailable as error:
            what, _, fix = str(error).partition(". Install")
            yield DeviceInfo(INFO.name, status="no driver", reason=what, fix="Install" + fix)
            return
        for i, handle in enumerate(found):
            driver = f"{handle.platform.name} {handle.driver_version}"
            name, memory = handle.name.strip(), int(handle.global_mem_size)
            yield DeviceInfo(INFO.name, i, name, memory, driver=driver, kind=device_kind(handle))


@hookimpl
def packhorse_backend_info() -> BackendInfo:
    """Describe ``opencl``; pyopencl is not imported."""
    return INFO


@hookimpl
def packhorse_open_backend() -> OpenClBackend:
    """The backend; MissingExtra when pyopencl is not installed."""
    from packhorse_opencl.driver import opencl

    opencl()
    return OpenClBackend()
