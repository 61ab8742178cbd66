"""Pad, Trilu, DepthToSpace, SpaceToDepth against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import check, infer, node_of, reference

from packhorse.errors import ModelError
from packhorse.kernel.expr import Load, affine, call, loads
from packhorse.ops._window import guarded

X = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize(
    "pads",
    [(0, 1, 2, 0, 1, 1), (0, 0, 0, 0, 0, 0), (0, 0, 3, 0, 2, 0), (1, 2, 3, 1, 2, 3)],
)
def test_pad(mode: str, pads: tuple[int, ...]) -> None:
    check("Pad", [X, ints(*pads)], {"mode": mode})


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_pad_further_than_the_input(mode: str) -> None:
    before_after = ((0, 0), (5, 6), (9, 4))
    pads = ints(*(b for b, _ in before_after), *(a for _, a in before_after))
    check("Pad", [X, pads], {"mode": mode}, want=[np.pad(X, before_after, mode=mode)])
    single = X[:, :, :1]
    wanted = np.pad(single, ((0, 0), (0, 0), (2, 1)), mode=mode)
    check("Pad", [single, ints(0, 0, 2, 0, 0, 1)], {"mode": mode}, want=[wanted])


def test_negative_pads_crop() -> None:
    check("Pad", [X, ints(0, -1, 2, 0, 1, -2)])
    check("Pad", [X, ints(0, -1, -1, 0, 0, -1)])
    wanted = np.pad(X[:, :, 1:], ((0, 0), (0, 0), (0, 2)), mode="edge")
    check("Pad", [X, ints(0, 0, -1, 0, 0, 2)], {"mode": "edge"}, want=[wanted])


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "float16", "bool"])
def test_pad_with_a_value(dtype: str) -> None:
    check("Pad", [X.astype(dtype), ints(0, 1, 2, 0, 1, 1), np.array(3, dtype)])


def test_pad_of_named_axes() -> None:
    check("Pad", [X, ints(1, 2, 0, 1), np.array(-1, np.float32), ints(-1, 0)])
    check("Pad", [X, ints(1, 2), None, ints(1)])


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -5, -1, 0, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_trilu(upper: int, k: int | None, dtype: str) -> None:
    arrays = [X.astype(dtype)] + ([] if k is None else [np.array(k)])
    check("Trilu", arrays, {"upper": upper})
    check("Trilu", arrays, {"upper": upper}, constant=[])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    x = np.arange(2 * 8 * 3 * 2, dtype=np.float32).reshape(2, 8, 3, 2)
    check("DepthToSpace", [x], {"blocksize": 2, "mode": mode})


def test_space_to_depth() -> None:
    x = np.arange(2 * 3 * 6 * 9, dtype=np.float32).reshape(2, 3, 6, 9)
    check("SpaceToDepth", [x], {"blocksize": 3})
    deep = reference(node_of("SpaceToDepth", [x], {"blocksize": 3, "mode": "CRD"}), [x])
    check("DepthToSpace", deep, {"blocksize": 3, "mode": "CRD"}, want=[x])
    check("SpaceToDepth", [x], {"blocksize": 3, "mode": "CRD"}, want=deep)


def test_guarded_loads() -> None:
    i, when = affine("i0"), Load("c", (affine("i0"),), "bool")
    inner = Load("b", (i,), "int64", Load("d", (i,), "bool"))
    value = Load("a", (inner,), "float32") + 1.0
    found = {node.buffer: node.when for node in loads(guarded(value, when)) if node.buffer in "ab"}
    assert found == {"a": when, "b": call("and", when, Load("d", (i,), "bool"))}


@pytest.mark.parametrize(
    ("op", "arrays", "attrs", "message"),
    [
        ("Pad", [X, ints(1, 1)], {}, r"\(Pad\): pads \[1, 1\] must hold 2 amounts for each of 3"),
        ("Pad", [X, ints(0, 0, -3, 0, 0, -2)], {}, "crop dimension 2 of 4 below 0"),
        ("Pad", [X, ints(0, 0, 0, 0, 0, 0)], {"mode": "mirror"}, "found 'mirror'"),
        ("Pad", [X[:0], ints(1, 0, 0, 0, 0, 0)], {"mode": "edge"}, "dimension 0 is empty"),
        ("Trilu", [X[0, 0]], {}, "at least 2 dimensions"),
        ("DepthToSpace", [X[None]], {"blocksize": 2}, "cannot be cut into blocks of 2"),
        ("DepthToSpace", [X], {"blocksize": 2}, "needs 4 dimensions"),
        ("DepthToSpace", [X[None]], {"blocksize": 1, "mode": "RCD"}, "DCR or CRD, found 'RCD'"),
        ("SpaceToDepth", [X[None]], {"blocksize": 2}, "cannot be cut into blocks of 2"),
    ],
)
def test_errors(op: str, arrays: list[np.ndarray], attrs: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        infer(node_of(op, arrays, attrs), arrays)
