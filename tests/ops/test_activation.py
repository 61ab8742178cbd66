"""Activation functions against onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import check

X = np.concatenate([np.linspace(-9, 9, 91), [-80.0, 80.0, 0.0]]).astype(np.float32)

CASES = [
    ("Relu", {}), ("Sigmoid", {}), ("Tanh", {}), ("HardSwish", {}), ("Softplus", {}),
    ("Softsign", {}), ("Mish", {}), ("HardSigmoid", {}),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}), ("LeakyRelu", {}), ("LeakyRelu", {"alpha": 0.3}),
    ("Elu", {}), ("Elu", {"alpha": 2.0}), ("Celu", {"alpha": 2.0}), ("Selu", {}),
    ("Selu", {"alpha": 1.5, "gamma": 2.0}), ("Gelu", {}), ("Gelu", {"approximate": "tanh"}),
    ("ThresholdedRelu", {"alpha": 2.0}), ("Shrink", {"bias": 1.5, "lambd": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attrs"), CASES)
def test_activation(op: str, attrs: dict[str, object]) -> None:
    check(op, [X], attrs, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Gelu"])
def test_half(op: str) -> None:
    check(op, [X.astype(np.float16)])


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Tanh"])
def test_not_finite(op: str) -> None:
    check(op, [np.array([np.inf, -np.inf, np.nan], np.float32)])


@pytest.mark.parametrize("slope", [(1,), (4,), (3, 1), (2, 3, 4)])
def test_prelu(slope: tuple[int, ...]) -> None:
    x = np.linspace(-2, 2, 24, dtype=np.float32).reshape(2, 3, 4)
    check("PRelu", [x, np.linspace(0.1, 0.9, int(np.prod(slope)), dtype=np.float32).reshape(slope)])


def test_relu_of_integers() -> None:
    check("Relu", [np.arange(-4, 4, dtype=np.int32)])
