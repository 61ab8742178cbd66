"""Quantised operators against onnxruntime: rule, reference and lowering."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import check, evaluator, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator

F = np.float32


def random(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng([seed, *shape])
    if "int" in dtype:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype)
    return (rng.standard_normal(shape) * 20).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_quantize_per_tensor(dtype: str) -> None:
    x = np.array([[-3000, -1.5, -0.5, 0.5], [1.5, 2.5, 100, 70000]], F)
    check("QuantizeLinear", [x, np.array(0.5, F), np.array(3, dtype)])
    check("DequantizeLinear", [random(3, 4, dtype=dtype), np.array(0.5, F), np.array(3, dtype)])


def test_quantize_without_zero_point() -> None:
    x = random(3, 4)
    check("QuantizeLinear", [x, np.array(0.5, F)])
    check("DequantizeLinear", [random(3, 4, dtype="uint8"), np.array(0.5, F)])
    check("DequantizeLinear", [random(3, 4, dtype="int32"), np.array(0.5, F)])
    node = node_of("QuantizeLinear", [x, np.array(0.5, F)], {"output_dtype": 3})
    assert infer(node, [x, np.array(0.5, F)])[0].dtype == np.int8
    assert reference(node, [x, np.array(0.5, F)])[0].dtype == np.int8


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_per_axis(axis: int) -> None:
    x = random(2, 3, 4)
    n = x.shape[axis]
    scale, zero = np.linspace(0.1, 0.9, n).astype(F), np.arange(n, dtype=np.uint8)
    check("QuantizeLinear", [x, scale, zero], {"axis": axis})
    check("DequantizeLinear", [random(2, 3, 4, dtype="uint8"), scale, zero], {"axis": axis})


def test_blocked() -> None:
    scale = np.linspace(0.1, 0.9, 6).reshape(3, 2).astype(F)
    zero = np.arange(6, dtype=np.int8).reshape(3, 2)
    attrs = {"axis": 1, "block_size": 4}
    check("QuantizeLinear", [random(3, 8), scale, zero], attrs)
    check("DequantizeLinear", [random(3, 8, dtype="int8"), scale, zero], attrs)


def test_a_zero_point_of_one_element_goes_with_a_scalar_scale() -> None:
    inputs = [random(3, 4), np.array(0.5, F), np.array([3], np.uint8)]
    check("QuantizeLinear", inputs, oracle=evaluator)


def test_float16_scale() -> None:
    x = random(3, 4, dtype="int8")
    check("DequantizeLinear", [x, np.array(0.5, np.float16), np.array(1, np.int8)])


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "int4", "uint4"])
def test_small_dtypes(name: str) -> None:
    dtype = getattr(ml_dtypes, name)
    x = np.array([-1000, -3, -0.4, 0, 0.6, 3.2, 1000], F)
    inputs = [x, np.array(2, F), np.zeros((), dtype)]
    check("QuantizeLinear", inputs, oracle=evaluator, lower=False)
    if "int" in name:
        with pytest.raises(UnsupportedOperator, match=name):
            lowered(node_of("QuantizeLinear", inputs), inputs)
    q = reference(node_of("QuantizeLinear", inputs), inputs)[0]
    check("DequantizeLinear", [q, np.array(2, F)], oracle=evaluator, lower=False)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32, allow_subnormal=False), min_size=1, max_size=9)
)  # fmt: skip
def test_dynamic(values: list[float]) -> None:
    x = np.array([values], F)
    if 0 < x.max() - x.min() < 1e-30:
        return
    q, scale, zero = reference(node_of("DynamicQuantizeLinear", [x], outputs=3), [x])
    back = (q.astype(F) - zero.astype(F)) * scale
    assert np.abs(back - x).max() <= scale * 1.01
    check("DynamicQuantizeLinear", [x], outputs=3)


@pytest.mark.parametrize("x", [np.zeros((2, 2), F), np.array(3, F), np.array([-2.5], F)])
def test_dynamic_edges(x: np.ndarray[Any, Any]) -> None:
    if x.any():
        check("DynamicQuantizeLinear", [x], outputs=3)
    else:
        q, scale, zero = reference(node_of("DynamicQuantizeLinear", [x], outputs=3), [x])
        assert not q.any()
        assert scale == 1
        assert zero == 0


@pytest.mark.parametrize("kinds", [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")])
def test_matmul_integer(kinds: tuple[str, str]) -> None:
    for a, b in (((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5))):
        x, y = random(*a, dtype=kinds[0]), random(*b, dtype=kinds[1])
        azp, bzp = np.array(7, kinds[0]), np.array(3, kinds[1])
        columns = random(5, dtype=kinds[1], seed=1)
        for zeros in ([], [azp], [azp, bzp], [None, bzp], [azp, columns]):
            if len(zeros) > 1 and zeros[1] is columns and len(b) > 2:
                continue
            check("MatMulInteger", [x, y, *zeros])


def test_matmul_integer_rows() -> None:
    x, y = random(3, 4, dtype="uint8"), random(4, 5, dtype="int8")
    rows = random(3, dtype="uint8", seed=1)
    exact = (x.astype(int) - rows[:, None]) @ y.astype(int)
    check("MatMulInteger", [x, y, rows], want=[exact.astype(np.int32)])
    check("MatMulInteger", [x, y, rows[:, None]], want=[exact.astype(np.int32)])


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 1, 2]], ids=str)
def test_conv_integer(group: int, pads: list[int]) -> None:
    x, w = random(2, 4, 5, 6, dtype="uint8"), random(4, 4 // group, 3, 2, dtype="int8")
    attrs = {"group": group, "pads": pads, "strides": [1, 2]}
    channels = random(4, dtype="int8", seed=1)
    zero = np.array(9, np.uint8)
    for zeros in (
        [],
        [np.array(0, np.uint8)],
        [zero],
        [zero, np.array(2, np.int8)],
        [zero, channels],
    ):
        check("ConvInteger", [x, w, *zeros], attrs, oracle=_conv_integer, constant=(1, 3))
        if not (any(pads) and zeros):
            check("ConvInteger", [x, w, *zeros], attrs, oracle=_conv_integer, constant=())


def _conv_integer(node: Any, inputs: list[Any]) -> list[np.ndarray[Any, Any]]:
    """onnxruntime's Conv of the centred values in double precision."""
    x, w = (v.astype(np.float64) for v in inputs[:2])
    if len(inputs) > 2:
        x = x - inputs[2]
    if len(inputs) > 3:
        w = w - inputs[3].reshape(-1, 1, 1, 1)
    return [evaluator(node_of("Conv", [x, w], node.attrs), [x, w])[0].astype(np.int32)]


def test_conv_integer_that_is_left_to_the_reference() -> None:
    inputs = [
        random(1, 1, 4, 4, dtype="uint8"),
        random(1, 1, 3, 3, dtype="uint8"),
        np.array(1, np.uint8),
    ]
    with pytest.raises(UnsupportedOperator, match="unknown weights"):
        lowered(node_of("ConvInteger", inputs, {"pads": [1, 1, 1, 1]}), inputs)


U, S = np.uint8, np.int8


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "message"),
    [
        ("QuantizeLinear", [np.ones((2, 3), F), np.ones(4, F)], {}, r"scale has shape \(4,\)"),
        ("QuantizeLinear", [np.ones((2, 3), F), np.ones(3, F)], {"axis": 2}, "axis 2 is outside"),
        (
            "QuantizeLinear",
            [np.ones(3, F), np.ones((), F), np.ones(3, U)],
            {"axis": 0},
            "zero point has",
        ),
        (
            "QuantizeLinear",
            [np.ones(3, F), np.ones((), F)],
            {"output_dtype": 1},
            "no dtype to quan",
        ),
        (
            "QuantizeLinear",
            [np.ones((2, 8), F), np.ones((2, 3), F)],
            {"block_size": 4},
            "per block",
        ),
        (
            "DequantizeLinear",
            [np.ones(3, U), np.ones((), F), np.ones((), S)],
            {},
            "zero point is int8",
        ),
        ("DynamicQuantizeLinear", [np.ones(3, np.float64)], {}, "expected float32"),
        ("MatMulInteger", [np.ones((2, 3), U), np.ones((4, 3), U)], {}, "needs 4"),
        ("MatMulInteger", [np.ones((2, 3), F), np.ones((3, 3), U)], {}, "input 0 is float32"),
        (
            "MatMulInteger",
            [np.ones((2, 3), U), np.ones((3, 3), U), np.ones(4, U)],
            {},
            "a_zero_point",
        ),
        ("ConvInteger", [np.ones((1, 2, 3), U), np.ones((1, 1, 2), U)], {}, "2 channels"),
        (
            "ConvInteger",
            [np.ones((1, 2, 3), U), np.ones((1, 2, 2), U), np.ones(2, U)],
            {},
            "x_zero",
        ),
        (
            "ConvInteger",
            [np.ones((1, 2, 3), U), np.ones((1, 2, 2), U), np.ones((), U), np.ones(3, U)],
            {},
            "w_zero",
        ),
    ],
)
def test_errors(op: str, inputs: list[Any], attrs: dict[str, Any], message: str) -> None:
    node = node_of(op, inputs, attrs, 3 if op == "DynamicQuantizeLinear" else 1)
    with pytest.raises(ModelError, match=message) as caught:
        infer(node, inputs)
    assert f"'node' ({op})" in str(caught.value)
