"""ReverseSequence and TensorScatter against onnxruntime and ONNX's evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import check, evaluator, infer, lowered, node_of, reference

from packhorse.errors import ModelError

X = np.arange(60, dtype=np.float32).reshape(4, 5, 3)


@pytest.mark.parametrize("dtype", ["float32", "int64", "float16", "bool"])
def test_reverse_sequence(dtype: str) -> None:
    x = (X % 7 - 3).astype(dtype)
    check("ReverseSequence", [x, np.array([4, 0, 1, 3, 2])], constant=[])
    check("ReverseSequence", [x, np.array([5, 0, 2, 1])], {"batch_axis": 0, "time_axis": 1})
    check("ReverseSequence", [x[..., 0], np.array([4, 0, 1, 3, 2])])


def test_lengths_outside_the_steps() -> None:
    arrays = [X[..., 0], np.array([9, -2, 1, 4, 4])]
    with pytest.raises(ModelError, match="must lie between 0 and the 4 steps"):
        reference(node_of("ReverseSequence", arrays), arrays)
    (found,) = lowered(node_of("ReverseSequence", arrays), arrays)  # kernels clamp
    clamped = [X[..., 0], np.array([4, 0, 1, 4, 4])]
    np.testing.assert_array_equal(found, reference(node_of("ReverseSequence", clamped), clamped)[0])


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_tensor_scatter(mode: str, axis: int, dtype: str) -> None:
    past = np.arange(2 * 5 * 6 * 4).reshape(2, 5, 6, 4).astype(dtype)
    update = -np.ones([3 if d == axis % 4 else n for d, n in enumerate(past.shape)], dtype)
    attrs = {"mode": mode, "axis": axis}
    starts = np.array([0, 1 if mode == "linear" else 3])
    check("TensorScatter", [past, update, starts], attrs, oracle=evaluator, constant=[])
    check("TensorScatter", [past, update], attrs, oracle=evaluator)


def test_updates_outside_the_cache() -> None:
    past, update = np.zeros((1, 4, 1), np.float32), np.ones((1, 2, 1), np.float32)
    arrays = [past, update, np.array([3])]
    with pytest.raises(ModelError, match=r"positions 3 to 4 are written, the cache has 0 to 3"):
        reference(node_of("TensorScatter", arrays), arrays)
    (found,) = lowered(node_of("TensorScatter", arrays), arrays)  # kernels write what fits
    assert found.ravel().tolist() == [0, 0, 0, 1]


L = np.array([1, 1, 1, 1])


@pytest.mark.parametrize(
    ("op", "arrays", "attrs", "message"),
    [
        ("ReverseSequence", [X, L], {}, r"expected one integer per element of axis 1: \(5,\)"),
        ("ReverseSequence", [X, L.astype("f")], {"batch_axis": 0, "time_axis": 1}, "float32"),
        ("ReverseSequence", [X, L], {"batch_axis": 1, "time_axis": 1}, "must be 0 and 1"),
        ("ReverseSequence", [X[:, 0, 0], L], {}, "2 dimensions or more"),
        ("TensorScatter", [X, X[:, :2, :2]], {}, "does not fit a cache"),
        ("TensorScatter", [X, X[:1]], {"axis": 0}, "not the batch axis 0"),
        ("TensorScatter", [X[:, :2], X], {}, "does not fit a cache"),
        ("TensorScatter", [X, X.astype("d")], {}, "the update is float64, the cache float32"),
        ("TensorScatter", [X, X, L[:2]], {}, r"expected one per batch: \(4,\)"),
        ("TensorScatter", [X, X], {"mode": "round"}, "mode is 'round'"),
    ],
)
def test_errors(op: str, arrays: list[Any], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        infer(node_of(op, arrays, attrs), arrays)
