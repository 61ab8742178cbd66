"""``packhorse demo`` and the file types it prints, judged by magika's own answers."""

import base64
import importlib.util
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from packhorse import cli
from packhorse.cli import _demo, _magika
from packhorse.errors import ArgumentValueError, ModelFormatError

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = json.loads((ROOT / "tests" / "data" / "magika" / "golden.json").read_text())


@pytest.fixture(scope="module")
def found():
    return _magika.find_model((ROOT,))


def test_agrees_with_magika(found, tmp_path):
    pytest.importorskip("onnx")
    import packhorse as ph

    path, rules = found
    model = ph.load(path)
    for name, wanted in GOLDEN.items():
        file = tmp_path / "sample"
        file.write_bytes(zlib.decompress(base64.b64decode(wanted["content"])))
        prepared = rules.prepare(file)
        if not isinstance(prepared, _magika.FileType):
            prepared = rules.decide(model(prepared[None], device="cpu")[0])
        assert prepared.label == wanted["label"], name
        assert prepared.score == pytest.approx(wanted["score"], abs=1e-4), name


def test_features_are_padded_on_both_sides(found, tmp_path):
    _, rules = found
    file = tmp_path / "text"
    file.write_bytes(b"  0123456789 \n")
    features = rules.prepare(file)
    assert features.dtype == np.int32
    assert bytes(features[:12].astype(np.uint8)) == b"0123456789 \n"
    assert set(features[12:1024]) == {256}
    assert bytes(features[-12:].astype(np.uint8)) == b"  0123456789"


def test_the_demo_on_cpu(tmp_path, capsys):
    pytest.importorskip("onnx")
    (tmp_path / "nothing").write_bytes(b"")
    files = [__file__, str(tmp_path / "nothing"), str(ROOT / "pyproject.toml")]
    assert cli.main(["demo", "--device", "cpu,cpu", *files]) == 0
    out = capsys.readouterr().out
    types = [line.split()[1] for line in out.splitlines()[3:6]]
    assert types == ["python", "empty", "toml"]
    assert "same type for 3 of 3 files" in out


def test_without_files_it_shows_our_own(capsys):
    pytest.importorskip("onnx")
    assert cli.main(["demo", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("python", "json", "onnx", "elf"))


def test_both_devices(capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("llvmlite")
    assert cli.main(["demo"]) == 0
    assert "llvm-cpu:0 and cpu:0 agree" in capsys.readouterr().out


def test_a_device_that_is_missing_is_named_and_the_others_run(capsys):
    pytest.importorskip("onnx")
    assert cli.main(["demo", "-d", "nosuch,cpu", __file__]) == 1
    found = capsys.readouterr()
    assert "not run: " in found.err
    assert "nosuch" in found.err
    assert "python" in found.out


def test_disagreement_is_reported(capsys):
    a = _magika.FileType("c", "C source", 0.9)
    b = _magika.FileType("cpp", "C++ source", 0.9)
    results = [_demo._Result("x:0", [a], 1, 1), _demo._Result("y:0", [b], 1, 1)]
    assert not _demo._print_agreement(results)
    assert "DISAGREE: same type for 0 of 1" in capsys.readouterr().out


def test_unreadable_files(found, tmp_path, capsys):
    with pytest.raises(ArgumentValueError, match="No such file"):
        found[1].prepare(tmp_path / "none")
    with pytest.raises(ArgumentValueError, match="directory"):
        found[1].prepare(tmp_path)


def test_the_model_of_an_installed_package(tmp_path, monkeypatch):
    here = ROOT / "examples" / "magika"
    model = tmp_path / "magika" / "models" / "standard"
    model.mkdir(parents=True)
    (tmp_path / "magika" / "config").mkdir()
    (tmp_path / "magika" / "__init__.py").write_text("raise SystemExit('must not be imported')")
    (model / "model.onnx").write_bytes(b"")
    (model / "config.min.json").write_bytes((here / "config.min.json").read_bytes())
    kinds = (here / "content_types_kb.min.json").read_bytes()
    (tmp_path / "magika" / "config" / "content_types_kb.min.json").write_bytes(kinds)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _magika.find_model(())[0] == model / "model.onnx"


def test_no_model_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelFormatError, match="pip install magika"):
        _magika.find_model((tmp_path,))


def test_a_damaged_configuration(tmp_path):
    folder = tmp_path / "examples" / "magika"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"")
    with pytest.raises(ModelFormatError, match="Restore the folder"):
        _magika.find_model((tmp_path,))
    (folder / "config.min.json").write_text("{")
    with pytest.raises(ModelFormatError, match="configuration"):
        _magika.find_model((tmp_path,))
