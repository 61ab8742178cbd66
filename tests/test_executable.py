"""Executables: compiled for a device and a shape, looked into, saved, closed."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from model_kit import DEVICES, LLVM, NEEDS_LLVM, batch_of, linear, linear_of, pair

import packhorse as ph
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    CompileError,
    DeviceClosed,
    DeviceUnavailable,
)

SHAPES = {"x": (2, 4)}


def close_to(y, x):
    np.testing.assert_allclose(y, linear_of(x), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- calling


@pytest.mark.parametrize("device", DEVICES)
def test_called_like_a_model(device):
    made, x = linear().compile(device, shapes=SHAPES), batch_of(2)
    for y in (made(x), made(x=x), made(ph.tensor(x)), made(x, device=device)):
        close_to(y, x)
    total, product = pair(2).compile(device)(np.ones((2, 3), "f4"), np.full((2, 3), 3, "f4"))
    assert (total == 4).all()
    assert (product == 3).all()


@NEEDS_LLVM
def test_shapes_are_fixed():
    made = linear().compile(LLVM, shapes=SHAPES)
    assert str(made.inputs["x"]) == "float32[2, 4]"
    assert str(made.outputs["y"]) == "float32[2, 3]"
    with pytest.raises(ArgumentValueError, match=r"'x'.*\(2, 4\).*found \(3, 4\).*compile"):
        made(batch_of(3))
    with pytest.raises(ArgumentTypeError, match=r"'x'.*float32.*float64.*astype\('float32'\)"):
        made(batch_of(2).astype(float))


@NEEDS_LLVM
def test_it_runs_on_its_own_device_only():
    made = linear().compile(LLVM, shapes=SHAPES)
    for _ in range(2):  # the second call finds what the first one remembered
        with pytest.raises(ArgumentValueError, match=r"compiled for 'llvm-cpu.*not for 'cpu:0'"):
            made(batch_of(2), device="cpu")
        with pytest.raises(ArgumentValueError, match=r"compiled for 'llvm-cpu.*not for 'cpu:0'"):
            made.compile("cpu")
    assert made.compile(LLVM) is made.compile(f"{LLVM},cpu") is made


# ---------------------------------------------------------------- looking inside


@NEEDS_LLVM
def test_report_and_timings():
    made = linear().compile(LLVM, shapes=SHAPES)
    rows = made.report()
    assert [row.node for row in rows] == ["'product' (MatMul)", "'bias' (Add)", "'relu' (Relu)"]
    assert {row.device for row in rows} == {"llvm-cpu:0?threads=1"}
    assert len({row.step for row in rows}) == 1  # fused into one kernel
    assert {"specialize", "build", "generate code", "link"} <= set(made.timings)
    assert all(seconds >= 0 for seconds in made.timings.values())
    assert "llvm-cpu" in repr(made)


@NEEDS_LLVM
def test_profile():
    made, x = linear().compile(LLVM, shapes=SHAPES), batch_of(2)
    rows = made.profile(x, repeat=3)
    assert len(rows) == 1
    label, function, micros = rows[0]
    assert "relu" in label or "product" in label
    assert function == made.report()[0].step
    assert micros > 0
    with pytest.raises(ArgumentValueError, match="at least 1"):
        made.profile(x, repeat=0)


def test_references_are_reported_as_such():
    made = linear().compile("cpu", shapes=SHAPES)
    assert {row.device for row in made.report()} == {"cpu:0"}
    assert list(made.outputs) == ["y"]
    rows = made.profile(batch_of(2), repeat=2)
    assert [function for _, function, _ in rows] == ["packhorse.op.MatMul", "packhorse.op.Add",
                                                     "packhorse.op.Relu"]  # fmt: skip
    assert all(microseconds > 0 for *_, microseconds in rows)
    with pytest.raises(ArgumentValueError, match="at least 1"):
        made.profile(batch_of(2), repeat=0)


# ---------------------------------------------------------------- saving


def test_the_references_cannot_be_saved(tmp_path):
    made = linear().compile("cpu", shapes=SHAPES)
    with pytest.raises(CompileError, match=r"nothing compiled to be saved.*'llvm-cpu'"):
        made.save(tmp_path / "deploy")
    assert not list(tmp_path.iterdir())


@NEEDS_LLVM
@pytest.mark.parametrize("name", ["deploy/", "linear.packhorse"])
def test_save_and_load(tmp_path, name):
    x = batch_of(2)
    target = f"{tmp_path}/{name}"
    with linear().compile(LLVM, shapes=SHAPES) as made:
        written = made.save(target)
        expected = made(x)
    assert written.exists()
    with ph.load(written) as loaded:
        assert str(loaded.inputs["x"]) == "float32[2, 4]"
        assert str(loaded.outputs["y"]) == "float32[2, 3]"
        assert loaded.device.name == "cpu:0"  # runs without the compiler
        np.testing.assert_array_equal(loaded(x), expected)
        np.testing.assert_array_equal(loaded(x=x, device="cpu?threads=1"), expected)
        np.testing.assert_array_equal(loaded(x, device=LLVM), expected)
        assert loaded.timings == {}


@NEEDS_LLVM
def test_what_was_loaded_can_be_saved_in_the_other_form(tmp_path):
    x = batch_of(2)
    linear().compile(LLVM, shapes=SHAPES).save(tmp_path / "a.packhorse")
    ph.load(tmp_path / "a.packhorse").save(tmp_path / "b")
    np.testing.assert_array_equal(ph.load(tmp_path / "b")(x), ph.load(tmp_path / "a.packhorse")(x))
    assert {p.name for p in (tmp_path / "b").iterdir()} == {
        "deploy.json",
        "deploy.params",
        "deploy.so",
        "deploy.manifest.json",
    }


@NEEDS_LLVM
@pytest.mark.parametrize("name", ["deploy", "m.packhorse"])
def test_saving_again_replaces(tmp_path, name):
    model = linear()
    model.compile(LLVM, shapes=SHAPES).save(tmp_path / name)
    old = ph.load(tmp_path / name)  # its code and weights are mapped: it must go on working
    model.compile(LLVM, shapes={"x": (3, 4)}).save(tmp_path / name)
    close_to(old(batch_of(2)), batch_of(2))
    close_to(ph.load(tmp_path / name)(batch_of(3)), batch_of(3))


@NEEDS_LLVM
def test_a_suffix_that_says_nothing(tmp_path):
    made = linear().compile(LLVM, shapes=SHAPES)
    with pytest.raises(ArgumentValueError, match=r"'\.zip'.*\.packhorse"):
        made.save(tmp_path / "model.zip")


@NEEDS_LLVM
def test_the_library_is_a_module_of_packed_functions(tmp_path):
    made, x = linear().compile(LLVM, shapes=SHAPES), batch_of(2)
    made.save(tmp_path / "deploy")
    lib = ph.load_module(tmp_path / "deploy" / "deploy.so")
    assert made.report()[0].step in lib
    with pytest.raises(ph.PackhorseError, match="no_such_function"):
        lib["no_such_function"]
    close_to(made(x), x)


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("device", DEVICES)
def test_use_after_close(device):
    made = linear().compile(device, shapes=SHAPES)
    assert not made.closed
    made.close()
    made.close()
    assert made.closed
    with pytest.raises(DeviceClosed, match="closed; compile or load it again"):
        made(batch_of(2))


@NEEDS_LLVM
def test_saving_and_profiling_after_close(tmp_path):
    made = linear().compile(LLVM, shapes=SHAPES)
    made.close()
    for use in (lambda: made.profile(batch_of(2)), lambda: made.save(tmp_path / "deploy")):
        with pytest.raises(DeviceClosed, match="closed"):
            use()


@NEEDS_LLVM
def test_an_artifact_that_was_closed(tmp_path):
    linear().compile(LLVM, shapes=SHAPES).save(tmp_path / "deploy")
    loaded = ph.load(tmp_path / "deploy")
    loaded(batch_of(2), device="cpu?threads=1")
    loaded.close()
    for options in ({}, {"device": "cpu?threads=1"}):
        with pytest.raises(DeviceClosed, match="closed"):
            loaded(batch_of(2), **options)


@NEEDS_LLVM
def test_an_artifact_on_a_device_it_holds_nothing_for(tmp_path, site):
    from plugin_kit import good, write_dist

    from packhorse._devices import Devices
    from packhorse.plugin.manager import PluginManager

    source = good("farther").replace("dlpack_type=1,", "dlpack_type=2,")
    write_dist(site, "ph-farther", "ph_farther", source)
    device = Devices(PluginManager()).open("farther")
    linear().compile(LLVM, shapes=SHAPES).save(tmp_path / "deploy")
    loaded = ph.load(tmp_path / "deploy")
    words = r"code for llvm-cpu, none for 'farther:0'.*compile"
    with pytest.raises(DeviceUnavailable, match=words):
        loaded(batch_of(2), device=device)


# ---------------------------------------------------------------- threads


@NEEDS_LLVM
def test_two_executables_in_parallel():
    start = threading.Barrier(2)

    def work(rows):
        made, x = linear().compile("llvm-cpu?threads=2", shapes={"x": (rows, 4)}), batch_of(rows)
        start.wait()
        for _ in range(200):
            close_to(made(x), x)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (300, 500)))


@pytest.mark.parametrize("device", DEVICES)
def test_one_executable_from_two_threads(device):
    made, start = linear().compile(device, shapes=SHAPES), threading.Barrier(2)

    def work(seed):
        x = batch_of(2, seed)
        start.wait()
        for _ in range(100):
            close_to(made(x), x)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))


# ---------------------------------------------------------------- compile(shapes=, values=)

BAD = {
    "no size": ({}, r"'x' has shape \(n, 4\).*shapes=\{'x'"),
    "a name": ({"shapes": {"X": (2, 4)}}, r"no input 'X'.*takes x"),
    "wrong rank": ({"shapes": {"x": (2, 4, 1)}}, r"'x' has shape \(2, 4, 1\).*wants \(n, 4\)"),
    "wrong size": ({"shapes": {"x": (2, 5)}}, r"'x' has shape \(2, 5\).*wants \(n, 4\)"),
    "still symbolic": ({"shapes": {"x": ("n", 4)}}, r"shapes=\{'x'"),
    "negative": ({"shapes": {"x": (-1, 4)}}, r"'x' cannot have the shape \(-1, 4\)"),
    "values of no input": ({"values": {"w": 1}}, r"no input 'w'"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("device", DEVICES)
def test_what_compile_refuses(device, name):
    options, message = BAD[name]
    with pytest.raises(ArgumentValueError, match=message):
        linear().compile(device, **options)


# ---------------------------------------------------------------- single-file libraries

TVM = Path(__file__).parent / "data" / "tvm"


@pytest.mark.parametrize("device", ["cpu", "cpu?threads=2"])
@pytest.mark.parametrize("folder", ["convnet", "convnet_c", "relax_convnet"])
def test_a_library_of_tvm_is_loaded_like_a_model(folder, device):
    where = TVM / folder
    name = "deploy.so" if folder.startswith("relax") else "deploy_factory.so"
    loaded = ph.load(where / name)
    outputs = loaded(np.load(where / "in_data.npy"), device=device)
    for i, output in enumerate(outputs if isinstance(outputs, tuple) else (outputs,)):
        assert np.array_equal(output, np.load(where / f"out_{i}.npy"))


def test_a_library_without_a_graph_says_what_to_call():
    with pytest.raises(ArtifactError, match=r"holds no graph. Open it with packhorse.load_module"):
        ph.load(TVM / "convnet" / "deploy.so")
