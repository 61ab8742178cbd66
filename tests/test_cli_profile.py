"""``packhorse profile``: a row per step, where it ran, what was copied. No time is judged."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from cli_kit import write_model
from gpu_kit import opencl

from packhorse import cli

NEEDS_LLVM = pytest.mark.skipif(find_spec("llvmlite") is None, reason="llvmlite is not installed")


@pytest.fixture
def model(tmp_path):
    return str(write_model(tmp_path / "small.onnx", (2, 8)))


def rows_of(out):
    """Lines of the table, its header left out."""
    _, table, *_ = out.split("\n\n")
    header, *rows = table.splitlines()
    assert header.split() == ["us", "share", "where", "function", "step"]
    return [row.split() for row in rows]


@NEEDS_LLVM
def test_a_row_for_each_step(model, capsys):
    assert cli.main(["profile", model, "-d", "llvm-cpu?threads=1", "--repeat", "3"]) == 0
    out = capsys.readouterr().out
    rows = rows_of(out)
    assert out.startswith(f"llvm-cpu:0?threads=1: {len(rows)} steps, ")
    assert "medians of 3" in out.splitlines()[0]
    assert {row[2] for row in rows} == {"llvm-cpu:0?threads=1"}
    assert all(row[3].startswith("ph_") for row in rows)
    assert "copied" not in out


def test_steps_of_the_host_are_marked(model, capsys):
    assert cli.main(["profile", model, "--device", "cpu", "--repeat", "2"]) == 0
    out = capsys.readouterr().out
    assert [row[2:] for row in rows_of(out)] == [
        ["host", "MatMul", "product"], ["host", "Softmax", "scores"]]  # fmt: skip
    assert "2 of them by the NumPy references on the host" in out


def test_copies_are_shown(model, capsys):
    opencl()
    assert cli.main(["profile", model, "--device", "opencl:0"]) == 0
    out = capsys.readouterr().out
    assert {row[2] for row in rows_of(out)} == {"opencl:0"}
    copies = out.split("not in the times above\n")[1].splitlines()
    assert [line.split() for line in copies] == [
        ["'x'", "host", "->", "opencl:0", "64", "B"],
        ["'y'", "opencl:0", "->", "host", "48", "B"],
    ]


@NEEDS_LLVM
def test_several_devices(model, capsys):
    opencl()
    places = ["--place", "opencl:0", "product", "--place", "llvm-cpu?threads=1", "rest"]
    assert cli.main(["profile", model, *places, "--repeat", "1"]) == 0
    out = capsys.readouterr().out
    assert [row[2] for row in rows_of(out)] == ["opencl:0", "llvm-cpu:0?threads=1"]


def test_the_longest_come_first(model, capsys):
    assert cli.main(["profile", model, "-d", "cpu", "--top", "1", "--repeat", "3"]) == 0
    *rows, rest = rows_of(capsys.readouterr().out)
    assert len(rows) == 1
    assert float(rows[0][1].rstrip("%")) >= 50
    assert " ".join(rest) == "... and 1 more"


def test_json(model, capsys):
    assert cli.main(["profile", model, "-d", "cpu", "--repeat", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["repeat"], found["copies"]) == ("cpu:0", 2, [])
    first, second = found["steps"]
    assert (first["step"], first["where"]) == ("product", "host")
    assert first["function"] == "packhorse.op.MatMul"
    total = first["microseconds"] + second["microseconds"]
    assert found["total_microseconds"] == pytest.approx(total)
    assert first["share"] + second["share"] == pytest.approx(1)


@pytest.mark.parametrize("wrong", [["--repeat", "0"], ["--top", "0"]])
def test_wrong_numbers(model, wrong, capsys):
    assert cli.main(["profile", model, "-d", "cpu", *wrong]) == 2
    assert "must be at least 1" in capsys.readouterr().err


def test_an_input_that_does_not_fit(model, capsys):
    assert cli.main(["profile", model, "-d", "cpu", "--input", "z=random"]) == 2
    assert "'z'" in capsys.readouterr().err


def test_what_cannot_be_timed_step_by_step(capsys):
    library = Path(__file__).parent / "data" / "tvm" / "relax_convnet" / "deploy.so"
    assert cli.main(["profile", str(library), "-d", "cpu"]) == 2
    assert "packhorse bench MODEL" in capsys.readouterr().err
