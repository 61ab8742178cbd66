"""The queue of an OpenCL device: nothing waits that need not, time is told, all is given back."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from gpu_kit import opencl
from model_kit import value
from opencl_kit import compiled, doubling

import packhorse as ph
from packhorse.graph.ir import Graph, Node
from packhorse.model import Model

pytest.importorskip("pyopencl", reason="pyopencl is not installed (extra opencl)")

import pyopencl as cl

from packhorse_opencl.memory import Uploads
from packhorse_opencl.plugin import OpenClBackend

MAGIKA = Path(__file__).resolve().parent.parent / "examples" / "magika" / "model.onnx"
OPS = 20


@pytest.fixture
def device():
    opencl()
    with OpenClBackend().open(0, {}) as own:
        yield own


def chain(size: int = 8) -> Model:
    """OPS softmaxes, by rows and by columns in turn: none can be fused into the next."""
    names = [f"v{i}" for i in range(OPS + 1)]
    nodes = [
        Node("Softmax", [names[i]], [names[i + 1]], {"axis": i % 2}, name=f"op{i}")
        for i in range(OPS)
    ]
    ends = [value(names[0], (size, size))], [value(names[-1], (size, size))]
    return Model(Graph("chain", *ends, nodes, {}))


def softmaxes(x):
    for i in range(OPS):
        e = np.exp(x - x.max(i % 2, keepdims=True))
        x = e / e.sum(i % 2, keepdims=True)
    return x


class Driver:
    """Counts what is asked of pyopencl: kernels queued, and calls that wait for the device."""

    def __init__(self, monkeypatch):
        self.kernels, self.waits = 0, []
        launch, copy = cl.enqueue_nd_range_kernel, cl.enqueue_copy

        def enqueue(*args, **options):
            self.kernels += 1
            return launch(*args, **options)

        def enqueue_copy(queue, target, source, **options):
            if options.get("is_blocking", True) and not isinstance(source, cl.Buffer):
                self.waits.append("upload")
            elif not isinstance(target, cl.Buffer):
                self.waits.append("download")
            return copy(queue, target, source, **options)

        monkeypatch.setattr(cl, "enqueue_nd_range_kernel", enqueue)
        monkeypatch.setattr(cl, "enqueue_copy", enqueue_copy)
        for owner, name in ((cl.CommandQueue, "finish"), (cl.Event, "wait"),
                            (cl, "wait_for_events")):  # fmt: skip
            monkeypatch.setattr(owner, name, self._waiting(getattr(owner, name), name))

    def _waiting(self, real, name):
        def call(*args, **options):
            self.waits.append(name)
            return real(*args, **options)

        return call


def test_a_run_waits_for_its_output_only(device, monkeypatch):
    driver, x = Driver(monkeypatch), np.random.default_rng(0).standard_normal((8, 8), np.float32)
    executable = chain().compile(device)
    assert {row.device for row in executable.report()} == {device.name}
    executable(x)
    driver.kernels, driver.waits = 0, []
    y = executable(x)
    assert driver.kernels >= OPS
    assert driver.waits == ["download"]
    np.testing.assert_allclose(y, softmaxes(x), rtol=1e-5)
    executable.close()


def test_a_run_queues_everything_while_the_device_does_nothing(device, monkeypatch):
    """The queue is held up by an event of ours: a wait between two operators would never end."""
    driver, x = Driver(monkeypatch), np.random.default_rng(1).standard_normal((8, 8), np.float32)
    executable = chain().compile(device)
    expected, found = executable(x), []
    gate, driver.kernels = cl.UserEvent(device.context), 0
    cl.enqueue_barrier(device.queue, wait_for=[gate])
    runner = threading.Thread(target=lambda: found.append(executable(x)))
    runner.start()
    try:
        deadline = time.monotonic() + 60
        while driver.kernels < OPS and runner.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        queued, unfinished = driver.kernels, not found
    finally:
        gate.set_status(cl.command_execution_status.COMPLETE)
        runner.join(60)
    assert queued >= OPS
    assert unfinished
    np.testing.assert_array_equal(found[0], expected)
    executable.close()


def test_data_uploaded_may_change_at_once(device):
    """A small upload copies what it is given; the device reads it later."""
    gate = cl.UserEvent(device.context)
    block, data = device.allocate(400), np.arange(100, dtype=np.float32)
    cl.enqueue_barrier(device.queue, wait_for=[gate])
    device.copy_from_host(block, data)
    data[:] = -1
    gate.set_status(cl.command_execution_status.COMPLETE)
    device.copy_to_host(block, data)
    assert data.tolist() == list(range(100))
    block.close()


def test_uploads_under_way_are_bounded():
    uploads, dropped = Uploads(), []

    class Event:
        def __del__(self):
            dropped.append(self)  # where pyopencl's waits

    for _ in range(5):
        uploads.add(Event(), Uploads.limit // 2)
    assert len(dropped) == 4
    uploads.clear()
    assert len(dropped) == 5


# -- time -----------------------------------------------------------------------------------------


def test_calls_tell_the_time_of_the_device(device):
    small, large = (
        compiled(device, "double", kernel=doubling(n)).function("double") for n in (16, 1 << 20)
    )
    x, y = (ph.tensor(np.full(16, v, np.float32), device=device) for v in (1, 0))
    call = small.bind(x, y)
    assert call.nanoseconds() > 0
    assert (y.numpy() == 2).all()  # it was really run
    blocks = [device.allocate(4 << 20) for _ in range(2)]
    much = large.bind_memory(blocks)
    fewest = [min(c.nanoseconds() for _ in range(5)) for c in (call, much)]
    assert fewest[0] < fewest[1]  # 65,536 times the work
    for block in blocks:
        block.close()


def test_time_is_told_after_what_was_queued(device):
    x, y, z = (ph.tensor(np.full(1000, v, np.float32), device=device) for v in (1, 0, 0))
    double = compiled(device, "double")["double"]
    double(x, y)
    assert double.bind(y, z).nanoseconds() > 0
    assert (z.numpy() == 4).all()


def test_profiles_ask_the_device(device, monkeypatch):
    from packhorse_opencl.call import ClCall

    asked = []
    real = ClCall.nanoseconds
    monkeypatch.setattr(ClCall, "nanoseconds", lambda call: asked.append(1) or real(call))
    x = np.ones((8, 8), np.float32)
    with chain().compile(device) as executable:
        rows = executable.profile(x, repeat=3)
    assert len(rows) >= OPS
    assert len(asked) == 3 * len(rows)
    assert all(microseconds > 0 for *_, microseconds in rows)


# -- nothing stays behind -------------------------------------------------------------------------


def resident() -> int:
    """Bytes of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif(not MAGIKA.exists(), reason="the example model is not there")
def test_memory_is_back_after_a_hundred_loads(device):
    """Load, run and close a real model: blocks by the pool's count, the rest by the system's."""
    pytest.importorskip("onnx")
    x = np.zeros((1, 2048), np.int32)

    def cycle():
        with ph.load(MAGIKA) as model:
            return model(x, device=device)

    expected = cycle()
    for _ in range(10):  # caches, threads and arenas of the first time
        cycle()
    gc.collect()
    before = resident()
    for _ in range(100):
        np.testing.assert_array_equal(cycle(), expected)
    gc.collect()
    found = device.memory()
    assert (found.used, found.live) == (0, 0)
    # A leak of a tenth of the model's 3 MiB of weights a time would be 30 MiB.
    assert resident() - before < 16 << 20
    assert device.trim() == found.cached
    assert device.memory().cached == 0


def test_no_driver_is_loaded_for_a_device_nobody_named():
    """Neither listing devices nor running a model elsewhere."""
    code = """
        import sys
        import numpy as np
        import packhorse as ph
        from packhorse.graph.ir import Graph, Node, TensorType, Value
        kind = TensorType(np.dtype("f4"), (4,))
        graph = Graph("g", [Value("x", kind)], [Value("y", kind)], [Node("Neg", ["x"], ["y"])], {})
        assert any(row.backend == "opencl" for row in ph.devices())
        ph.Model(graph)(np.ones(4, "f4"), device="cpu")
        names = [name for name in sys.modules if name.startswith("pyopencl")]
        maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
        print(names, "OpenCL" in maps, "packhorse_opencl.device" in sys.modules)
    """
    lines = [line[8:] for line in code.splitlines()]
    path = os.pathsep.join(p for p in sys.path if p)  # entry points that tests wrote included
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.stdout.strip() == "[] False False"
