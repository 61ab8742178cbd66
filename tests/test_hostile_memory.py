"""Damaged and hostile files take no memory to speak of: four times their size at most."""

import random
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from blob_kit import OPENCL, PAYLOADS, legacy, listed, modern, text, u64

import packhorse as ph
from packhorse.errors import ArtifactError
from packhorse.graph.graph_json import program_from_json
from packhorse.graph.params import MAGIC, load_params, save_params
from packhorse.graph.relax_file import parse_relax
from packhorse.module_blob import read_legacy_blob, read_modern_blob

DATA = Path(__file__).parent / "data" / "tvm"
CONVNET = DATA / "convnet"
SLACK = 100_000
"""Bytes for what does not grow with the file: messages, buffers, the first use of a module."""


def peak(read, data):
    """The most memory allocated at once, NumPy's included, while ``data`` is read or refused."""
    with suppress(ArtifactError):
        read(data)  # imports and caches of the first time
    tracemalloc.start()
    try:
        with suppress(ArtifactError):
            read(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _blob(name):
    from packhorse.native import Library

    return bytes(Library(DATA / name).read_blob())


READERS = {
    "params": (load_params, (CONVNET / "deploy.params").read_bytes),
    "graph JSON": (program_from_json, (CONVNET / "deploy.json").read_bytes),
    "device blob": (read_legacy_blob, lambda: legacy(*PAYLOADS.values())),
    "factory": (read_legacy_blob, lambda: _blob("convnet/deploy_factory.so")),
    "library blob": (read_modern_blob, lambda: _blob("relax_convnet/deploy.so")),
    "Relax": (
        parse_relax,
        lambda: ph.load_module(DATA / "relax_dyn_bytecode" / "deploy.so").payload.data,
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_damage_takes_no_memory(name):
    read, make = READERS[name]
    seed, chance = make(), random.Random(0)
    for _ in range(100):
        data = bytearray(seed)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(min(len(data) - 8, 4000))
            if chance.random() < 0.5:
                data[at] ^= 1 << chance.randrange(8)
            else:
                data[at : at + 8] = u64(chance.choice([2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]))
        raw = bytes(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
        assert peak(read, raw) <= 4 * len(raw) + SLACK


def _names(count):
    return listed([f"{i:04x}" for i in range(count)])


MANY = 50_000
BOMBS = {
    "params: a count": (load_params, struct.pack("<QQQ", MAGIC, 0, 2**60) + bytes(100)),
    "params: names only": (load_params, struct.pack("<QQ", MAGIC, 0) + _names(MANY)),
    "params: scalars": (
        load_params,
        save_params({f"p{i}": np.zeros((), np.float32) for i in range(20_000)}),
    ),
    "factory: names only": (
        read_legacy_blob,
        legacy(("GraphExecutorFactory", text("{}") + u64(MANY) + _names(MANY))),
    ),
    "constants: names only": (read_legacy_blob, legacy(("const_loader", _names(MANY)))),
    "kernels: a count": (read_legacy_blob, legacy(("opencl", text("cl") + u64(2**59)))),
    "modules": (read_legacy_blob, legacy(*[OPENCL] * 5000)),
    "import tree": (read_modern_blob, modern(("_lib", None), children=[[0] * MANY])),
    "import tree: rows": (read_modern_blob, modern(("_lib", None), children=[[]] * MANY)),
    "JSON: length": (program_from_json, b'{"nodes": "' + b"a" * 1_000_000 + b'"}'),
    "JSON: depth": (program_from_json, b'{"nodes": ' + b"[" * 1_000_000),
    "JSON: shape": (
        program_from_json,
        (CONVNET / "deploy.json").read_bytes().replace(b"3, ", b"3" * 18 + b", "),
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_no_memory(name):
    read, data = BOMBS[name]
    assert peak(read, data) <= 4 * len(data) + SLACK


def test_json_of_many_values_is_refused_unread():
    """Python's JSON values are larger than their text: their number is limited instead."""
    data = b'{"nodes": [' + b"[]," * 1_000_001 + b"[]]}"
    with pytest.raises(ArtifactError, match="more than 1000000 values"):
        program_from_json(data)
    assert peak(program_from_json, data) <= 4 * len(data)
