"""Opening devices; the built-in cpu device."""

import gc
import os
import signal
import threading

import numpy as np
import pytest

from packhorse import _config
from packhorse._devices import Devices
from packhorse.cpu import INFO, HostDevice
from packhorse.device import (
    CAPABILITIES,
    Backend,
    Device,
    DeviceInfo,
    OptionSpec,
    best_device,
    device,
    devices,
)
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DeviceClosed,
    DeviceError,
    DeviceMemoryError,
    DeviceStringError,
    DeviceUnavailable,
    UnknownBackend,
)
from packhorse.plugin.manager import PluginManager


def test_the_canonical_string_is_the_identity():
    cpu = device("cpu")
    assert cpu is device("CPU:0") is device(cpu)
    assert cpu is not device("cpu?threads=1")
    assert device("cpu?threads=01") is device("cpu?threads=1")
    assert cpu.name == str(cpu) == "cpu:0"
    assert cpu.dlpack_device == (1, 0)
    assert isinstance(cpu, Device)


def test_the_cpu_backend_follows_the_protocol():
    from packhorse.cpu import CpuBackend

    assert isinstance(CpuBackend(), Backend)


def test_closing_forgets_the_device():
    with device("cpu?threads=2") as first:
        assert first.threads == 2
        first.check()
    first.close()
    assert first.closed
    second = device("cpu?threads=2")
    assert second is not first
    for use in (first.check, first.memory, first.trim, first.synchronize, first.__enter__):
        with pytest.raises(DeviceClosed, match=r"packhorse.device\('cpu:0\?threads=2'\)"):
            use()
    with pytest.raises(DeviceError, match="closed"):
        device(first)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("cpu:1", DeviceUnavailable, "one such device (cpu:0"),
        ("cpu?thread=1", DeviceStringError, "did you mean 'threads'?"),
        ("cpu?threads=0", DeviceStringError, "at least 1"),
        ("cpuu", UnknownBackend, "did you mean 'cpu'?"),
        ("nothing,nowhere", DeviceUnavailable, "no backend 'nowhere'"),
        ("rpc://host/cpu", UnknownBackend, "no backend 'rpc'"),
        (7, ArgumentTypeError, "not int"),
    ],
)
def test_refusals(name, kind, words):
    with pytest.raises(kind) as caught:
        device(name)
    assert words in str(caught.value)


def test_no_gpu_is_an_error():
    with pytest.raises(DeviceUnavailable, match="auto:gpu"):
        Devices(PluginManager([])).open("auto:gpu")


def test_a_list_passes_over_what_is_not_there_and_says_so(caplog):
    assert device("nothing,cpu").name == "cpu:0"
    assert "'nothing,cpu': nothing:0 is passed over: no backend 'nothing'" in caplog.text
    with pytest.raises(DeviceStringError):
        device("cpu?oops=1,cpu")


def test_a_single_device_is_never_replaced():
    with pytest.raises(UnknownBackend):
        device("nothing")


def test_none_means_the_variable_then_auto(monkeypatch):
    monkeypatch.setenv("PACKHORSE_DEVICE", "cpu?threads=1")
    assert device().name == "cpu:0?threads=1"
    monkeypatch.setenv("PACKHORSE_DEVICE", "")
    assert device() is best_device() is device("auto")
    assert device("auto:cpu").info.is_host


def test_default_threads_come_from_the_variable(monkeypatch):
    monkeypatch.setenv("PACKHORSE_NUM_THREADS", "3")
    assert HostDevice(INFO, 0, {}).threads == 3
    monkeypatch.setenv("PACKHORSE_NUM_THREADS", "many")
    with pytest.raises(ArgumentValueError, match="PACKHORSE_NUM_THREADS"):
        HostDevice(INFO, 0, {})
    monkeypatch.delenv("PACKHORSE_NUM_THREADS")
    assert 1 <= HostDevice(INFO, 0, {}).threads <= (os.cpu_count() or 1)


def test_memory_is_aligned_counted_and_copied():
    cpu = device("cpu?threads=5")
    before = cpu.memory()
    block = cpu.allocate(1000)
    assert block.address % 128 == 0
    assert block.nbytes == 1000
    data = np.arange(10, dtype=np.int32)
    cpu.copy_from_host(block, data, offset=4)
    back = np.zeros((2, 5), np.int32)
    cpu.copy_to_host(block, back, offset=4)
    assert back.ravel().tolist() == data.tolist()
    during = cpu.memory()
    assert during.used - before.used == 1000
    assert during.allocations - before.allocations == 1
    block.close()
    block.close()
    assert cpu.memory().used == before.used
    assert cpu.memory().peak >= before.used + 1000
    with pytest.raises(DeviceClosed):
        block.array  # noqa: B018


def test_memory_that_is_dropped_is_given_back():
    cpu = device("cpu")
    before = cpu.memory().live
    for _ in range(1000):
        cpu.allocate(64)
    gc.collect()
    assert cpu.memory().live == before


def test_a_finalizer_may_run_while_a_block_is_counted():
    """A collection may start anywhere, and finalize blocks that nobody closed."""
    with HostDevice(INFO, 0, {}) as cpu:
        blocks = [cpu.allocate(8)]

        def collected() -> None:
            with cpu._counters.lock:
                blocks.clear()

        thread = threading.Thread(target=collected, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive(), "the finalizer waits for the lock that its thread holds"
        assert cpu.memory().live == 0


def test_memory_refusals():
    cpu = device("cpu")
    with pytest.raises(ArgumentTypeError, match="float"):
        cpu.allocate(1.5)
    with pytest.raises(ArgumentValueError, match="negative"):
        cpu.allocate(-1)
    with pytest.raises(DeviceMemoryError, match="could not allocate"):
        cpu.allocate(1 << 60)
    block = cpu.allocate(8)
    with pytest.raises(ArgumentValueError, match="does not fit"):
        cpu.copy_from_host(block, np.zeros(3, np.float32))
    with pytest.raises(ArgumentValueError, match="does not fit"):
        cpu.copy_to_host(block, np.zeros(1, np.float32), offset=-1)
    with pytest.raises(ArgumentValueError, match="C-contiguous"):
        cpu.copy_from_host(block, np.zeros((2, 2), np.int8).T)
    with pytest.raises(ArgumentTypeError, match="objects"):
        cpu.copy_from_host(block, np.array([None]))
    frozen = np.zeros(8, np.int8)
    frozen.flags.writeable = False
    with pytest.raises(ArgumentValueError, match="read-only"):
        cpu.copy_to_host(block, frozen)
    with pytest.raises(ArgumentTypeError, match="not host memory"):
        cpu.copy_from_host(_Foreign(), np.zeros(1, np.int8))
    assert cpu.allocate(0).nbytes == 0


class _Foreign:
    nbytes, address = 8, 0

    def close(self):
        pass


def test_capabilities_are_looked_up_when_opened():
    class Compiling(HostDevice):
        target = "x"

        def compile(self, functions):
            return functions

    assert Compiling(INFO, 0, {}).capabilities == {"compile", "target"}
    assert device("cpu").capabilities <= set(CAPABILITIES)


def test_opening_in_threads_gives_one_device():
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(device("cpu?threads=9"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(d) for d in found}) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_open_devices():
    from packhorse._devices import default_devices

    devices, held, done = default_devices(), threading.Event(), threading.Event()

    def opening():
        with devices._lock, devices.manager.lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=opening)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if device("cpu?threads=7").name == "cpu:0?threads=7" else 1)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_list_of_devices():
    rows = devices()
    cpu = next(row for row in rows if row.backend == "cpu")
    assert (cpu.status, cpu.device) == ("ok", "cpu:0")
    probed = next(row for row in devices(probe=True) if row.backend == "cpu")
    assert probed.memory
    assert DeviceInfo(**probed.to_json()) == probed


def test_option_values():
    flag = OptionSpec(bool, "x")
    assert [flag.parse(t) for t in ("1", "off", "YES")] == [True, False, True]
    assert flag.format(True) == "1"
    word = OptionSpec(str, "x", choices=("a", "b"))
    assert word.parse("a") == "a"
    with pytest.raises(ValueError, match="one of a, b"):
        word.parse("c")
    with pytest.raises(ValueError, match=r"at least 0\.5"):
        OptionSpec(float, "x", minimum=0.5).parse("nan")


def test_device_info_refuses_unknown_words():
    with pytest.raises(ValueError, match="status 'fine'"):
        DeviceInfo("x", status="fine")


def test_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("PACKHORSE_CACHE_DIR", str(tmp_path / "c"))
    assert _config.cache_dir("a", "b") == tmp_path / "c" / "a" / "b"
    assert _config.cache_usage() == (0, 0)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x").write_bytes(b"123")
    assert _config.cache_usage() == (1, 3)
    monkeypatch.delenv("PACKHORSE_CACHE_DIR")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _config.cache_dir() == tmp_path / "packhorse"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert _config.cache_dir() == tmp_path / "home" / ".cache" / "packhorse"
    assert _config.names(" b,A,,b ") == ("b", "a")
    with pytest.raises(KeyError, match="PACKHORSE_NEW"):
        _config.setting("PACKHORSE_NEW")
