import io
import json
import warnings
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packhorse import artifact_zip
from packhorse.artifact import FORMAT_VERSION, Artifact, load_artifact, save_artifact
from packhorse.artifact_safetensors import load_safetensors, safetensors_chunks
from packhorse.errors import ArgumentTypeError, ArtifactError
from packhorse.graph.program import Entry, Program, Step


def artifact() -> Artifact:
    entries = (
        Entry("x", (4,), "float32", 0),
        Entry("w", (4,), "float32", 1),
        Entry("y", (4,), "float32", 2),
    )
    steps = (Step("f", (0, 1), (2,), "f"),)
    params = {"w": np.ones(4, np.float32), "block": np.zeros(64, np.float32)}
    program = Program("net", entries, (0,), (1,), steps, (2,), ("y",))
    return Artifact({"llvm-cpu": program}, params, {"llvm-cpu": bytes(range(256))}, "llvm-cpu")


def of_device(**changes) -> Artifact:
    """The same with code of a device that is not host memory."""
    return replace(artifact(), kinds={"llvm-cpu": "acme-text"}, **changes)


def _members(path):
    return artifact_zip.read_zip(memoryview(path.read_bytes()))


# ---------------------------------------------------------------- damaged and hostile folders


@pytest.mark.parametrize("name", ["deploy.json", "deploy.params", "deploy.so"])
@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_every_file_of_a_folder_is_compared_with_the_manifest(tmp_path, name, change):
    path = save_artifact(tmp_path / "deploy", artifact())
    raw = bytearray((path / name).read_bytes())
    if change == "remove":
        (path / name).unlink()
    else:
        raw[-5] ^= 1
        (path / name).write_bytes(raw if change == "flip" else raw[:-1])
    message = {"flip": "not match the sha256", "cut": "truncated", "remove": "lacks|has no"}
    with pytest.raises(ArtifactError, match=message[change]) as caught:
        load_artifact(path)
    assert name in str(caught.value)


@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_code_of_other_devices_is_compared_with_the_manifest(tmp_path, change):
    path = save_artifact(tmp_path / "deploy", of_device())
    raw = bytearray((path / "deploy.code").read_bytes())
    if change == "remove":
        (path / "deploy.code").unlink()
    else:
        raw[-5] ^= 1
        (path / "deploy.code").write_bytes(raw if change == "flip" else raw[:-1])
    message = {"flip": "not match the sha256", "cut": "truncated", "remove": "lacks deploy.code"}
    with pytest.raises(ArtifactError, match=message[change]):
        load_artifact(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=3), r"format version 3.*reads up to 2; upgrade it"),
        (lambda m: m.pop("kinds"), r"kinds of .* must be a JSON object"),
        (lambda m: m.update(kinds=["acme-text"]), r"kinds of .* must be a JSON object"),
        (lambda m: m.update(kinds={"llvm-cpu": 3}), r"kinds\.llvm-cpu of .* must be a string"),
        (
            lambda m: m.update(kinds={"llvm-cpu": "../x"}),
            r"kind of 'llvm-cpu'.*impossible '\.\./x'",
        ),
        (lambda m: m.update(kinds={"a/b": "x"}), "impossible target 'a/b'"),
        (lambda m: m.update(kinds={"gpu": "x"}), "kind of a library that it does not list"),
        (
            lambda m: (
                m["members"].update({"deploy.manifest.json": m["members"].pop("deploy.code")}),
                m.update(libraries={"llvm-cpu": "deploy.manifest.json"}),
            ),
            "is not the manifest of a folder",
        ),
    ],
)
def test_damaged_manifests_of_other_code(tmp_path, change, message):
    path = save_artifact(tmp_path / "deploy", of_device())
    _change_manifest(path, change)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(path)


def _change_manifest(path: Path, change) -> None:
    manifest = json.loads((path / "deploy.manifest.json").read_bytes())
    change(manifest)
    (path / "deploy.manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=FORMAT_VERSION + 1), "reads up to 2; upgrade it: pip"),
        (lambda m: m.update(format_version="1"), "must be an integer"),
        (lambda m: m.update(format="other"), "is not the manifest"),
        (lambda m: m.update(programs={}), "names|lacks"),
        (lambda m: m.update(programs={"a/b": "deploy.json"}), "impossible target"),
        (lambda m: m.update(params="deploy.json"), "names 'deploy.params'"),
        (lambda m: m.update(device=None), "device of .* must be a string, found null"),
        (lambda m: m["members"]["deploy.so"].update(sha256="0"), "not a hash of 64"),
        (lambda m: m["members"]["deploy.so"].update(size=-1), "size of"),
        (lambda m: m["members"].update(x={"size": 0, "sha256": "0" * 64, "crc32": 0}), "names 'x'"),
        (lambda m: m.pop("metadata"), "metadata of"),
    ],
)
def test_damaged_manifests(tmp_path, change, message):
    path = save_artifact(tmp_path / "deploy", artifact())
    _change_manifest(path, change)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(path)


def test_members_outside_the_folder_are_refused(tmp_path):
    path = save_artifact(tmp_path / "deploy", artifact())

    def change(manifest):
        manifest["members"]["../../secret"] = manifest["members"].pop("deploy.so")
        manifest["libraries"] = {"llvm-cpu": "../../secret"}

    _change_manifest(path, change)
    with pytest.raises(ArtifactError, match="is not the manifest of a folder"):
        load_artifact(path)


# ---------------------------------------------------------------- damaged and hostile zips


def _zipped(members, **options) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", **options) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of names given twice
        for name, content in members:
            archive.writestr(name, content)
    return made.getvalue()


def _patched(raw: bytes, old: bytes, new: bytes) -> bytes:
    assert old in raw
    return raw.replace(old, new)


GOOD = [("manifest.json", "{}"), ("graph.json", "x" * 100)]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"PK", "does not begin with a zip member"),
        (b"\x7fELF" + bytes(100), "does not begin with a zip member"),
        (_zipped(GOOD)[:-1], "it is truncated, or bytes follow"),
        (_zipped(GOOD) + b"!", "it is truncated, or bytes follow"),
        (b"PK\3\4" + bytes(100), "it is truncated"),
        (_zipped(GOOD, compression=zipfile.ZIP_DEFLATED), "'manifest.json' is compressed"),
        (_zipped([*GOOD, ("graph.json", "y")]), "two members called 'graph.json'"),
        (_zipped([*GOOD, ("/etc/passwd", "y")]), "'/etc/passwd' at offset .* has a name"),
        (_zipped([*GOOD, ("../up", "y")]), "has a name packhorse never writes"),
        (_zipped([*GOOD, ("a/../../up", "y")]), "has a name packhorse never writes"),
        (_zipped([*GOOD, ("a\\b", "y")]), "has a name packhorse never writes"),
        (_zipped([("graph.json", "{}")]), r"does not begin with manifest.json"),
        (b"PK\3\4" + _zipped(GOOD), "ends? at offset|begins at offset|damaged"),
        (_zipped(GOOD), "is not the manifest of a packhorse artifact"),
        (_patched(_zipped(GOOD), b"{}", b"[]"), r"manifest.json at offset .* is damaged .CRC"),
    ],
)
def test_zips_that_are_refused(tmp_path, raw, message):
    (tmp_path / "m.packhorse").write_bytes(raw)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(tmp_path / "m.packhorse")


def _central(raw: bytes, index: int) -> int:
    position = -1
    for _ in range(index + 1):
        position = raw.index(b"PK\1\2", position + 1)
    return position


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (8, b"\1\0", "encrypted"),
        (10, b"\x08\0", "compressed"),
        (16, b"\0\0\0\0", "the header of zip member 'params.safetensors' at offset"),  # crc
        (20, b"\xff\xff\xff\x7f", "compressed, encrypted or streamed"),
        (20, b"\xff\xff\xff\x7f" * 2, "runs past the directory"),
        (20, b"\xff\xff\xff\xff" * 2, "lacks its zip64 field"),
        (42, b"\0\0\0\0", "damaged|overlap"),  # two members at the same place
        (42, b"\xff\xff\xff\x7f", "missing or damaged at offset"),
        (28, b"\xff\xff", "overflows"),
    ],
)
def test_directory_records_that_lie(tmp_path, field, value, message):
    path = save_artifact(tmp_path / "m.packhorse", artifact())
    raw = bytearray(path.read_bytes())
    place = _central(raw, 1) + field
    raw[place : place + len(value)] = value
    path.write_bytes(raw)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(path)


def test_overlapping_members_of_one_content(tmp_path):
    """The classic bomb: many directory records that share one piece of data."""
    part = artifact_zip.Part("a", [b"x" * 1000], 1000, zlib.crc32(b"x" * 1000))
    local = artifact_zip._local_header(part, 0) + b"x" * 1000
    directory = artifact_zip._central_header(part, 0) * 50
    raw = local + directory + artifact_zip._end(50, len(directory), len(local))
    with pytest.raises(ArtifactError, match="neither overlap nor leave gaps"):
        artifact_zip.read_zip(memoryview(raw))


def test_a_wrong_crc_in_both_headers(tmp_path):
    path = save_artifact(tmp_path / "m.packhorse", artifact())
    crc = zlib.crc32(next(m.data for m in _members(path) if m.name == "graph.json"))
    raw = path.read_bytes().replace(crc.to_bytes(4, "little"), b"\1\2\3\4")
    path.write_bytes(raw)
    with pytest.raises(ArtifactError, match=r"the CRC of member 'graph.json'"):
        load_artifact(path)


def test_changed_content_with_a_right_crc(tmp_path):
    path = save_artifact(tmp_path / "m.packhorse", artifact())
    parts = []
    for m in _members(path):
        data = bytes(m.data).replace(b'"net"', b'"bad"') if m.name == "graph.json" else m.data
        parts.append(artifact_zip.Part(m.name, [data], len(data), zlib.crc32(data)))
    path.write_bytes(b"".join(artifact_zip.zip_chunks(parts)))
    with pytest.raises(ArtifactError, match=r"member 'graph.json' at offset \d+ .* sha256"):
        load_artifact(path)


@pytest.mark.parametrize("change", ["extra", "missing"])
def test_members_must_be_those_of_the_manifest(tmp_path, change):
    path = save_artifact(tmp_path / "m.packhorse", artifact())
    parts = [artifact_zip.Part(m.name, [m.data], len(m.data), m.crc) for m in _members(path)]
    parts = parts[:-1] if change == "missing" else [*parts, artifact_zip.Part("x", [], 0, 0)]
    path.write_bytes(b"".join(artifact_zip.zip_chunks(parts)))
    match = "lacks the member 'lib/llvm-cpu.so'" if change == "missing" else "holds 'x'"
    with pytest.raises(ArtifactError, match=match):
        load_artifact(path)


@pytest.mark.parametrize("limit", [200, 2000])
def test_zip64(tmp_path, monkeypatch, limit):
    """As if a few bytes were 4 GiB: the fields of large files, read by zipfile as well."""
    monkeypatch.setattr(artifact_zip, "_LIMIT", limit)
    path = save_artifact(tmp_path / "m.packhorse", artifact())
    assert b"PK\6\6" in path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 4
    assert load_artifact(path).params["w"][0] == 1.0
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\6\6") + 48] ^= 1  # offset of the directory
    path.write_bytes(raw)
    with pytest.raises(ArtifactError, match="should end at offset"):
        load_artifact(path)


# ---------------------------------------------------------------- safetensors


def _safetensors(header, data: bytes = b"") -> memoryview:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return memoryview(len(text).to_bytes(8, "little") + text + data)


def _array(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (memoryview(b""), "claims -1 bytes"),
        (memoryview(b"\xff" * 20), "claims 18446744073709551615 bytes, 20 are in the file"),
        (_safetensors(b"[]"), "must be a JSON object"),
        (_safetensors({"a": _array()}, bytes(7)), "data_offsets"),
        (_safetensors({"a": _array()}, bytes(9)), "holds 9 bytes of data, its arrays take 8"),
        (_safetensors({"a": _array(offsets=(8, 0))}, bytes(8)), "must be .begin, end"),
        (_safetensors({"a": _array(offsets=(0, 8, 8))}, bytes(8)), "must be .begin, end"),
        (_safetensors({"a": _array(dtype="Q4")}, bytes(8)), "unknown dtype 'Q4'"),
        (_safetensors({"a": _array(shape=(1 << 40, 1 << 40))}, bytes(8)), "8 bytes for float32"),
        (_safetensors({"a": _array(shape=(1,) * 50)}, bytes(8)), "50 dimensions"),
        (_safetensors({"a": _array(), "b": _array()}, bytes(8)), "overlap or leave a gap"),
        (_safetensors({"a": 3}), "must be a JSON object, found 3"),
        (_safetensors({"a": _array(), "__metadata__": []}, bytes(8)), "__metadata__"),
        (
            _safetensors({"a": _array(), "__metadata__": {"packhorse.dtype.a": "int4"}}, bytes(8)),
            "is int4 but stored as F32",
        ),
        (
            _safetensors({"a": _array(), "__metadata__": {"packhorse.dtype.a": "int5"}}, bytes(8)),
            "unknown dtype 'int5'",
        ),
    ],
)
def test_safetensors_that_are_refused(raw, message):
    with pytest.raises(ArtifactError, match=message):
        load_safetensors(raw)


def test_safetensors_of_the_package_and_ours_are_the_same_format():
    given = {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": np.array(3.0)}
    theirs = load_safetensors(memoryview(safetensors.numpy.save(given)))
    ours = safetensors.numpy.load(b"".join(safetensors_chunks(given)))
    for name, array in given.items():
        assert np.array_equal(theirs[name], array)
        assert np.array_equal(ours[name], array)


def test_safetensors_keeps_dtypes_the_format_lacks():
    given = {
        "complex": np.array([[1 + 2j]], np.complex64),
        "narrow": np.arange(-4, 4).astype(ml_dtypes.int4),
        "scalar": np.array(3).astype(ml_dtypes.float8_e8m0fnu),
        "none": np.empty((0, 2), np.float32),
    }
    raw = b"".join(safetensors_chunks(given))
    found = load_safetensors(memoryview(raw))
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
    assert safetensors.numpy.load(raw)["complex"].shape == (1, 1, 8)
    with pytest.raises(ArgumentTypeError, match="param 'words'"):
        safetensors_chunks({"words": np.array(["a"])})


# ---------------------------------------------------------------- fuzzing


def _fuzz(data: st.DataObject, folder: Path) -> None:
    good = folder / "good.packhorse"
    given = replace(artifact(), programs=artifact().programs | {"acme": artifact().program()})
    given = replace(given, libraries=given.libraries | {"acme": b"//"}, kinds={"acme": "text"})
    if not good.exists():
        save_artifact(good, given)
    raw = bytearray(good.read_bytes())
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "bad.packhorse").write_bytes(raw)
    try:
        found = load_artifact(folder / "bad.packhorse")
    except ArtifactError:
        return
    # Only bytes without meaning (times, padding) may change without being noticed.
    assert found.params["w"].tolist() == [1.0] * 4
    assert (found.libraries, found.kinds) == (given.libraries, given.kinds)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_give_artifact_errors_only(tmp_path, data):
    _fuzz(data, tmp_path)


@pytest.mark.fuzz
@settings(max_examples=100_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_long(tmp_path, data):
    _fuzz(data, tmp_path)
