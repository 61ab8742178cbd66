"""Compile a kernel for a device of many work-items, run it, compare with the interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from codegen_kit import random_array

from packhorse.compiler.gpu_schedule import GpuSchedule, gpu_schedule, pack_gpu
from packhorse.kernel import Kernel
from packhorse.kernel.interpret import interpret
from packhorse.kernel.layout import to_storage

Array = np.ndarray[Any, Any]


def opencl() -> Any:
    """The first OpenCL device; the test is skipped where there is none."""
    pytest.importorskip("pyopencl", reason="pyopencl is not installed (extra opencl)")
    import packhorse as ph
    from packhorse.errors import DeviceUnavailable

    try:
        return ph.device("opencl:0")
    except DeviceUnavailable as error:
        pytest.skip(f"no OpenCL driver: {error}")


def run(device: Any, kernel: Kernel, plan: GpuSchedule, storages: dict[str, Array]) -> None:
    """Run on flat storages: uploaded, computed, and what was written copied back."""
    blocks = {n: device.allocate(storages[n].nbytes) for n in kernel.arguments}
    try:
        for name, block in blocks.items():
            device.copy_from_host(block, storages[name])
        with device.compile([("ph_test", kernel, plan)]) as module:
            module.function("ph_test").bind_memory([blocks[n] for n in kernel.arguments])()
            for name in kernel.outputs:
                device.copy_to_host(blocks[name], storages[name])
    finally:
        for block in blocks.values():
            block.close()


def check(
    kernel: Kernel,
    plan: GpuSchedule | None = None,
    arrays: dict[str, Array] | None = None,
    tol: float = 2e-5,
    runner: Any = None,
) -> GpuSchedule:
    """The device's result against the interpreter's; returns the schedule used."""
    device = None if runner else opencl()
    from packhorse.compiler.gpu_schedule import GpuTarget

    given = arrays or {}
    values = {
        n: given.get(n, random_array(b, i)) for i, (n, b) in enumerate(kernel.buffers.items())
    }
    reference = {n: to_storage(values[n], kernel.buffers[n]) for n in kernel.arguments}
    plan = plan or gpu_schedule(kernel, device.target if device else GpuTarget())
    packed = replace(kernel, buffers={**kernel.buffers, **pack_gpu(kernel, plan)})
    got = {n: to_storage(values[n], packed.buffers[n]) for n in kernel.arguments}
    with np.errstate(all="ignore"):
        interpret(kernel, reference)
    if runner:
        runner(packed, plan, got)
    else:
        run(device, packed, plan, got)
    for name in kernel.outputs:
        flat, want = got[name], reference[name]
        if flat.dtype.kind in "iub":
            np.testing.assert_array_equal(flat, want, err_msg=f"{kernel}\n{plan}")
            continue
        wide, expect = flat.astype(np.float64), want.astype(np.float64)
        finite = np.abs(expect[np.isfinite(expect)])
        scale = max(1.0, float(finite.max())) if finite.size else 1.0
        np.testing.assert_allclose(
            wide, expect, rtol=tol, atol=tol * scale, err_msg=f"{kernel}\n{plan}"
        )
    return plan
