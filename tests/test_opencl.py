"""The OpenCL device: memory, copies, functions, errors, lifetime, whole graphs."""

from __future__ import annotations

import gc
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from gpu_kit import opencl
from model_kit import linear, linear_of, value
from opencl_kit import DEVICE, compiled, doubling

import packhorse as ph
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    CompileError,
    DeviceClosed,
    DeviceMemoryError,
    DeviceUnavailable,
    MissingExtra,
)
from packhorse.graph.device_executor import DeviceExecutor
from packhorse.graph.ir import Graph, Node
from packhorse.model import Model

pytest.importorskip("pyopencl", reason="pyopencl is not installed (extra opencl)")

from packhorse_opencl import driver, module
from packhorse_opencl.memory import Pool
from packhorse_opencl.plugin import OpenClBackend


@pytest.fixture
def device():
    opencl()
    with OpenClBackend().open(0, {}) as own:
        yield own


# -- device, memory -------------------------------------------------------------------------------


def test_device_describes_itself_and_computes(device):
    assert device.name == DEVICE
    assert not device.info.is_host
    assert device.dlpack_device == (4, 0)
    assert {"compile", "target"} <= device.capabilities
    device.check()
    assert device.memory().used == 0
    assert isinstance(device.memory().total, int)


def test_memory_is_pooled_and_counted(device):
    first = device.allocate(1000)
    assert device.memory().used == 1024
    address = first.address
    first.close()
    first.close()
    assert (device.memory().used, device.memory().cached) == (0, 1024)
    again = device.allocate(1020)
    assert again.address == address
    assert device.memory().allocations == 2
    again.close()
    assert device.trim() == 1024
    assert device.memory().cached == 0
    with pytest.raises(DeviceClosed, match="allocate another"):
        again.address  # noqa: B018


def test_memory_is_given_back_by_the_collector(device):
    for _ in range(3):
        device.allocate(4096)
        gc.collect()
    assert device.memory().live == 0


def test_pool_keeps_no_more_than_its_limit():
    class Buffer:
        released = False

        def release(self):
            self.released = True

    pool = Pool(lambda n: Buffer(), limit=200)
    first, second = pool.take(128), pool.take(128)
    pool.give(first, 128)
    pool.give(second, 128)
    assert (first.released, second.released, pool.cached) == (False, True, 128)
    pool.close()
    assert first.released


@pytest.mark.parametrize("exact", [True, False])
def test_division_is_exact_where_the_device_offers_it(device, monkeypatch, exact):
    flag = device.cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT
    offered = (device.handle.single_fp_config | flag) - (0 if exact else flag)
    offers = SimpleNamespace(single_fp_config=offered)
    asked, real = [], module.program_of

    def program_of(where, text, options):
        asked.append(options)
        return real(where, text, options)

    monkeypatch.setattr(module, "program_of", program_of)
    with monkeypatch.context() as patch:
        patch.setattr(device, "handle", offers)
        options = module._options(device)
    assert options.endswith(" -cl-fp32-correctly-rounded-divide-sqrt") == exact
    compiled(device, "f")
    assert asked == [module._options(device)]


def test_copies(device):
    block, data = device.allocate(64), np.arange(8, dtype=np.float32)
    device.copy_from_host(block, data, 16)
    back = np.empty(4, np.float32)
    device.copy_to_host(block, back, 24)
    assert back.tolist() == [2, 3, 4, 5]
    with pytest.raises(ArgumentValueError, match="does not fit"):
        device.copy_from_host(block, np.zeros(100, np.float32))
    with pytest.raises(ArgumentTypeError, match="not OpenCL memory"):
        device.copy_from_host(ph.device("cpu").allocate(64), data)
    other = device.allocate(32)
    device.copy(block, other, 32)
    back = np.empty(4, np.float32)
    device.copy_to_host(other, back, 16)
    assert back.tolist() == [0, 1, 2, 3]
    with pytest.raises(ArgumentValueError, match="33 bytes cannot be copied"):
        device.copy(block, other, 33)
    block.close()
    other.close()


def test_what_cannot_be_allocated(device):
    with pytest.raises(DeviceMemoryError, match="at most"):
        device.allocate(1 << 50)
    with pytest.raises(ArgumentValueError, match="negative"):
        device.allocate(-1)
    with pytest.raises(ArgumentTypeError, match="int, not str"):
        device.allocate("7")
    device.allocate(8).close()  # usable afterwards


def test_closing_is_final_and_idempotent():
    opencl()
    device = OpenClBackend().open(0, {})
    functions = compiled(device, "f")
    device.close()
    device.close()
    assert device.closed
    for use in (lambda: device.allocate(1), device.synchronize, device.memory, device.trim):
        with pytest.raises(DeviceClosed):
            use()
    with pytest.raises(DeviceClosed):
        functions.get_function("f")


def test_a_device_that_is_not_there():
    opencl()
    with pytest.raises(DeviceUnavailable, match="opencl:99 does not exist; there are"):
        OpenClBackend().open(99, {})


def test_probe_lists_devices():
    opencl()
    rows = list(OpenClBackend().probe())
    assert [row.index for row in rows] == list(range(len(rows)))
    assert all(row.status == "ok" and row.memory for row in rows)


def test_no_platform_says_what_to_install(monkeypatch):
    monkeypatch.setattr(driver.opencl(), "get_platforms", list)
    with pytest.raises(DeviceUnavailable, match="pocl-opencl-icd"):
        OpenClBackend().open(0, {})
    (row,) = OpenClBackend().probe()
    assert row.status == "no driver"
    assert "opencl-cpu" in row.fix


def test_no_pyopencl_gives_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    with pytest.raises(MissingExtra, match=r"packhorse\[opencl\]"):
        driver.opencl()


# -- functions ------------------------------------------------------------------------------------


def test_functions_take_tensors_of_the_device(device):
    double = compiled(device, "double")["double"]
    x = np.arange(1000, dtype=np.float32)
    a, b = (ph.empty((1000,), "float32", device=device) for _ in range(2))
    a.copy_from(x)
    double(a, b)
    np.testing.assert_array_equal(b.numpy(), 2 * x)
    call = double.bind(b, a)
    call()
    np.testing.assert_array_equal(a.numpy(), 4 * x)


def test_bound_calls_keep_their_tensors(device):
    double = compiled(device, "double")["double"]
    y = ph.empty((1000,), "float32", device=device)
    call = double.bind(ph.tensor(np.ones(1000, np.float32), device=device), y)
    gc.collect()
    other = ph.tensor(np.zeros(1000, np.float32), device=device)  # in memory given back, if any is
    call()
    assert (y.numpy() == 2).all()
    del call, other, y
    gc.collect()
    assert device.memory().live == 0


def test_functions_may_be_called_from_many_threads(device):
    """Direct calls share one kernel of the driver, and its arguments."""
    double = compiled(device, "double")["double"]
    xs = [ph.tensor(np.full(1000, i, np.float32), device=device) for i in range(8)]
    ys = [ph.empty((1000,), "float32", device=device) for _ in xs]

    def work(i):
        for _ in range(50):
            double(xs[i], ys[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((y.numpy() == 2 * i).all() for i, y in enumerate(ys))


def test_functions_refuse_what_does_not_fit(device):
    double = compiled(device, "double")["double"]
    good = ph.empty((1000,), "float32", device=device)
    with pytest.raises(ArgumentValueError, match=r"takes 2 tensors \(x, y\), 1 were given"):
        double(good)
    with pytest.raises(ArgumentTypeError, match="must be a tensor on opencl:0, found cpu"):
        double(good, ph.empty((1000,), "float32"))
    with pytest.raises(ArgumentTypeError, match="must be float32, found int32"):
        double(good, ph.empty((1000,), "int32", device=device))
    with pytest.raises(ArgumentValueError, match="must have shape"):
        double(good, ph.empty((10,), "float32", device=device))
    small = device.allocate(4)
    with pytest.raises(ArgumentValueError, match="needs 4000 bytes"):
        double.bind_memory([small, small])


def test_symbols_are_distinct_and_names_are_found(device):
    with pytest.raises(CompileError, match="names two kernels"):
        compiled(device, "f", "f")
    functions = compiled(device, "f", "g")
    assert functions.functions == ["f", "g"]
    with pytest.raises(CompileError, match="no form as a shared library"):
        functions.export_library("x.so")
    assert compiled(device).functions == []


def test_programs_come_from_the_cache(device, monkeypatch):
    compiled(device, "cached", kernel=doubling(77))
    monkeypatch.setattr(module._CACHE, "put", lambda *_: pytest.fail("it was built again"))
    compiled(device, "cached", kernel=doubling(77))


def test_a_damaged_cache_is_no_error(device):
    compiled(device, "damaged", kernel=doubling(78))
    for path in module._CACHE.folder.iterdir():
        path.write_bytes(b"x" * 100)
    compiled(device, "damaged", kernel=doubling(78))


def test_a_binary_of_another_driver_is_no_error(device, monkeypatch):
    monkeypatch.setattr(module._CACHE, "get", lambda key: b"no binary of this driver")
    compiled(device, "foreign", kernel=doubling(79))
    device.check()


# -- whole graphs ---------------------------------------------------------------------------------


def test_a_model_on_the_device_and_back():
    opencl()
    model, x = linear(), np.random.default_rng(0).standard_normal((5, 4), np.float32)
    for name in (DEVICE, "cpu", DEVICE):
        np.testing.assert_allclose(model(x, device=name), linear_of(x), rtol=1e-5, atol=1e-6)
    executable = model.compile(DEVICE, shapes={"x": (5, 4)})
    assert {row.device for row in executable.report()} == {DEVICE}
    assert executable.profile(x, repeat=1)
    with pytest.raises(ArgumentValueError, match="repeat"):
        executable.profile(x, repeat=0)


def softmax_between() -> Model:
    """y = softmax(relu(x)) + relu(x), and the softmax."""
    nodes = [
        Node("Relu", ["x"], ["a"], name="before"),
        Node("Softmax", ["a"], ["b"], name="middle"),
        Node("Add", ["b", "a"], ["y"], name="after"),
    ]
    graph = Graph("g", [value("x", (2, 6))], [value("y", (2, 6)), value("b", (2, 6))], nodes, {})
    return Model(graph)


def test_steps_of_the_host_get_copies_and_are_reported(monkeypatch):
    from dataclasses import replace

    from packhorse.ops import registry

    opencl()
    known = registry.get
    monkeypatch.setattr(
        registry, "get",
        lambda node: replace(known(node), lower=None) if node.op == "Softmax" else known(node),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((2, 6), np.float32)
    with softmax_between().compile(DEVICE) as executable:
        y, b = executable(x)
        executor = executable._compiled.executor
        assert isinstance(executor, DeviceExecutor)
        report = executor.report()
        where = {row.node: row.device for row in executable.report()}
    a = np.maximum(x, 0)
    expected = np.exp(a) / np.exp(a).sum(1, keepdims=True)
    np.testing.assert_allclose(b, expected, rtol=1e-5)
    np.testing.assert_allclose(y, expected + a, rtol=1e-5)
    assert [str(copy) for copy in report.copies] == [
        "'x': host -> opencl:0, 48 bytes",
        "step 'middle': opencl:0 -> host, 48 bytes",
        "step 'middle': host -> opencl:0, 48 bytes",
        "'y': opencl:0 -> host, 48 bytes",
    ]
    assert "copied: step 'middle': host -> opencl:0, 48 bytes" in str(report)
    assert [w for n, w in where.items() if "middle" in n] == ["host (NumPy reference)"]


def test_executors_refuse_like_those_of_the_host(device):
    x = np.ones((2, 4), np.float32)
    executable = linear().compile(device, shapes={"x": (2, 4)})
    run = executable._compiled.executor.run
    with pytest.raises(ArgumentTypeError, match="must be float32"):
        run({"x": x.astype(np.float64)})
    with pytest.raises(ArgumentValueError, match="must have shape"):
        run([x[:1]])
    with pytest.raises(ArgumentValueError, match="no input 'z'"):
        run({"z": x})
    run({"x": x})
    executable.close()
    with pytest.raises(DeviceClosed):
        run({"x": x})
    assert device.memory().used == 0
