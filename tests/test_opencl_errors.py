"""What goes wrong on an OpenCL device: typed errors, nothing leaks, and it computes afterwards.

With the real driver where it can be made to fail, else with a stand-in for one of its functions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from codegen_kit import at, dense, to
from gpu_kit import opencl
from model_kit import linear, linear_of
from opencl_kit import (
    DEVICE,
    DEVICE_NOT_AVAILABLE,
    INVALID_QUEUE,
    NO_MEMORY,
    OUT_OF_RESOURCES,
    DeadQueue,
    Failing,
    cl_error,
    compiled,
    computes,
    doubling,
)

import packhorse as ph
from packhorse._devices import Devices
from packhorse.compiler import lower_gpu
from packhorse.compiler.gpu_schedule import gpu_schedule
from packhorse.errors import (
    CompileError,
    DeviceClosed,
    DeviceError,
    DeviceMemoryError,
    DeviceUnavailable,
)
from packhorse.kernel import Kernel
from packhorse.plugin.manager import PluginManager

pytest.importorskip("pyopencl", reason="pyopencl is not installed (extra opencl)")

import pyopencl as cl

from packhorse_opencl import driver
from packhorse_opencl.plugin import OpenClBackend

X = np.ones((2, 4), np.float32)


@pytest.fixture
def device():
    opencl()
    with OpenClBackend().open(0, {}) as own:
        yield own


@pytest.fixture
def devices():
    """A registry of its own: other tests keep the devices of the default one."""
    opencl()
    own = Devices(PluginManager())
    yield own
    own.close()


# -- memory runs out ------------------------------------------------------------------------------


def fill(device, leave=1 << 20):
    """Blocks that take all of the device's memory but a little. Nothing touches them, so a
    driver that shares the host's memory takes none of it."""
    blocks, total = [], device.memory().total
    while (left := total - device.memory().used - leave) >= 128:
        blocks.append(device.allocate(min(left // 128 * 128, device.handle.max_mem_alloc_size)))
    return blocks


def test_a_full_device(device):
    blocks = fill(device)
    before = device.memory()
    with pytest.raises(
        DeviceMemoryError, match=r"could not allocate 2097152 bytes .*Close tensors"
    ):
        device.allocate(2 << 20)
    with pytest.raises(MemoryError):
        ph.empty((1 << 20,), "float32", device=device)
    assert device.memory() == before
    blocks.pop().close()
    assert computes(device)
    for block in blocks:
        block.close()
    device.trim()
    assert (device.memory().used, device.memory().cached) == (0, 0)


def test_a_device_too_full_for_a_model(device):
    blocks = fill(device, leave=256)
    before = device.memory()
    with pytest.raises(DeviceMemoryError, match="could not allocate"), linear() as model:
        model(X, device=device)
    after = device.memory()
    assert (after.used, after.live) == (before.used, before.live)
    for block in blocks:
        block.close()
    with linear() as model:
        np.testing.assert_allclose(model(X, device=device), linear_of(X), rtol=1e-5)
    assert device.memory().used == 0


def test_what_the_driver_refuses_to_allocate(device, monkeypatch):
    monkeypatch.setattr(device, "_total", 1 << 62)
    monkeypatch.setattr(device, "_most", 1 << 62)
    with pytest.raises(DeviceMemoryError, match="no memory or no resources left to allocate"):
        device.allocate(1 << 60)
    assert device.memory().used == device.memory().live == 0
    assert computes(device)


def test_memory_that_runs_out_empties_the_pool_first(device, monkeypatch):
    device.allocate(1000).close()
    assert device.memory().cached == 1024
    monkeypatch.setattr(device._pool, "_create", Failing(device._pool._create, NO_MEMORY))
    block = device.allocate(5000)
    assert device.memory().cached == 0
    block.close()
    device.trim()
    monkeypatch.setattr(device._pool, "_create", Failing(device._pool._create, NO_MEMORY))
    with pytest.raises(DeviceMemoryError, match="MEM_OBJECT_ALLOCATION_FAILURE"):
        device.allocate(5000)
    assert device.memory().used == 0
    assert computes(device)


@pytest.mark.parametrize("cached", [True, False])
def test_drivers_that_allocate_when_a_kernel_runs(device, monkeypatch, cached):
    failing = Failing(cl.enqueue_nd_range_kernel, NO_MEMORY)
    x, y = (ph.tensor(np.full(1000, v, np.float32), device=device) for v in (1, 0))
    with monkeypatch.context() as patch:
        patch.setattr(cl, "enqueue_nd_range_kernel", failing)
        call = compiled(device, "double")["double"].bind(x, y)
    if cached:
        device.allocate(1 << 16).close()
        call()  # once more after the pool let go of what it kept
        assert failing.calls == 2
    else:
        with pytest.raises(DeviceMemoryError, match="left to run kernel 'double'"):
            call()
        call()
    assert (y.numpy() == 2).all()


# -- the device is lost ---------------------------------------------------------------------------


def upload(device, block):
    device.copy_from_host(block, np.zeros(4, np.float32))


def upload_much(device, block):
    device.copy_from_host(block, np.zeros(1 << 19, np.float32))


def download(device, block):
    device.copy_to_host(block, np.empty(4, np.float32))


def copy(device, block):
    device.copy(block, block, 16)


def finish(device, block):
    device.synchronize()


def launch(device, block):
    compiled(device, "double").function("double").bind_memory([block, block])()


def tell_time(device, block):
    compiled(device, "double").function("double").bind_memory([block, block]).nanoseconds()


USES = {
    upload: "copy 16 bytes to it", upload_much: "copy 2097152 bytes to it",
    download: "copy 16 bytes from it", copy: "copy 16 bytes", finish: "finish",
    launch: "run kernel 'double'", tell_time: "finish",
}  # fmt: skip


def dies(device, monkeypatch, code):
    """From now on every command fails."""
    for name in ("enqueue_copy", "enqueue_nd_range_kernel"):
        monkeypatch.setattr(cl, name, Failing(getattr(cl, name), code, 1 << 30))
    monkeypatch.setattr(device, "queue", DeadQueue(code))


@pytest.mark.parametrize("code", [DEVICE_NOT_AVAILABLE, OUT_OF_RESOURCES, INVALID_QUEUE])
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_a_lost_device_is_opened_anew_by_its_name(devices, monkeypatch, use, code):
    device = devices.open(DEVICE)
    block, other = device.allocate(1 << 21), device.allocate(16)
    module = compiled(device, "double")
    function = module.function("double")
    with monkeypatch.context() as patch:
        dies(device, patch, code)
        with pytest.raises(DeviceUnavailable, match=rf"was lost when it was to {USES[use]}"):
            use(device, block)
        assert device.closed
        for again in (finish, download, lambda *_: device.allocate(1), lambda *_: device.memory(),
                      lambda *_: function.bind_memory([block, block])):  # fmt: skip
            with pytest.raises(DeviceUnavailable, match=r"Open it again with packhorse\.device"):
                again(device, block)
        block.close()
        module.close()
        device.close()
    other.close()
    fresh = devices.open(DEVICE)
    assert fresh is not device
    assert fresh.memory().used == 0
    assert computes(fresh)


@pytest.mark.parametrize("code", [OUT_OF_RESOURCES, INVALID_QUEUE])
def test_a_device_that_still_answers_is_not_lost(device, monkeypatch, code):
    """OUT_OF_RESOURCES may just as well mean that this one call asked for too much."""
    block = device.allocate(16)
    with monkeypatch.context() as patch:
        patch.setattr(cl, "enqueue_copy", Failing(cl.enqueue_copy, code))
        expected = DeviceMemoryError if code == OUT_OF_RESOURCES else DeviceError
        with pytest.raises(expected, match="copy 16 bytes from it") as caught:
            download(device, block)
    assert not isinstance(caught.value, DeviceUnavailable)
    assert not device.closed
    assert computes(device)


def test_a_model_runs_again_after_the_device_was_lost(devices, monkeypatch):
    model, device = linear(), devices.open(DEVICE)
    expected = model(X, device=device)
    with monkeypatch.context() as patch:
        dies(device, patch, OUT_OF_RESOURCES)
        with pytest.raises(DeviceUnavailable, match="was lost"):
            model(X, device=device)
    fresh = devices.open(DEVICE)
    np.testing.assert_array_equal(model(X, device=fresh), expected)
    assert fresh.memory().live > 0
    model.close()
    assert fresh.memory().used == 0


def test_buffers_of_a_lost_device_that_cannot_be_released(device):
    class Buffer:
        def release(self):
            raise cl_error(OUT_OF_RESOURCES)

    device._pool._create = lambda nbytes: Buffer()
    first, second = device.allocate(100), device.allocate(100)
    first.close()
    assert device.trim() == 128
    device._pool.close()
    second.close()
    assert device.memory().used == 0


def test_closing_a_device_whose_queue_fails(monkeypatch):
    opencl()
    device = OpenClBackend().open(0, {})
    block = device.allocate(100)
    monkeypatch.setattr(device, "queue", DeadQueue(OUT_OF_RESOURCES))
    device.close()
    with pytest.raises(DeviceClosed):
        device.memory()
    block.close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [(NO_MEMORY, DeviceMemoryError), (OUT_OF_RESOURCES, DeviceMemoryError),
     (DEVICE_NOT_AVAILABLE, DeviceUnavailable), (-30, DeviceError)],
)  # fmt: skip
def test_a_device_that_cannot_be_opened(monkeypatch, code, kind):
    opencl()
    with monkeypatch.context() as patch:
        patch.setattr(cl, "Context", Failing(cl.Context, code))
        with pytest.raises(kind, match="open a context") as caught:
            OpenClBackend().open(0, {})
    assert type(caught.value) is kind
    with pytest.raises(ZeroDivisionError), driver.typed_errors("compute", DEVICE):
        raise ZeroDivisionError
    with OpenClBackend().open(0, {}) as device:
        assert computes(device)


# -- kernels that cannot be had -------------------------------------------------------------------


def broken(functions, dialect):
    return "__kernel void k() { this is no C; }"


def test_what_the_driver_refuses_carries_its_log(device, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr(lower_gpu, "gpu_program", broken)
        with pytest.raises(CompileError, match="refused the generated kernels") as caught:
            compiled(device, "k")
    assert "error" in caught.value.log
    assert "this is no C" in caught.value.log or "undeclared" in caught.value.log
    assert computes(device)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(NO_MEMORY, DeviceMemoryError), (OUT_OF_RESOURCES, DeviceMemoryError),
     (DEVICE_NOT_AVAILABLE, DeviceUnavailable), (-11, CompileError)],
)  # fmt: skip
def test_what_keeps_the_driver_from_building(devices, monkeypatch, code, kind):
    """A driver without memory has not refused the text."""
    device = devices.open(DEVICE)
    with monkeypatch.context() as patch:
        patch.setattr(cl, "Program", Failing(cl.Program, code))
        with pytest.raises(kind) as caught:
            compiled(device, f"not_built_{abs(code)}", kernel=doubling(1000 + abs(code)))
    assert type(caught.value) is kind
    assert device.closed == (kind is DeviceUnavailable)
    assert computes(devices.open(DEVICE))


def test_float64_on_a_device_without_it(device, monkeypatch):
    monkeypatch.setattr(device, "_target", replace(device.target, float64=False))
    value64 = at("x", "i", dtype="float64") * 2.0
    kernel = Kernel("d", (("i", 3),), (to("y", ("i",), value64),),
                    {n: dense(3, dtype="float64") for n in "xy"})  # fmt: skip
    with pytest.raises(CompileError, match="float64, which opencl:0 does not have"):
        compiled(device, "k", kernel=kernel)
    assert computes(device)


def large(device, group):
    kernel = doubling()
    plan = replace(gpu_schedule(kernel, device.target), group=group)
    return device.compile([("large", kernel, plan)])


def test_work_groups_larger_than_the_device_has(device):
    with pytest.raises(CompileError, match=r"work-groups of \d+, opencl:0 has at most \d+"):
        large(device, 2 * device.target.max_group)
    assert computes(device)


def test_work_groups_larger_than_a_kernel_may_have(device, monkeypatch):
    """A kernel of many registers runs in smaller groups than the device's limit; the driver says
    so once it is built."""
    asked = device.cl.kernel_work_group_info.WORK_GROUP_SIZE
    real = cl.Kernel.get_work_group_info
    x = ph.empty((1000,), "float32", device=device)
    with monkeypatch.context() as patch:
        patch.setattr(
            cl.Kernel, "get_work_group_info",
            lambda self, what, on: 16 if what == asked else real(self, what, on),
        )  # fmt: skip
        with pytest.raises(CompileError, match="in groups of up to 16"):
            compiled(device, "double")["double"].bind(x, x)
    assert computes(device)


def test_a_driver_that_was_told_a_wrong_limit(device, monkeypatch):
    """The real driver's answer to a group larger than it can run."""
    too_large = 4 * device.handle.max_work_group_size
    monkeypatch.setattr(device, "_target", replace(device.target, max_group=1 << 30))
    x = ph.tensor(np.ones(1000, np.float32), device=device)
    with pytest.raises((CompileError, DeviceError)):
        large(device, too_large).function("large").bind(x, x)()
    assert computes(device)


def test_the_option_max_group_bounds_every_kernel(devices):
    device = devices.open("opencl:0?max_group=16")
    assert device.name == "opencl:0?max_group=16"
    assert device.target.max_group == 16
    with linear().compile(device, shapes={"x": (2, 4)}) as executable:
        np.testing.assert_allclose(executable(X), linear_of(X), rtol=1e-5)
        kernels = executable.module.library.kernels
        assert max(kernel.group for kernel in kernels) <= 16
