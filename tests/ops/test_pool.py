"""Pools against onnxruntime: rule, reference and lowering."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import check, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def random(*shape: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    values = np.random.default_rng(shape).standard_normal(shape)
    return (values * 50).astype(np.int8).astype(dtype) if "int" in dtype else values.astype(dtype)


PADDING: list[dict[str, Any]] = [
    {}, {"pads": [1, 0, 1, 1]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID"},
]  # fmt: skip


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("padding", PADDING, ids=str)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_pool_2d(op: str, padding: dict[str, Any], ceil_mode: int) -> None:
    if ceil_mode and "auto_pad" in padding:
        return
    # onnxruntime's SAME fails where a stride exceeds the kernel
    for kernel, strides in itertools.product([(3, 2), (2, 2)], [(1, 1), (2, 2)]):
        attrs = {"kernel_shape": kernel, "strides": strides, "ceil_mode": ceil_mode, **padding}
        check(op, [random(2, 3, 7, 6)], attrs, **CLOSE)


@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("ceil_mode", [0, 1])
def test_average_pool_counts(include: int, ceil_mode: int) -> None:
    for strides, pads in itertools.product([(1, 2), (3, 2)], [(1, 1, 1, 1), (0, 2, 2, 1)]):
        attrs = {"kernel_shape": [3, 3], "strides": strides, "pads": pads,
                 "count_include_pad": include, "ceil_mode": ceil_mode}  # fmt: skip
        check("AveragePool", [random(1, 2, 7, 8)], attrs, **CLOSE)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("rank", [1, 3])
def test_pool_other_ranks(op: str, rank: int) -> None:
    attrs = {"kernel_shape": [2] * rank, "strides": [2] * rank, "pads": [1] * (2 * rank)}
    check(op, [random(1, 2, *[5] * rank)], attrs, **CLOSE)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pool_dilated(op: str) -> None:
    attrs = {"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [1, 1, 0, 1]}
    check(op, [random(1, 2, 6, 7)], attrs, **CLOSE)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_max_pool_indices(rank: int, order: int) -> None:
    attrs = {"kernel_shape": [3] * rank, "strides": [2] * rank, "pads": [1] * (2 * rank),
             "storage_order": order}  # fmt: skip
    x = random(2, 2, *[6, 5, 4][:rank])
    check("MaxPool", [x], attrs, outputs=2, lower=not order)
    equal = np.ones_like(x)  # the first of equals counts
    check("MaxPool", [equal], attrs, outputs=2, lower=not order)
    if order:
        with pytest.raises(UnsupportedOperator, match="column-major Indices"):
            lowered(node_of("MaxPool", [x], attrs, outputs=2), [x])


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8", "uint8"])
def test_max_pool_dtypes(dtype: str) -> None:
    attrs = {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}
    check("MaxPool", [random(1, 2, 4, 5, dtype=dtype)], attrs)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_pool_sweep(data: st.DataObject) -> None:
    draw = data.draw
    op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    kernel, stride, dilation = (
        draw(st.integers(1, 4)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 2)),
    )
    before, after = draw(st.integers(0, kernel - 1)), draw(st.integers(0, kernel - 1))
    size = draw(st.integers(1, 9))
    assume(size + before + after >= (kernel - 1) * dilation + 1)
    attrs = {"kernel_shape": [kernel], "strides": [stride], "dilations": [dilation],
             "pads": [before, after], "ceil_mode": draw(st.integers(0, 1))}  # fmt: skip
    if op == "AveragePool":
        # onnxruntime divides by zero where a dilated window sees only padding
        assume(dilation == 1)
        attrs["count_include_pad"] = draw(st.integers(0, 1))
    else:
        # where every element of a window lies in the padding its index is not defined
        assume(before + after == 0 or dilation == 1)
    check(op, [random(1, 2, size)], attrs, **CLOSE)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("spatial", [(7,), (4, 5), (2, 3, 4)], ids=str)
def test_global(op: str, spatial: tuple[int, ...]) -> None:
    for p in (1, 2, 3) if op == "GlobalLpPool" else (None,):
        check(op, [random(2, 3, *spatial)], {} if p is None else {"p": p}, **CLOSE)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool_norms(p: int) -> None:
    attrs = {"kernel_shape": [2, 2], "p": p, "pads": [1, 0, 0, 1]}
    check("LpPool", [random(1, 2, 4, 5)], attrs, **CLOSE)


def test_a_window_of_padding_only_averages_to_zero() -> None:
    x = random(1, 1, 2)
    node = node_of("AveragePool", [x], {"kernel_shape": [2], "dilations": [2], "pads": [0, 3]})
    assert np.isfinite(reference(node, [x])[0]).all()


@pytest.mark.parametrize(
    ("op", "shape", "attrs", "message"),
    [
        ("MaxPool", (1, 2, 2, 2), {"kernel_shape": [3, 3]}, "larger than the padded input"),
        ("AveragePool", (1, 2), {"kernel_shape": [3]}, "no spatial dimensions"),
        ("MaxPool", (1, 2, 4, 4), {"kernel_shape": [3]}, "does not fit data with 2"),
        ("MaxPool", (1, 2, 4, 4), {}, "lacks the required attribute 'kernel_shape'"),
        ("GlobalAveragePool", (1, 2), {}, "no spatial dimensions"),
    ],
)
def test_errors(op: str, shape: tuple[int, ...], attrs: dict[str, Any], message: str) -> None:
    x = np.zeros(shape, np.float32)
    node = node_of(op, [x], attrs)
    with pytest.raises(ModelError, match=message) as caught:
        infer(node, [x])
    assert f"'node' ({op})" in str(caught.value)


def test_global_pool_of_nothing_is_left_to_the_reference() -> None:
    x = np.zeros((1, 2, 0), np.float32)
    with pytest.raises(UnsupportedOperator, match="no elements"):
        lowered(node_of("GlobalAveragePool", [x]), [x])
