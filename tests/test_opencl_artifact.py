"""Artifacts for OpenCL: text and table, saved and loaded, damaged, and for lesser devices."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from codegen_kit import at, dense, to
from gpu_kit import opencl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_kit import LLVM, NEEDS_LLVM, NEEDS_ONNX, batch_of, linear
from opencl_kit import DEVICE, compiled, doubling

import packhorse as ph
from packhorse.artifact import load_artifact, save_artifact
from packhorse.artifact_join import join_artifacts
from packhorse.errors import (
    ArgumentValueError,
    ArtifactError,
    CompileError,
    DeviceClosed,
    DeviceUnavailable,
)
from packhorse.executable import Executable
from packhorse.kernel import Kernel

pytest.importorskip("pyopencl", reason="pyopencl is not installed (extra opencl)")

from packhorse_opencl.library import KIND, ClLibrary
from packhorse_opencl.plugin import OpenClBackend

SHAPES = {"x": (2, 4)}
MAGIKA = Path(__file__).parent.parent / "examples" / "magika" / "model.onnx"


@pytest.fixture
def device():
    opencl()
    with OpenClBackend().open(0, {}) as own:
        yield own


@pytest.fixture(scope="module")
def made():
    opencl()
    with linear().compile(DEVICE, shapes=SHAPES) as executable:
        yield executable


# -- saving and loading ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["deploy/", "linear.packhorse"])
def test_save_and_load(made, tmp_path, form):
    x = batch_of(2)
    written = made.save(f"{tmp_path}/{form}")
    with ph.load(written) as loaded:
        assert (loaded.device.name, loaded.compiled_for) == (DEVICE, DEVICE)
        assert str(loaded.inputs["x"]) == "float32[2, 4]"
        assert str(loaded.outputs["y"]) == "float32[2, 3]"
        np.testing.assert_array_equal(loaded(x), made(x))
        np.testing.assert_array_equal(loaded(x, device="opencl"), made(x))
        again = loaded.save(tmp_path / "again.packhorse")
        rows = loaded.profile(x, repeat=1)
    assert [function for _, function, _ in rows] == [made.report()[0].step]
    np.testing.assert_array_equal(ph.load(again)(x), made(x))


def test_the_same_model_gives_the_same_file(made, tmp_path):
    first, second = (made.save(tmp_path / f"{name}.packhorse") for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_the_code_is_text_that_any_driver_can_build(made):
    kind, blob = made.module.save_blob()
    table, _, text = blob.decode().partition("\n")
    assert kind == KIND
    assert json.loads(table.removeprefix("// "))["version"] == 1
    assert "__kernel" in text
    assert text == made.module.source


def test_a_shared_library_is_refused(made, tmp_path):
    with pytest.raises(CompileError, match=r"has no form as a shared library.*\.packhorse"):
        made.save(tmp_path / "linear.so")
    assert not list(tmp_path.iterdir())


def test_memory_is_back_after_many_loads(made, tmp_path, device):
    artifact = load_artifact(made.save(tmp_path / "m.packhorse"))
    for _ in range(20):
        with Executable.from_artifact(artifact, device) as loaded:
            loaded(batch_of(2))
    assert device.memory().live == 0


@NEEDS_LLVM
def test_host_and_device_in_one_file(made, tmp_path):
    x, host = batch_of(2), linear().compile(LLVM, shapes=SHAPES)
    both = join_artifacts([made.artifact(), host.artifact()])
    with ph.load(save_artifact(tmp_path / "m.packhorse", both)) as loaded:
        assert loaded.device.name == "cpu:0"  # compiled by llvm-cpu, which comes first
        for _ in range(2):
            np.testing.assert_array_equal(loaded(x), host(x))
            np.testing.assert_array_equal(loaded(x, device=DEVICE), made(x))
    with pytest.raises(ArgumentValueError, match="a folder holds one target"):
        save_artifact(tmp_path / "deploy", both)


def test_code_for_opencl_alone_does_not_run_on_the_host(made, tmp_path):
    with (
        ph.load(made.save(tmp_path / "m.packhorse")) as loaded,
        pytest.raises(DeviceUnavailable, match="holds code for opencl, none for 'cpu:0'"),
    ):
        loaded(batch_of(2), device="cpu")


ELSEWHERE = """
import sys
import numpy as np
import packhorse as ph
exe = ph.load(sys.argv[1])
y = exe(np.load(sys.argv[2]), device="opencl:0")
np.save(sys.argv[3], y)
unwanted = ("onnx", "llvmlite", "packhorse.compiler.build", "packhorse.compiler.lower_gpu",
            "packhorse.compiler.specialize", "packhorse.ops")
print([name for name in unwanted if name in sys.modules])
"""


@NEEDS_ONNX
def test_another_process_without_compiler_and_importer(tmp_path):
    """The magika classifier: saved here, run there, bit for bit the same."""
    opencl()
    x = np.random.default_rng(0).integers(0, 257, (1, 2048)).astype(np.int32)
    np.save(tmp_path / "x.npy", x)
    with ph.load(MAGIKA).compile(DEVICE, shapes={"bytes": x.shape}) as executable:
        expected = executable(x)
        executable.save(tmp_path / "magika.packhorse")
    files = [tmp_path / name for name in ("magika.packhorse", "x.npy", "y.npy")]
    command = [sys.executable, "-c", dedent(ELSEWHERE), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


# -- lesser devices -------------------------------------------------------------------------------


def lesser(device, monkeypatch, **changes):
    monkeypatch.setattr(device, "_target", replace(device.target, **changes))


def test_a_device_with_smaller_work_groups(device, monkeypatch):
    kind, blob = compiled(device, "double").save_blob()
    lesser(device, monkeypatch, max_group=8)
    with pytest.raises(CompileError, match=r"groups of 64, opencl:0 has at most 8.*this device"):
        device.load(blob, kind)
    monkeypatch.undo()
    device.load(blob, kind).function("double")


def test_a_device_with_less_local_memory(device, monkeypatch):
    text = """__kernel void k_f(__global float* p0) {
      __local float shared[64]; shared[get_local_id(0)] = p0[0];
      barrier(CLK_LOCAL_MEM_FENCE); p0[get_local_id(0)] = shared[63 - get_local_id(0)]; }"""
    kernels = ClLibrary.read(compiled(device, "f").save_blob()[1]).kernels
    (row,) = (replace(k, arguments=k.arguments[:1], total=64, group=64) for k in kernels)
    module = device.load(ClLibrary(text, (row,)).blob(), KIND)
    block = device.allocate(4000)
    module.function("f").bind_memory([block])()
    lesser(device, monkeypatch, local_bytes=128)
    with pytest.raises(CompileError, match=r"share 256 bytes.*shares 128 bytes"):
        module.function("f").bind_memory([block])
    block.close()


def test_a_device_without_float64(device, monkeypatch):
    value = at("x", "i", dtype="float64") * 2.0
    buffers = {name: dense(3, dtype="float64") for name in "xy"}
    kernel = Kernel("d", (("i", 3),), (to("y", ("i",), value),), buffers)
    kind, blob = compiled(device, "f", kernel=kernel).save_blob()
    lesser(device, monkeypatch, float64=False)
    with pytest.raises(CompileError, match="float64, which opencl:0 does not have"):
        device.load(blob, kind)


def test_a_saved_model_on_a_lesser_device(made, device, monkeypatch, tmp_path):
    path = made.save(tmp_path / "m.packhorse")
    lesser(device, monkeypatch, max_group=1)
    with pytest.raises(CompileError, match="Give it a schedule with a smaller group"):
        ph.load(path, device=device)
    assert device.memory().live == 0


# -- damage ---------------------------------------------------------------------------------------


def table(change):
    """The blob of a sound library with its table changed."""

    def changed(blob: bytes) -> bytes:
        head, _, text = blob.partition(b"\n")
        document = json.loads(head.removeprefix(b"// "))
        change(document)
        return b"// " + json.dumps(document).encode() + b"\n" + text

    return changed


def row(**changes):
    return table(lambda d: d["kernels"][0].update(changes))


def argument(**changes):
    return table(lambda d: d["kernels"][0]["arguments"][0].update(changes))


BAD_BLOBS = {
    "nothing": (lambda b: b"", "does not begin with the table"),
    "another file": (lambda b: b"\x7fELF" + b, "does not begin with the table"),
    "no JSON": (lambda b: b"// {" + b, "not valid JSON"),
    "no object": (lambda b: b"// []\n", "must be a JSON object"),
    "another format": (table(lambda d: d.update(format="x")), "with a table of packhorse's"),
    "newer": (table(lambda d: d.update(version=2)), r"version 2, this packhorse reads up to 1; up"),
    "no version": (table(lambda d: d.pop("version")), "version .* must be an integer"),
    "no kernels": (table(lambda d: d.pop("kernels")), "must be a JSON array"),
    "kernel twice": (table(lambda d: d["kernels"].append(d["kernels"][0])), "the same symbol"),
    "key twice": (lambda b: b.replace(b"{", b'{"version":1,', 1), "occurs twice"),
    "too many values": (lambda b: b"// [" + b"," * 1_000_001 + b"]\n", "more than 1000000 values"),
    "text is not UTF-8": (lambda b: b + b"\xff", "is not UTF-8 at byte"),
    "text with NUL": (lambda b: b + b"\0", "NUL"),
    "no text": (lambda b: b.partition(b"\n")[0], "has no kernel 'k_double'"),
    "another kernel": (row(function="k_other"), "has no kernel 'k_other'"),
    "no name in C": (row(function="k()"), "which is no name in C"),
    "no symbol": (row(symbol=None), "symbol of kernel 0 .* must be a string"),
    "no group": (row(group=0), "group of kernel 0 .* is 0"),
    "group too large to be": (row(group=1 << 40), "group of kernel 0"),
    "half a group": (row(total=65), "65 work-items, which groups of 64 cannot share"),
    "negative": (row(total=-64), "total of kernel 0"),
    "float64 is no truth": (row(float64=1), "float64 of kernel 0 .* must be true or false"),
    "no arguments": (row(arguments=None), "must be a JSON array"),
    "argument is no object": (row(arguments=[3]), "argument 0 of kernel 0 .* a JSON object"),
    "unknown dtype": (argument(dtype="float33"), "dtype of argument 0 .*'float33'"),
    "dtype of objects": (argument(dtype="O"), "dtype of argument 0"),
    "negative size": (argument(size=-1), "size of argument 0"),
    "huge size": (argument(size=1 << 60), "size of argument 0"),
    "shape of no numbers": (argument(shape=["n"]), "shape of argument 0"),
    "too many dimensions": (argument(shape=[1] * 40), "has 40 dimensions"),
}


@pytest.mark.parametrize("name", BAD_BLOBS)
def test_damaged_libraries(device, name):
    change, message = BAD_BLOBS[name]
    kind, blob = compiled(device, "double").save_blob()
    with pytest.raises(ArtifactError, match=message):
        device.load(change(blob), kind)
    device.check()


def test_another_kind(device):
    with pytest.raises(ArtifactError, match=rf"reads code of the kind {KIND}.*; this is 'acme'"):
        device.load(b"", "acme")


def test_text_that_does_not_build(device, capfd):
    blob = compiled(device, "double").save_blob()[1]
    with pytest.raises(CompileError, match="driver refused") as caught:
        device.load(blob.replace(b"__kernel", b"__colonel"), KIND)
    assert caught.value.log
    device.check()


def test_a_table_with_another_number_of_arguments(device):
    change = table(lambda d: d["kernels"][0]["arguments"].pop())
    module = device.load(change(compiled(device, "double").save_blob()[1]), KIND)
    block = device.allocate(4000)
    with pytest.raises(ArtifactError, match=r"takes 2 arguments in the text .* 1 in its"):
        module.function("double").bind_memory([block])
    block.close()


MISFITS = {
    "another kernel": (row(symbol="other"), "no function"),
    "larger": (argument(size=1 << 20), "needs 4194304 bytes"),
    "fewer arguments": (table(lambda d: d["kernels"][0]["arguments"].pop()), "takes 3 blocks"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_tables_that_do_not_fit_the_program(made, device, name, tmp_path):
    change, message = MISFITS[name]
    artifact = made.artifact()
    changed = replace(artifact, libraries={"opencl": change(artifact.code())})
    path = save_artifact(tmp_path / "m.packhorse", changed)  # with the right hash
    with pytest.raises(ArtifactError, match=message):
        ph.load(path, device=device)
    assert device.memory().live == 0
    device.check()


def test_libraries_are_closed_with_their_device(device):
    module = compiled(device, "double")
    blob = module.save_blob()[1]
    module.close()
    with pytest.raises(DeviceClosed, match="after close"):
        module.save_blob()
    loaded = device.load(blob, KIND)
    device.close()
    with pytest.raises(DeviceClosed):
        loaded.function("double")
    with pytest.raises(DeviceClosed):
        device.load(blob, KIND)


def test_what_is_read_is_what_was_written():
    opencl()
    library = compiled(ph.device(DEVICE), "double", "again").library
    assert ClLibrary.read(library.blob()) == library
    assert [a.nbytes for a in library.table["double"].arguments] == [4000, 4000]
    assert ClLibrary.read(ClLibrary("", ()).blob()) == ClLibrary("", ())


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_libraries_give_artifact_errors_only(data):
    blob = bytearray(_sound())
    if data.draw(st.booleans()):
        del blob[data.draw(st.integers(0, len(blob))) :]
    for _ in range(data.draw(st.integers(1, 4))):
        if blob:
            blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = ClLibrary.read(bytes(blob))
    except ArtifactError:
        return
    assert all(kernel.total % kernel.group == 0 for kernel in found.kernels)
    assert ClLibrary.read(found.blob()) == found


def _sound() -> bytes:
    from packhorse.compiler.gpu_schedule import GpuTarget, gpu_schedule

    kernel = doubling()
    return ClLibrary.of([("double", kernel, gpu_schedule(kernel, GpuTarget()))]).blob()
