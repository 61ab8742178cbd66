"""TopK against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import check, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.ops import NotStatic
from packhorse.ops.top_k import MOST


def axes(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


@settings(max_examples=25, deadline=None)
@given(
    data=st.lists(st.integers(-5, 5), min_size=1, max_size=12),
    largest=st.booleans(), dtype=st.sampled_from(["float32", "int64", "float64"]),
    k=st.integers(1, 12),
)  # fmt: skip
def test_top_k(data: list[int], largest: bool, dtype: str, k: int) -> None:
    x = np.array([data, data[::-1]], dtype)
    inputs = [x, axes(min(k, len(data)))]
    check("TopK", inputs, {"largest": int(largest)}, outputs=2)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("largest", [0, 1])
def test_any_axis(axis: int, largest: int) -> None:
    x = np.random.default_rng(0).integers(-9, 9, (4, 5, 6)).astype(np.float32)  # with ties
    x[0, 0] = [np.inf, -np.inf, np.inf, -np.inf, 0, 1]
    check("TopK", [x, axes(4)], {"axis": axis, "largest": largest}, outputs=2)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "float16"])
def test_extreme_values(dtype: str) -> None:
    kind = np.dtype(dtype)
    low, high = (-np.inf, np.inf) if kind.kind == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    x = np.array([[low, 3, high, low], [high, high, low, 7]], kind)
    for largest in (0, 1):
        node = node_of("TopK", [x, axes(4)], {"largest": largest}, 2)
        want = list(reference(node, [x, axes(4)]))
        order = np.argsort(x.astype(np.float64) * (-1 if largest else 1), axis=1, kind="stable")
        np.testing.assert_array_equal(want[1], order)
        check("TopK", [x, axes(4)], {"largest": largest}, outputs=2, want=want)


def test_nothing_and_much_stay_on_the_host() -> None:
    x = np.arange(2 * MOST + 2, dtype=np.float32).reshape(1, -1)
    for k in (0, MOST + 1):
        check("TopK", [x, axes(k)], outputs=2, lower=False)
        with pytest.raises(UnsupportedOperator, match=f"TopK of {k} elements"):
            lowered(node_of("TopK", [x, axes(k)], {}, 2), [x, axes(k)], constant=[1])


def test_positions_stay_inside_with_nan() -> None:
    x = np.array([[1, np.nan, 2], [np.nan] * 3], np.float32)
    _, places = lowered(node_of("TopK", [x, axes(3)], {}, 2), [x, axes(3)], constant=[1])
    assert places is not None
    assert ((places >= 0) & (places < 3)).all()


def test_errors() -> None:
    x = np.zeros((2, 3), np.float32)
    node = node_of("TopK", [x, axes(4)], {}, 2)
    with pytest.raises(ModelError, match=r"k is \[4\].*3 elements"):
        infer(node, [x, axes(4)])
    with pytest.raises(NotStatic):
        infer(node, [x, axes(4)], known=())
    with pytest.raises(UnsupportedOperator, match=r"k \(input 1\) is not known"):
        lowered(node_of("TopK", [x, axes(1)], {}, 2), [x, axes(1)])
