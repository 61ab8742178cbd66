"""The package that generates code: its kernels, its compiler, its cache, and what goes wrong."""

import gc
import importlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import packhorse as ph
from packhorse.cli._new_backend import create
from packhorse.compiler.gpu_schedule import gpu_schedule
from packhorse.device import parse
from packhorse.disk_cache import DiskCache
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    CompileError,
    DeviceClosed,
    DeviceUnavailable,
)
from packhorse.kernel.doubling import doubling_kernel
from packhorse.testing.graphs import GRAPHS

MODULES = ("packhorse_acme", "packhorse_acme.backend", "packhorse_acme.language",
           "packhorse_acme.plugin", "packhorse_acme.toolchain")  # fmt: skip

COMPILERS = ("cc", "gcc", "clang")
pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, COMPILERS)),
    reason=f"the package needs a C compiler: {', '.join(COMPILERS)}",
)


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """The modules of a package written a moment ago."""
    monkeypatch.syspath_prepend(str(create("acme", tmp_path, "codegen")))
    monkeypatch.delenv("CC", raising=False)
    others = forget()  # another test's package of that name
    found = {name.rpartition(".")[2]: importlib.import_module(name) for name in MODULES}
    yield type("Acme", (), found)
    forget()
    sys.modules.update(others)


def forget():
    """Take the package's modules out of ``sys.modules``; returns them."""
    names = [name for name in sys.modules if name.partition(".")[0] == "packhorse_acme"]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def device(acme, tmp_path):
    with acme.backend.AcmeBackend(tmp_path / "cache").open(0, {}) as opened:
        yield opened


def double(device):
    """The kernel of check(), compiled."""
    kernel = doubling_kernel()
    return device.compile([("double", kernel, gpu_schedule(kernel, device.target))])["double"]


def test_models_are_compiled_to_native_code(acme, device):
    example = GRAPHS["cnn"]()
    with ph.Model(example.graph) as model:
        result = model(**example.feeds, device=device)
        (ready,) = model._ready.values()
        assert {row.device for row in ready.report()} == {"acme:0"}
    np.testing.assert_allclose(result, example.wanted[0], rtol=1e-5, atol=1e-6)


def test_the_text_is_what_the_tutorial_says(acme, device):
    kernel = doubling_kernel()
    text = acme.language.program([("double", kernel, gpu_schedule(kernel, device.target))])
    assert "static inline void k_double(const float* p0, float* p1, long long item) {" in text
    assert "item < items; ++item) k_double(p[0], p[1], item);" in text
    assert "kernels[])(void**, long long) = {launch_double, 0};" in text


def test_kernels_are_packed_functions(device):
    function, data = double(device), np.array([1, 2, 3], np.float32)
    x, y = ph.tensor(data, device=device), ph.empty((3,), "float32", device)
    assert function(x, y) is None
    np.testing.assert_array_equal(y.numpy(), 2 * data)
    call = function.bind(x, y)
    x.copy_from(data * 5)
    call()
    np.testing.assert_array_equal(y.numpy(), 10 * data)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda x, y, _: (x,), ArgumentValueError, r"takes 2 tensors \(x, y\), 1 were given"),
        (lambda x, y, _: (np.ones(3, "f4"), y), ArgumentTypeError, "argument 0 .* a ndarray; copy"),
        (lambda x, y, d: (x, ph.tensor([1.0, 2.0, 3.0], "float32")), ArgumentTypeError,
         "must be a tensor on acme:0, found cpu:0"),
        (lambda x, y, d: (x, ph.tensor([1, 2, 3], "int32", device=d)), ArgumentTypeError,
         "must be float32, found int32"),
        (lambda x, y, d: (ph.tensor([1.0], "float32", device=d), y), ArgumentValueError,
         r"must have shape \(3,\) or 3 elements, found \(1,\)"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(device, make, error, words):
    x, y = (ph.tensor([1.0, 2.0, 3.0], "float32", device=device) for _ in range(2))
    with pytest.raises(error, match=words):
        double(device)(*make(x, y, device))


def test_wrong_blocks_are_named(device):
    function = double(device)
    small, right = device.allocate(11), device.allocate(12)
    with pytest.raises(ArgumentValueError, match="needs 12 bytes for 'y', the block has 11"):
        function.bind_memory([right, small])
    with pytest.raises(ArgumentValueError, match="takes 2 blocks"):
        function.bind_memory([right])
    small.close()
    right.close()
    with pytest.raises(DeviceClosed, match="this block of device memory was closed"):
        function.bind_memory([right, right])
    device.close()
    with pytest.raises(DeviceClosed, match="device 'acme:0' is closed"):
        function.bind_memory([])


def test_what_is_bound_stays_alive(device):
    x, y = device.allocate(12), device.allocate(12)
    module = device.compile([("f", doubling_kernel(), gpu_schedule(doubling_kernel(),
                                                                   device.target))])  # fmt: skip
    call = module["f"].bind_memory([x, y])
    module.close()
    x.close()
    y.close()
    del module, x, y
    gc.collect()
    call()  # into memory nobody sees: it must still be there


def test_a_text_is_compiled_once(acme, tmp_path, monkeypatch):
    built = []
    run = acme.toolchain.run
    monkeypatch.setattr(acme.toolchain, "run", lambda line: (built.append(line), run(line)))
    backend = acme.backend.AcmeBackend(tmp_path / "cache")
    for _ in range(3):
        with backend.open(0, {}) as opened:
            opened.check()
    assert len(built) == 1
    assert "-shared" in built[0]


def test_a_damaged_cache_is_built_anew(acme, tmp_path):
    backend = acme.backend.AcmeBackend(tmp_path / "cache")
    with backend.open(0, {}) as opened:
        opened.check()
        (kept,) = (tmp_path / "cache").iterdir()
        kept.write_bytes(kept.read_bytes()[:-9])
        opened.check()


def test_no_cache_is_no_error(acme, tmp_path):
    (tmp_path / "file").write_text("")
    with acme.backend.AcmeBackend(tmp_path / "file").open(0, {}) as opened:
        opened.check()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see libraries")
def test_libraries_are_unloaded(device):
    def loaded():
        gc.collect()
        return Path("/proc/self/maps").read_text().count("kernels.so")

    before = loaded()
    function = double(device)
    assert loaded() > before
    del function
    assert loaded() == before


def test_a_text_that_is_refused_shows_the_log(acme, tmp_path):
    compiler, cache = acme.toolchain.find_compiler(), DiskCache(tmp_path / "cache")
    with pytest.raises(CompileError) as caught:
        acme.toolchain.load("int broken(void) { return misspelt; }", compiler, cache)
    assert str(caught.value).startswith("acme: the C compiler refused the generated kernels\n")
    assert "kernels.c:1" in caught.value.log
    assert "misspelt" in caught.value.log
    assert not (tmp_path / "cache").exists()


def test_what_cannot_be_loaded_is_a_compile_error(acme, tmp_path):
    text = "extern int ph_nowhere(void); int (*const kernels[])(void) = {ph_nowhere, 0};"
    with pytest.raises(CompileError, match="cannot be loaded") as caught:
        acme.toolchain.load(text, acme.toolchain.find_compiler(), DiskCache(tmp_path / "cache"))
    assert "ph_nowhere" in caught.value.log


def test_the_compiler_is_looked_for(acme, tmp_path, monkeypatch):
    find = acme.toolchain.find_compiler
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(DeviceUnavailable, match=r"\$CC is 'no-such-compiler'"):
        find()
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "clang").write_text("#!/bin/sh\n")
    (folder / "clang").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("CC", "")
    assert find() == [str(folder / "clang")]
    monkeypatch.setenv("CC", "clang -m32")
    assert find() == ["clang", "-m32"]


def test_ziglang_is_a_compiler(acme, monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(acme.toolchain, "find_spec", lambda name: name == "ziglang")
    assert acme.toolchain.find_compiler() == [sys.executable, "-m", "ziglang", "cc"]


def test_without_a_compiler_the_device_says_what_to_install(acme, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(acme.toolchain, "find_spec", lambda _: None)
    backend = acme.backend.AcmeBackend(tmp_path)
    with pytest.raises(DeviceUnavailable, match="apt-get install gcc, or pip install ziglang"):
        backend.open(0, {})
    (row,) = backend.probe()
    assert row.status == "no driver"
    assert row.reason.startswith("acme: no C compiler was found")
    assert row.fix == "Install one: apt-get install gcc, or pip install ziglang"


def test_the_probe_names_the_compiler(acme, tmp_path, monkeypatch):
    monkeypatch.setenv("CC", f"{sys.executable} -c pass")
    (row,) = acme.backend.AcmeBackend(tmp_path).probe()
    assert (row.status, row.name) == ("ok", f"Acme through {sys.executable} -c pass")
    assert str(parse(row.device)) == "acme:0"
