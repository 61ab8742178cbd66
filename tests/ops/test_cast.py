"""Cast, CastLike, Identity, Dropout."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from oracle import check, evaluator, infer, lowered, node_of, reference

from packhorse.errors import ModelError, UnsupportedOperator
from packhorse.ops.rules import dtype_of_onnx

NUMBERS = ["float16", "float32", "float64", "int8", "uint8", "int32", "uint32", "int64", "bool"]
X = np.array([[0, 1, 2.5], [100.75, 0.25, 3]])


def code(dtype: str) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


@pytest.mark.parametrize("source", NUMBERS)
@pytest.mark.parametrize("target", NUMBERS)
def test_cast(source: str, target: str) -> None:
    check("Cast", [X.astype(source)], {"to": code(target)})


@pytest.mark.parametrize("target", ["int8", "int32", "int64", "uint8"])
def test_float_to_integer_saturates(target: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, -1.9, 2.0**31, -(2.0**63)], np.float32)
    info = np.iinfo(target)
    low = max(-1, info.min)
    want = [0, info.max, info.min, info.max, info.min, low, 0, info.min]
    want[6] = min(2**31, info.max)
    check("Cast", [x], {"to": code(target)}, want=[np.array(want, target)])


def test_integers_wrap() -> None:
    check("Cast", [np.array([300, -1, 128], np.int32)], {"to": code("uint8")})


def test_bfloat16_and_float8() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.array([1.0, 3.14159, 1e9, -1e9], np.float32)
    check("Cast", [x], {"to": 16}, want=[x.astype(ml_dtypes.bfloat16)])
    back = x.astype(ml_dtypes.bfloat16)
    check("Cast", [back], {"to": 1}, want=[back.astype(np.float32)])
    (limited,) = reference(node_of("Cast", [x], {"to": 17}), [x])
    assert limited.astype(np.float32).tolist() == [1.0, 3.25, 448.0, -448.0]
    with pytest.raises(UnsupportedOperator, match="float8_e4m3fn"):
        lowered(node_of("Cast", [x], {"to": 17}), [x])


def test_strings() -> None:
    words = np.array(["1.5", "-3", "NaN"], object)
    check("Cast", [words], {"to": 1}, lower=False)
    check("Cast", [words[:2]], {"to": 11}, lower=False)
    check("Cast", [np.array(["7"], object)], {"to": 7}, lower=False)
    numbers = np.array([1, -2, 30])
    check("Cast", [numbers], {"to": 8}, lower=False)
    with pytest.raises(ModelError, match="could not convert string"):
        reference(node_of("Cast", [words], {"to": 1}), [np.array(["horse"], object)])


@pytest.mark.parametrize("saturate", [0, 1])
@pytest.mark.parametrize(
    ("mode", "powers"),
    [("up", [-3, -1, 0, 1, 1, 2, 2]), ("nearest", [-3, -1, 0, 0, 1, 1, 2]),
     ("down", [-4, -1, 0, 0, 0, 1, 1])],
)  # fmt: skip
def test_powers_of_two(mode: str, powers: list[int], saturate: int) -> None:
    for dtype in (np.float32, np.float64, np.float16):
        x = np.array([0.124, 0.5, 1, 1.25, 1.5, 2.5, 3], dtype)
        node = node_of("Cast", [x], {"to": 24, "round_mode": mode, "saturate": saturate})
        (found,) = reference(node, [x])
        assert found.dtype == dtype_of_onnx(24)
        assert found.astype(np.float32).tolist() == [2.0**p for p in powers]


def test_special_powers_of_two() -> None:
    """The table of ONNX Cast-24."""
    x = np.array([0, np.nan, np.inf, 1e39, 1e-39])
    for saturate, wanted in ((1, [0, 255, 254, 254, 0]), (0, [255, 255, 255, 255, 255])):
        node = node_of("Cast", [x], {"to": 24, "round_mode": "nearest", "saturate": saturate})
        (found,) = reference(node, [x])
        assert found.view(np.uint8).tolist() == wanted
    like = np.zeros(1, np.uint8).view(dtype_of_onnx(24))
    node = node_of("CastLike", [x, like], {"round_mode": "sideways"})
    with pytest.raises(ModelError, match="round_mode is 'sideways', expected up, nearest, down"):
        reference(node, [x, like])


def test_unknown_dtype() -> None:
    x = np.zeros(2, np.float32)
    with pytest.raises(ModelError, match=r"'node' \(Cast\): 99 is not an ONNX data type"):
        infer(node_of("Cast", [x], {"to": 99}), [x])
    assert dtype_of_onnx(8) == np.object_


def test_cast_like() -> None:
    check("CastLike", [X.astype(np.float32), np.zeros(1, np.int32)])
    check("CastLike", [X.astype(np.int64), np.zeros((), np.float16)])


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "float16"])
def test_identity(dtype: str) -> None:
    check("Identity", [X.astype(dtype)])


def test_dropout_is_the_identity() -> None:
    x = X.astype(np.float32)
    check("Dropout", [x])
    check("Dropout", [x, np.array(0.3, np.float32), np.array(False)], outputs=2)


def test_dropout_trains_with_a_seed_only() -> None:
    x = np.linspace(1, 3, 60, dtype=np.float32).reshape(3, 20)
    arrays = [x, np.array(0.3, np.float32), np.array(True)]
    for run in (reference, lambda n, a: lowered(n, a, [1, 2])):
        with pytest.raises(UnsupportedOperator, match="seed"):
            run(node_of("Dropout", arrays), arrays)
    with pytest.raises(UnsupportedOperator, match="not known at compile time"):
        lowered(node_of("Dropout", arrays, {"seed": 1}), arrays)
    for dtype in (np.float32, np.float64):
        given = [x.astype(dtype), *arrays[1:]]
        check("Dropout", given, {"seed": 7}, outputs=2, constant=[1, 2], oracle=evaluator)
    kept = np.random.RandomState(7).uniform(0, 1, x.shape) >= 0.5
    want = [np.where(kept, x * 2, 0).astype(np.float32), kept]
    check("Dropout", [x, None, arrays[2]], {"seed": 7}, outputs=2, constant=[2], want=want)
    want = [want[0].astype(np.float16), kept]
    check(
        "Dropout", [x.astype(np.float16), None, arrays[2]], {"seed": 7}, outputs=2,
        constant=[2], want=want,
    )  # fmt: skip
    check("Dropout", [x, np.array(0, np.float32), arrays[2]], outputs=2, constant=[1])


@pytest.mark.parametrize(
    ("dtype", "to"),
    [("float32", 6), ("int32", 1), ("float64", 7), ("uint64", 11), ("float16", 4), ("int16", 10),
     ("int8", 2), ("bool", 2), ("float16", 16)],
)  # fmt: skip
def test_bitcast(dtype: str, to: int) -> None:
    x = np.linspace(-3, 3, 12).reshape(3, 4)
    x = x > 0 if dtype == "bool" else (x * 40).astype(dtype)
    halves = "float16" in (dtype, dtype_of_onnx(to).name)
    check("BitCast", [x], {"to": to}, want=[x.view(dtype_of_onnx(to))], lower=not halves)
    if halves:
        with pytest.raises(UnsupportedOperator, match="halves"):
            lowered(node_of("BitCast", [x], {"to": to}), [x])


def test_bitcast_of_small_numbers_stays_on_the_host() -> None:
    x = np.arange(8, dtype=np.int8).astype(dtype_of_onnx(22))
    node = node_of("BitCast", [x], {"to": 21})
    assert infer(node, [x])[0].dtype.name == "uint4"
    np.testing.assert_array_equal(reference(node, [x])[0], x.view(dtype_of_onnx(21)))
    with pytest.raises(UnsupportedOperator, match="no dtype int4"):
        lowered(node, [x])


@pytest.mark.parametrize(("dtype", "to"), [("float32", 7), ("int8", 22), ("float32", 8)])
def test_bitcast_between_sizes(dtype: str, to: int) -> None:
    x = np.zeros(3, dtype)
    with pytest.raises(ModelError, match=f"the bits of {dtype} cannot be taken for .* Use Cast"):
        infer(node_of("BitCast", [x], {"to": to}), [x])


def test_optionals_that_are_tensors() -> None:
    x = X.astype(np.float32)
    check("OptionalGetElement", [x], want=[x])
    check("OptionalHasElement", [x], want=[np.array(True)])
    check("OptionalHasElement", [None], want=[np.array(False)])
    check("OptionalHasElement", [], want=[np.array(False)])
