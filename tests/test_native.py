"""Plans, workspace, errors through C, thread count, aligned memory."""

import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from native_kit import SOURCE, compile_c, floats

from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    FunctionNotFound,
    PackhorseError,
)
from packhorse.function import register_func, remove_global_func
from packhorse.module import NativeModule
from packhorse.native import Library, Plan, Slot, aligned_empty, cpus, slot_addresses, thread_count
from packhorse.native.runtime import lib, runtime_addresses


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return NativeModule(Library(compile_c(SOURCE, tmp_path_factory.mktemp("native") / "k.so")))


def address(module, name):
    return module[name].address


# ---------------------------------------------------------------- plans


def test_plan_runs_steps_in_order(module):
    a, b, c, d = floats(100, 1), floats(100, 2), floats(100), floats(100)
    sa, sb, sc, sd = (Slot((100,), "float32", x.ctypes.data) for x in (a, b, c, d))
    add = address(module, "add")
    plan = Plan([(add, (sa, sb, sc)), (add, (sc, sc, sd)), (address(module, "nop"), ())])
    assert len(plan) == 3
    plan.run()
    assert (d == 6).all()


def test_slot_data_can_change_between_runs(module):
    a, c, d = floats(8, 1), floats(8), floats(8)
    s, out = Slot((8,), "float32", a.ctypes.data), Slot((8,), "float32", c.ctypes.data)
    plan = Plan([(address(module, "add"), (s, s, out))])
    plan.run(1)
    out.data = d.ctypes.data
    assert out.data == d.ctypes.data
    plan.run(1)
    assert (c == 2).all()
    assert (d == 2).all()
    assert repr(out) == f"Slot((8,), 'float32', data={d.ctypes.data:#x})"


def test_plan_keeps_its_slots_alive(module):
    a, c = floats(8, 1), floats(8)
    plan = Plan(
        [(address(module, "add"), [Slot((8,), "float32", x.ctypes.data) for x in (a, a, c)])]
    )
    plan.run(1)
    assert (c == 2).all()


def test_empty_plan():
    Plan([]).run(1)


def test_slot_encodes_dtypes_as_tvm_does():
    for name, code in {"float32": (2, 32), "bool": (1, 1), "bfloat16": (4, 16)}.items():
        pointer = Slot((2, 3), name, 0).pointer
        assert (pointer.dtype.code, pointer.dtype.bits, pointer.dtype.lanes) == (*code, 1)
    assert (pointer.ndim, pointer.shape[1], pointer.byte_offset) == (2, 3, 0)
    assert (pointer.device.device_type, pointer.device.device_id) == (1, 0)


def test_plan_stops_at_the_first_error(module):
    c = floats(8)
    s = Slot((8,), "float32", c.ctypes.data)
    one = Slot((8,), "float32", floats(8, 1).ctypes.data)
    steps = [(address(module, "fail"), ()), (address(module, "add"), (one, one, s))]
    with pytest.raises(PackhorseError, match=r"step 0 of 2 \('conv1'\) failed: the kernel says no"):
        Plan(steps, ["conv1", "add1"]).run(1)
    assert (c == 0).all()


def test_silent_error_does_not_show_an_older_message(module):
    with pytest.raises(PackhorseError, match="says no"):
        Plan([(address(module, "fail"), ())]).run(1)
    with pytest.raises(PackhorseError, match="gave no reason"):
        Plan([(address(module, "fail_silently"), ())]).run(1)


def test_profile(module):
    seconds = Plan([(address(module, "nop"), ())] * 3).profile(1)
    assert seconds.shape == (3,)
    assert (seconds >= 0).all()
    with pytest.raises(PackhorseError, match="step 0"):
        Plan([(address(module, "fail"), ())]).profile(1)


def test_bad_steps_are_refused():
    with pytest.raises(ArgumentValueError, match="step 0 has address 0"):
        Plan([(0, ())])
    with pytest.raises(ArgumentTypeError, match="step 1 has an argument of type ndarray"):
        Plan([(1, ()), (1, [np.zeros(3)])])


# ---------------------------------------------------------------- workspace


def test_workspace_is_aligned_and_reused(module):
    lib.ph_workspace_trim()
    assert module["workspace"](100) == 0
    held = lib.ph_workspace_held()
    assert held == 3 * 4096
    assert module["workspace"](1000) == 0
    assert lib.ph_workspace_held() == held
    assert module["workspace"](100_000) == 0
    assert lib.ph_workspace_held() > held
    lib.ph_workspace_trim()
    assert lib.ph_workspace_held() == 0


def test_workspace_out_of_order_and_empty(module):
    assert module["workspace_order"]() is None
    assert module["workspace"](0) == 0


def test_workspace_is_per_thread(module):
    module["workspace"](100)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(lib.ph_workspace_held()))
    thread.start()
    thread.join()
    assert seen == [0]


def test_workspace_errors(module):
    with pytest.raises(ArgumentTypeError, match=r"on a device 'cuda' .* no argument lies on one"):
        module["workspace_gpu"]()
    with pytest.raises(PackhorseError, match="did not allocate"):
        module["workspace_bad_free"]()
    with pytest.raises(PackhorseError, match="out of memory"):
        module["workspace"](2**60)


# ---------------------------------------------------------------- calls back into Python


@pytest.fixture(scope="module")
def helper():
    """What the global function runs; the compiled caller keeps the handle of that function."""
    calls = SimpleNamespace(run=lambda *args: None)
    register_func("test.native.helper", lambda *args: calls.run(*args))
    yield calls
    remove_global_func("test.native.helper")


def test_compiled_code_calls_a_global_function(module, helper):
    helper.run = lambda *args: repr(args)
    assert module["call_helper"](1, 2.5, "x", b"y", None) == "(1, 2.5, 'x', b'y', None)"
    helper.run = lambda x: x.sum().item()
    assert module["call_helper"](floats(4, 2)) == 8.0

    def write(x):
        x[:] = 7

    helper.run = write
    data = floats(4)
    assert module["call_helper"](data) is None
    assert (data == 7).all()


def test_python_exception_comes_out_as_itself(module, helper):
    class Odd(Exception):
        pass

    def fails():
        raise Odd("here")

    helper.run = fails
    for call in (module["call_helper"], Plan([(address(module, "call_helper"), ())]).run):
        with pytest.raises(Odd, match="here") as caught:
            call()
        assert "fails" in [entry.name for entry in caught.traceback]


def test_python_exception_in_a_worker_task(module):
    def odd_one_out(i):
        if i == 1:
            raise KeyError("task", i)

    bound = module["call_in_parallel"].bind(odd_one_out)
    bound.threads = 3
    for _ in range(20):
        with pytest.raises(KeyError, match="task"):
            bound()
    bound.threads = 1
    assert bound() is None


def test_compiled_code_asks_for_an_unknown_function(module):
    with pytest.raises(FunctionNotFound, match=r"calls 'test.native.helpr', which is neither"):
        module["call_missing"]()


def test_results_compiled_code_cannot_take(module, helper):
    helper.run = lambda: floats(3)
    with pytest.raises(ArgumentTypeError, match="cannot take a tensor as result"):
        module["call_helper"]()


# ---------------------------------------------------------------- small things


def test_slots_have_addresses():
    for abi, other in (("legacy", "ffi"), ("ffi", "legacy")):
        slots, plain = slot_addresses(abi), runtime_addresses(abi)
        assert len(set(slots.values())) >= len(slots) - 2  # renamed ones are the same
        assert all(value > 0 for value in plain.values())
        assert all(plain[name.removeprefix("__")] == value for name, value in slots.items())
        launch, lookup = "__TVMBackendParallelLaunch", "__TVMBackendGetFuncFromEnv"
        assert slots[launch] == slot_addresses(other)[launch]
        assert slots[lookup] != slot_addresses(other)[lookup]
    assert lib.ph_runtime_address(b"nonsense", 0) == 0
    assert lib.ph_runtime_address(b"TVMFuncCall", 1) == 0


@pytest.mark.parametrize("nbytes", [0, 1, 127, 128, 10_000_000])
def test_aligned_empty(nbytes):
    array = aligned_empty(nbytes)
    assert (array.nbytes, array.dtype) == (nbytes, np.uint8)
    assert nbytes == 0 or array.ctypes.data % 128 == 0
    with pytest.raises(ArgumentValueError, match="negative"):
        aligned_empty(-1)


def test_out_of_memory():
    with pytest.raises(MemoryError, match="could not allocate"):
        aligned_empty(2**62)


@pytest.mark.parametrize("text", ["0", "-1", "many"])
def test_thread_count_refuses_nonsense(monkeypatch, text):
    monkeypatch.setenv("PACKHORSE_NUM_THREADS", text)
    with pytest.raises(ArgumentValueError, match="PACKHORSE_NUM_THREADS"):
        thread_count.__wrapped__()


def test_thread_count_is_never_more_than_available(monkeypatch):
    monkeypatch.setenv("PACKHORSE_NUM_THREADS", "1")
    assert thread_count.__wrapped__() == 1
    monkeypatch.setenv("PACKHORSE_NUM_THREADS", "100000")
    assert thread_count.__wrapped__() == cpus.available_cpus()
    monkeypatch.delenv("PACKHORSE_NUM_THREADS")
    assert 1 <= thread_count.__wrapped__() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("proc", "files", "quota"),
    [
        ("0::/a/b", {"a/b/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1.0),
        ("0::/outside", {"cpu.max": "400000 100000"}, 4.0),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {}, None),
        (
            "4:cpu,cpuacct:/x",
            {
                "cpu,cpuacct/x/cpu.cfs_quota_us": "50000",
                "cpu,cpuacct/x/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:memory:/", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "1"}, None),
        ("garbage", {"cpu.max": "1"}, None),
    ],
)
def test_cgroup_quota(tmp_path, proc, files, quota):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(proc + "\n")
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert cpus.cgroup_quota(tmp_path) == quota
