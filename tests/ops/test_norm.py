"""Normalisations against onnxruntime: rule, reference and lowering."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import check, evaluator, expected, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def random(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax(op: str, axis: int, dtype: str) -> None:
    x = random(3, 4, 5, dtype=dtype) * np.array(30, dtype)
    check(op, [x], {"axis": axis}, oracle=_soft if dtype == "float16" else expected, **CLOSE)


def _soft(node: Any, inputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    exact = evaluator(node, [inputs[0].astype(np.float64)])
    return [exact[0].astype(np.float16)]


def test_softmax_does_not_overflow() -> None:
    x = np.array([[1e30, 1e30, -1e30]], np.float32)
    check("Softmax", [x], want=[np.array([[0.5, 0.5, 0]], np.float32)])


@pytest.mark.parametrize("op", ["Softmax", "LpNormalization"])
def test_axis_errors(op: str) -> None:
    x = random(2, 3)
    with pytest.raises(ModelError, match=f"'node' \\({op}\\).*axis 2 is outside"):
        infer(node_of(op, [x], {"axis": 2}), [x])


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 2)], ids=str)
@pytest.mark.parametrize("constant", [(), (1, 2, 3, 4)], ids=str)
def test_batch(shape: tuple[int, ...], constant: tuple[int, ...]) -> None:
    stats = [random(3, seed=1), random(3, seed=2), random(3, seed=3), np.abs(random(3, seed=4))]
    check(
        "BatchNormalization",
        [random(*shape), *stats],
        {"epsilon": 1e-3},
        constant=constant,
        **CLOSE,
    )


def test_batch_training() -> None:
    stats = [random(3, seed=1), random(3, seed=2), random(3, seed=3), np.abs(random(3, seed=4))]
    inputs = [random(4, 3, 5), *stats]
    attrs = {"training_mode": 1, "momentum": 0.8}
    check("BatchNormalization", inputs, attrs, outputs=3, lower=False, oracle=evaluator, **CLOSE)
    with pytest.raises(UnsupportedOperator, match="training"):
        lowered(node_of("BatchNormalization", inputs, attrs, 3), inputs)


@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_layer(axis: int, outputs: int) -> None:
    x = random(2, 3, 4)
    tail = x.shape[axis:]
    inputs = [x, random(*tail, seed=1), random(*tail, seed=2)]
    check("LayerNormalization", inputs, {"axis": axis}, outputs=outputs, oracle=evaluator, **CLOSE)
    check(
        "LayerNormalization", inputs[:2], {"axis": axis}, outputs=outputs, oracle=evaluator, **CLOSE
    )


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_layer_dtypes(dtype: str) -> None:
    inputs = [
        random(3, 8, dtype=dtype),
        random(8, dtype=dtype, seed=1),
        random(8, dtype=dtype, seed=2),
    ]
    check("LayerNormalization", inputs, {"epsilon": 1e-3}, **CLOSE)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rms(dtype: str) -> None:
    for axis in (1, -1):
        x = random(2, 3, 4, dtype=dtype)
        scale = random(*x.shape[axis:], dtype=dtype, seed=1)
        root = np.sqrt(
            np.square(x.astype("f8")).mean(tuple(range(axis % 3, 3)), keepdims=True) + 1e-5
        )
        wanted = (x / root * scale).astype(dtype)
        check("RMSNormalization", [x, scale], {"axis": axis}, want=[wanted], **CLOSE)


@pytest.mark.parametrize("spatial", [(5,), (3, 4), (2, 3, 2)], ids=str)
def test_instance(spatial: tuple[int, ...]) -> None:
    inputs = [random(2, 3, *spatial), random(3, seed=1), random(3, seed=2)]
    check("InstanceNormalization", inputs, {"epsilon": 1e-2}, **CLOSE)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_group(groups: int, dtype: str) -> None:
    inputs = [
        random(2, 4, 3, 2, dtype=dtype),
        random(4, seed=1, dtype=dtype),
        random(4, seed=2, dtype=dtype),
    ]
    check("GroupNormalization", inputs, {"num_groups": groups}, oracle=_group, **CLOSE)


def _group(node: Any, inputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    x, scale, bias = (v.astype(np.float64) for v in inputs)
    split = x.reshape(x.shape[0], node.attrs["num_groups"], -1)
    centred = split - split.mean(-1, keepdims=True)
    out = (centred / np.sqrt(split.var(-1, keepdims=True) + 1e-5)).reshape(x.shape)
    return [(out * scale[:, None, None] + bias[:, None, None]).astype(inputs[0].dtype)]


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [0, -1])
def test_lp(p: int, axis: int) -> None:
    x = random(3, 4)
    x[1] = 0
    check("LpNormalization", [x], {"p": p, "axis": axis}, **CLOSE)


def _lrn(node: Any, inputs: list[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    if node.attrs["size"] % 2:
        return expected(node, inputs)
    # onnxruntime wants odd sizes; the evaluator takes the batch for the channels
    (x,), size = inputs, node.attrs["size"]
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        near = x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1]
        out[:, c] = x[:, c] / (1.5 + 0.5 / size * np.square(near).sum(axis=1)) ** 0.6
    return [out]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_lrn(size: int) -> None:
    attrs = {"size": size, "alpha": 0.5, "beta": 0.6, "bias": 1.5}
    check("LRN", [random(2, 4, 3, 2)], attrs, oracle=_lrn, **CLOSE)


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "message"),
    [
        ("BatchNormalization", [(2, 3), (3,), (3,), (2,), (3,)], {}, "mean has shape \\(2,\\)"),
        ("BatchNormalization", [(2,), (3,), (3,), (3,), (3,)], {}, "no channels"),
        ("LayerNormalization", [(2, 3), (2,)], {}, "scale of shape \\(2,\\)"),
        ("LayerNormalization", [(2, 3), (3,), (2, 3)], {}, "bias of shape"),
        ("RMSNormalization", [(2, 3), (4,)], {}, "scale of shape"),
        ("InstanceNormalization", [(2, 3, 4), (3,), (4,)], {}, "bias has shape"),
        ("InstanceNormalization", [(2, 3), (3,), (3,)], {}, "is not \\(N, C"),
        (
            "GroupNormalization",
            [(2, 3, 4), (3,), (3,)],
            {"num_groups": 2},
            "2 groups do not divide 3",
        ),
        ("LRN", [(3,)], {"size": 1}, "no channels"),
        ("LRN", [(3, 3)], {"size": 0}, "size is 0"),
    ],
)
def test_errors(op: str, shapes: Any, attrs: dict[str, Any], message: str) -> None:
    inputs = [np.zeros(s, np.float32) for s in shapes]
    node = node_of(op, inputs, attrs)
    with pytest.raises(ModelError, match=message) as caught:
        infer(node, inputs)
    assert f"'node' ({op})" in str(caught.value)


@pytest.mark.parametrize(
    ("op", "shapes", "attrs"),
    [("Softmax", [(2, 0)], {}), ("GroupNormalization", [(2, 2, 0), (2,), (2,)], {"num_groups": 1})],
)
def test_empty_rows_are_left_to_the_reference(op: str, shapes: Any, attrs: dict[str, Any]) -> None:
    inputs = [np.zeros(s, np.float32) for s in shapes]
    with pytest.raises(UnsupportedOperator, match="no elements"):
        lowered(node_of(op, inputs, attrs), inputs)


def test_softmax_of_nothing() -> None:
    x = np.zeros((0, 3), np.float32)
    assert reference(node_of("Softmax", [x]), [x])[0].shape == (0, 3)
