"""CumSum and CumProd against onnxruntime and ONNX's evaluator."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import check, infer, lowered, node_of

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.ops.scan import RUN


def values(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    made = np.random.default_rng(shape).uniform(0.5, 1.5, shape)
    return (made * 3).astype(dtype) if "int" in dtype else made.astype(dtype)


def running(op: str, x: np.ndarray, axis: int, exclusive: int, reverse: int) -> np.ndarray:
    """The definition: the reduction of a growing slice, element by element."""
    out = np.empty_like(x)
    for place in range(x.shape[axis]):
        last = place + (0 if exclusive else 1) if not reverse else place + (1 if exclusive else 0)
        part = np.arange(last, x.shape[axis]) if reverse else np.arange(last)
        function = np.sum if op == "CumSum" else np.prod
        total = function(np.take(x, part, axis), axis=axis, dtype=x.dtype)
        np.moveaxis(out, axis, 0)[place] = total
    return out


@pytest.mark.parametrize("op", ["CumSum", "CumProd"])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scan(op: str, exclusive: int, reverse: int, axis: int) -> None:
    attrs = {"exclusive": exclusive, "reverse": reverse}
    for dtype in ("float32", "int64"):
        x = values((3, RUN + 3, 2), dtype)
        inputs = [x, np.array(axis, np.int32)]
        check(op, inputs, attrs, want=[running(op, x, axis % 3, exclusive, reverse)])


def test_cumsum_is_onnxruntimes() -> None:
    for axis in (0, 1):
        check("CumSum", [values((4, 5), "float32"), np.array(axis)], {"exclusive": 1})


@pytest.mark.parametrize("extent", [1, RUN, RUN + 1, RUN**2, RUN**2 + 1])
@pytest.mark.parametrize("attrs", [{}, {"exclusive": 1, "reverse": 1}])
def test_runs_of_runs(extent: int, attrs: dict[str, int]) -> None:
    """One, two and three passes, and an axis that ends in the middle of a run."""
    check("CumSum", [values((extent,), "int32"), np.array(0)], attrs)
    check("CumProd", [values((extent, 2), "float64"), np.array(0)], attrs,
          want=[running("CumProd", values((extent, 2), "float64"), 0,
                        attrs.get("exclusive", 0), attrs.get("reverse", 0))])  # fmt: skip


def test_halves_are_summed_in_float32() -> None:
    x = np.full(600, 0.1, np.float16)
    want = np.cumsum(x.astype(np.float32), dtype=np.float32).astype(np.float16)
    check("CumSum", [x, np.array(0)], want=[want])


def test_nothing_to_scan() -> None:
    x = np.zeros((0, 3), np.float32)
    check("CumSum", [x, np.array(0)], want=[x])
    check("CumSum", [x, np.array(1)], want=[x])


def test_errors() -> None:
    for op in ("CumSum", "CumProd"):
        inputs = [values((3, 4), "float32"), np.array(2, np.int64)]
        with pytest.raises(ModelError, match="axis 2 is outside"):
            infer(node_of(op, inputs), inputs)
        with pytest.raises(UnsupportedOperator, match=r"axis \(input 1\) is not known"):
            lowered(node_of(op, inputs), [inputs[0], np.array(1)])
