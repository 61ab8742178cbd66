"""Arithmetic and functions: rules, references and lowerings against onnxruntime."""

from __future__ import annotations

import math

import numpy as np
import pytest
from oracle import check, infer, lowered, node_of, reference

from packhorse.errors import ModelError
from packhorse.ops.special import erf

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32) * 3
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 2.5, -3.5], np.float32)
INTS = RNG.integers(-9, 9, (3, 4))
SMALL = np.array([3, -3, 2, 1], np.int64)

UNARY = {
    "Neg": X, "Abs": X, "Sqrt": np.abs(X), "Reciprocal": X, "Exp": X, "Log": np.abs(X),
    "Erf": X, "Floor": X, "Ceil": X, "Round": np.arange(-4, 4, 0.5, np.float32), "Sin": X,
    "Cos": X, "Tan": X, "Sinh": X, "Cosh": X, "Asin": X / 20, "Acos": X / 20, "Atan": X,
    "Asinh": X, "Acosh": np.abs(X) + 1, "Atanh": X / 20, "Sign": X,
}  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_unary(op: str) -> None:
    check(op, [UNARY[op]], rtol=2e-5)


SIZES = np.concatenate([10.0 ** np.arange(-30, 37, 0.25), [0.66, 2.414, 0.4142, 89.3, np.inf]])
INVERSE = {
    "Sinh": np.concatenate([SIZES[SIZES < 89.4], [np.inf]]), "Atan": SIZES, "Asinh": SIZES,
    "Acosh": 1 + SIZES, "Atanh": np.minimum(SIZES, 1), "Asin": np.minimum(SIZES, 1),
    "Acos": np.minimum(SIZES, 1),
}  # fmt: skip


@pytest.mark.parametrize("op", INVERSE)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inverse_functions_are_accurate(op: str, dtype: str) -> None:
    """Within some units in the last place, from tiny to huge arguments of both signs."""
    x = np.concatenate([INVERSE[op], -INVERSE[op], [0.0]]).astype(dtype)
    if op == "Acosh":
        x = x[x >= 1]
    (found,) = lowered(node_of(op, [x]), [x])
    wide = x.astype(np.longdouble)
    with np.errstate(all="ignore"):
        name = op.lower()
        exact = getattr(np, f"arc{name[1:]}" if name != "sinh" else name)(wide)
    assert found is not None
    tiny = np.finfo(dtype).tiny
    np.testing.assert_allclose(found, exact.astype(dtype), rtol=8 * np.finfo(dtype).eps, atol=tiny)


@pytest.mark.parametrize("op", ["Acosh", "Atanh", "Asin", "Acos", "Atan", "Asinh", "Sinh"])
def test_outside_the_domain_is_nan(op: str) -> None:
    x = np.array([np.nan, -np.inf, -5.0, -1.5, 1.5, np.inf], np.float32)
    check(op, [x], rtol=2e-5)


@pytest.mark.parametrize("op", ["Neg", "Exp", "Floor", "Erf", "Sqrt"])
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_unary_of_other_floats(op: str, dtype: str) -> None:
    check(op, [UNARY[op].astype(dtype)])


@pytest.mark.parametrize("op", ["Neg", "Abs", "Sqrt", "Exp", "Floor", "Ceil", "Round", "Erf"])
def test_special_values(op: str) -> None:
    check(op, [SPECIAL])


@pytest.mark.parametrize("op", ["Neg", "Abs", "Sign"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "int8"])
def test_unary_ints(op: str, dtype: str) -> None:
    check(op, [INTS.astype(dtype)])


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (4,), (3, 1), (), (5, 1, 1, 4)])
def test_binary_broadcast(op: str, shape: tuple[int, ...]) -> None:
    y = RNG.normal(size=shape).astype(np.float32) + 5
    check(op, [X, y])
    check(op, [y, X])


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Mod", "Max", "Min"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "int8"])
def test_binary_ints(op: str, dtype: str) -> None:
    a, b = np.abs(INTS) if dtype == "uint8" else INTS, np.abs(SMALL) if dtype == "uint8" else SMALL
    check(op, [a.astype(dtype), b.astype(dtype)])


def test_division_truncates_and_mod_follows_the_divisor() -> None:
    a, b = np.array([-7, 7, -7, 7], np.int32), np.array([2, -2, -2, 2], np.int32)
    assert reference(node_of("Div", [a, b]), [a, b])[0].tolist() == [-3, -3, 3, 3]
    assert reference(node_of("Mod", [a, b]), [a, b])[0].tolist() == [1, -1, -1, 1]
    check("Mod", [a, b], {"fmod": 1})


def test_float_mod() -> None:
    check("Mod", [X, np.full((4,), 0.7, np.float32)], {"fmod": 1})
    a = np.array([-7.5, 7.5, -7.5, 7.5], np.float32)
    b = np.array([2, -2, -2, 2], np.float32)
    check("Mod", [a, b], {"fmod": 0}, want=[np.mod(a, b)])


@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_variadic(op: str, count: int) -> None:
    parts = [RNG.normal(size=s).astype(np.float32) for s in ((3, 4), (4,), (2, 1, 1), ())]
    check(op, parts[:count])


def test_max_propagates_nan() -> None:
    check("Max", [SPECIAL, np.zeros((), np.float32)])


@pytest.mark.parametrize("power", [-1.0, -0.5, 0.5, 1.0, 2.0, 3.0, 4.0, 1.7, 0.0])
def test_pow_constants(power: float) -> None:
    check("Pow", [np.abs(X) + 0.1, np.array(power, np.float32)], constant=[1], rtol=3e-5)


@pytest.mark.parametrize(
    ("base", "power"),
    [("float32", "int64"), ("float32", "float64"), ("int32", "float32"), ("int64", "int64")],
)
def test_pow_of_mixed_dtypes(base: str, power: str) -> None:
    x = np.array([[1, 2, 3], [4, 5, 6]], base)
    check("Pow", [x, np.array([0, 2, 3], power)], constant=[])


def test_pow_of_negative_integer_exponent_truncates() -> None:
    x, y = np.array([1, 2, -1], np.int32), np.array([-1, -2, -3], np.int32)
    assert reference(node_of("Pow", [x, y]), [x, y])[0].tolist() == [1, 0, -1]
    assert lowered(node_of("Pow", [x, y]), [x, y])[0].tolist() == [1, 0, -1]


@pytest.mark.parametrize("low", [None, -1.0])
@pytest.mark.parametrize("high", [None, 1.5])
@pytest.mark.parametrize("constant", [(), (1, 2)])
def test_clip(low: float | None, high: float | None, constant: tuple[int, ...]) -> None:
    bounds = [None if b is None else np.array(b, np.float32) for b in (low, high)]
    check("Clip", [X, *bounds], constant=[i for i in constant if bounds[i - 1] is not None])


def test_clip_crossed_and_one_element_bounds() -> None:
    check("Clip", [X, np.array(2, np.float32), np.array(-2, np.float32)])
    x, low = INTS.astype(np.int32), np.array([-2], np.int32)
    check("Clip", [x, low], want=[np.maximum(x, -2)])


def test_bfloat16_is_computed_in_float32() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = X.astype(ml_dtypes.bfloat16)
    check("Exp", [x], want=[np.exp(x.astype(np.float32)).astype(ml_dtypes.bfloat16)])
    check("Add", [x, x], want=[(x.astype(np.float32) * 2).astype(ml_dtypes.bfloat16)])


def test_erf_to_the_last_bits() -> None:
    x = np.concatenate([np.linspace(-7, 7, 4001), SPECIAL.astype(np.float64), [1e-300]])
    exact = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(erf(x), exact, rtol=1e-15)
    single = x.astype(np.float32)
    exact32 = np.array([math.erf(v) for v in single], np.float32)
    np.testing.assert_array_max_ulp(erf(single)[:4001], exact32[:4001], maxulp=1)
    assert erf(np.float32(0.5).reshape(())).shape == ()


@pytest.mark.parametrize(
    ("op", "arrays", "message"),
    [
        ("Add", [X, X[:, :2]], r"'node' \(Add\): shapes .* cannot be broadcast"),
        ("Add", [X, INTS], "one dtype, found float32, int64"),
        ("Add", [X], "takes 2 inputs, found 1"),
        ("Exp", [INTS], "inputs are int64, but must be one of: float"),
        ("Clip", [X, INTS], "min is int64 but the input is float32"),
        ("Clip", [X, X], "min must be a scalar"),
        ("Pow", [X, X[:, :2]], "cannot be broadcast"),
    ],
)
def test_errors(op: str, arrays: list[np.ndarray], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        infer(node_of(op, arrays), arrays)
