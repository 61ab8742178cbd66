"""``packhorse run``: inputs, what is printed, what is saved, and every way to get it wrong."""

import re

import numpy as np
import pytest

pytest.importorskip("onnx")

from cli_kit import INT64, write_model, write_two_inputs

from packhorse import cli
from packhorse.cli._inputs import read_inputs, read_shapes
from packhorse.errors import ArgumentTypeError, ArgumentValueError
from packhorse.graph.ir import TensorType

FLOAT = np.dtype("float32")
IMAGE = {"image": TensorType(FLOAT, ("n", 3, 4, 4))}
TWO = {"a": TensorType(FLOAT, (2,)), "b": TensorType(np.dtype("int64"), ())}


@pytest.fixture
def model(tmp_path):
    return str(write_model(tmp_path / "small.onnx"))


def call(*words):
    return cli.main([str(word) for word in words])


def test_prints_outputs_and_the_largest_values(model, capsys):
    assert call("run", model, "--device", "cpu", "--input", "x=random:1x8") == 0
    out = capsys.readouterr().out
    assert re.match(r"cpu:0: compiled in .*, run in \d", out)
    assert re.search(r"^y +float32 +1x6 ", out, re.M)
    assert "largest values of 'y'" in out


def test_saves_outputs_that_repeat(model, tmp_path, capsys):
    feed = tmp_path / "x.npy"
    np.save(feed, np.ones((2, 8), np.float32))
    options = ("--device", "cpu", "--input", feed, "--output", tmp_path / "out", "--repeat", 3)
    assert call("run", model, *options) == 0
    out = capsys.readouterr().out
    assert "3 runs, median" in out
    assert "largest" not in out  # two rows are not one vector
    saved = np.load(tmp_path / "out" / "y.npy")
    assert saved.shape == (2, 6)
    np.testing.assert_allclose(saved.sum(1), 1, rtol=1e-6)


def test_seed_decides_random_inputs(model, tmp_path, capsys):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = ("--input", "random:1x8", "--seed", seed, "--output", tmp_path / name)
        assert call("run", model, "-d", "cpu", *options) == 0
    a, b, c = (np.load(tmp_path / n / "y.npy") for n in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_number_fills_an_input(tmp_path, capsys):
    path = write_two_inputs(tmp_path / "two.onnx")
    assert call("run", path, "-d", "cpu", "-i", "x=random", "-i", "to=-1") == 0
    assert re.search(r"^y +float32 +8 ", capsys.readouterr().out, re.M)


def test_not_finite_values_are_counted(model, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.full((1, 8), np.nan, np.float32))
    assert call("run", model, "-d", "cpu", "-i", tmp_path / "x.npy") == 0
    assert "(6 of 6 not finite)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "--input x=random:1x8"),
        (["-i", "random"], "Write for example --input x=random:1x8"),
        (["-i", "y=random"], "names the input 'y', which the model does not have"),
        (["-i", "x=random:1x9"], "shape (1, 9) does not fit input 'x', which is float32[batch, 8]"),
        (["-i", "x=random:1x8", "-i", "x=random:1x8"], "given twice"),
        (["-i", "x=none.npy"], "'none.npy', does not exist"),
        (["-i", "x=something"], "'something' is no value for input 'x'"),
        (["-i", "x=random:1x8", "--repeat", "0"], "run at least once"),
        (["-i", "x=random:1x8", "-d", "cpux"], "cpux"),
    ],
)
def test_errors_say_what_to_type(model, words, says, capsys):
    device = [] if "-d" in words else ["-d", "cpu"]
    assert call("run", model, *device, *words) == 2
    found = capsys.readouterr()
    assert says in found.err
    assert found.err.startswith("packhorse: error: ")
    assert "Traceback" not in found.err


def test_files_that_do_not_fit(model, tmp_path, capsys):
    wrong = {
        "dtype.npy": np.ones((1, 8)),
        "shape.npy": np.ones((1, 7), np.float32),
    }
    for name, array in wrong.items():
        np.save(tmp_path / name, array)
    (tmp_path / "text.npy").write_text("not an array")
    says = {
        "dtype.npy": "holds float64, input 'x' wants float32",
        "shape.npy": "shape (1, 7) does not fit input 'x'",
        "text.npy": "is not .npy",
    }
    for name, text in says.items():
        assert call("run", model, "-d", "cpu", "-i", tmp_path / name) == 2
        assert text in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert call("run", model, "-d", "cpu", "-i", "random:1x8", "-o", tmp_path / "file") == 2
    assert "could not be written" in capsys.readouterr().err


def test_no_such_model(tmp_path, capsys):
    assert call("run", tmp_path / "none.onnx") == 2
    assert "none.onnx' does not exist" in capsys.readouterr().err


def test_random_values_by_dtype():
    kinds = {n: TensorType(np.dtype(n), (50,)) for n in ("float16", "int64", "uint8", "bool")}
    found = read_inputs(kinds, ["random"])
    assert {n: a.dtype.name for n, a in found.items()} == {n: n for n in kinds}
    assert 0 <= found["int64"].min() < found["int64"].max() < 100
    assert set(np.unique(found["bool"])) == {False, True}
    with pytest.raises(ArgumentTypeError, match="no random values"):
        read_inputs({"text": TensorType(np.dtype("O"), (1,))}, ["random"])


def test_scalars_and_inputs_without_a_name():
    assert read_inputs({"b": TWO["b"]}, ["3"])["b"] == 3
    assert read_inputs(TWO, ["a=1", "random"])["b"].shape == ()
    with pytest.raises(ArgumentValueError, match="does not say for which input"):
        read_inputs(TWO, ["a.npy"])


def test_names_with_an_equals_sign():
    odd = {"a=b": TensorType(FLOAT, (2,))}
    assert read_inputs(odd, ["a=b=1"])["a=b"].tolist() == [1, 1]


def test_shapes():
    assert read_shapes(IMAGE, ["image=2,3,4,4"]) == {"image": (2, 3, 4, 4)}
    assert read_shapes(IMAGE, ["2x3x4x4"]) == {"image": (2, 3, 4, 4)}
    assert read_shapes(TWO, []) == {}
    for options, says in (
        ([], "--shape image=1,3,4,4"),
        (["image=a,b"], "is not a shape"),
        (["image=1,3,,4"], "is not a shape"),
        (["image=1,3,4,x"], "is not a shape"),
        (["img=1,3,4,4"], "did you mean 'image'"),
        (["image=1,3,4"], "does not fit"),
        (["image=1,3,4,4", "image=1,3,4,4"], "twice"),
    ):
        with pytest.raises(ArgumentValueError, match=re.escape(says)):
            read_shapes(IMAGE, options)


def test_integer_model(tmp_path, capsys):
    path = write_model(tmp_path / "tokens.onnx", (1, 8), INT64)
    assert call("run", path, "-d", "cpu", "-i", "random") == 0
    assert "1x6" in capsys.readouterr().out


def test_several_devices_share_the_work(model, capsys):
    shares = ["--place", "llvm-cpu", "auto", "--place", "cpu", "rest"]
    assert call("run", model, *shares, "--input", "random:2x8") == 0
    assert "llvm-cpu:0=auto; cpu:0=rest: compiled in" in capsys.readouterr().out
    assert call("inspect", model, "--place", "cpu", "*", "--shape", "x=2,8", "--nodes") == 0
    assert "cpu:0=*" in capsys.readouterr().out
    assert call("run", model, "--place", "cpu", "nothing", "--input", "random:2x8") == 2
    assert "the model has no such node" in capsys.readouterr().err
    assert call("run", model, "--place", "cpu", "a", "--place", "cpu", "b") == 2
    assert "given twice" in capsys.readouterr().err
