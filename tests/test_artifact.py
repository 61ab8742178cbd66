import errno
import json
import os
import stat
import subprocess
import sys
import textwrap
import zipfile
from hashlib import sha256
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from packhorse import artifact_files, artifact_forms, artifact_zip
from packhorse.artifact import Artifact, load_artifact, save_artifact
from packhorse.errors import ArgumentValueError, ArtifactError
from packhorse.graph.executor import GraphExecutor
from packhorse.graph.params import save_params
from packhorse.graph.program import Entry, Program, Step
from packhorse.module import load_module

CONVNET = Path(__file__).parent / "data" / "tvm" / "convnet"
FORMS = ["deploy", "m.packhorse"]


def program(name: str = "net") -> Program:
    entries = (
        Entry("x", (4,), "float32", 0),
        Entry("w", (4,), "float32", 1),
        Entry("y", (4,), "float32", 2),
    )
    return Program(name, entries, (0,), (1,), (Step("f", (0, 1), (2,), "f"),), (2,), ("y",))


def artifact(value: float = 1.0, **changes) -> Artifact:
    params = {
        "odd": np.array([True, False, True]),
        "w": np.full(4, value, np.float32),
        "block": np.arange(64, dtype=np.float32),
        "brain": np.arange(64).astype(ml_dtypes.bfloat16),
    }
    given = {
        "programs": {"llvm-cpu": program()},
        "params": params,
        "libraries": {"llvm-cpu": b"\x7fELF" + bytes(500)},
        "device": "llvm-cpu:0?threads=2",
        "metadata": {"model": "é"},
    }
    return Artifact(**{**given, **changes})


def read_library(found: Artifact) -> bytes:
    return found.library_path().read_bytes()


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PACKHORSE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("form", FORMS)
def test_round_trip(tmp_path, form):
    path = save_artifact(tmp_path / form, artifact())
    found = load_artifact(path)
    assert found.targets == ("llvm-cpu",)
    assert found.program().name == "net"
    assert found.program("llvm-cpu").steps == program().steps
    assert (found.device, found.metadata) == ("llvm-cpu:0?threads=2", {"model": "é"})
    assert found.packhorse_version == artifact().packhorse_version
    assert read_library(found) == artifact().libraries["llvm-cpu"]
    assert set(found.params) == set(artifact().params)
    for name, array in artifact().params.items():
        assert found.params[name].dtype == array.dtype
        assert np.array_equal(found.params[name], array)
    assert all(len(member.sha256) == 64 for member in found.members.values())
    assert len(found.members) == 3


@pytest.mark.parametrize("form", FORMS)
def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path, form):
    first = save_artifact(tmp_path / form, artifact())
    other = tmp_path / ("again" if form == "deploy" else "again.packhorse")
    again = save_artifact(other, load_artifact(first))
    files = sorted(first.iterdir()) if first.is_dir() else [first]
    for file in files:
        twin = again / file.name if again.is_dir() else again
        assert twin.read_bytes() == file.read_bytes()


def test_the_folder_is_tvms_triple(tmp_path):
    path = save_artifact(f"{tmp_path}/new/deploy/", artifact())
    names = ["deploy.json", "deploy.manifest.json", "deploy.params", "deploy.so"]
    assert sorted(file.name for file in path.iterdir()) == names
    assert (path / "deploy.params").read_bytes() == save_params(artifact().params)
    manifest = json.loads((path / "deploy.manifest.json").read_bytes())
    for name, member in manifest["members"].items():
        assert sha256((path / name).read_bytes()).hexdigest() == member["sha256"]
    assert manifest["signatures"]["llvm-cpu"] == {
        "inputs": [{"name": "x", "dtype": "float32", "shape": [4]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [4]}],
    }
    assert os.access(path / "deploy.so", os.X_OK)


def test_other_files_of_the_folder_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "deploy.so").write_text("old code")
    save_artifact(tmp_path, artifact(libraries={}))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "deploy.so").exists()  # it belonged to the artifact before
    assert load_artifact(tmp_path).library_path() is None


def test_tvms_triple_without_manifest_runs(tmp_path):
    for found in (
        load_artifact(CONVNET),
        load_artifact(save_artifact(tmp_path / "m.packhorse", load_artifact(CONVNET))),
        load_artifact(save_artifact(tmp_path / "folder", load_artifact(CONVNET))),
    ):
        module = load_module(found.library_path())
        with GraphExecutor(found.program(), module, found.params) as executor:
            outputs = executor.run([np.load(CONVNET / "in_data.npy")])
        for i, output in enumerate(outputs):
            assert np.array_equal(output, np.load(CONVNET / f"out_{i}.npy"))
    assert load_artifact(CONVNET).packhorse_version == ""


def test_the_file_is_a_plain_zip_with_aligned_members(tmp_path):
    path = save_artifact(tmp_path / "m.packhorse", artifact())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        weights = dict(safetensors.deserialize(archive.read("params.safetensors")))
    assert names == ["manifest.json", "params.safetensors", "graph.json", "lib/llvm-cpu.so"]
    assert all(member.offset % 64 == 0 for member in _members(path))
    assert bytes(weights["block"]["data"]) == artifact().params["block"].tobytes()
    assert (weights["brain"]["dtype"], weights["odd"]["shape"]) == ("BF16", [3])
    found = load_artifact(path).params
    assert found["block"].ctypes.data % 64 == 0  # used where it is mapped
    assert found["block"].base is not None


def _members(path):
    return artifact_zip.read_zip(memoryview(path.read_bytes()))


def test_several_targets_in_one_file(tmp_path):
    two = artifact(
        programs={"a": program(), "b": program("other"), "c": program()},
        libraries={"a": b"A", "b": b"B"},
    )
    found = load_artifact(save_artifact(tmp_path / "m.packhorse", two))
    assert found.targets == ("a", "b", "c")
    assert [found.program(t).name for t in "abc"] == ["net", "other", "net"]
    assert found.library_path("b").read_bytes() == b"B"
    assert found.library_path("c") is None
    assert set(found.members) == {
        "params.safetensors", "graph.json", "graph/b.json", "lib/a.so", "lib/b.so",
    }  # fmt: skip
    with pytest.raises(ArgumentValueError, match=r"no target 'd'.*compiled for a, b, c"):
        found.program("d")
    with pytest.raises(ArgumentValueError, match="a folder holds one target"):
        save_artifact(tmp_path / "folder", two)


OTHER = {"libraries": {"llvm-cpu": b"// code"}, "kinds": {"llvm-cpu": "acme-text"}}


@pytest.mark.parametrize("form", FORMS)
def test_code_of_another_kind(tmp_path, form):
    path = save_artifact(tmp_path / form, artifact(**OTHER))
    found = load_artifact(path)
    assert found.kinds == {"llvm-cpu": "acme-text"}
    assert (found.code(), found.library_path()) == (b"// code", None)
    assert {"deploy.code", "lib/llvm-cpu.code"} & set(found.members)
    assert next(m.size for n, m in found.members.items() if n.endswith("code")) == 7
    again = save_artifact(tmp_path / "again.packhorse", found)
    assert load_artifact(again).kinds == found.kinds


def test_code_of_one_kind_takes_the_place_of_another(tmp_path):
    for changes, here, gone in (
        (OTHER, "deploy.code", "deploy.so"),
        ({}, "deploy.so", "deploy.code"),
        (OTHER, "deploy.code", "deploy.so"),
    ):
        save_artifact(tmp_path, artifact(**changes))
        assert (tmp_path / here).exists()
        assert not (tmp_path / gone).exists()
        assert load_artifact(tmp_path).code() == artifact(**changes).code()


def test_host_and_other_code_in_one_file(tmp_path):
    both = artifact(
        programs={"a": program(), "b": program()},
        libraries={"a": b"A", "b": b"B"},
        kinds={"b": "acme-text"},
    )
    found = load_artifact(save_artifact(tmp_path / "m.packhorse", both))
    assert (found.code("a"), found.code("b")) == (b"A", b"B")
    assert found.library_path("a").read_bytes() == b"A"
    assert found.library_path("b") is None
    assert {"lib/a.so", "lib/b.code"} < set(found.members)


def test_the_lowest_format_version_that_says_it_all_is_written(tmp_path):
    """So that an older packhorse reads what it can run, and refuses the rest with a reason."""
    for changes, version in (({}, 1), (OTHER, 2)):
        path = save_artifact(tmp_path / "deploy", artifact(**changes))
        manifest = json.loads((path / "deploy.manifest.json").read_bytes())
        assert manifest["format_version"] == version
        assert ("kinds" in manifest) == (version == 2)


def test_libraries_given_as_files(tmp_path):
    (tmp_path / "k.so").write_bytes(b"code")
    given = artifact(libraries={"llvm-cpu": tmp_path / "k.so"})
    assert read_library(load_artifact(save_artifact(tmp_path / "m.packhorse", given))) == b"code"
    missing = artifact(libraries={"llvm-cpu": tmp_path / "gone.so"})
    with pytest.raises(ArtifactError, match=r"gone.so' cannot be read: No such file"):
        save_artifact(tmp_path / "m.packhorse", missing)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"programs": {}}, "at least one program"),
        ({"libraries": {"gpu": b""}}, "no program for target 'gpu'"),
        ({"programs": {"../x": program()}, "libraries": {}}, "'../x' is not a target name"),
        ({"programs": {"a:0": program()}, "libraries": {}}, "'a:0' is not a target name"),
        ({"kinds": {"llvm-cpu": "No Word"}}, "'No Word' is no kind of code"),
        ({"kinds": {"gpu": "acme"}}, "kind 'acme' was named for target 'gpu', but none given"),
    ],
)
def test_impossible_artifacts(changes, message):
    with pytest.raises(ArgumentValueError, match=message):
        artifact(**changes)


def test_the_suffix_tells_the_form(tmp_path):
    with pytest.raises(ArgumentValueError, match=r"suffix '.zip'; use 'm.packhorse'"):
        save_artifact(tmp_path / "m.zip", artifact())


def test_nothing_there(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read: No such file"):
        load_artifact(tmp_path / "m.packhorse")
    with pytest.raises(ArtifactError, match=r"has no deploy.json; an artifact is"):
        load_artifact(tmp_path)
    (tmp_path / "m.packhorse").touch()
    with pytest.raises(ArtifactError, match="is empty"):
        load_artifact(tmp_path / "m.packhorse")


# ---------------------------------------------------------------- code from a .packhorse file


def test_code_is_cached_privately_by_content(tmp_path):
    found = load_artifact(save_artifact(tmp_path / "m.packhorse", artifact()))
    path = found.library_path()
    assert path.name == sha256(artifact().libraries["llvm-cpu"]).hexdigest() + ".so"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    before = path.stat().st_mtime_ns
    assert found.library_path() == path
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"damaged")
    assert found.library_path().read_bytes() == artifact().libraries["llvm-cpu"]


def test_a_cache_open_to_others_is_closed(tmp_path, monkeypatch):
    monkeypatch.setenv("PACKHORSE_CACHE_DIR", str(tmp_path))
    (tmp_path / "libraries").mkdir(mode=0o777)
    (tmp_path / "libraries").chmod(0o777)
    folder = artifact().library_path().parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_cache_of_another_user_is_refused(monkeypatch):
    artifact().library_path()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(
        ArtifactError, match=r"belongs to another user, who could replace.*PACKHORSE_CACHE_DIR"
    ):
        artifact().library_path()


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PACKHORSE_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ArtifactError, match="PACKHORSE_CACHE_DIR"):
        artifact().library_path()


# ---------------------------------------------------------------- saving that fails


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_the_old_artifact(tmp_path, monkeypatch, form, where):
    path = save_artifact(tmp_path / form, artifact(1.0))
    before = sorted(tmp_path.rglob("*"))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if where == "rename":
            patch.setattr(os, "replace" if form.endswith("packhorse") else "rename", full)
        else:
            patch.setattr(*(("os.fsync", full) if where == "fsync" else (
                artifact_files, "_write", full)))  # fmt: skip
        with pytest.raises(ArtifactError, match=r"No space left.*bytes are needed, \d+ are free"):
            save_artifact(path, artifact(2.0))
    assert sorted(tmp_path.rglob("*")) == before
    assert load_artifact(path).params["w"][0] == 1.0
    save_artifact(path, artifact(2.0))
    assert load_artifact(path).params["w"][0] == 2.0


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="could not be written"):
        save_artifact(tmp_path / "file" / "deploy", artifact())


# The process is killed at the n-th call that changes a name or makes data durable.
KILLED = """
import os, signal, sys
from pathlib import Path
import test_artifact as t
path, stop = Path(sys.argv[1]), int(sys.argv[2])
count = 0
def deadly(real):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir"):
    setattr(os, name, deadly(getattr(os, name)))
t.save_artifact(path, t.artifact(2.0))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs SIGKILL")
@pytest.mark.parametrize("form", FORMS)
def test_killed_anywhere_it_is_the_old_or_the_new(tmp_path, form):
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    path = tmp_path / form
    seen = []
    for stop in range(1, 40):
        save_artifact(path, artifact(1.0, libraries={}))
        done = _fork_save(path, stop)
        found = load_artifact(path)
        value = found.params["w"][0]
        assert (found.library_path() is None) == (value == 1.0)
        if path.is_dir():
            assert not (path / artifact_files.COMMIT).exists()
        seen.append(value)
        if done:
            break
    assert done
    assert seen == sorted(seen)  # old until the commit, new from then on
    assert seen[0] == 1.0
    assert seen[-1] == 2.0
    assert len(seen) >= (4 if form.endswith("packhorse") else 10)


def _fork_save(path: Path, stop: int) -> bool:
    """Save in a child that is killed at its ``stop``-th call; True if it got to the end."""
    code = textwrap.dedent(KILLED).replace("import test_artifact as t", _IMPORT)
    run = subprocess.run([sys.executable, "-c", code, str(path), str(stop)], check=False)
    assert run.returncode in (0, -9)
    return run.returncode == 0


_IMPORT = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("test_artifact", {str(Path(__file__))!r})
t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
"""


def test_a_committed_folder_is_read_where_it_cannot_be_mended(tmp_path, monkeypatch):
    path = save_artifact(tmp_path / "deploy", artifact(1.0))
    fresh = save_artifact(tmp_path / "fresh", artifact(2.0, libraries={}))
    os.rename(fresh, path / artifact_files.COMMIT)
    (path / artifact_files.COMMIT / "deploy.so.removed").touch()

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rename", "rmdir"):
            patch.setattr(os, name, refuse)
        found = load_artifact(path)
    assert found.params["w"][0] == 2.0
    assert found.library_path() is None
    assert load_artifact(path).params["w"][0] == 2.0
    assert sorted(f.name for f in path.iterdir()) == [
        "deploy.json", "deploy.manifest.json", "deploy.params",
    ]  # fmt: skip


@pytest.mark.parametrize("times", [1, 99])
def test_a_folder_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch, times):
    path = save_artifact(tmp_path / "deploy", artifact(1.0))
    real, left = artifact_forms._verify, [times]

    def verify(*args):
        if left[0]:
            left[0] -= 1
            save_artifact(path, artifact(2.0))
            raise ArtifactError("the files do not fit together")
        return real(*args)

    monkeypatch.setattr(artifact_forms, "_verify", verify)
    if times == 1:
        assert load_artifact(path).params["w"][0] == 2.0
    else:
        with pytest.raises(ArtifactError, match="replaced again and again"):
            load_artifact(path)


def test_debris_of_killed_writers_is_removed_when_old(tmp_path):
    for name, age in (("0" * 16, 7200), ("1" * 16, 0)):
        debris = tmp_path / f".m.packhorse.{name}.tmp"
        debris.touch()
        os.utime(debris, (debris.stat().st_mtime - age,) * 2)
    save_artifact(tmp_path / "m.packhorse", artifact())
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        f".m.packhorse.{'1' * 16}.tmp",
        "m.packhorse",
    ]
