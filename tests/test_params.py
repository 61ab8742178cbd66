import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packhorse.errors import ArgumentTypeError, ArtifactError
from packhorse.graph.params import load_params, param_names, params_chunks, save_params

CONVNET = Path(__file__).parent / "data" / "tvm" / "convnet"


def params() -> dict:
    return {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "é": np.array([True, False]),
        "scalar": np.array(-5, np.int64),
        "empty": np.empty((0, 3), np.uint8),
        "brain": np.arange(4).astype(ml_dtypes.bfloat16),
        "narrow": np.arange(4).astype(ml_dtypes.int4),
        "scattered": np.arange(12, dtype=np.float64).reshape(3, 4).T,
    }


def test_round_trip():
    back = load_params(save_params(params()))
    assert list(back) == list(params())
    for name, array in params().items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert np.array_equal(back[name], array)
        assert not back[name].flags.writeable


def test_tvm_params_are_read_and_written_alike():
    raw = (CONVNET / "deploy.params").read_bytes()
    found = load_params(raw)
    assert {name: array.shape for name, array in found.items()} == {
        "p0": (2, 1, 3, 3, 3, 4),
        "p1": (1, 2, 1, 1, 4),
        "p2": (2, 2048, 5),
        "p3": (1, 10),
    }
    assert save_params(found) == raw


def test_views_share_the_memory_of_the_source():
    raw = bytearray(save_params({"a": np.zeros(3, np.int32)}))
    array = load_params(memoryview(raw))["a"]
    raw[-4:] = (7).to_bytes(4, "little")
    assert array[-1] == 7


def test_contiguous_weights_are_not_copied_for_writing():
    weight = np.zeros(1000, np.float32)
    last = list(params_chunks({"a": weight}))[-1]
    assert np.shares_memory(np.frombuffer(last, np.uint8), weight)


def test_dtypes_the_format_lacks_are_named():
    with pytest.raises(ArgumentTypeError, match="param 'names'"):
        save_params({"names": np.array(["a"])})


def _packed(offset, layout, value):
    raw = bytearray(save_params({"a": np.zeros((2, 3), np.float32)}))
    struct.pack_into(layout, raw, offset, value)
    return bytes(raw)


# 0 magic, 8 zero, 16 count, 24 length, 32 "a", 33 count, 41 magic, 57 device, 65 ndim, 69 code,
# 70 bits, 71 lanes, 73 shape, 89 nbytes, 97 data
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "truncated or damaged at offset 0"),
        (_packed(0, "<Q", 1), "magic number at offset 0"),
        (_packed(16, "<Q", 1 << 60), "number of names is 1152921504606846976"),
        (_packed(16, "<Q", 0), "another number of arrays at 24|damaged"),
        (_packed(24, "<Q", 1 << 62), "name 0 needs 4611686018427387904 bytes"),
        (_packed(32, "<B", 0xFF), "name 0 of params at offset 24 is not UTF-8"),
        (_packed(33, "<Q", 2), "2, more than fits|another number"),
        (_packed(41, "<Q", 0), "param 'a' at offset 41 is damaged: expected magic"),
        (_packed(57, "<i", 2), "found 0xdd5e40f096b4a13f, 2 and 2"),
        (_packed(65, "<i", 1 << 30), "at most 32 dimensions"),
        (_packed(65, "<i", -1), "at most 32 dimensions"),
        (_packed(70, "<B", 33), "bits 33"),
        (_packed(71, "<H", 4), "lanes 4"),
        (_packed(73, "<q", -2), "24 bytes for float32"),
        (_packed(73, "<q", 1 << 62), "24 bytes for float32"),
        (_packed(89, "<q", 1 << 62), "for float32"),
        (save_params({"a": np.zeros(3)})[:-1], "truncated"),
        (save_params({"a": np.zeros(3)}) + b"x", "end at offset"),
    ],
)
def test_damage_is_named(raw, message):
    with pytest.raises(ArtifactError, match=message):
        load_params(raw)


def test_two_of_one_name():
    raw = save_params({"a": np.zeros(1), "b": np.zeros(1)}).replace(b"b", b"a", 1)
    with pytest.raises(ArtifactError, match="same name"):
        load_params(raw)


def test_empty_array_of_impossible_shape():
    raw = bytearray(save_params({"a": np.zeros((0, 2, 3), np.float32)}))
    struct.pack_into("<2q", raw, 81, (1 << 62) + 1, 1 << 40)
    with pytest.raises(ArtifactError, match="impossible shape"):
        load_params(bytes(raw))


def test_names_are_read_without_the_arrays():
    raw = save_params({"a": np.zeros(3), "b": np.zeros(1)})
    start = raw.index(b"b") + 1
    assert param_names(raw) == param_names(memoryview(raw)[:start]) == ["a", "b"]
    for damaged, message in ((raw[: start - 1], "truncated"), (b"\0" * 32, "magic number")):
        with pytest.raises(ArtifactError, match=message):
            param_names(damaged)


def _fuzz(data: st.DataObject) -> None:
    raw = bytearray(save_params(params()))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        load_params(bytes(raw))
    except ArtifactError:
        return


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_gives_artifact_errors_only(data):
    _fuzz(data)


@pytest.mark.fuzz
@settings(max_examples=100_000, deadline=None)
@given(st.data())
def test_damage_long(data):
    _fuzz(data)
