"""ONNX's backend tests: a fixed sample on our devices, and the suite's own behaviour."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gpu_kit import opencl

pytest.importorskip("onnx")

from onnx import TensorProto, helper

from packhorse import cli
from packhorse.errors import ArgumentValueError, UnknownBackend, UnsupportedOperator
from packhorse.ops import registry
from packhorse.testing import onnx_cases, onnx_suite, report

REPORTS = Path(__file__).resolve().parent.parent / "docs" / "conformance"
SAMPLES = {"cpu": 200, "llvm-cpu": 200, "opencl": 100}
"""Tests to run here: the driver behind opencl takes a third of a second to compile each."""


@pytest.fixture(scope="module")
def cases():
    return onnx_cases.load_cases()


@pytest.mark.parametrize("device", SAMPLES)
def test_what_passed_still_passes(device, cases):
    if device == "llvm-cpu":
        pytest.importorskip("llvmlite", reason="llvmlite is not installed (extra llvm-cpu)")
    if device == "opencl":
        opencl()
    before = {r.name: r for r in report.read(REPORTS / f"onnx-{device}.json").results}
    for result in onnx_suite.run_suite(device, sample=SAMPLES[device]):
        known = before[result.name]
        assert result.outcome != "failed" or known.outcome == "failed", result
        assert result.outcome == "passed" or known.outcome != "passed", result
        assert result.host <= known.host or known.outcome != "passed", result


def test_operators_run_on_the_host_are_named(monkeypatch):
    pytest.importorskip("llvmlite", reason="llvmlite is not installed (extra llvm-cpu)")
    tanh = registry._OPERATORS["", "Tanh"]
    monkeypatch.setitem(registry._OPERATORS, ("", "Tanh"), replace(tanh, lower=None))
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "ay"]
    nodes = [("Relu", "a", "b"), ("Tanh", "b", "c"), ("Tanh", "c", "d"), ("Neg", "d", "y")]
    made = [helper.make_node(op, [x], [y]) for op, x, y in nodes]
    proto = helper.make_model(
        helper.make_graph(made, "g", value[:1], value[1:]),
        opset_imports=[helper.make_opsetid("", 21)], ir_version=10,
    )  # fmt: skip
    x = np.float32([-1, 2])
    data = [([x], [-np.tanh(np.tanh(np.maximum(x, 0)))])]
    case = onnx_cases.OnnxCase("case", "dense", proto, data, 1e-3, 0)
    found = onnx_suite.run_case(case, "llvm-cpu")
    assert (found.outcome, found.host, found.hosted) == ("passed", 2, "Tanh"), found
    found = onnx_suite.run_case(case, "cpu")
    assert (found.outcome, found.host, found.hosted) == ("passed", 0, ""), found


def test_the_sample_is_fixed(cases):
    names = [case.name for case in onnx_cases.sample_of(cases, 50)]
    assert len(set(names)) == 50
    assert {c.name for c in onnx_cases.sample_of(cases, 20)} <= set(names)
    operators = {case.operator for case in cases}
    assert len(operators) >= 180
    chosen = onnx_cases.sample_of(cases, len(operators))
    assert sorted(case.operator for case in chosen) == sorted(operators)


def test_tiers(cases):
    assert len(cases) > 2000
    assert sum(case.tier == "dense" for case in cases) >= 1678  # of onnx 1.23
    tiers = {case.name: case.tier for case in cases}
    assert tiers["test_add"] == "dense"
    assert tiers["test_loop11"] == "control"
    assert tiers["test_nonzero_example"] == "dynamic"
    assert tiers["test_cast_FLOAT_to_FLOAT8E4M3FN"] == "small"


def model(op, *inputs):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in (*inputs, "y")]
    graph = helper.make_graph([helper.make_node(op, inputs, ["y"])], "g", values[:-1], values[-1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_the_backend_interface():
    rep = onnx_suite.prepare(model("Add", "a", "b"), "cpu")
    one = np.ones(2, np.float32)
    assert rep.run([one, one])[0].tolist() == [2.0, 2.0]
    assert onnx_suite.supports_device("cpu")
    assert not onnx_suite.supports_device("no-such-device")
    with pytest.raises(UnsupportedOperator):
        onnx_suite.prepare(model("NoSuchOperator", "a")).run([one])


def test_outcomes():
    one = np.ones(2, np.float32)

    def outcome(op, wanted, data=one):
        case = onnx_cases.OnnxCase("case", "dense", model(op, "a"), [([data], [wanted])], 1e-3, 0)
        return onnx_suite.run_case(case, "cpu")

    assert outcome("Neg", -one).outcome == "passed"
    assert outcome("Neg", one).outcome == "failed"
    assert "float32[2], wanted float64[2]" in outcome("Neg", -one.astype(np.float64)).reason
    refused = outcome("NoSuchOperator", one)
    assert refused.outcome == "unsupported"
    assert "NoSuchOperator" in refused.reason


def test_errors(cases):
    with pytest.raises(ArgumentValueError, match="there is no tier 'dens'"):
        onnx_suite.run_suite("cpu", tiers=["dens"])
    with pytest.raises(ArgumentValueError, match="at least 1 test"):
        onnx_suite.run_suite("cpu", sample=0)
    with pytest.raises(ArgumentValueError, match="no ONNX test is called 'test_x'"):
        onnx_suite.run_suite("cpu", skip={"test_x": "why"})
    with pytest.raises(UnknownBackend):
        onnx_suite.run_suite("no-such-device")


def test_skipping_says_why(cases):
    name = onnx_cases.sample_of(cases, 1)[0].name
    (result,) = onnx_suite.run_suite("cpu", sample=1, skip={name: "takes an hour"})
    assert (result.outcome, result.reason) == ("skipped", "takes an hour")


def test_commands(cases, tmp_path, capsys):
    file = tmp_path / "r.json"
    line = ["testing", "onnx", "--device", "cpu", "--sample", "20", "--report", str(file)]
    assert cli.main([*line, "--tier", "dense"]) == 0
    out = capsys.readouterr().out
    assert "ONNX backend tests on cpu:0" in out
    assert f"wrote {file}" in out
    assert cli.main(["testing", "report", str(file)]) == 0
    assert "cpu:0" in capsys.readouterr().out
    assert cli.main(["testing", "report", str(tmp_path / "none.json")]) == 2
    assert cli.main(["testing", "onnx", "--device", "no-such-device"]) == 2
