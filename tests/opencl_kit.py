"""Small kernels on an OpenCL device, and a driver that fails when told to."""

from __future__ import annotations

from typing import Any

import numpy as np
from codegen_kit import at, dense, to

from packhorse.compiler.gpu_schedule import gpu_schedule
from packhorse.kernel import Kernel

DEVICE = "opencl:0"
DEVICE_NOT_AVAILABLE, NO_MEMORY, OUT_OF_RESOURCES, INVALID_QUEUE = -2, -4, -5, -36
"""Numbers of cl.h."""


def doubling(n: int = 1000) -> Kernel:
    """y = 2 x on n floats."""
    stores = (to("y", ("i",), at("x", "i") * 2.0),)
    return Kernel("double", (("i", n),), stores, {"x": dense(n), "y": dense(n)})


def compiled(device: Any, *names: str, kernel: Kernel | None = None) -> Any:
    """A module with that kernel under each of the names."""
    kernel = kernel or doubling()
    return device.compile([(n, kernel, gpu_schedule(kernel, device.target)) for n in names])


def computes(device: Any) -> bool:
    """Whether y = 2 x is right on the device."""
    x = np.arange(1000, dtype=np.float32)
    y, blocks = np.empty_like(x), [device.allocate(x.nbytes) for _ in range(2)]
    device.copy_from_host(blocks[0], x)
    with compiled(device, "double") as module:
        module.function("double").bind_memory(blocks)()
        device.copy_to_host(blocks[1], y)
    for block in blocks:
        block.close()
    return bool((y == 2 * x).all())


def cl_error(code: int) -> Exception:
    """What pyopencl raises when the driver returns that number."""
    import pyopencl as cl

    kind = {NO_MEMORY: cl.MemoryError}.get(code, cl.RuntimeError)
    return kind(cl._cl._ErrorRecord("clStandIn", code, ""))


class Failing:
    """Stands in for a function of the driver: fails ``times`` times, then does its work."""

    def __init__(self, real: Any, code: int, times: int = 1) -> None:
        self.real, self.code, self.left, self.calls = real, code, times, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise cl_error(self.code)
        return self.real(*args, **options)


class DeadQueue:
    """A queue whose device is gone: nothing of it works."""

    def __init__(self, code: int) -> None:
        self.finish = Failing(None, code, 1 << 30)
