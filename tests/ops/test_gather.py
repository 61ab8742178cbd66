"""Gather, OneHot and the data-dependent selections, against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import check, infer, lowered, node_of, reference

from packhorse.errors import ModelError
from packhorse.ops import NotStatic

X = np.arange(60, dtype=np.float32).reshape(3, 4, 5)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
@pytest.mark.parametrize(
    "indices", [0, -1, [0, 2], [2, 0, 1, 1], [[0, -1], [2, 1]], [2, 1, 0], [1], []]
)
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_gather(axis: int, indices: object, dtype: str) -> None:
    check("Gather", [X, np.array(indices, dtype)], {"axis": axis}, constant=[])


def test_gather_from_bytes_and_halves() -> None:
    for dtype in ("uint8", "float16", "bool"):
        check("Gather", [X.astype(dtype), np.array([[1, 2]])])


def test_gather_outside() -> None:
    arrays = [X, np.array([0, 7])]
    with pytest.raises(ModelError, match=r"Gather: index 7 is outside \[-3, 2\]"):
        reference(node_of("Gather", arrays), arrays)
    with pytest.raises(ModelError, match="index 7"):
        lowered(node_of("Gather", arrays), arrays, [1])
    (clamped,) = lowered(node_of("Gather", arrays), arrays)  # kernels cannot raise: they clamp
    np.testing.assert_array_equal(clamped, X[[0, 2]])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements(axis: int) -> None:
    indices = np.random.default_rng(0).integers(-3, 3, (2, 3, 4))
    check("GatherElements", [X, indices], {"axis": axis})


@pytest.mark.parametrize(
    ("indices", "batch"),
    [
        ([[0, 1], [2, -1]], 0), ([[[0]], [[1]]], 0), ([0, 1, 2], 0), ([[0], [3], [1]], 1),
        ([[[0, 1]], [[3, 2]], [[1, -1]]], 1), (np.zeros((3, 4, 1), int), 2),
    ],
)  # fmt: skip
def test_gather_nd(indices: object, batch: int) -> None:
    check("GatherND", [X, np.array(indices, np.int64)], {"batch_dims": batch})


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_one_hot(axis: int, dtype: str) -> None:
    indices = np.array([[0, 3, -1], [9, 1, -4]])
    values = np.array([2, 5], dtype)
    check("OneHot", [indices, np.array(4), values], {"axis": axis})
    check("OneHot", [indices.astype(np.float32), np.array([4]), values], {"axis": axis},
          constant=[1], want=reference(node_of("OneHot", [indices] * 3, {"axis": axis}),
                                       [indices, np.array(4), values]))  # fmt: skip


def test_sizes_that_depend_on_data() -> None:
    x = np.array([[1, 0, 3], [0, 0, 6]], np.float32)
    for array in (x, x[0]):
        arrays = [array]
        node = node_of("NonZero", arrays)
        (found,) = reference(node, arrays)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, np.stack(np.nonzero(array)))
        with pytest.raises(NotStatic, match=r"'node' \(NonZero\).*depends on"):
            infer(node, arrays, known=[])
        assert infer(node, arrays)[0].shape == found.shape
    arrays = [x, np.array([False, True])]
    assert reference(node_of("Compress", arrays, {"axis": 0}), arrays)[0].tolist() == [[0, 0, 6]]
    assert reference(node_of("Compress", arrays), arrays)[0].tolist() == [0]


@pytest.mark.parametrize("dtype", ["float32", "int64", "float16", "bfloat16"])
@pytest.mark.parametrize("sorted_", [0, 1])
def test_unique(dtype: str, sorted_: int) -> None:
    from packhorse.dtype import dtype as named

    x = np.array([[2, 1, 2], [0, 3, 0], [2, 1, 2], [1, 1, 1]]).astype(named(dtype))
    exact = dtype in ("float32", "int64")
    for axis in (None, 0, 1, -1):
        attrs = {"sorted": sorted_} | ({} if axis is None else {"axis": axis})
        found = reference(node_of("Unique", [x], attrs, 4), [x])
        assert [y.dtype for y in found] == [x.dtype, *[np.dtype(np.int64)] * 3]
        if exact:
            check("Unique", [x], attrs, outputs=4, lower=False)
        take = found[0] if axis is None else np.moveaxis(found[0], axis, 0)
        np.testing.assert_array_equal(
            take[found[2]], x.ravel() if axis is None else np.moveaxis(x, axis, 0)
        )
        assert found[3].sum() == (x.size if axis is None else x.shape[axis])
    with pytest.raises(NotStatic):
        infer(node_of("Unique", [x]), [x], known=[])


I = np.array([0, 1])  # noqa: E741


@pytest.mark.parametrize(
    ("op", "arrays", "attrs", "message"),
    [
        ("Gather", [X, I], {"axis": 3}, r"axis 3 is outside \[-3, 2\]"),
        ("Gather", [X, X], {}, "indices must be integers, found float32"),
        ("GatherElements", [X, I], {}, "do not fit into"),
        ("GatherND", [X, np.zeros((1, 4), int)], {}, "do not fit an input"),
        ("OneHot", [I, np.array([2, 3]), X[0, 0, :2]], {}, "depth must be one number"),
        ("OneHot", [I, np.array(2), X], {}, r"values must hold \(off, on\)"),
    ],
)
def test_errors(op: str, arrays: list[np.ndarray], attrs: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        infer(node_of(op, arrays, attrs), arrays)
