"""The llvm-cpu backend: device, module, cached objects, exported libraries."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from codegen_kit import at, dense, to

import packhorse_llvm_cpu.module as module_file
import packhorse_llvm_cpu.target as target_file
from packhorse.compiler.schedule import schedule
from packhorse.errors import (
    CompileError,
    DeviceClosed,
    DeviceStringError,
    DeviceUnavailable,
    MissingExtra,
)
from packhorse.kernel import Kernel
from packhorse.module import load_module
from packhorse_llvm_cpu.device import LlvmCpuDevice
from packhorse_llvm_cpu.module import link_objects
from packhorse_llvm_cpu.plugin import INFO, LlvmCpuBackend


def open_device(**options) -> LlvmCpuDevice:
    return LlvmCpuBackend().open(0, options)


def doubling(n: int = 100_000) -> Kernel:
    value = at("x", "i") * 2.0
    return Kernel("double", (("i", n),), (to("y", ("i",), value),),
                  {"x": dense(n), "y": dense(n)})  # fmt: skip


def functions(device: LlvmCpuDevice, *names: str):
    kernel = doubling()
    return [(name, kernel, schedule(kernel, device.target)) for name in names]


def test_device_compiles_runs_and_closes():
    with open_device(threads=2) as device:
        assert device.name == "llvm-cpu:0?threads=2"
        assert {"compile", "target"} <= device.capabilities
        assert device.target.threads == 2
        device.check()
        module = device.compile(functions(device, "twice", "again"))
        assert module.functions == ["twice", "again"]
        x, y = np.arange(100_000, dtype=np.float32), np.zeros(100_000, np.float32)
        module["again"](x, y)
        np.testing.assert_array_equal(y, 2 * x)
    with pytest.raises(DeviceClosed):
        device.compile([])


def test_functions_outlive_their_module():
    device = open_device()
    function = device.compile(functions(device, "f"))["f"]
    x, y = np.ones(100_000, np.float32), np.zeros(100_000, np.float32)
    function(x, y)
    assert y.sum() == 200_000


def test_empty_module_and_equal_symbols():
    device = open_device()
    assert device.compile([]).functions == []
    with pytest.raises(CompileError, match="symbol 'f' names two kernels"):
        device.compile(functions(device, "f", "f"))


def test_options():
    with pytest.raises(DeviceUnavailable, match="does not exist"):
        LlvmCpuBackend().open(1, {})
    with pytest.raises(DeviceStringError, match="unknown CPU"):
        open_device(cpu="pentium")
    if target_file.host_target().arch == "x86_64":
        assert open_device(cpu="x86-64").target.vector_bytes == 16
        open_device(cpu="x86-64").check()


def test_a_cpu_this_machine_is_not(monkeypatch):
    weak = replace(target_file.host_target(), features=("-avx512f",), vector_bytes=16)
    real = target_file.host_target
    monkeypatch.setattr(
        "packhorse_llvm_cpu.device.host_target",
        lambda cpu="", threads=0: real(cpu, threads) if cpu else weak,
    )
    if real().arch == "x86_64":
        with pytest.raises(DeviceUnavailable, match="cannot run code for 'x86-64-v4'"):
            open_device(cpu="x86-64-v4")


def test_through_the_plugin_manager():
    from packhorse.device import device as open_by_name

    device = open_by_name("llvm-cpu?threads=1")
    assert device.name == "llvm-cpu:0?threads=1"
    device.check()
    (row,) = LlvmCpuBackend().probe()
    assert row.driver.startswith("LLVM ")
    assert INFO.requires == ("llvmlite",)


def test_missing_llvmlite_gives_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    from packhorse_llvm_cpu import plugin

    with pytest.raises(MissingExtra, match=r"pip install 'packhorse\[llvm-cpu\]'"):
        plugin.packhorse_open_backend()


# -- exported libraries -------------------------------------------------------------------------


def test_exported_library_runs_without_llvmlite(tmp_path):
    device = open_device(threads=2)
    path = device.compile(functions(device, "twice")).export_library(tmp_path / "lib.so")
    script = f"""
import sys
sys.modules["llvmlite"] = None
sys.path[:0] = {[p for p in sys.path if p]!r}
import numpy as np
from packhorse.module import load_module
x, y = np.arange(100_000, dtype=np.float32), np.zeros(100_000, np.float32)
load_module({str(path)!r})["twice"](x, y)
assert (y == 2 * x).all()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert load_module(path).functions == ["twice", "__tvm_main__"]


def test_no_linker(tmp_path, monkeypatch):
    monkeypatch.setattr(module_file, "_linkers", lambda: iter(()))
    with pytest.raises(CompileError, match=r"no linker was found.*packhorse\[link\]"):
        link_objects([b""], tmp_path / "x.so")
    assert list(tmp_path.iterdir()) == []


def test_linker_failure_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.so"
    path.write_bytes(b"old")
    with pytest.raises(CompileError, match="failed with every linker") as caught:
        link_objects([b"garbage"], path)
    assert "exit code" in caught.value.log
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("which", range(4))
def test_every_linker_that_is_here(tmp_path, monkeypatch, which):
    commands = list(module_file._linkers())
    if which >= len(commands):
        pytest.skip("no further linker")
    monkeypatch.setattr(module_file, "_linkers", lambda: iter([commands[which]]))
    device = open_device()
    path = device.compile(functions(device, "f", "g")).export_library(tmp_path / "l.so")
    assert sorted(load_module(path).functions) == ["f", "g"]


# -- cached objects -----------------------------------------------------------------------------


def test_second_compilation_comes_from_the_cache(monkeypatch):
    device = open_device()
    first = device.compile(functions(device, "cached")).objects
    monkeypatch.setattr("packhorse_llvm_cpu.codegen.emit_llvm", None)
    assert open_device().compile(functions(device, "cached")).objects == first
