"""ScatterElements and ScatterND against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import check, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.ops.scatter import MOST

X = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
REDUCTIONS = ["none", "add", "mul", "max", "min"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("constant", [(), (1,)])
def test_scatter_elements(reduction: str, constant: tuple[int, ...]) -> None:
    attrs = {"reduction": reduction}
    where = np.array([[1, 0, 2, 0, 1], [0, 2, 1, 2, 0]])
    x, updates = X[0], np.full((2, 5), 7.5, np.float32)
    check("ScatterElements", [x, where, updates], attrs, constant=constant)
    check("ScatterElements", [x, where, updates], attrs | {"axis": 1}, constant=constant)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("constant", [(), (1,)])
def test_scatter_nd(reduction: str, constant: tuple[int, ...]) -> None:
    attrs = {"reduction": reduction}
    check("ScatterND", [X, np.array([[0], [2]]), -X[:2]], attrs, constant=constant)
    check("ScatterND", [X, np.array([[0, -1], [2, 1]]), X[0, :2]], attrs, constant=constant)
    places = np.array([[[0, 1, 2], [2, 3, 4]], [[0, 0, 0], [1, 1, -1]]])
    check("ScatterND", [X, places, X[0, :2, :2] - 9], attrs, constant=constant)


@pytest.mark.parametrize("dtype", ["float16", "int8", "int64", "bool"])
@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
def test_other_dtypes(op: str, dtype: str) -> None:
    x, updates = (X[0] % 7).astype(dtype), (X[0, :2] % 3).astype(dtype)
    where = np.array([[1], [3]]) if op == "ScatterND" else np.array([[1] * 5, [3] * 5])
    for constant in ((), (1,)):
        check(op, [x, where, updates], constant=constant)


def test_of_several_updates_the_last_counts_or_all_do() -> None:
    x, where = np.zeros((3, 2), np.float32), np.array([[1], [1], [-2]])
    updates = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    for constant in ((), (1,)):
        check("ScatterND", [x, where, updates], constant=constant,
              want=[np.array([[0, 0], [5, 6], [0, 0]], np.float32)])  # fmt: skip
        check("ScatterND", [x, where, updates], {"reduction": "add"}, constant=constant,
              want=[np.array([[0, 0], [9, 12], [0, 0]], np.float32)])  # fmt: skip


def test_no_updates() -> None:
    for op, shape in (("ScatterND", (0, 1)), ("ScatterElements", (0, 5))):
        check(op, [X[0], np.zeros(shape, int), X[0, :0]], want=[X[0]], constant=[])


def test_many_updates_stay_on_the_host_unless_they_are_known() -> None:
    x, where = np.zeros((200, 2), np.float32), np.arange(MOST + 1)[::-1].reshape(-1, 1)
    updates = np.random.default_rng(0).standard_normal((MOST + 1, 2)).astype(np.float32)
    with pytest.raises(UnsupportedOperator, match=f"{MOST + 1} updates"):
        lowered(node_of("ScatterND", [x, where, updates]), [x, where, updates])
    check("ScatterND", [x, where, updates], constant=[1])
    sum_ = node_of("ScatterND", [x, where, updates], {"reduction": "add"})
    with pytest.raises(UnsupportedOperator, match="not compiled"):
        lowered(sum_, [x, where, updates], constant=[1])


def test_outside() -> None:
    """The reference says so; in kernels such an update goes nowhere."""
    arrays = [X[0], np.array([[7], [1]]), X[1, :2]]
    node = node_of("ScatterND", arrays)
    with pytest.raises(ModelError, match=r"ScatterND: index 7 is outside \[-4, 3\]"):
        reference(node, arrays)
    with pytest.raises(ModelError, match="index 7"):
        lowered(node, arrays, [1])
    (found,) = lowered(node, arrays)
    inside = [X[0], np.array([[1]]), X[1, 1:2]]
    np.testing.assert_array_equal(found, reference(node_of("ScatterND", inside), inside)[0])


I = np.array([[0], [1]])  # noqa: E741


@pytest.mark.parametrize(
    ("op", "arrays", "attrs", "message"),
    [
        ("ScatterND", [X, I, I], {}, "updates are int64, the input float32"),
        ("ScatterND", [X, I, X], {}, r"updates have shape \(3, 4, 5\), expected \(2, 4, 5\)"),
        ("ScatterND", [X, X, X], {}, "indices must be integers, found float32"),
        ("ScatterND", [X, np.zeros((2, 4), int), X], {}, "do not fit an input"),
        ("ScatterND", [X, I, X[:2]], {"reduction": "sum"}, "found 'sum'"),
        ("ScatterElements", [X[0], np.zeros((2, 6), int), X[0, :2]], {}, "do not fit into"),
        ("ScatterElements", [X[0], np.zeros((2, 5), int), X[0]], {}, "updates have shape"),
        ("ScatterElements", [X[0], np.zeros((2, 5), int), X[0, :2]], {"axis": 2}, "axis 2"),
    ],
)
def test_errors(op: str, arrays: list[Any], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        infer(node_of(op, arrays, attrs), arrays)
