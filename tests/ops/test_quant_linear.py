"""QLinearMatMul and QLinearConv against onnxruntime and ONNX's evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import check, evaluator, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator

U8, I8 = np.uint8, np.int8


def whole(*shape: int, dtype: Any = U8) -> np.ndarray[Any, Any]:
    info = np.iinfo(dtype)
    return np.random.default_rng(shape).integers(info.min, info.max + 1, shape).astype(dtype)


def number(value: float, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.array(value, dtype)


def steps(count: int) -> np.ndarray[Any, Any]:
    return np.linspace(0.01, 0.03, count, dtype=np.float32)


def matrices(a: Any, b: Any, **changes: Any) -> list[Any]:
    given = {
        "a_scale": number(0.013), "a_zero": number(119, a.dtype), "b_scale": number(0.021),
        "b_zero": number(7, b.dtype), "y_scale": number(0.37), "y_zero": number(101, U8),
    } | changes  # fmt: skip
    names = ("a_scale", "a_zero", "b_scale", "b_zero", "y_scale", "y_zero")
    a_scale, a_zero, b_scale, b_zero, y_scale, y_zero = (given[name] for name in names)
    return [a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero]


QUANTITIES = (1, 2, 4, 5, 6, 7)


@pytest.mark.parametrize("dtype", [U8, I8])
@pytest.mark.parametrize(("a", "b"), [((3, 8), (8, 5)), ((2, 3, 8), (2, 8, 5)), ((17,), (17, 3))])
def test_qlinear_matmul(dtype: Any, a: Any, b: Any) -> None:
    changes = {"y_zero": number(11, dtype)}
    inputs = matrices(whole(*a, dtype=dtype), whole(*b, dtype=dtype), **changes)
    for constant in (QUANTITIES, (3, *QUANTITIES), ()):
        check("QLinearMatMul", inputs, constant=constant, oracle=evaluator)


def test_qlinear_matmul_is_onnxruntimes() -> None:
    check("QLinearMatMul", matrices(whole(9, 33), whole(33, 12)), constant=QUANTITIES)
    mixed = matrices(whole(9, 33), whole(33, 12, dtype=I8), b_zero=number(-3, I8))
    check("QLinearMatMul", mixed, constant=QUANTITIES)


def test_one_quantity_per_row_and_column() -> None:
    a, b = whole(4, 9), whole(9, 5)
    zeros = {"a_zero": whole(4), "b_zero": whole(5)}
    inputs = matrices(a, b, a_scale=steps(4), b_scale=steps(5), **zeros)
    exact = (a.astype(int) - zeros["a_zero"][:, None]) @ (b.astype(int) - zeros["b_zero"])
    scale = np.outer(steps(4), steps(5)) / np.float32(0.37)
    want = np.clip(np.rint(exact * scale) + 101, 0, 255).astype(U8)
    check("QLinearMatMul", inputs, constant=QUANTITIES, want=[want])
    stacked = matrices(a[None], b[None], a_scale=steps(4).reshape(1, 4, 1),
                       a_zero=whole(4).reshape(1, 4, 1), b_scale=steps(5).reshape(1, 1, 5),
                       b_zero=whole(5).reshape(1, 1, 5))  # fmt: skip
    check("QLinearMatMul", stacked, constant=QUANTITIES, want=[want[None]])


def test_halves_are_rounded_to_even_before_the_zero_point() -> None:
    a, b = np.array([[1, 3, 5]], U8).T, np.array([[1]], U8)
    inputs = matrices(a, b, a_scale=number(0.5), a_zero=number(0, U8), b_scale=number(1),
                      b_zero=number(0, U8), y_scale=number(1), y_zero=number(1, U8))  # fmt: skip
    check("QLinearMatMul", inputs, want=[np.array([[1], [3], [3]], U8)])


@pytest.mark.parametrize(
    ("attrs", "w"),
    [
        ({}, (4, 3, 3, 3)),
        ({"pads": [1, 2, 1, 0], "strides": [2, 1]}, (4, 3, 3, 2)),
        ({"group": 3, "auto_pad": "SAME_UPPER"}, (6, 1, 3, 3)),
    ],
)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_qlinear_conv(attrs: dict[str, Any], w: Any, per_channel: bool, bias: bool) -> None:
    x, weights = whole(2, 3, 7, 8), whole(*w, dtype=I8)
    count = w[0] if per_channel else ()
    inputs = [
        x, number(0.02), number(119, U8), weights,
        steps(w[0]) if per_channel else number(0.013),
        np.zeros(count, I8), number(0.25), number(128, U8),
    ]  # fmt: skip
    if bias:
        inputs.append(np.arange(-900, -900 + 400 * w[0], 400, np.int32))
    check("QLinearConv", inputs, attrs, constant=range(1, len(inputs)))


def test_qlinear_conv_with_weights_that_are_not_known() -> None:
    inputs = [whole(1, 2, 5, 5), number(0.02), number(9, U8), whole(3, 2, 3, 3), number(0.1),
              number(4, U8), number(5), number(3, U8)]  # fmt: skip
    check("QLinearConv", inputs, constant=[1, 2, 4, 5, 6, 7], oracle=evaluator)
    node = node_of("QLinearConv", inputs, {"pads": [1, 1, 1, 1]})
    with pytest.raises(UnsupportedOperator, match="unknown weights"):
        lowered(node, inputs)
    assert reference(node, inputs)[0].shape == (1, 3, 5, 5)


A, B = whole(2, 3), whole(3, 4)
X, W = whole(1, 2, 5, 5), whole(3, 2, 3, 3)
CONV = [X, number(1), number(0, U8), W, number(1), number(0, U8), number(1), number(0, U8)]


@pytest.mark.parametrize(
    ("op", "arrays", "message"),
    [
        ("QLinearMatMul", matrices(A.astype(np.int16), B), "input 0 is int16, expected int8"),
        ("QLinearMatMul", matrices(A, B, y_zero=number(0, np.int32)), "input 7 is int32"),
        ("QLinearMatMul", matrices(A, B, y_scale=steps(4)), "y_scale has shape"),
        ("QLinearMatMul", matrices(A, B, a_scale=steps(3)), "a_scale has shape"),
        ("QLinearMatMul", matrices(A, B, b_zero=whole(2)), "b_zero_point has shape"),
        ("QLinearMatMul", matrices(A, A), "QLinearMatMul"),
        ("QLinearConv", [*CONV[:1], steps(2), *CONV[2:]], "x_scale has shape"),
        ("QLinearConv", [*CONV[:4], steps(2), *CONV[5:]], r"w_scale has shape \(2,\)"),
        ("QLinearConv", [*CONV, np.zeros(2, np.int32)], "the bias has shape"),
        ("QLinearConv", [*CONV[:3], W[:, :1], *CONV[4:]], "has 2 channels"),
    ],
)
def test_errors(op: str, arrays: list[Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        infer(node_of(op, arrays), arrays)
