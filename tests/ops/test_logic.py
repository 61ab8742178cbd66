"""Comparisons, boolean and bitwise operators, Where, against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import check, infer, node_of

from packhorse.errors import ModelError

RNG = np.random.default_rng(1)
A, B = RNG.integers(0, 4, (2, 3, 4)), RNG.integers(0, 4, (3, 1))
P, Q = A > 1, B > 1


@pytest.mark.parametrize("op", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
@pytest.mark.parametrize("dtype", ["float32", "int64", "int32", "float16", "uint8"])
def test_comparisons(op: str, dtype: str) -> None:
    check(op, [A.astype(dtype), B.astype(dtype)])


def test_equal_of_bools_and_strings() -> None:
    check("Equal", [P, Q])
    a, b = np.array(["a", "b"], object), np.array(["a", "c"], object)
    check("Equal", [a, b], lower=False, want=[np.array([True, False])])


def test_nan_compares_false() -> None:
    x = np.array([np.nan, 1.0], np.float32)
    check("Equal", [x, x])
    check("LessOrEqual", [x, x])


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_booleans(op: str) -> None:
    check(op, [P, Q])


def test_not() -> None:
    check("Not", [P])


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_isnan_isinf(dtype: str) -> None:
    x = np.array([1, np.nan, np.inf, -np.inf], dtype)
    check("IsNaN", [x])
    for negative in (0, 1):
        for positive in (0, 1):
            attrs = {"detect_negative": negative, "detect_positive": positive}
            check("IsInf", [x.astype(np.float32)], attrs)


@pytest.mark.parametrize("op", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_bitwise(op: str) -> None:
    check(op, [A.astype(np.int32), B.astype(np.int32)])


def test_bitwise_not_and_shift() -> None:
    check("BitwiseNot", [A.astype(np.uint8)])
    for direction in ("LEFT", "RIGHT"):
        arrays = [A.astype(np.uint32), B.astype(np.uint32)]
        check("BitShift", arrays, {"direction": direction})


def test_shift_of_signed_integers() -> None:
    x, by = np.array([-8, 8, -1, 1], np.int8), np.array([1, 9, 8, -1], np.int8)
    right, left = np.array([-4, 0, -1, 0], np.int8), np.array([-16, 0, 0, 0], np.int8)
    check("BitShift", [x, by], {"direction": "RIGHT"}, want=[right])
    check("BitShift", [x, by], {"direction": "LEFT"}, want=[left])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64", "int64"])
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_every_shift(dtype: str, direction: str) -> None:
    """All widths, 0 and beyond the width, of the extreme values and some between."""
    info = np.iinfo(dtype)
    x = np.array([info.min, info.max, 0, 1, info.max // 3, info.min // 3], dtype)
    by = np.arange(info.bits + 2).astype(dtype)[:, None]
    function = np.left_shift if direction == "LEFT" else np.right_shift
    check("BitShift", [x, by], {"direction": direction}, want=[function(x, by)])


@pytest.mark.parametrize("dtype", ["float32", "int64", "float16", "bool"])
def test_where(dtype: str) -> None:
    x, y = A.astype(dtype), B.astype(dtype)
    result = np.where(P[:, :1], x, y)
    check("Where", [P[:, :1], x, y], want=[result])


def test_where_against_the_oracle_with_scalars() -> None:
    check("Where", [Q, np.float32(1.5), A.astype(np.float32)])


@pytest.mark.parametrize(
    ("op", "arrays", "attrs", "message"),
    [
        ("And", [A, A], {}, "inputs are int64, but must be one of: bool"),
        ("Where", [A, A, A], {}, "condition must be bool, found int64"),
        ("Where", [P, A, P], {}, "one dtype, found int64, bool"),
        ("Where", [P, A], {}, r"'node' \(Where\): input 2 is missing"),
        ("BitShift", [P, P], {"direction": "LEFT"}, "are bool, but must be one of: int, uint"),
        ("BitShift", [A.astype("u1")], {"direction": "UP"}, "must be LEFT or RIGHT"),
        ("BitShift", [A.astype("u1")], {}, "lacks the required attribute 'direction'"),
    ],
)
def test_errors(op: str, arrays: list[np.ndarray], attrs: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        infer(node_of(op, arrays, attrs), arrays)
