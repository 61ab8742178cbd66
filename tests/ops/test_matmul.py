"""MatMul, Gemm and Einsum against onnxruntime: rule, reference and lowering."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import check, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def random(*shape: int, dtype: str = "float32") -> np.ndarray[Any, Any]:
    values = np.random.default_rng(shape).standard_normal(shape)
    return (values * 5 if dtype.startswith(("i", "u")) else values).astype(dtype)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)),
        ((3, 4), (2, 4, 5)), ((2, 1, 3, 4), (5, 4, 2)), ((4,), (2, 4, 5)), ((2, 3, 4), (4,)),
        ((1, 4), (4, 1)),
    ],
)  # fmt: skip
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check("MatMul", [random(*a), random(*b)], constant=(1,), **CLOSE)
    check("MatMul", [random(*a), random(*b)], constant=(0,), **CLOSE)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "int64"])
def test_matmul_dtypes(dtype: str) -> None:
    check("MatMul", [random(2, 3, 4, dtype=dtype), random(4, 3, dtype=dtype)], **CLOSE)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.booleans()), max_size=2),
    m=st.integers(1, 5), k=st.integers(1, 6), n=st.integers(1, 5),
)  # fmt: skip
def test_matmul_sweep(batch: list[tuple[int, bool, bool]], m: int, k: int, n: int) -> None:
    a = [1 if flat else size for size, flat, _ in batch]
    b = [1 if flat else size for size, _, flat in batch]
    check("MatMul", [random(*a, m, k), random(*b, k, n)], **CLOSE)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [((3, 4), (5, 2), "is 4.*needs 5"), ((), (3,), "at least one"),
     ((2, 3, 4), (3, 4, 5), "cannot be broadcast")],
)  # fmt: skip
def test_matmul_errors(a: tuple[int, ...], b: tuple[int, ...], message: str) -> None:
    inputs = [np.zeros(a, np.float32), np.zeros(b, np.float32)]
    node = node_of("MatMul", inputs)
    with pytest.raises(ModelError, match=message) as caught:
        infer(node, inputs)
    assert "'node' (MatMul)" in str(caught.value)
    with pytest.raises(ModelError, match=message):
        reference(node, inputs)


def test_empty_contractions_are_left_to_the_reference() -> None:
    inputs = [np.zeros((2, 0), np.float32), np.zeros((0, 3), np.float32)]
    assert (reference(node_of("MatMul", inputs), inputs)[0] == np.zeros((2, 3))).all()
    for op in ("MatMul", "Gemm"):
        with pytest.raises(UnsupportedOperator, match="empty"):
            lowered(node_of(op, inputs), inputs)


@pytest.mark.parametrize("flips", list(itertools.product((0, 1), (0, 1))))
@pytest.mark.parametrize("c", [None, (3, 5), (5,), (3, 1), ()], ids=str)
def test_gemm(flips: tuple[int, int], c: tuple[int, ...] | None) -> None:
    a, b = random(3, 4), random(4, 5)
    inputs = [a.T.copy() if flips[0] else a, b.T.copy() if flips[1] else b]
    attrs: dict[str, Any] = {"transA": flips[0], "transB": flips[1]}
    if c is not None:
        inputs.append(random(*c))
    for scale in ({}, {"alpha": 0.5, "beta": 2.0}, {"beta": 0.0}):
        check("Gemm", inputs, {**attrs, **scale}, constant=(1, 2), **CLOSE)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_gemm_dtypes(dtype: str) -> None:
    inputs = [random(2, 4, dtype=dtype), random(4, 3, dtype=dtype), random(3, dtype=dtype)]
    check("Gemm", inputs, **CLOSE)


@pytest.mark.parametrize(
    ("shapes", "attrs", "message"),
    [
        (((2, 3), (4, 5)), {}, "inner dimensions 3 and 4"),
        (((2, 3), (4, 3), (7,)), {"transB": 1}, "cannot be broadcast"),
        (((2, 3), (3, 4), (2, 2, 4)), {}, "does not broadcast"),
        (((2, 3, 1), (3, 4)), {}, "must be matrices"),
    ],
)
def test_gemm_errors(shapes: Any, attrs: dict[str, Any], message: str) -> None:
    inputs = [np.zeros(s, np.float32) for s in shapes]
    with pytest.raises(ModelError, match=message) as caught:
        infer(node_of("Gemm", inputs, attrs), inputs)
    assert "'node' (Gemm)" in str(caught.value)


@pytest.mark.parametrize(
    ("equation", "shapes", "compiled"),
    [
        ("ij,jk->ik", [(3, 4), (4, 2)], True),
        ("bij, bjk -> bik", [(2, 3, 4), (2, 4, 2)], True),
        ("i,i", [(4,), (4,)], False),
        ("...ii->...i", [(2, 3, 3)], False),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 2)], False),
        ("ij->ji", [(3, 4)], True),
        ("ij->", [(3, 4)], True),
        ("ii->i", [(3, 3)], True),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 2)], True),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]], compiled: bool) -> None:
    inputs = [random(*s) for s in shapes]
    check("Einsum", inputs, {"equation": equation}, lower=compiled, **CLOSE)
    if not compiled:
        with pytest.raises(UnsupportedOperator):
            lowered(node_of("Einsum", inputs, {"equation": equation}), inputs)


@pytest.mark.parametrize(
    ("equation", "message"),
    [("ij,jk->ik", "'j' is 3 and 4"), ("ij->ij", "1 terms for 2"), ("ij,jkl->i", "does not fit"),
     ("ij,kl->m", "'m' occurs in no input")],
)  # fmt: skip
def test_einsum_errors(equation: str, message: str) -> None:
    inputs = [random(2, 3), random(4, 2)]
    node = node_of("Einsum", inputs, {"equation": equation})
    with pytest.raises(ModelError, match=message):
        infer(node, inputs)
    with pytest.raises(ModelError, match="Einsum"):
        reference(node, inputs)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (4, 2, 2), (2, 3, 3, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_det(shape: tuple[int, ...], dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    check("Det", [x], rtol=1e-4, atol=1e-5)


def test_det_of_larger_and_other_matrices() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 5)).astype(np.float32)
    check("Det", [x], lower=False, rtol=1e-4, atol=1e-4)
    with pytest.raises(UnsupportedOperator, match="5x5 matrices"):
        lowered(node_of("Det", [x]), [x])
    half = x[:, :2, :2].astype(np.float16)
    want = np.linalg.det(half.astype(np.float32)).astype(np.float16)
    check("Det", [half], want=[want])
    for bad in (x[0, 0], x[0, :3]):
        with pytest.raises(ModelError, match="square matrices"):
            infer(node_of("Det", [bad]), [bad])
        with pytest.raises(ModelError, match="square matrices"):
            reference(node_of("Det", [bad]), [bad])
