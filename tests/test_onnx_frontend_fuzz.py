"""Damaged ONNX files give a graph or a ModelError: no crash, no hang, no huge allocation."""

from __future__ import annotations

import contextlib
import resource

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from packhorse.errors import ModelError, ModelFormatError  # noqa: E402
from packhorse_onnx import import_onnx, wire  # noqa: E402


def _sample() -> bytes:
    """A model with most things in it: old opset, If, Constant, int64 chain, two initializers."""

    def body(op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["s"], ["b"])], op, [], [out])

    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Constant", [], ["axes"], value_ints=[0]),
        helper.make_node("Squeeze", ["one"], ["o"], axes=[0]),
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["c", "shape"], ["r"]),
        helper.make_node("Softmax", ["r"], ["s"], axis=1),
        helper.make_node("If", ["o"], ["y"], then_branch=body("Neg"), else_branch=body("Relu")),
    ]
    weight = np.ones((3, 3, 3, 3), np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([True]), "one")],
    )
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 11)])
    return bytes(made.SerializeToString())


SAMPLE = _sample()


def accept(data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(ModelError):
        import_onnx(data, strict=False)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 256 << 10, f"{grown} KiB for {len(data)} bytes"


RULES = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


def test_the_sample_is_sound() -> None:
    assert import_onnx(SAMPLE).count_ops()["If"] == 1


@RULES
@given(
    st.lists(
        st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=6
    )
)
def test_changed_bytes(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SAMPLE)
    for at, value in changes:
        data[at] = value
    accept(bytes(data))


@RULES
@given(st.integers(0, len(SAMPLE) - 1))
def test_truncations(size: int) -> None:
    accept(SAMPLE[:size])


@RULES
@given(st.integers(0, len(SAMPLE)), st.binary(max_size=20))
def test_insertions(at: int, extra: bytes) -> None:
    accept(SAMPLE[:at] + extra + SAMPLE[at:])


@RULES
@given(st.binary(max_size=300))
def test_noise(data: bytes) -> None:
    accept(data)


@RULES
@given(st.binary(max_size=100))
def test_fields_cover_the_message_or_refuse(data: bytes) -> None:
    try:
        found = list(wire.fields(memoryview(data)))
    except ModelFormatError:
        return
    assert sum(f.end - f.start for f in found) == len(data)


@pytest.mark.fuzz
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_changed_bytes_at_length(data: st.DataObject) -> None:
    changed = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 12))):
        changed[data.draw(st.integers(0, len(SAMPLE) - 1))] = data.draw(st.integers(0, 255))
    accept(bytes(changed))
