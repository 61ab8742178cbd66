"""Constant, ConstantOfShape, Range, EyeLike against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import check, infer, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.ops import NotStatic


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    "attrs",
    [
        {"value": np.arange(6, dtype=np.int8).reshape(2, 3)}, {"value_float": 1.5},
        {"value_floats": [1.5, 2.0]}, {"value_int": 3}, {"value_ints": [3, 4, 5]},
    ],
)  # fmt: skip
def test_constant(attrs: dict[str, object]) -> None:
    check("Constant", [], attrs)


def test_constant_strings_stay_on_the_host() -> None:
    node = node_of("Constant", [], {"value_strings": ["a", "b"]})
    assert infer(node, [])[0].dtype == np.object_
    assert reference(node, [])[0].tolist() == ["a", "b"]
    with pytest.raises(UnsupportedOperator, match="no dtype object"):
        check("Constant", [], node.attrs, want=[np.array(["a", "b"], object)])


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), ()])
@pytest.mark.parametrize("value", [None, np.array([5], np.int64), np.array([True])])
def test_constant_of_shape(shape: tuple[int, ...], value: np.ndarray | None) -> None:
    attrs = {} if value is None else {"value": value}
    check("ConstantOfShape", [ints(*shape)], attrs)


@pytest.mark.parametrize(
    ("bounds", "dtype"),
    [
        ((0, 5, 1), "int64"), ((5, 0, -2), "int32"), ((3, 3, 1), "int64"), ((0, 1, 0.1), "float32"),
        ((5, 0, 1), "int64"), ((1, -1, -0.25), "float64"), ((0, 10, 3), "int16"),
    ],
)  # fmt: skip
def test_range(bounds: tuple[float, ...], dtype: str) -> None:
    check("Range", [np.array(b, dtype) for b in bounds])


@pytest.mark.parametrize("k", [-1, 0, 2])
def test_eye_like(k: int) -> None:
    x = np.zeros((3, 4), np.int32)
    check("EyeLike", [x], {"k": k})
    check("EyeLike", [x], {"k": k, "dtype": 1})


@pytest.mark.parametrize(
    ("op", "arrays", "attrs", "message"),
    [
        ("Constant", [], {}, "exactly one of .* found none"),
        ("Constant", [], {"value_int": 1, "value_float": 2.0}, "found value_float, value_int"),
        ("ConstantOfShape", [ints(2, -1)], {}, "negative size"),
        ("ConstantOfShape", [ints(2)], {"value": np.zeros(2)}, "must hold one element"),
        ("Range", [ints(0), ints(4), ints(0)], {}, "step of a Range is 0"),
        ("Range", [ints(0), ints(4), np.ones(1)], {}, "one dtype"),
        ("EyeLike", [ints(2)], {}, "must have 2 dimensions"),
    ],
)
def test_errors(op: str, arrays: list[np.ndarray], attrs: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        infer(node_of(op, arrays, attrs), arrays)


def test_bounds_must_be_known() -> None:
    arrays = [ints(0), ints(4), ints(1)]
    with pytest.raises(NotStatic, match=r"'node' \(Range\): input 1"):
        infer(node_of("Range", arrays), arrays, known=[0, 2])
