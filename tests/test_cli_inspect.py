"""``packhorse inspect``: models and artifacts, as text and as JSON."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from cli_kit import write_model

from packhorse import cli
from packhorse.artifact import load_artifact, save_artifact

FORMS = ("deploy", "small.packhorse", "small.so")
TVM = Path(__file__).parent / "data" / "tvm"


@pytest.fixture
def model(tmp_path):
    return str(write_model(tmp_path / "small.onnx"))


def test_a_model(model, capsys):
    assert cli.main(["inspect", model]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["x", "float32", "(batch,", "8)"] in lines
    assert ["48", "parameters,", "192", "B"] in lines
    assert ["MatMul", "1"] in lines
    assert ["2", "operators"] in lines


def test_where_nodes_run(model, capsys):
    options = ["--device", "cpu", "--shape", "x=1,8"]
    assert cli.main(["inspect", model, *options]) == 0
    out = capsys.readouterr().out
    assert "cpu:0: 2 nodes" in out
    assert "'scores'" not in out
    assert cli.main(["inspect", model, *options, "--nodes"]) == 0
    assert "'scores'" in capsys.readouterr().out


def test_json(model, capsys):
    assert cli.main(["inspect", model, "--json", "-d", "cpu", "--shape", "1,8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 8]}]
    assert found["operators"] == {"MatMul": 1, "Softmax": 1}
    assert found["parameters"] == 48
    assert found["parameter_bytes"] == 192
    assert {node["device"] for node in found["nodes"]} == {"cpu:0"}


def test_an_artifact(model, tmp_path, capsys):
    pytest.importorskip("llvmlite")
    artifact = str(tmp_path / "deploy")
    assert cli.main(["compile", model, "-d", "llvm-cpu", "-o", artifact, "--shape", "1,8"]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", artifact, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "artifact"
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 8]}]
    assert found["outputs"] == [{"name": "y", "dtype": "float32", "shape": [1, 6]}]
    assert found["nodes"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The small model as a folder, as one file and as one library."""
    pytest.importorskip("llvmlite")
    folder = tmp_path_factory.mktemp("compiled")
    model = str(write_model(folder / "small.onnx"))
    for name in FORMS:
        path = str(folder / name)
        assert cli.main(["compile", model, "-d", "llvm-cpu", "-o", path, "--shape", "1,8"]) == 0
    return folder


def inspected(capsys, *arguments):
    capsys.readouterr()
    assert cli.main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("form", FORMS)
def test_artifacts_say_what_code_they_hold(compiled, form, capsys):
    out = inspected(capsys, compiled / form)
    assert "legacy and ffi ABI, compiled by packhorse" in out
    assert "where it runs (compiled for llvm-cpu:0)\n  cpu:0: " in out
    assert "ph_" not in out
    assert "ph_" in inspected(capsys, compiled / form, "--nodes")
    found = json.loads(inspected(capsys, compiled / form, "--json"))
    code = found["code"]["imports"][0] if form.endswith(".so") else found["code"]
    assert (code["kind"], code["abis"]) == ("library", ["legacy", "ffi"])
    assert all(name.startswith("ph_") for name in code["functions"])


@pytest.mark.parametrize("form", FORMS[:2])
def test_artifacts_say_their_targets_and_files(compiled, form, capsys):
    out = inspected(capsys, compiled / form)
    assert re.search(r"^ +llvm-cpu +llvm-cpu:0 +shared library +\d+ +\d+ \(0 shared\) ", out, re.M)
    found = json.loads(inspected(capsys, compiled / form, "--json"))
    (target,) = found["targets"]
    assert (target["name"], target["code"]) == ("llvm-cpu", "shared library")
    assert target["parameter_bytes"] == found["parameter_bytes"] > 0
    for file in found["files"]:
        assert f"  {file['name']} " in out
        if form == "deploy":
            assert file["bytes"] == (compiled / form / file["name"]).stat().st_size


def test_an_artifact_whose_device_is_not_here(compiled, tmp_path, capsys):
    found = load_artifact(compiled / "small.packhorse")
    code = {"libraries": {"faraway": b"code"}, "kinds": {"faraway": "faraway-code"}}
    other = replace(found, programs={"faraway": found.program()}, **code)
    path = save_artifact(tmp_path / "far.packhorse", other)
    out = inspected(capsys, path)
    assert "no backend 'faraway'" in out
    assert re.search(r"^  x +float32 +\(1, 8\)$", out, re.M)
    assert re.search(r"^  faraway +llvm-cpu:0 +faraway-code ", out, re.M)
    assert re.search(r"^  lib/faraway.code +4 B$", out, re.M)
    assert "where it runs" not in out
    assert cli.main(["inspect", str(path), "--device", "cpu"]) == 2
    assert "code for faraway, none for 'cpu:0'" in capsys.readouterr().err


def test_an_artifact_on_another_device_of_host_memory(compiled, capsys):
    out = inspected(capsys, compiled / "deploy", "--device", "llvm-cpu?threads=1")
    assert "  llvm-cpu:0?threads=1: " in out
    assert "device  step" not in out  # nothing runs elsewhere than asked for
    assert cli.main(["inspect", str(compiled / "deploy"), "--device", "cpu:1"]) == 2
    assert "'cpu:0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "kind", "lines"),
    [
        ("convnet", "artifact", ["legacy ABI, compiled by TVM 0.8 to 0.19", "6 functions"]),
        ("convnet/deploy_factory.so", "artifact", ["default (GraphExecutorFactory)"]),
        ("legacy_myadd/deploy.so", "library", ["myadd(A: float32[?]", "holds no graph"]),
        ("relax_convnet/deploy.so", "artifact", ["output_0  known after a run", "ffi ABI"]),
        ("relax_control/deploy.so", "library", ["has no function 'main'", "less_equal"]),
    ],
)
def test_what_tvm_compiled(path, kind, lines, capsys):
    out = inspected(capsys, TVM / path)
    assert out.startswith(f"{kind} {TVM / path}\n")
    for line in lines:
        assert line in out
    found = json.loads(inspected(capsys, TVM / path, "--json"))
    assert found["kind"] == kind
    assert found["code"]["abis"][0] in ("legacy", "ffi")


def test_a_file_that_is_no_library(tmp_path, capsys):
    (tmp_path / "junk.so").write_bytes(b"junk")
    assert cli.main(["inspect", str(tmp_path / "junk.so")]) == 2
    assert "not an ELF file" in capsys.readouterr().err


def test_errors(model, tmp_path, capsys):
    assert cli.main(["inspect", model, "--shape", "x=1,8"]) == 2
    assert "add the device" in capsys.readouterr().err
    assert cli.main(["inspect", model, "--device", "cpu"]) == 2
    assert "--shape x=1,8" in capsys.readouterr().err
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07broken")
    assert cli.main(["inspect", str(tmp_path / "broken.onnx")]) == 2
    assert "not a valid ONNX file" in capsys.readouterr().err
