"""Col2Im and MaxUnpool against onnxruntime and ONNX's evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import check, evaluator, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.ops import NotStatic

IMAGES: list[tuple[list[int], list[int], dict[str, Any], int]] = [
    ([5, 5], [1, 5], {}, 5),
    ([6, 7], [3, 2], {"pads": [1, 0, 1, 1]}, 42),
    ([8, 9], [3, 2], {"strides": [2, 3]}, 9),
    ([6, 6], [2, 2], {"dilations": [2, 3], "strides": [1, 2]}, 8),
    ([7], [3], {"strides": [2]}, 3),
    ([3, 4, 5], [1, 2, 3], {}, 27),
]


@pytest.mark.parametrize(("image", "block", "attrs", "count"), IMAGES)
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_col2im(image: Any, block: Any, attrs: dict[str, Any], count: int, dtype: str) -> None:
    x = np.arange(2 * 3 * int(np.prod(block)) * count).reshape(2, -1, count).astype(dtype)
    inputs = [x, np.array(image), np.array(block)]
    check("Col2Im", inputs, attrs, oracle=evaluator, constant=[1, 2])


def test_col2im_is_the_transpose_of_taking_windows() -> None:
    """Blocks of ones count how many windows see each element."""
    x = np.ones((1, 9, 16), np.float32)
    arrays = [x, np.array([6, 6]), np.array([3, 3])]
    found = reference(node_of("Col2Im", arrays), arrays)[0]
    ramp = np.array([1, 2, 3, 3, 2, 1], np.float32)
    np.testing.assert_array_equal(found[0, 0], np.outer(ramp, ramp))


I = np.array  # noqa: E741


@pytest.mark.parametrize(
    ("arrays", "attrs", "message"),
    [
        ([np.zeros((1, 4, 8), "f"), I([4, 4]), I([2, 2])], {}, r"Expected \(N, a multiple of 4, 9"),
        ([np.zeros((1, 5, 9), "f"), I([4, 4]), I([2, 2])], {}, "do not fit"),
        ([np.zeros((4, 9), "f"), I([4, 4]), I([2, 2])], {}, "do not fit"),
        ([np.zeros((1, 4, 9), "f"), I([4, 4]), I([2])], {}, "one extent per spatial dimension"),
        ([np.zeros((1, 4, 9), "f"), I([4, 4]), I([5, 2])], {}, "larger than the padded input"),
        ([np.zeros((1, 4, 9), "f"), I([4, 4]), I([2, 2])], {"strides": [0, 1]}, "'strides'"),
    ],
)
def test_col2im_errors(arrays: list[Any], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        infer(node_of("Col2Im", arrays, attrs), arrays)


def test_col2im_shapes_must_be_known() -> None:
    arrays = [np.zeros((1, 4, 9), "f"), I([4, 4]), I([2, 2])]
    with pytest.raises(NotStatic):
        infer(node_of("Col2Im", arrays), arrays, known=[])
    with pytest.raises(UnsupportedOperator, match=r"image_shape \(input 1\) is not known"):
        lowered(node_of("Col2Im", arrays), arrays)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_max_unpool_undoes_max_pool(rank: int) -> None:
    x = np.random.default_rng(rank).permutation(2 * 3 * 6**rank)
    x = x.reshape(2, 3, *[6] * rank).astype(np.float32) + 1
    attrs = {"kernel_shape": [2] * rank, "strides": [2] * rank}
    pooled, where = reference(node_of("MaxPool", [x], attrs, 2), [x])
    want = np.where(np.isin(x, pooled), x, 0)
    check("MaxUnpool", [pooled, where], attrs, want=[want], lower=False)
    if rank == 2:
        check("MaxUnpool", [pooled, where], attrs, lower=False)
        larger = np.array([2, 3, 7, 8])
        wider = np.pad(want, ((0, 0), (0, 0), (0, 1), (0, 2)))
        check("MaxUnpool", [pooled, where, larger], attrs, want=[wider], lower=False)


def test_max_unpool_errors() -> None:
    x, where = np.ones((1, 1, 2, 2), "f"), np.array([[[[0, 3], [8, 11]]]])
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2]}
    outside = np.array([[[[0, 3], [8, 16]]]])
    with pytest.raises(ModelError, match="indices from 0 to 16 do not lie in data"):
        reference(node_of("MaxUnpool", [x, outside], attrs), [x, outside])
    for arrays, message in (
        ([x, where[0]], "must have one shape"),
        ([x, where, np.array([1, 1, 3, 4])], r"output_shape \(1, 1, 3, 4\) is smaller"),
    ):
        with pytest.raises(ModelError, match=message):
            infer(node_of("MaxUnpool", arrays, attrs), arrays)
    with pytest.raises(ModelError, match="attribute 'pads'"):
        infer(node_of("MaxUnpool", [x, where], attrs | {"pads": [0]}), [x, where])
