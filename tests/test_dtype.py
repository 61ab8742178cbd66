import builtins

import ml_dtypes
import numpy as np
import pytest

from packhorse import dtype as dtypes
from packhorse.errors import ArgumentTypeError, MissingExtra


@pytest.mark.parametrize("name", sorted(dtypes._CODES))
def test_every_dtype_round_trips(name):
    found = dtypes.dtype(name)
    assert dtypes.dtype_name(found) == name
    assert dtypes.dtype(found) is found
    assert dtypes.from_dlpack_code(*dtypes.dlpack_code(name)) == found
    assert dtypes.from_dlpack_code(*dtypes.legacy_code(found)) == found


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("float32", (2, 32, 1)),
        (np.int8, (0, 8, 1)),
        ("uint64", (1, 64, 1)),
        ("bfloat16", (4, 16, 1)),
        (np.complex64, (5, 64, 1)),
        (bool, (6, 8, 1)),
        (float, (2, 64, 1)),
        (ml_dtypes.float8_e4m3fn, (10, 8, 1)),
        ("int4", (0, 4, 1)),
    ],
)
def test_dlpack_codes(value, code):
    assert dtypes.dlpack_code(value) == code


def test_tvm_writes_bool_as_one_bit():
    assert dtypes.legacy_code("bool") == (1, 1, 1)
    assert dtypes.from_dlpack_code(1, 1) == np.bool_


@pytest.mark.parametrize("call", [dtypes.dtype, dtypes.dlpack_code, dtypes.legacy_code])
def test_unknown_names_get_a_hint(call):
    with pytest.raises(
        ArgumentTypeError, match=r"unknown dtype 'flaot32' \(did you mean 'float32'"
    ):
        call("flaot32")


@pytest.mark.parametrize("value", [object, "U8", np.dtype("M8[s]"), np.dtype([("a", "i4")]), 7])
def test_other_kinds_are_refused(value):
    with pytest.raises(ArgumentTypeError, match="unknown dtype"):
        dtypes.dtype(value)


def test_foreign_byte_order_is_refused():
    with pytest.raises(ArgumentTypeError, match="foreign byte order"):
        dtypes.dtype(np.dtype("f4").newbyteorder())


@pytest.mark.parametrize("code", [(2, 32, 4), (9, 99, 1), (3, 64, 1)])
def test_unknown_codes_are_refused(code):
    with pytest.raises(ArgumentTypeError, match=f"code {code[0]}, bits {code[1]}"):
        dtypes.from_dlpack_code(*code)


def test_without_ml_dtypes(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "ml_dtypes":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    dtypes._named.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert dtypes.dtype("float32") == np.float32
    with pytest.raises(
        MissingExtra, match=r"dtype 'bfloat16' needs .*pip install 'packhorse\[onnx"
    ):
        dtypes.dtype("bfloat16")
