"""Entry point of the ``llvm-cpu`` backend (group ``packhorse.backends``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from packhorse.plugin import BackendInfo, DeviceInfo, OptionSpec, hookimpl

if TYPE_CHECKING:
    from packhorse_llvm_cpu.device import LlvmCpuDevice

__all__ = ["INFO", "LlvmCpuBackend"]


def _cpu_name(text: str) -> str:
    if not text or not all(c.isalnum() or c in "-_." for c in text):
        raise ValueError("expected an LLVM CPU name such as x86-64-v3 or znver4")
    return text


INFO = BackendInfo(
    name="llvm-cpu",
    summary="this machine's CPU, kernels compiled with LLVM",
    dlpack_type=1,
    extra="llvm-cpu",
    requires=("llvmlite",),
    needs_driver=False,
    options={
        "threads": OptionSpec(int, "threads per run (default: affinity mask and quota)", minimum=1),
        "cpu": OptionSpec(_cpu_name, "LLVM CPU to compile for (default: this one)"),
    },
    priority=100,
)


class LlvmCpuBackend:
    """The backend object of ``llvm-cpu``."""

    info = INFO

    def open(self, index: int, options: Mapping[str, Any]) -> LlvmCpuDevice:
        """Open ``llvm-cpu:0``; there is no other.

        Raises
        ------
        MissingExtra
            llvmlite is not installed.
        DeviceUnavailable
            Another index, or a CPU this machine cannot run code for.
        """
        from packhorse_llvm_cpu.device import LlvmCpuDevice

        return LlvmCpuDevice(INFO, index, options)

    def probe(self) -> Iterator[DeviceInfo]:
        """The CPU, with the LLVM version as its driver."""
        from packhorse.cpu import host_name, total_memory
        from packhorse_llvm_cpu.target import llvm_module

        version = ".".join(map(str, llvm_module().llvm_version_info))
        name, memory = host_name(), total_memory()
        yield DeviceInfo(INFO.name, 0, name, memory, driver=f"LLVM {version}", kind="cpu")


@hookimpl
def packhorse_backend_info() -> BackendInfo:
    """Describe ``llvm-cpu``; llvmlite is not imported."""
    return INFO


@hookimpl
def packhorse_open_backend() -> LlvmCpuBackend:
    """The backend; MissingExtra when llvmlite is not installed."""
    from packhorse_llvm_cpu.target import llvm_module

    llvm_module()
    return LlvmCpuBackend()
