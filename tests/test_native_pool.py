"""The thread pool: every task runs once, errors come back, nesting, forks, many launchers."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from native_kit import SOURCE, compile_c, floats

from packhorse.errors import PackhorseError
from packhorse.native import Library, Plan, Slot, aligned_empty, thread_count
from packhorse.native.runtime import lib


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return Library(compile_c(SOURCE, tmp_path_factory.mktemp("pool") / "kernels.so"))


def plan(kernels, name, *arrays, shape=None):
    slots = [Slot(shape or a.shape, a.dtype.name, a.ctypes.data) for a in arrays]
    return Plan([(kernels.symbol(name), slots)])


def counts(kernels, name, threads, num_task):
    """Run a counting kernel; (how often each task ran, number of tasks it was told)."""
    found = aligned_empty(256).view(np.int32)
    found[:] = 0
    plan(kernels, name, found, shape=(64, num_task)).run(threads)
    return found[:63][found[:63] > 0].tolist(), int(found[63])


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_work_is_split_and_complete(kernels, threads):
    a, b, c = floats(10007, 1), floats(10007, 2), floats(10007)
    run = plan(kernels, "add", a, b, c)
    for _ in range(50):
        c[:] = 0
        run.run(threads)
        assert (c == 3).all()


@pytest.mark.parametrize(
    ("threads", "num_task", "tasks"), [(1, 0, 1), (4, 0, 4), (4, 2, 2), (1, 5, 1), (2, 40, 40)]
)
def test_every_task_runs_once(kernels, threads, num_task, tasks):
    assert counts(kernels, "tasks", threads, num_task) == ([1] * tasks, tasks)


def test_zero_threads_means_default(kernels):
    assert counts(kernels, "tasks", 0, 0) == ([1] * thread_count(), thread_count())


def test_nested_launch_is_serial(kernels):
    assert counts(kernels, "nested", 3, 0) == ([3], 1)


def test_workers_sleep_and_wake(kernels):
    a, b, c = floats(64, 1), floats(64, 2), floats(64)
    run = plan(kernels, "add", a, b, c)
    for _ in range(5):
        c[:] = 0
        run.run(2)
        threading.Event().wait(0.002)  # longer than workers spin
        assert (c == 3).all()


def test_error_of_a_worker_reaches_the_launcher(kernels):
    for threads in (1, 2, 4):
        with pytest.raises(PackhorseError, match="step 0 of 1 failed: the last task says no"):
            plan(kernels, "fail_parallel").run(threads)


def test_barrier(kernels):
    data = floats(32)
    for threads in (1, 2, 4):
        data[:] = 0
        plan(kernels, "barrier", data, shape=(32, 0)).run(threads)
        assert (data[16 : 16 + threads] == 1).all()


def test_barrier_needs_a_thread_per_task(kernels):
    with pytest.raises(PackhorseError, match="more tasks than it has threads"):
        plan(kernels, "barrier", floats(32), shape=(32, 8)).run(2)


@pytest.mark.parametrize("name", ["add", "barrier"])
def test_many_launchers_at_once(kernels, name):
    wrong = []

    def launch():
        if name == "add":
            data = floats(1000, 1), floats(1000, 2), floats(1000)
            run, shape = plan(kernels, name, *data), data[2]
        else:
            shape = floats(32)
            run = plan(kernels, name, shape, shape=(32, 0))
        for _ in range(30):
            run.run(3)
        if name == "add" and not (shape == 3).all():
            wrong.append(shape)

    launchers = [threading.Thread(target=launch) for _ in range(20)]
    for thread in launchers:
        thread.start()
    for thread in launchers:
        thread.join(60)
    assert not wrong
    assert not any(thread.is_alive() for thread in launchers)


def test_gil_is_released(kernels):
    """Another Python thread runs while a plan does: they meet in the middle of one run."""
    found = aligned_empty(256).view(np.int32)
    found[:] = 0
    run = plan(kernels, "tasks", found, shape=(64, 60))
    thread = threading.Thread(target=run.run, args=(2,))  # 60 tasks of 0.2 ms
    thread.start()
    seen = set()
    while thread.is_alive():
        seen.add(int(found[:60].sum()))
    thread.join()
    assert found[:60].sum() == 60
    assert len(seen) > 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_gets_a_fresh_pool(kernels):
    a, b, c = floats(1000, 1), floats(1000, 2), floats(1000)
    run = plan(kernels, "add", a, b, c)
    run.run(3)
    assert lib.ph_pool_workers() >= 2
    child = os.fork()
    if child == 0:
        code = 1
        try:
            fresh = lib.ph_pool_workers() == 0
            c[:] = 0
            run.run(3)
            code = 0 if fresh and (c == 3).all() and lib.ph_pool_workers() == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    run.run(3)


def run_script(script, *args):
    """Run Python code in a new process; its output."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


TASKS = """
import numpy as np
from packhorse.native import Library, Plan, Slot, aligned_empty
k = Library(sys.argv[1])
a = aligned_empty(256).view(np.int32)
for round in range(3):
    a[:] = 0
    Plan([(k.symbol('tasks'), [Slot((64, 0), 'int32', a.ctypes.data)])]).run(4)
    print(a[:5].tolist())
    time.sleep(0.01)
"""


def test_process_ends_with_sleeping_workers(kernels):
    assert run_script("import sys, time\n" + TASKS, kernels.path) == "[1, 1, 1, 1, 0]\n" * 3


def test_pool_without_futex(kernels, tmp_path):
    """The portable way of sleeping, for systems other than Linux."""
    pytest.importorskip("setuptools", reason="needs a way to compile an extension")
    from packhorse.native.build import build_in_place

    other = build_in_place(tmp_path, macros=(("PH_PORTABLE", None),))
    load = """
import importlib.util, sys, time
name = "packhorse.native._core"
spec = importlib.util.spec_from_file_location(name, sys.argv[2])
sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])
"""
    assert run_script(load + TASKS, kernels.path, other) == "[1, 1, 1, 1, 0]\n" * 3
