"""Resize and Upsample against onnxruntime and ONNX's evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import check as check_known
from oracle import evaluator, expected, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.ops import NotStatic
from packhorse.ops.resize import COORDINATES, NEAREST

Array = np.ndarray[Any, Any]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def check(op: str, inputs: list[Any], attrs: Any = None, **more: Any) -> None:
    """All but the data is known at compile time."""
    check_known(op, inputs, attrs, constant=range(1, len(inputs)), **more)


def random(*shape: int, dtype: str = "float32") -> Array:
    return (np.random.default_rng(shape).standard_normal(shape) * 9).astype(dtype)


def scales(*values: float) -> list[Any]:
    return [None, np.array(values, np.float32)]


def sizes(*values: int) -> list[Any]:
    return [None, None, np.array(values, np.int64)]


PLAIN = [c for c in COORDINATES if c not in ("tf_crop_and_resize", "half_pixel_symmetric")]


@pytest.mark.parametrize("nearest", NEAREST)
@pytest.mark.parametrize("coordinates", PLAIN)
def test_nearest(coordinates: str, nearest: str) -> None:
    attrs = {"coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
    for more in (scales(1, 1, 2, 3), sizes(1, 2, 7, 3), sizes(1, 2, 3, 8)):
        inputs = [random(1, 2, 4, 5), *more]
        check("Resize", inputs, attrs, **CLOSE)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_interpolation(coordinates: str, mode: str) -> None:
    if coordinates == "tf_crop_and_resize":
        return
    attrs = {"coordinate_transformation_mode": coordinates, "mode": mode}
    for more in (
        scales(1, 1, 2, 2.5),
        sizes(1, 2, 7, 3),
        sizes(1, 2, 1, 8),
        scales(1, 1, 0.6, 0.6),
    ):
        inputs = [random(1, 2, 4, 4), *more]
        # the evaluator takes -0.5, not 0, where this mode makes one position
        oracle = expected if coordinates == "pytorch_half_pixel" else evaluator
        check("Resize", inputs, attrs, oracle=oracle, **CLOSE)


@pytest.mark.parametrize("a", [-0.5, -0.75])
@pytest.mark.parametrize("exclude", [0, 1])
def test_cubic_options(a: float, exclude: int) -> None:
    attrs = {"mode": "cubic", "cubic_coeff_a": a, "exclude_outside": exclude}
    check("Resize", [random(1, 1, 5, 4), *scales(1, 1, 1.7, 0.8)], attrs, oracle=evaluator, **CLOSE)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("exclude", [0, 1])
def test_antialias(mode: str, exclude: int) -> None:
    attrs = {"mode": mode, "antialias": 1, "exclude_outside": exclude}
    for more in (scales(1, 1, 0.6, 0.4), sizes(1, 1, 3, 9), scales(1, 1, 2, 1)):
        check("Resize", [random(1, 1, 8, 7), *more], attrs, oracle=evaluator, **CLOSE)


def test_ranks_and_axes() -> None:
    attrs: dict[str, Any] = {"mode": "linear"}
    check("Resize", [random(6), *sizes(9)], attrs, oracle=evaluator, **CLOSE)
    volume = random(1, 1, 3, 4, 5)
    check("Resize", [volume, *scales(1, 1, 2, 1.5, 1)], attrs, oracle=evaluator, **CLOSE)
    check("Resize", [random(2, 3, 4, 5), *sizes(6, 3)], {**attrs, "axes": [3, 2]}, **CLOSE)
    check("Resize", [random(2, 3, 4, 5), *scales(2)], {"axes": [-2]}, **CLOSE)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_aspect_ratio(policy: str, mode: str) -> None:
    attrs = {"keep_aspect_ratio_policy": policy, "mode": mode, "axes": [2, 3]}
    check("Resize", [random(1, 1, 4, 6), *sizes(7, 8)], attrs, oracle=evaluator, **CLOSE)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_crop_and_resize(mode: str) -> None:
    roi = np.array([0, 0, 0.21, 0.31, 1, 1, 0.73, 1.4], np.float32)
    attrs = {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize",
             "extrapolation_value": 5.0}  # fmt: skip
    inputs = [random(1, 1, 5, 6), roi, None, np.array([1, 1, 4, 3], np.int64)]
    check("Resize", inputs, attrs, lower=False, oracle=evaluator, **CLOSE)
    with pytest.raises(UnsupportedOperator, match="extrapolation"):
        lowered(node_of("Resize", inputs, attrs), inputs, (1, 3))
    inputs[1] = np.array([0, 0, 0.21, 0.31, 1, 1, 0.73, 0.8], np.float32)
    check("Resize", inputs, attrs, oracle=evaluator, **CLOSE)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "uint8"])
def test_dtypes(dtype: str) -> None:
    x = np.abs(random(1, 1, 3, 4)).astype(dtype)
    check("Resize", [x, *scales(1, 1, 2, 2)], oracle=evaluator, **CLOSE)
    compiled = dtype.startswith("float")
    inputs, attrs = [x, *scales(1, 1, 2, 2)], {"mode": "linear"}
    found = reference(node_of("Resize", inputs, attrs), inputs)[0]
    assert found.dtype == dtype
    if not compiled:
        with pytest.raises(UnsupportedOperator, match=dtype):
            lowered(node_of("Resize", inputs, attrs), inputs, (2,))


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 9), out=st.integers(1, 12), nearest=st.sampled_from(sorted(NEAREST)),
    coordinates=st.sampled_from(PLAIN), mode=st.sampled_from(["nearest", "linear", "cubic"]),
)  # fmt: skip
def test_sweep(size: int, out: int, nearest: str, coordinates: str, mode: str) -> None:
    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
    inputs = [random(1, 1, size, 3), *sizes(1, 1, out, 3)]
    check("Resize", inputs, attrs, oracle=_either, **CLOSE)


def _either(node: Any, inputs: list[Any]) -> list[Array]:
    # onnxruntime computes positions in float32, which moves ties of the nearest modes
    return evaluator(node, inputs) if node.attrs["mode"] == "nearest" else expected(node, inputs)


def test_extent_of_a_rounded_scale() -> None:
    inputs = [random(1, 1, 10, 10), *scales(1, 1, 0.7, 0.1)]
    assert infer(node_of("Resize", inputs), inputs)[0].shape == (1, 1, 7, 1)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("factor", [(1, 1, 2, 3), (1, 1, 1.5, 1)], ids=str)
def test_upsample(mode: str, factor: tuple[float, ...]) -> None:
    """Upsample left ONNX with opset 10: it is Resize, asymmetric and floor."""
    x = random(1, 2, 3, 4)
    attrs = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    want = evaluator(node_of("Resize", [x, *scales(*factor)], attrs), [x, *scales(*factor)])
    check(
        "Upsample",
        [x, np.array(factor, np.float32)],
        {"mode": mode},
        want=want,
        **CLOSE,
    )


@pytest.mark.parametrize(
    ("more", "attrs", "message"),
    [
        ([], {}, "exactly one"),
        ([*scales(1, 1, 2, 2), np.array([1, 1, 2, 2])], {}, "exactly one"),
        (scales(1, 2), {}, "scales holds 2 numbers, expected 4"),
        (sizes(1, 2), {}, "sizes holds 2 numbers"),
        (scales(1, 1, 0, 1), {}, "must be positive"),
        (scales(1, 1, 2, 2), {"mode": "bilinear"}, "mode is 'bilinear'"),
        (scales(1, 1, 2, 2), {"nearest_mode": "up"}, "nearest_mode is 'up'"),
        (scales(1, 1, 2, 2), {"coordinate_transformation_mode": "x"}, "is 'x'"),
        (scales(1, 1, 2, 2), {"coordinate_transformation_mode": "tf_crop_and_resize"}, "roi"),
        (scales(1), {"axes": [4]}, "axis 4 is outside"),
    ],
)  # fmt: skip
def test_errors(more: list[Any], attrs: dict[str, Any], message: str) -> None:
    inputs = [random(1, 1, 3, 4), *more]
    with pytest.raises(ModelError, match=message) as caught:
        infer(node_of("Resize", inputs, attrs), inputs)
    assert "'node' (Resize)" in str(caught.value)


def test_unknown_scales() -> None:
    inputs = [random(1, 1, 3, 4), *scales(1, 1, 2, 2)]
    with pytest.raises(NotStatic):
        infer(node_of("Resize", inputs), inputs, known=())
    with pytest.raises(UnsupportedOperator, match="compile time"):
        lowered(node_of("Resize", inputs), inputs, ())


def test_upsample_errors() -> None:
    inputs = [random(1, 1, 3, 4), np.ones(4, np.float32)]
    with pytest.raises(ModelError, match="mode is 'cubic'"):
        reference(node_of("Upsample", inputs, {"mode": "cubic"}), inputs)
