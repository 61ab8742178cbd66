"""Conv and ConvTranspose against onnxruntime: rule, reference and lowering."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import check, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def random(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


GROUPS = [(1, 3, 4), (2, 4, 6), (4, 4, 4), (4, 4, 8)]
PADDING: list[dict[str, Any]] = [
    {}, {"pads": [1, 2, 0, 1]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID"},
]  # fmt: skip


@pytest.mark.parametrize("padding", PADDING, ids=str)
@pytest.mark.parametrize("channels", GROUPS, ids=str)
def test_conv_2d(channels: tuple[int, int, int], padding: dict[str, Any]) -> None:
    group, c, m = channels
    for kernel, strides in itertools.product([(3, 2), (1, 1)], [(1, 1), (2, 3)]):
        inputs = [random(2, c, 6, 5), random(m, c // group, *kernel), random(m)]
        check(
            "Conv",
            inputs,
            {"group": group, "strides": strides, **padding},
            constant=(1, 2),
            **CLOSE,
        )


@pytest.mark.parametrize("dilations", [(2, 1), (1, 3)])
@pytest.mark.parametrize("padding", [{}, {"pads": [2, 1, 1, 3]}], ids=str)
def test_conv_dilated(dilations: Sequence[int], padding: dict[str, Any]) -> None:
    inputs = [random(1, 2, 7, 8), random(3, 2, 3, 2)]
    check("Conv", inputs, {"dilations": dilations, "strides": [2, 1], **padding}, **CLOSE)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("group", [1, 2])
def test_conv_other_ranks(rank: int, group: int) -> None:
    inputs = [random(2, 4, *[5] * rank), random(2, 4 // group, *[3] * rank), random(2)]
    check("Conv", inputs, {"pads": [1] * (2 * rank), "group": group}, **CLOSE)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_conv_dtypes(dtype: str) -> None:
    inputs = [random(1, 3, 5, 5, dtype=dtype), random(2, 3, 3, 3, dtype=dtype)]
    wanted = None
    if dtype == "float16":
        exact = reference(node_of("Conv", inputs), [x.astype(np.float64) for x in inputs])
        wanted = [y.astype(np.float16) for y in exact]
    check("Conv", inputs, want=wanted, **CLOSE)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_conv_sweep(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 2))
    group = data.draw(st.integers(1, 3))
    each = data.draw(st.integers(1, 3))
    kernel = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    dilations = data.draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    strides = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    pads = data.draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank))
    extents = [
        max(1, (k - 1) * d + 1 - a - b) + data.draw(st.integers(0, 4))
        for k, d, a, b in zip(kernel, dilations, pads[:rank], pads[rank:], strict=True)
    ]
    inputs = [random(1, group * each, *extents), random(group * 2, each, *kernel)]
    attrs = {"group": group, "dilations": dilations, "strides": strides, "pads": pads}
    check("Conv", inputs, attrs, **CLOSE)


@pytest.mark.parametrize(
    ("shapes", "attrs", "message"),
    [
        (((1, 3, 5, 5), (4, 2, 3, 3)), {}, "3 channels.*expect 2"),
        (((1, 3, 5, 5), (4, 3, 3, 3)), {"group": 2}, "group 2 does not divide 3"),
        (((1, 3, 5, 5), (4, 3, 3, 3)), {"group": 0}, "group 0"),
        (((1, 3, 2, 5), (4, 3, 3, 3)), {}, "larger than the padded input"),
        (((1, 3, 5, 5), (4, 3, 3, 3)), {"kernel_shape": [1, 1]}, "kernel_shape"),
        (((1, 3, 5, 5), (4, 3, 3, 3)), {"strides": [1]}, "'strides' is \\[1\\], expected 2"),
        (((1, 3, 5, 5), (4, 3, 3, 3)), {"pads": [0, 0, -1, 0]}, "'pads'"),
        (((1, 3, 5, 5), (4, 3, 3, 3)), {"auto_pad": "SAME"}, "auto_pad is 'SAME'"),
        (((1, 3, 5, 5), (4, 3, 3)), {}, "same rank"),
        (((1, 3, 5, 5), (4, 3, 3, 3), (5,)), {}, "bias has shape \\(5,\\)"),
    ],
)
def test_conv_errors(shapes: Any, attrs: dict[str, Any], message: str) -> None:
    inputs = [np.zeros(s, np.float32) for s in shapes]
    node = node_of("Conv", inputs, attrs)
    with pytest.raises(ModelError, match=message) as caught:
        infer(node, inputs)
    assert "'node' (Conv)" in str(caught.value)


def test_conv_reference_checks_too() -> None:
    inputs = [np.zeros((1, 3, 5, 5), np.float32), np.zeros((4, 2, 3, 3), np.float32)]
    with pytest.raises(ModelError, match="3 channels"):
        reference(node_of("Conv", inputs), inputs)


TRANSPOSED: list[dict[str, Any]] = [
    {}, {"pads": [1, 2, 0, 1]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID"}, {"output_padding": [1, 0]}, {"output_shape": [11, 9]},
]  # fmt: skip


@pytest.mark.parametrize("padding", TRANSPOSED, ids=str)
@pytest.mark.parametrize("channels", [(1, 3, 2), (2, 4, 2), (4, 4, 1)], ids=str)
def test_conv_transpose_2d(channels: tuple[int, int, int], padding: dict[str, Any]) -> None:
    group, c, m = channels
    for kernel, dilations in itertools.product([(3, 2), (4, 3)], [(1, 1), (2, 3)]):
        inputs = [random(2, c, 5, 4), random(c, m, *kernel), random(m * group)]
        attrs = {"group": group, "strides": [2, 2], "dilations": dilations, **padding}
        check("ConvTranspose", inputs, attrs, constant=(1, 2), **CLOSE)


@pytest.mark.parametrize("rank", [1, 3])
def test_conv_transpose_other_ranks(rank: int) -> None:
    inputs = [random(1, 2, *[3] * rank), random(2, 3, *[3] * rank)]
    check("ConvTranspose", inputs, {"strides": [3] * rank, "pads": [1] * (2 * rank)}, **CLOSE)


def test_conv_transpose_kernel_smaller_than_stride() -> None:
    inputs = [random(1, 2, 3, 3), random(2, 2, 1, 2), random(2)]
    check("ConvTranspose", inputs, {"strides": [2, 3]}, **CLOSE)


def test_conv_transpose_same_is_input_times_stride_even_for_small_kernels() -> None:
    inputs = [random(1, 1, 3), random(1, 1, 1)]
    node = node_of("ConvTranspose", inputs, {"strides": [2], "auto_pad": "SAME_UPPER"})
    assert infer(node, inputs)[0].shape == (1, 1, 6)
    assert reference(node, inputs)[0].shape == (1, 1, 6)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_conv_transpose_sweep(data: st.DataObject) -> None:
    draw = data.draw
    kernel, stride, dilation = (draw(st.integers(1, n)) for n in (4, 4, 4))
    size = draw(st.integers(1, 5))
    full = (size - 1) * stride + (kernel - 1) * dilation + 1
    before = draw(st.integers(0, min(3, full - 1)))
    after = draw(st.integers(0, min(3, full - 1 - before)))
    extra = draw(st.integers(0, max(stride, dilation) - 1))
    attrs = {"strides": [stride], "dilations": [dilation], "pads": [before, after],
             "output_padding": [extra]}  # fmt: skip
    if extra >= stride:  # onnxruntime refuses it; the specification does not
        return
    check("ConvTranspose", [random(1, 2, size), random(2, 2, kernel)], attrs, **CLOSE)


@pytest.mark.parametrize(
    ("shapes", "attrs", "message"),
    [
        (((1, 3, 5), (2, 2, 3)), {}, "3 channels.*expect 2"),
        (((1, 3, 5), (3, 2, 3)), {"group": 2}, "group 2 does not divide"),
        (((1, 3, 5), (3, 2, 3, 3)), {}, "same rank"),
        (((1, 3, 2), (3, 2, 1)), {"pads": [1, 1]}, "leave no output"),
        (((1, 3, 2), (3, 2, 1), (3,)), {}, "bias has shape"),
    ],
)
def test_conv_transpose_errors(shapes: Any, attrs: dict[str, Any], message: str) -> None:
    inputs = [np.zeros(s, np.float32) for s in shapes]
    node = node_of("ConvTranspose", inputs, attrs)
    with pytest.raises(ModelError, match=message) as caught:
        infer(node, inputs)
    assert "'node' (ConvTranspose)" in str(caught.value)


def test_too_many_kernels_are_left_to_the_reference() -> None:
    inputs = [random(1, 600, 2), random(600, 2, 1)]
    with pytest.raises(UnsupportedOperator, match="groups"):
        lowered(
            node_of("Conv", [inputs[0], random(300, 2, 1)], {"group": 300}),
            [inputs[0], random(300, 2, 1)],
        )
    with pytest.raises(UnsupportedOperator, match="phases"):
        lowered(node_of("ConvTranspose", inputs, {"strides": [300]}), inputs)
