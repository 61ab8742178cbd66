"""Modules: libraries of TVM and of a C compiler, imports, addresses, damaged files."""

import contextlib
import gc
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

import numpy as np
import pytest
from native_kit import SOURCE, compile_c, floats

import packhorse as ph
from packhorse.errors import (
    ArgumentTypeError,
    ArtifactError,
    DeviceClosed,
    FunctionNotFound,
)
from packhorse.module import AddressModule, PythonModule, load_module
from packhorse.native import Library

TVM = Path(__file__).parent / "data" / "tvm" / "legacy_myadd"


@pytest.fixture(scope="module")
def library_path(tmp_path_factory):
    return compile_c(SOURCE, tmp_path_factory.mktemp("module") / "kernels.so")


@pytest.fixture
def copy(library_path, tmp_path):
    return Path(shutil.copy(library_path, tmp_path / "copy.so"))


# ---------------------------------------------------------------- compiled by TVM


@pytest.mark.parametrize(("file", "name"), [("deploy", "myadd"), ("deploy_par", "myadd_par")])
def test_library_compiled_by_tvm(file, name):
    lib = ph.load_module(TVM / f"{file}.so")
    a, b, expected = (np.load(TVM / f"{n}.npy") for n in "abc")
    out = ph.empty(expected.shape)
    lib[name](a, ph.tensor(b), out)
    np.testing.assert_array_equal(out.numpy(), expected)
    assert lib.functions == [name, "__tvm_main__"]
    out.numpy()[:] = 0
    lib["__tvm_main__"](a, b, out)
    np.testing.assert_array_equal(out.numpy(), expected)
    for threads in (1, 2):
        bound = lib[name].bind(a, b, out)
        bound.threads = threads
        out.numpy()[:] = 0
        bound()
        np.testing.assert_array_equal(out.numpy(), expected)


def test_tvm_libraries_do_not_share_slots():
    """Both files define the same weak pointers; each must get its own filled."""
    first, second = ph.load_module(TVM / "deploy.so"), ph.load_module(TVM / "deploy_par.so")
    name = "__TVMAPISetLastError"
    assert first.library.symbol(name) != second.library.symbol(name)
    assert first.library.read(name) == second.library.read(name) != bytes(8)


# ---------------------------------------------------------------- functions and imports


def test_functions_of_a_library(library_path):
    lib = load_module(library_path)
    assert lib["echo_int"](41) == 42
    assert lib["__tvm_main__"](41) == 42
    assert lib["add"] is lib["add"]
    assert {"add", "echo", "__tvm_main__"} <= set(lib)
    assert "add" in lib
    assert "ad" not in lib
    assert 3 not in lib
    assert not [name for name in lib.functions if name.startswith("_") and name != "__tvm_main__"]
    assert repr(lib).startswith("<NativeModule kernels.so: ")


@pytest.mark.parametrize("name", ["echoo", "_init", "__TVMFuncCall", "cached", ""])
def test_missing_function(library_path, name):
    with pytest.raises(FunctionNotFound, match=f"'kernels.so' has no function '{name}'"):
        load_module(library_path)[name]


def test_missing_function_gets_a_hint(library_path):
    with pytest.raises(FunctionNotFound, match=r"did you mean 'count_args'\?\); it has \d+: nop,"):
        load_module(library_path)["cuont_args"]


def test_imports():
    leaf = PythonModule({"f": lambda: "leaf", "g": lambda: "leaf g"}, "leaf")
    middle = PythonModule({"f": lambda: "middle"}, "middle")
    root = PythonModule({"r": lambda: "root"}, "root")
    root.import_module(middle)
    middle.import_module(leaf)
    assert root.imports == (middle,)
    assert root.get_function("f", query_imports=True)() == "middle"
    assert root.get_function("g", True)() == "leaf g"
    with pytest.raises(FunctionNotFound, match="it has 1: r"):
        root.get_function("f")
    with pytest.raises(ArgumentTypeError, match="a Module is imported, not a dict"):
        root.import_module({})


def test_compiled_code_finds_imports_before_global_functions(copy):
    lib = load_module(copy)
    lib.import_module(PythonModule({"test.native.helper": lambda x: x * 10}))
    ph.register_func("test.native.helper", lambda x: -1, override=True)
    try:
        assert lib["call_helper"](7) == 70
    finally:
        ph.remove_global_func("test.native.helper")
    assert lib["call_helper"](8) == 80  # the handle it keeps outlives registration
    lib.close()


def test_close(copy):
    lib = load_module(copy)
    function = lib["echo_int"]
    with lib:
        pass
    lib.close()
    assert function(1) == 2
    for use in (lambda: lib["echo_int"], lambda: lib.functions, lib.__enter__):
        with pytest.raises(DeviceClosed, match=r"'copy.so' was used after close"):
            use()
    assert repr(lib) == "<NativeModule copy.so: closed>"
    assert load_module(copy)["echo_int"](1) == 2


def test_modules_are_freed(copy):
    alive = []
    for _ in range(20):
        lib = load_module(copy)
        lib["echo"](1)
        alive.append(weakref.ref(lib))
        lib.close()
        del lib
    gc.collect()
    assert not any(ref() for ref in alive)


def test_address_module(library_path):
    class Owner:
        pass

    library, owner = Library(library_path), Owner()
    alive = weakref.ref(owner)
    jit = AddressModule({"add": library.symbol("add")}, owner)
    del owner
    assert jit.functions == ["add"]
    assert jit["add"].address == library.symbol("add")
    out = floats(8)
    jit["add"](floats(8, 1), floats(8, 2), out)
    assert (out == 3).all()
    with pytest.raises(FunctionNotFound, match="module 'jit' has no function 'sub'"):
        jit["sub"]
    function = jit["add"]
    jit.close()
    assert alive() is not None
    del function
    assert alive() is None


# ---------------------------------------------------------------- files


def test_the_same_file_is_loaded_once(copy):
    assert Library(copy).symbol("echo") == Library(copy).symbol("echo")


CHANGED = """
import os, sys
from pathlib import Path
from packhorse.native import Library
path, changed, replaced = map(Path, sys.argv[1:])
first = Library(path).symbol("f")
path.write_bytes(changed.read_bytes())  # the same inode, as a copy over it does
second = Library(path).symbol("f")
replaced.replace(path)  # another inode under the same name
third = Library(path).symbol("f")
print(len({first, second, third}), flush=True)
os._exit(0)  # the loader runs destructors of pages that the write above took away
"""


def test_a_changed_file_is_loaded_again(tmp_path):
    files = [compile_c(f"int f(void) {{ return {i}; }}", tmp_path / f"f{i}.so") for i in range(3)]
    command = [sys.executable, "-c", CHANGED, *map(str, files)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == ["3"]


def test_library_symbols(library_path):
    library = Library(library_path)
    assert "add" in library.symbols()
    assert "usleep" not in library.symbols()
    assert library.describe("usleep").defined is False
    assert library.describe("nonesuch") is library.symbol("nonesuch") is None
    assert library.symbol("usleep") is None
    assert library.read("__tvm_main__") == b"echo_int\0"
    assert library.read("add") is None
    assert repr(library) == f"Library('{library_path}')"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"not a library", r"not an ELF file but something that begins with b'not '"),
        (b"MZ" + bytes(100), "a Windows library"),
        (b"\xcf\xfa\xed\xfe" + bytes(100), "a macOS library"),
        (b"\x7fELF", "truncated: the ELF header"),
        (b"\x7fELF\x01\x01" + bytes(100), r"not 64-bit little-endian \(class 1"),
        (b"\x7fELF\x02\x01" + bytes(10) + struct.pack("<HH", 1, 62) + bytes(100), "ELF type 1"),
        (b"\x7fELF\x02\x01" + bytes(10) + struct.pack("<HH", 3, 8) + bytes(100), "ELF machine 8"),
    ],
)
def test_not_a_library(tmp_path, content, match):
    file = tmp_path / "bad.so"
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=match):
        load_module(file)


def test_truncated_at_every_length(library_path, tmp_path):
    whole = library_path.read_bytes()
    file = tmp_path / "cut.so"
    for length in range(1, len(whole), len(whole) // 60):
        file.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"truncated|not an ELF"):
            load_module(file)


def test_damaged_headers_never_crash(library_path, tmp_path):
    """Random bytes in the headers: an error of ours, or (when harmless) a symbol list."""
    from packhorse.native.elf import read_symbols

    whole, random = bytearray(library_path.read_bytes()), np.random.default_rng(0)
    sections = struct.unpack_from("<Q", whole, 40)[0]
    file = tmp_path / "damaged.so"
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(3):
            start = random.choice([16, 64, sections])
            damaged[start + random.integers(0, 600 if start != 16 else 48)] = random.integers(256)
        file.write_bytes(damaged)
        with contextlib.suppress(ArtifactError):
            read_symbols(file)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("missing.so", r"missing.so' cannot be opened: No such file"),
        ("model.onnx", r"no suffix of a compiled library; .* packhorse.load"),
        ("folder.so", "cannot be read: Is a directory"),
    ],
)
def test_bad_paths(tmp_path, path, match):
    (tmp_path / "folder.so").mkdir()
    with pytest.raises(ArtifactError, match=match):
        load_module(tmp_path / path)


def test_relative_paths_are_files_not_system_libraries(library_path, monkeypatch):
    monkeypatch.chdir(library_path.parent)
    assert "add" in load_module("kernels.so")
    with pytest.raises(ArtifactError, match="cannot be opened"):
        load_module("libm.so")


def test_loader_refusal(tmp_path):
    compile_c("int g(void) { return 1; }", tmp_path / "libgone.so")
    source = "int g(void); int f(void) { return g(); }"
    path = compile_c(source, tmp_path / "needs.so", f"-L{tmp_path}", "-lgone")
    (tmp_path / "libgone.so").unlink()
    with pytest.raises(ArtifactError, match=r"loader refused .*libgone.so"):
        load_module(path)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs files in memory")
def test_without_a_folder_for_copies(copy, monkeypatch):
    """A library with slots is loaded from a copy; where none can be written, from memory."""

    def refuse(*args, **kwargs):
        raise PermissionError("nowhere to write")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    first = load_module(copy)
    assert first["echo_int"](41) == 42
    second = load_module(shutil.copy(copy, copy.with_name("second.so")))
    assert second["echo_int"].address != first["echo_int"].address
