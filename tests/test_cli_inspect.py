"""``packhorse inspect``: models and artifacts, as text and as JSON."""

import json

import pytest

pytest.importorskip("onnx")

from cli_kit import write_model

from packhorse import cli


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


def test_errors(model, tmp_path, capsys):
    assert cli.main(["inspect", model, "--device", "cpu"]) == 2
    assert "--shape x=1,8" in capsys.readouterr().err
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07broken")
    assert cli.main(["inspect", str(tmp_path / "broken.onnx")]) == 2
    assert "not a valid ONNX file" in capsys.readouterr().err
