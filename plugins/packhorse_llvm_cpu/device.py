"""The device: host memory, and kernels compiled to machine code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from packhorse.compiler.schedule import Schedule, schedule
from packhorse.compiler.target import Target
from packhorse.cpu import HostDevice
from packhorse.device import BackendInfo
from packhorse.errors import CompileError, DeviceError, DeviceStringError, DeviceUnavailable
from packhorse.kernel import Kernel
from packhorse.kernel.doubling import doubling_kernel
from packhorse.module_kernel import check_symbols
from packhorse_llvm_cpu.codegen import Codegen
from packhorse_llvm_cpu.module import JitModule
from packhorse_llvm_cpu.target import host_target

__all__ = ["LlvmCpuDevice"]


class LlvmCpuDevice(HostDevice):
    """``llvm-cpu``: compiles kernels with LLVM and runs them on the host."""

    def __init__(self, info: BackendInfo, index: int, options: Mapping[str, Any]) -> None:
        self._target = host_target()  # before the base class asks what this device can do
        super().__init__(info, index, options)
        cpu = str(options.get("cpu") or "")
        host = host_target(threads=self.threads)
        self._target = _named_target(cpu, self.threads) if cpu else host
        lacking = [f for f in self._target.features if f.startswith("+") and not host.has(f[1:])]
        if lacking:
            raise DeviceUnavailable(
                f"{info.name}: this machine ({host.cpu}) cannot run code for '{cpu}': it lacks "
                f"{', '.join(f[1:] for f in lacking)}. Leave the option cpu out"
            )
        self._codegen = Codegen(self._target)

    @property
    def target(self) -> Target:
        """What schedules and code are made for."""
        return self._target

    def compile(self, functions: Sequence[tuple[str, Kernel, Schedule]]) -> JitModule:
        """Compile kernels into a module of packed functions.

        Parameters
        ----------
        functions : sequence of (symbol, Kernel, Schedule)
            Symbols must be distinct; constants must lie as the kernels' buffers say.

        Raises
        ------
        CompileError
            A kernel cannot be compiled, or two symbols are equal; ``log`` holds LLVM's words.
        """
        self.require_open()
        check_symbols(symbol for symbol, _, _ in functions)
        return self._codegen.module(functions)

    def check(self) -> None:
        """Compile and run ``y = x + x`` on three floats.

        Raises
        ------
        DeviceError
            The result is wrong.
        """
        kernel = doubling_kernel()
        source, result = np.array([1, 2, 3], np.float32), np.empty(3, np.float32)
        with self.compile([("ph_check", kernel, schedule(kernel, self.target))]) as module:
            module["ph_check"](source, result)
        if result.tolist() != [2.0, 4.0, 6.0]:
            raise DeviceError(f"{self.name}: [1, 2, 3] + [1, 2, 3] gave {result.tolist()}")


def _named_target(cpu: str, threads: int) -> Target:
    try:
        return host_target(cpu, threads)
    except CompileError as error:
        raise DeviceStringError(f"option cpu={cpu} of 'llvm-cpu': {error}") from None
