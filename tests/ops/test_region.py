"""RoiAlign and NonMaxSuppression against onnxruntime and ONNX's evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import check, evaluator, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.ops import NotStatic

X = np.random.default_rng(0).standard_normal((2, 3, 9, 11)).astype(np.float32)
ROIS = np.array(
    [[1.2, 0.7, 8.9, 6.1], [0, 0, 20, 20], [-3, -4, 2, 3], [5, 5, 5.1, 5.2]], np.float32
)
IMAGES = np.array([0, 1, 1, 0])


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("how", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("samples", [0, 1, 3])
def test_roi_align(mode: str, how: str, samples: int) -> None:
    attrs = {
        "mode": mode, "coordinate_transformation_mode": how, "sampling_ratio": samples,
        "output_height": 3, "output_width": 2, "spatial_scale": 0.7,
    }  # fmt: skip
    check("RoiAlign", [X, ROIS, IMAGES], attrs, oracle=evaluator, lower=bool(samples),
          constant=[], rtol=1e-4, atol=1e-4)  # fmt: skip


def test_roi_align_is_onnxruntimes() -> None:
    attrs = {"sampling_ratio": 2, "output_height": 2, "output_width": 3}
    check("RoiAlign", [X, ROIS, IMAGES], attrs, rtol=1e-4, atol=1e-5)


def test_as_many_samples_as_a_region_needs() -> None:
    arrays = [X, ROIS, IMAGES]
    with pytest.raises(UnsupportedOperator, match="as many samples"):
        lowered(node_of("RoiAlign", arrays), arrays)


def test_regions_of_no_size_are_empty() -> None:
    arrays = [X, np.array([[3, 3, 3, 5]], np.float32), IMAGES[:1]]
    found = reference(node_of("RoiAlign", arrays), arrays)[0]
    np.testing.assert_array_equal(found, np.zeros((1, 3, 1, 1), np.float32))


def test_images_that_are_not_there() -> None:
    arrays = [X, ROIS[:1], np.array([2])]
    with pytest.raises(ModelError, match=r"batch_indices \[2\] must lie between 0 and 1"):
        reference(node_of("RoiAlign", arrays), arrays)
    node = node_of("RoiAlign", arrays, {"sampling_ratio": 1})
    (clamped,) = lowered(node, arrays)  # kernels clamp
    last = [X, ROIS[:1], np.array([1])]
    np.testing.assert_allclose(clamped, reference(node, last)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "attrs", "message"),
    [
        ([X[0], ROIS, IMAGES], {}, "do not fit"),
        ([X, ROIS[:, :3], IMAGES], {}, "do not fit"),
        ([X, ROIS, IMAGES[:2]], {}, r"batch_indices \(2,\) do not fit"),
        ([X[:, :, :0], ROIS, IMAGES], {}, "no elements to sample"),
        ([X, ROIS, IMAGES], {"mode": "median"}, "mode is 'median'"),
        ([X, ROIS, IMAGES], {"coordinate_transformation_mode": "x"}, "is 'x', expected half_pixel"),
        ([X, ROIS, IMAGES], {"output_width": 0}, "extents must be positive"),
        ([X, ROIS, IMAGES], {"sampling_ratio": -1}, "the ratio 0 or more"),
    ],
)
def test_roi_align_errors(arrays: list[Any], attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        infer(node_of("RoiAlign", arrays, attrs), arrays)


def boxes(batch: int, count: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(count)
    first = rng.uniform(0, 1, (batch, count, 2))
    return np.concatenate([first, first + rng.uniform(-0.5, 0.5, first.shape)], 2).astype("f")


@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize("limits", [(3, 0.3, 0.2), (50, 0.0, 0.0), (50, 0.6, -1.0), (0, 0.5, 0.1)])
def test_non_max_suppression(centred: int, limits: tuple[int, float, float]) -> None:
    places = np.abs(boxes(2, 40)) if centred else boxes(2, 40)
    scores = np.random.default_rng(1).uniform(0, 1, (2, 3, 40)).astype(np.float32)
    most, overlap, least = limits
    inputs = [
        places, scores, np.array([most]), np.array([overlap], "f"), np.array([least], "f")
    ]  # fmt: skip
    check("NonMaxSuppression", inputs, {"center_point_box": centred}, lower=False)


def test_equal_scores_and_defaults() -> None:
    places = np.array([[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]], np.float32)
    scores = np.full((1, 1, 3), 0.5, np.float32)
    arrays = [places, scores, np.array(5)]
    found = reference(node_of("NonMaxSuppression", arrays), arrays)[0]
    assert found.tolist() == [[0, 0, 0], [0, 0, 2]]
    nothing = reference(node_of("NonMaxSuppression", arrays[:2]), arrays[:2])[0]
    assert (nothing.shape, nothing.dtype) == ((0, 3), np.int64)
    with pytest.raises(NotStatic, match="depends on"):
        infer(node_of("NonMaxSuppression", arrays), arrays, known=[2])


def test_non_max_suppression_errors() -> None:
    arrays = [np.zeros((1, 5, 4), "f"), np.zeros((1, 2, 6), "f"), np.array(1)]
    with pytest.raises(ModelError, match="do not fit"):
        reference(node_of("NonMaxSuppression", arrays), arrays)
