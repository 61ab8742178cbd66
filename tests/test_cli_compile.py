"""``packhorse compile`` and running what it writes."""

import re
import sys
import time

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("llvmlite")

from cli_kit import write_model, write_two_inputs
from gpu_kit import opencl

from packhorse import cli
from packhorse.cli import _progress

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
    assert "--value to=NUMBER" in capsys.readouterr().err
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


def test_several_devices_share_one_file(model, tmp_path, capsys):
    opencl()
    both = tmp_path / "both.packhorse"
    options = ("-o", both, "--shape", "x=1,8")
    assert call("compile", model, "-d", "llvm-cpu, opencl:0", *options) == 0
    out = capsys.readouterr().out
    assert "for llvm-cpu:0, opencl:0\n" in out
    assert re.search(r"^phase +llvm-cpu:0 +opencl:0$", out, re.M)
    assert re.search(r"^ +opencl +opencl:0 +opencl-text +\d", out, re.M)
    for device, folder in (("opencl:0", "a"), ("cpu", "b")):
        words = ("-d", device, "-i", "random:1x8", "-o", tmp_path / folder)
        assert call("run", both, *words) == 0
        assert capsys.readouterr().out.startswith(device)
    a, b = (np.load(tmp_path / n / "y.npy") for n in "ab")
    np.testing.assert_allclose(a, b, rtol=1e-5)
    assert call("bench", both, "-d", "opencl:0,cpu", "--runs", "1", "--warmup", "0") == 0
    assert re.search(r"^opencl:0 +- ", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("devices", "target", "message"),
    [
        ("llvm-cpu,opencl:0", "deploy/", "can hold code for one device, 2 were named.*deploy.pack"),
        ("llvm-cpu,opencl:0", "m.so", "can hold code for one device, 2 were named.*m.packhorse"),
        ("llvm-cpu,llvm-cpu?threads=1", "m.packhorse", "names 'llvm-cpu' twice"),
        ("llvm-cpu,nothing", "m.packhorse", "nothing"),
        ("llvm-cpu,cpu", "m.packhorse", "references on 'cpu:0'"),
    ],
)
def test_several_devices_that_cannot_be_saved(model, devices, target, message, tmp_path, capsys):
    words = ("-d", devices, "-o", f"{tmp_path}/{target}", "--shape", "x=1,8")
    assert call("compile", model, *words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


def test_progress_is_shown_when_it_takes_long(monkeypatch, caplog, capsys):
    monkeypatch.setattr(_progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(_progress, "_REPEAT", 0.01)
    caplog.set_level("INFO", "packhorse.cli")
    with _progress.progress("compiling for x"):
        wait_for(lambda: caplog.messages)
    assert caplog.messages[0].startswith("compiling for x, ")
    assert capsys.readouterr() == ("", "")  # no terminal: only the log says it


def test_progress_on_a_terminal(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr(_progress, "_PATIENCE", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = []
    with _progress.progress("compiling for x"):
        wait_for(
            lambda: shown.append(capsys.readouterr().err) or "compiling for x" in "".join(shown)
        )
    assert capsys.readouterr().out == ""


def test_quick_steps_show_nothing(capsys, caplog):
    caplog.set_level("INFO", "packhorse.cli")
    with pytest.raises(ZeroDivisionError), _progress.progress("dividing"):
        raise ZeroDivisionError
    assert not caplog.messages
    assert capsys.readouterr() == ("", "")


def wait_for(condition):
    """Wait until it holds; the number of attempts, not the clock, ends it."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    pytest.fail("it did not happen")
