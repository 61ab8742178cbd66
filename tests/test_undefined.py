"""What ONNX leaves undefined, as the table in docs/devices.md says it is here."""

import numpy as np
import pytest
from model_kit import DEVICES, LLVM, value

from packhorse.errors import ModelError
from packhorse.graph.ir import Graph, Node
from packhorse.model import Model

X = np.arange(6, dtype=np.float32).reshape(3, 2)


def run(device, op, *inputs, **attributes):
    arrays = [np.asarray(a) for a in inputs]
    names = [f"i{k}" for k in range(len(arrays))]
    graph = Graph(
        "g",
        [value(n, a.shape, a.dtype) for n, a in zip(names, arrays, strict=True)],
        [value("y", None, attributes.pop("gives", arrays[0].dtype))],
        [Node(op, names, ["y"], attributes, name="node")],
        {},
    )
    return Model(graph)(*arrays, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("op", "index", "nearest"),
    [
        ("Gather", [5, -9], X[[2, 0]]),
        ("GatherElements", [[5, -9]], [[4, 1]]),
        ("GatherND", [[5], [-9]], X[[2, 0]]),
    ],
)
def test_reading_outside(device, op, index, nearest):
    if device == LLVM:
        np.testing.assert_array_equal(run(device, op, X, index), nearest)
    else:
        with pytest.raises(ModelError, match=r"'node' \(Gather.*index 5 is outside \[-3, 2\]"):
            run(device, op, X, index)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("op", "index", "update"),
    [
        ("ScatterND", [[7]], np.ones((1, 2), "f4")),
        ("ScatterElements", [[7]], np.ones((1, 1), "f4")),
    ],
)
def test_writing_outside(device, op, index, update):
    if device == LLVM:
        np.testing.assert_array_equal(run(device, op, X, index, update), X)
    else:
        with pytest.raises(ModelError, match=r"'node' \(Scatter.*index 7 is outside \[-3, 2\]"):
            run(device, op, X, index, update)


@pytest.mark.parametrize("device", DEVICES)
def test_dividing_by_zero(device):
    a, b = np.array([3, 0, -(2**31)], np.int32), np.array([0, 0, -1], np.int32)
    assert run(device, "Div", a, b).tolist() == [0, 0, -(2**31)]
    assert run(device, "Mod", a, b).tolist() == [0, 0, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_casting_what_does_not_fit(device):
    x = np.array([np.nan, np.inf, -np.inf, 3e9], np.float32)
    found = run(device, "Cast", x, to=6, gives=np.int32)
    assert found.tolist() == [0, 2**31 - 1, -(2**31), 2**31 - 1]
