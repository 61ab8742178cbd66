"""GridSample against onnxruntime and ONNX's evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import check, evaluator, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator

MODES = ("nearest", "linear", "cubic")
PADDINGS = ("zeros", "border", "reflection")


def places(*shape: int, reach: float = 1.3) -> np.ndarray[Any, Any]:
    """A grid whose places lie up to ``reach`` from the centre; none on the edge of a cell."""
    return np.random.default_rng(shape).uniform(-reach, reach, shape).astype(np.float32)


def data(*shape: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    return (np.random.default_rng(shape).standard_normal(shape) * 5).astype(dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("align", [0, 1])
def test_images(mode: str, padding: str, align: int) -> None:
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": align}
    inputs = [data(2, 3, 4, 5), places(2, 3, 6, 2)]
    # nearest is discontinuous: a product rounded once more may choose another element
    check("GridSample", inputs, attrs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_volumes(mode: str, padding: str) -> None:
    attrs = {"mode": mode, "padding_mode": padding}
    check("GridSample", [data(1, 2, 3, 4, 5), places(1, 2, 3, 2, 3)], attrs, rtol=1e-4, atol=1e-4)


def test_lines() -> None:
    for mode in MODES:
        inputs = [data(2, 2, 7), places(2, 5, 1)]
        check("GridSample", inputs, {"mode": mode}, oracle=evaluator, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("align", [0, 1])
def test_far_outside_and_one_element(padding: str, align: int) -> None:
    attrs = {"padding_mode": padding, "align_corners": align}
    far = places(1, 2, 3, 2, reach=9.7)
    check("GridSample", [data(1, 1, 3, 4), far], attrs, oracle=evaluator, rtol=1e-4, atol=1e-4)
    if not (align and padding == "reflection"):  # the evaluator divides by 0
        check("GridSample", [data(1, 2, 1, 1), far], attrs, oracle=evaluator, atol=1e-4)
    x = data(1, 2, 1, 1)
    want = np.broadcast_to(x, (1, 2, 2, 3))
    if align and padding != "zeros":
        check("GridSample", [x, far], attrs, want=[want], atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "bool"])
def test_other_dtypes(dtype: str) -> None:
    x = data(1, 2, 4, 5, dtype=dtype)
    grid = places(1, 3, 3, 2)
    near = reference(node_of("GridSample", [x, grid], {"mode": "nearest"}), [x, grid])[0]
    check("GridSample", [x, grid], {"mode": "nearest"}, want=[near])
    assert np.isin(near, [*x.ravel(), 0]).all()
    wide = x.astype(np.float32)
    want = reference(node_of("GridSample", [wide, grid]), [wide, grid])[0].astype(dtype)
    if dtype in ("float16", "float64"):
        check("GridSample", [x, grid], want=[want], atol=1e-5)
        check("GridSample", [x, grid.astype(np.float64)], want=[want], atol=1e-5)
    elif dtype == "int32":
        check("GridSample", [x, grid], want=[want], lower=False)
        with pytest.raises(UnsupportedOperator, match="interpolation of int32"):
            lowered(node_of("GridSample", [x, grid]), [x, grid])


def test_names_before_opset_20() -> None:
    inputs = [data(1, 1, 4, 4), places(1, 2, 2, 2)]
    for old, new in (("bilinear", "linear"), ("bicubic", "cubic")):
        want = reference(node_of("GridSample", inputs, {"mode": new}), inputs)
        check("GridSample", inputs, {"mode": old}, want=list(want), atol=1e-5)


@pytest.mark.parametrize("padding", PADDINGS)
def test_places_that_are_no_numbers(padding: str) -> None:
    """NaN gives NaN, infinities are far outside; nothing strays."""
    x, grid = data(1, 1, 3, 3), np.zeros((1, 1, 3, 2), np.float32)
    grid[0, 0, :, 0] = [np.nan, 1e30, -1e30]
    node = node_of("GridSample", [x, grid], {"padding_mode": padding})
    for found in (reference(node, [x, grid])[0], lowered(node, [x, grid])[0]):
        assert found is not None
        assert np.isnan(found[0, 0, 0, 0])
        if padding != "reflection":
            edge = [0, 0] if padding == "zeros" else [x[0, 0, 1, 2], x[0, 0, 1, 0]]
            np.testing.assert_allclose(found[0, 0, 0, 1:], edge, rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "grid", "attrs", "message"),
    [
        ((1, 2, 3, 3), (1, 4, 4, 3), {}, r"\(1, 4, 4, 3\) do not fit"),
        ((1, 2, 3, 3), (2, 4, 4, 2), {}, "do not fit"),
        ((1, 2), (1, 2), {}, "do not fit"),
        ((1, 2, 0, 3), (1, 4, 4, 2), {}, "no elements to sample"),
        ((1, 2, 3, 3), (1, 4, 4, 2), {"mode": "quintic"}, "mode is 'quintic'"),
        ((1, 2, 3, 3), (1, 4, 4, 2), {"padding_mode": "wrap"}, "padding_mode is 'wrap'"),
    ],
)
def test_errors(x: Any, grid: Any, attrs: dict[str, str], message: str) -> None:
    arrays = [np.zeros(x, np.float32), np.zeros(grid, np.float32)]
    with pytest.raises(ModelError, match=message):
        infer(node_of("GridSample", arrays, attrs), arrays)
