"""Reshape and its relatives, Shape and Size, against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import check, infer, node_of

from packhorse.errors import ModelError
from packhorse.ops import NotStatic

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize("target", [(6, 4), (-1,), (0, -1), (4, -1, 2), (0, 0, 0), (2, 3, 2, 2)])
def test_reshape(target: tuple[int, ...]) -> None:
    check("Reshape", [X, ints(*target)])


def test_reshape_of_empty_and_scalar() -> None:
    check("Reshape", [np.zeros((0, 3), np.float32), ints(3, 0)], {"allowzero": 1})
    check(
        "Reshape", [np.zeros((0, 3), np.float32), ints(0, 5, -1)], want=[np.zeros((0, 5, 0), "f")]
    )
    check("Reshape", [np.array(3, np.int32), ints(1, 1)])
    check("Reshape", [np.ones((1, 1), bool), np.zeros(0, np.int64)])


@pytest.mark.parametrize(
    ("target", "allowzero", "message"),
    [
        ((5, 5), 0, r"\(Reshape\): an input of shape \(2, 3, 4\) does not fit .*\[5, 5\]"),
        ((-1, -1), 0, "at most one -1"),
        ((-2,), 0, "at least 0"),
        ((5, -1), 0, "does not fit"),
        ((2, 3, 4, 0), 0, "copies a dimension that"),
        ((0, -1), 1, "allowzero=1 forbids"),
    ],
)
def test_reshape_errors(target: tuple[int, ...], allowzero: int, message: str) -> None:
    arrays = [X, ints(*target)]
    with pytest.raises(ModelError, match=message):
        infer(node_of("Reshape", arrays, {"allowzero": allowzero}), arrays)


def test_shape_operands_must_be_known() -> None:
    arrays = [X, ints(6, 4)]
    for op in ("Reshape", "Unsqueeze", "Squeeze", "Expand", "Tile"):
        with pytest.raises(NotStatic, match="input 1 must be known"):
            infer(node_of(op, arrays), arrays, known=[])


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])
def test_flatten(axis: int) -> None:
    check("Flatten", [X], {"axis": axis})


def test_squeeze() -> None:
    x = X.reshape(1, 2, 3, 1, 4)
    check("Squeeze", [x])
    for axes in ((0,), (3,), (0, -2), (-5, 3)):
        check("Squeeze", [x, ints(*axes)])


@pytest.mark.parametrize("axes", [(0,), (3,), (-1,), (0, 4), (1, 3), (-1, 0), (2, -1)])
def test_unsqueeze(axes: tuple[int, ...]) -> None:
    check("Unsqueeze", [X, ints(*axes)])


@pytest.mark.parametrize("bounds", [(0, None), (1, None), (-1, None), (0, -1), (1, 2), (2, 9)])
def test_shape(bounds: tuple[int, int | None]) -> None:
    attrs = {"start": bounds[0]} | ({} if bounds[1] is None else {"end": bounds[1]})
    check("Shape", [X], attrs)


def test_size() -> None:
    check("Size", [X])
    check("Size", [np.array(1.0)])


@pytest.mark.parametrize(
    ("op", "arrays", "attrs", "message"),
    [
        ("Flatten", [X], {"axis": 4}, r"axis 4 is outside \[-3, 3\]"),
        ("Squeeze", [X, ints(1)], {}, "dimension 1 of shape .* has size 3"),
        ("Squeeze", [X, ints(5)], {}, r"axis 5 is outside \[-3, 2\]"),
        ("Unsqueeze", [X, ints(0, 0)], {}, "name a dimension twice"),
        ("Unsqueeze", [X, X[0]], {}, "axes must be a list of integers, found float32"),
    ],
)
def test_errors(op: str, arrays: list[np.ndarray], attrs: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        infer(node_of(op, arrays, attrs), arrays)
