"""DeformConv against onnxruntime and ONNX's evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import check, infer, node_of, reference

from packhorse.errors import ModelError

CASES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((1, 1, 3, 3), (1, 1, 2, 2), {}),
    ((2, 4, 6, 7), (6, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((1, 4, 7, 7), (6, 2, 3, 2), {"group": 2, "offset_group": 2, "strides": [2, 1]}),
    ((1, 6, 7, 8), (4, 6, 2, 2), {"offset_group": 3, "dilations": [2, 3]}),
    ((1, 4, 5, 5), (4, 1, 3, 3), {"group": 4, "kernel_shape": [3, 3], "pads": [2, 1, 0, 1]}),
]


def extents(x: Any, w: Any, attrs: dict[str, Any]) -> list[int]:
    pads = attrs.get("pads", [0] * 4)
    strides, dilations = attrs.get("strides", [1, 1]), attrs.get("dilations", [1, 1])
    return [
        (x[2 + d] + pads[d] + pads[d + 2] - (w[2 + d] - 1) * dilations[d] - 1) // strides[d] + 1
        for d in range(2)
    ]


def inputs(x: Any, w: Any, attrs: dict[str, Any], bias: bool, mask: bool) -> list[Any]:
    rng = np.random.default_rng(len(attrs))
    out, taps = extents(x, w, attrs), attrs.get("offset_group", 1) * w[2] * w[3]
    made = [
        rng.standard_normal(x), rng.standard_normal(w), rng.uniform(-2, 2, (x[0], 2 * taps, *out)),
        rng.standard_normal(w[0]) if bias else None,
        rng.uniform(0, 1, (x[0], taps, *out)) if mask else None,
    ]  # fmt: skip
    return [None if a is None else a.astype(np.float32) for a in made]


@pytest.mark.parametrize(("x", "w", "attrs"), CASES)
@pytest.mark.parametrize(("bias", "mask"), [(False, False), (True, True), (False, True)])
def test_deform_conv(x: Any, w: Any, attrs: dict[str, Any], bias: bool, mask: bool) -> None:
    arrays = inputs(x, w, attrs, bias, mask)
    while arrays[-1] is None:
        arrays.pop()
    check("DeformConv", arrays, attrs, constant=[1, 3], rtol=1e-4, atol=1e-4)


def test_without_offsets_it_is_a_convolution() -> None:
    for x, w in (
        ((1, 3, 8, 9), (5, 3, 3, 3)),
        ((2, 2, 9), (3, 2, 3)),
        ((1, 2, 4, 5, 6), (3, 2, 2, 2, 2)),
    ):
        rng, rank = np.random.default_rng(0), len(x) - 2
        data, weights = (rng.standard_normal(s).astype(np.float32) for s in (x, w))
        plain = reference(node_of("Conv", [data, weights]), [data, weights])
        offset = np.zeros((x[0], rank * int(np.prod(w[2:])), *plain[0].shape[2:]), np.float32)
        check("DeformConv", [data, weights, offset], want=list(plain), rtol=1e-4, atol=1e-4)


def test_halves() -> None:
    arrays = [None if a is None else a.astype(np.float16) for a in inputs(*CASES[1], True, True)]
    wide = [a.astype(np.float32) for a in arrays]
    node = node_of("DeformConv", wide, CASES[1][2])
    want = [y.astype(np.float16) for y in reference(node, wide)]
    check("DeformConv", arrays, CASES[1][2], want=want)


@pytest.mark.parametrize(
    ("change", "attrs", "message"),
    [
        ({2: (1, 7, 2, 2)}, {}, r"offset has shape \(1, 7, 2, 2\), expected \(1, 8, 2, 2\)"),
        ({3: (2,)}, {}, "the bias has shape"),
        ({4: (1, 4, 2, 3)}, {}, r"mask has shape \(1, 4, 2, 3\), expected \(1, 4, 2, 2\)"),
        ({}, {"offset_group": 2}, "offset_group 2 does not divide 1"),
        ({}, {"group": 2}, "group 2 does not divide"),
        ({1: (1, 1, 4, 4)}, {}, "larger than the padded input"),
    ],
)
def test_errors(change: dict[int, Any], attrs: dict[str, Any], message: str) -> None:
    arrays = inputs(*CASES[0], True, True)
    for i, shape in change.items():
        arrays[i] = np.zeros(shape, np.float32)
    with pytest.raises(ModelError, match=message):
        infer(node_of("DeformConv", arrays, attrs), arrays)
