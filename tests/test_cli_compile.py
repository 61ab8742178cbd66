"""``packhorse compile`` and running what it writes."""

import re

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("llvmlite")

from cli_kit import write_model, write_two_inputs

from packhorse import cli

HEAD = ("compile", "-d", "llvm-cpu")


@pytest.fixture
def model(tmp_path):
    return str(write_model(tmp_path / "small.onnx"))


def call(*words):
    return cli.main([str(word) for word in words])


@pytest.mark.parametrize("target", ["deploy/", "small.packhorse"])
def test_an_artifact_gives_the_models_answers(model, target, tmp_path, capsys):
    artifact = f"{tmp_path}/{target}"
    assert call(*HEAD, model, "-o", artifact, "--shape", "x=1,8") == 0
    out = capsys.readouterr().out
    assert "compiled" in out
    assert re.search(r"^generate code +\d", out, re.M)
    assert f"packhorse run {artifact} --input random" in out
    for path, folder in ((model, "a"), (artifact, "b")):
        options = ("-i", "random:1x8", "-o", tmp_path / folder)
        assert call("run", path, "-d", "cpu", *options) == 0
    a, b = (np.load(tmp_path / n / "y.npy") for n in "ab")
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_open_sizes_are_asked_for(model, tmp_path, capsys):
    assert call(*HEAD, model, "-o", tmp_path / "deploy") == 2
    assert "--shape x=1,8" in capsys.readouterr().err
    assert not (tmp_path / "deploy").exists()


def test_values_that_shapes_depend_on(tmp_path, capsys):
    path = write_two_inputs(tmp_path / "two.onnx")
    assert call(*HEAD, path, "-o", tmp_path / "deploy") == 2
    assert "'to'" in capsys.readouterr().err
    assert call(*HEAD, path, "-o", tmp_path / "deploy", "--value", "to=8") == 0


def test_an_artifact_is_not_compiled_again(model, tmp_path, capsys):
    assert call(*HEAD, model, "-o", tmp_path / "deploy", "--shape", "1,8") == 0
    assert call(*HEAD, tmp_path / "deploy", "-o", tmp_path / "again") == 2
    assert "is compiled already" in capsys.readouterr().err


def test_a_device_that_compiles_nothing(model, tmp_path, capsys):
    assert call("compile", model, "-d", "cpu", "-o", tmp_path / "x", "--shape", "1,8") == 2
    assert "cpu" in capsys.readouterr().err


def test_values_of_inputs_that_do_not_exist(model, tmp_path, capsys):
    assert call(*HEAD, model, "-o", tmp_path / "deploy", "--value", "z=8") == 2
    assert "names the input 'z', which the model does not have" in capsys.readouterr().err
