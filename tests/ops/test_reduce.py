"""Reductions, ArgMax/ArgMin, Hardmax and TopK against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import check, evaluator, infer, lowered, node_of

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.ops import NotStatic
from packhorse.ops.reduce import REDUCTIONS

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
NAMES = [row.name for row in REDUCTIONS]


def random(*shape: int, dtype: str = "float32", positive: bool = False) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(shape).standard_normal(shape)
    values = np.abs(values) + 0.1 if positive else values
    return (values * 4 if "int" in dtype else values).astype(dtype)


def axes(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_reduce(name: str, keepdims: int) -> None:
    x = random(2, 3, 4, positive=name == "ReduceLogSum")
    for given_axes in (None, axes(), axes(1), axes(-1, 0), axes(0, 1, 2)):
        inputs = [x] if given_axes is None else [x, given_axes]
        check(name, inputs, {"keepdims": keepdims}, **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_noop_with_empty_axes(name: str) -> None:
    check(name, [random(2, 3)], {"noop_with_empty_axes": 1}, want=[random(2, 3)])


def _exact(node: Any, inputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    """In double precision, then in the dtype of the input (integers truncate)."""
    wide = [inputs[0].astype(np.float64), inputs[1]]
    return [y.astype(inputs[0].dtype) for y in evaluator(node, wide)]


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "int64"])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name: str, dtype: str) -> None:
    x = random(3, 4, dtype=dtype, positive=True)
    floats_only = next(row.floats_only for row in REDUCTIONS if row.name == name)
    compiled = dtype.startswith("float") or not floats_only
    check(name, [x, axes(1)], lower=compiled, oracle=_exact, **CLOSE)
    if not compiled:
        with pytest.raises(UnsupportedOperator, match=dtype):
            lowered(node_of(name, [x, axes(1)]), [x, axes(1)], (1,))


@pytest.mark.parametrize("name", ["ReduceMax", "ReduceMin"])
def test_bool(name: str) -> None:
    x = random(3, 4) > 0
    check(name, [x, axes(1)], oracle=evaluator)
    x[1] = [True] * 4
    check(name, [x, axes(1)], oracle=evaluator)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("ReduceSum", 0), ("ReduceProd", 1), ("ReduceMax", -np.inf), ("ReduceMin", np.inf),
     ("ReduceLogSum", -np.inf), ("ReduceLogSumExp", -np.inf), ("ReduceL2", 0),
     ("ReduceMean", np.nan)],
)  # fmt: skip
def test_empty_sets(name: str, wanted: float) -> None:
    inputs = [np.zeros((2, 0, 3), np.float32), axes(1)]
    check(name, inputs, want=[np.full((2, 1, 3), wanted, np.float32)])
    if np.isfinite(wanted):
        whole = [x.astype(np.int64) for x in inputs]
        check(name, whole, want=[np.full((2, 1, 3), wanted, np.int64)], lower=name != "ReduceL2")


def test_log_sum_exp_does_not_overflow() -> None:
    x = np.array([[1000, 1000.5], [-1000, -1001], [-np.inf, -np.inf]], np.float32)
    check("ReduceLogSumExp", [x, axes(1)], want=[evaluator_stable(x)], **CLOSE)


def evaluator_stable(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.logaddexp.reduce(x.astype(np.float64), axis=1, keepdims=True).astype(np.float32)


def test_reduce_errors() -> None:
    x = random(2, 3)
    for bad, message in ((axes(2), "axis 2 is outside"), (axes(0, 0), "twice")):
        node = node_of("ReduceSum", [x, bad])
        with pytest.raises(ModelError, match=message) as caught:
            infer(node, [x, bad])
        assert "'node' (ReduceSum)" in str(caught.value)
    with pytest.raises(NotStatic, match="input 1 must be known"):
        infer(node_of("ReduceSum", [x, axes(0)]), [x, axes(0)], known=())
    with pytest.raises(UnsupportedOperator, match="axes"):
        lowered(node_of("ReduceSum", [x, axes(0)]), [x, axes(0)], constant=())


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_arg(op: str, dtype: str) -> None:
    x = np.random.default_rng(0).integers(-3, 3, (3, 4, 5)).astype(dtype)
    for axis in (0, 1, -1):
        for keepdims in (0, 1):
            for last in (0, 1):
                attrs = {"axis": axis, "keepdims": keepdims, "select_last_index": last}
                check(op, [x], attrs)


def test_arg_errors() -> None:
    for shape, axis, message in (((2, 3), 2, "axis 2 is outside"), ((2, 0), 1, "no elements")):
        x = np.zeros(shape, np.float32)
        with pytest.raises(ModelError, match=message):
            infer(node_of("ArgMax", [x], {"axis": axis}), [x])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_hardmax(dtype: str) -> None:
    x = np.random.default_rng(0).integers(-3, 3, (3, 4, 5)).astype(dtype)  # with ties
    for axis in (0, 1, -1):
        check("Hardmax", [x], {"axis": axis}, oracle=evaluator)
    check("Hardmax", [x[:, :0]], {"axis": 1}, want=[x[:, :0]], lower=False)


def test_hardmax_error() -> None:
    with pytest.raises(ModelError, match="axis 2 is outside"):
        infer(node_of("Hardmax", [random(2, 3)], {"axis": 2}), [random(2, 3)])
