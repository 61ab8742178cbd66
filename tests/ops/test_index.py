"""Transpose, Concat, Split, Slice, Expand, Tile against onnxruntime."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import check, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize("perm", [None, *itertools.permutations(range(3))])
def test_transpose(perm: tuple[int, ...] | None) -> None:
    check("Transpose", [X], {} if perm is None else {"perm": list(perm)})


@pytest.mark.parametrize("dtype", ["float16", "int64", "bool", "uint8"])
def test_moving_any_dtype(dtype: str) -> None:
    x = X.astype(dtype)
    check("Transpose", [x])
    check("Concat", [x, x], {"axis": 1})
    check("Slice", [x, ints(1), ints(2), ints(2)])


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_concat(axis: int) -> None:
    other = np.take(X, [0, 0], axis) + 100
    empty = np.take(X, [], axis)
    check("Concat", [X, other, empty, X], {"axis": axis})
    check("Concat", [X], {"axis": axis})


@pytest.mark.parametrize(("axis", "count"), [(0, 2), (2, 2), (-1, 2), (1, 2), (2, 4), (1, 1)])
def test_split_into_equal_parts(axis: int, count: int) -> None:
    check("Split", [X], {"axis": axis, "num_outputs": count}, outputs=count)


@pytest.mark.parametrize("sizes", [(1, 3), (4,), (1, 0, 3)])
def test_split_by_sizes(sizes: tuple[int, ...]) -> None:
    check("Split", [X, ints(*sizes)], {"axis": 2}, outputs=len(sizes))


def test_split_without_sizes_follows_the_outputs() -> None:
    arrays = [X]
    node = node_of("Split", arrays, {"axis": 2}, outputs=2)
    assert [t.shape for t in infer(node, arrays)] == [(2, 3, 2), (2, 3, 2)]
    with pytest.raises(ModelError, match="neither split nor num_outputs"):
        reference(node, arrays)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 6),
    st.integers(-9, 9),
    st.one_of(st.integers(-9, 9), st.none()),
    st.integers(-4, 4).filter(bool),
)
def test_slice_like_the_oracle(extent: int, start: int, end: int | None, step: int) -> None:
    if end is None:  # "to the end", as the specification recommends to write it
        end = 2**63 - 1 if step > 0 else -(2**63)
    x = np.arange(extent, dtype=np.int32)
    check("Slice", [x, ints(start), ints(end), ints(0), ints(step)])


def test_slice_of_several_axes() -> None:
    check("Slice", [X, ints(0, 1), ints(2, 3)])
    check("Slice", [X, ints(-1, 0), ints(-9, 4), ints(2, 0), ints(-2, 1)])
    check("Slice", [X, ints(1, -1), ints(9, -9), ints(-2, -1), ints(2, -1)])


def test_slice_with_unknown_bounds_is_not_compiled() -> None:
    arrays = [X, ints(0), ints(1)]
    with pytest.raises(UnsupportedOperator, match=r"starts \(input 1\) is not known"):
        lowered(node_of("Slice", arrays), arrays)


@pytest.mark.parametrize("target", [(2, 3, 4), (5, 2, 3, 4), (1,), (4,), (2, 1, 1, 1)])
def test_expand(target: tuple[int, ...]) -> None:
    check("Expand", [X, ints(*target)])
    check("Expand", [X[:, :1], ints(3, 1)])


@pytest.mark.parametrize("repeats", [(1, 1, 1), (2, 1, 3), (1, 2, 1), (0, 1, 1)])
def test_tile(repeats: tuple[int, ...]) -> None:
    check("Tile", [X, ints(*repeats)])
    check("Tile", [X[:, :1], ints(*repeats)])


@pytest.mark.parametrize(
    ("op", "arrays", "attrs", "outputs", "message"),
    [
        ("Transpose", [X], {"perm": [0, 1]}, 1, r"perm \[0, 1\] must name the 3 dimensions"),
        ("Transpose", [X], {"perm": [0, 0, 1]}, 1, "name a dimension twice"),
        ("Concat", [X, X[:, :2, :2]], {"axis": 1}, 1, "differ in dimension 1 only"),
        ("Concat", [X, X[0]], {"axis": 0}, 1, "differ in dimension 0 only"),
        ("Concat", [X, X], {"axis": 3}, 1, r"'node' \(Concat\): axis 3 is outside"),
        ("Concat", [X, X], {}, 1, "required attribute 'axis'"),
        ("Split", [X, ints(1, 1)], {"axis": 2}, 2, "does not add up to the dimension's 4"),
        ("Split", [X], {"axis": 2, "num_outputs": 2}, 3, "makes 2 parts but has 3 outputs"),
        ("Split", [X], {"axis": 2, "num_outputs": 7}, 7, "cannot be cut into 7 parts"),
        ("Slice", [X, ints(0), ints(1), ints(0), ints(0)], {}, 1, "step of axis 0 is 0"),
        ("Slice", [X, ints(0, 1), ints(1)], {}, 1, "equally long, found 2, 1"),
        ("Expand", [X, ints(5)], {}, 1, "cannot be broadcast"),
        ("Tile", [X, ints(2, 2)], {}, 1, "must hold 3 counts"),
    ],
)
def test_errors(
    op: str, arrays: list[np.ndarray], attrs: dict[str, object], outputs: int, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        infer(node_of(op, arrays, attrs, outputs), arrays)
