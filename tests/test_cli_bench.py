"""``packhorse bench``: rows, JSON, errors. Nothing is asserted about how fast anything is."""

import json

import pytest

pytest.importorskip("onnx")

from cli_kit import write_model

from packhorse import cli


@pytest.fixture
def model(tmp_path):
    return str(write_model(tmp_path / "small.onnx", (2, 8)))


def test_a_row_for_each_device(model, capsys):
    assert cli.main(["bench", model, "--device", "cpu,cpu:0", "--runs", "5"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["device", "compile", "first"]
    assert [row.split()[0] for row in rows] == ["cpu:0", "cpu:0"]
    assert all(row.split()[-1] == "5" for row in rows)


def test_json(model, capsys):
    options = ["-d", "cpu", "--seconds", "0.01", "--warmup", "0", "--json"]
    assert cli.main(["bench", model, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["devices"]
    assert row["device"] == "cpu:0"
    assert row["inputs"] == {"x": ["float32", 2, 8]}
    assert row["minimum_seconds"] <= row["median_seconds"] <= row["p90_seconds"]
    assert row["runs"] >= 3
    assert row["peak_bytes"] > 1 << 20


@pytest.mark.parametrize("wrong", [["--runs", "0"], ["--seconds", "0"], ["--warmup", "-1"]])
def test_wrong_numbers(model, wrong, capsys):
    assert cli.main(["bench", model, "-d", "cpu", *wrong]) == 2
    assert "must be positive" in capsys.readouterr().err


def test_an_unknown_device_ends_it(model, capsys):
    assert cli.main(["bench", model, "-d", "cpu,nosuch", "--runs", "1"]) == 2
    assert "nosuch" in capsys.readouterr().err
