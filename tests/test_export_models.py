"""Models as one library that other runtimes load, the C header and example, sharing's extra."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from model_kit import LLVM, linear, pair, weights

import packhorse as ph
from packhorse import export, export_relax
from packhorse.errors import (
    ArgumentValueError,
    ArtifactError,
    CompileError,
    MissingExtra,
    PackhorseError,
)
from packhorse.graph.program import Step
from packhorse.graph.relax import load_relax
from packhorse.graph.relax_file import parse_relax
from packhorse.module import load_module
from packhorse.module_blob import Factory, read_legacy_blob

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "deploy.so"
    with linear(2).compile(LLVM) as executable:
        assert executable.save(path) == path
        return path, executable(np.arange(8, dtype=np.float32).reshape(2, 4))


def test_our_loader_runs_it(saved):
    path, expected = saved
    graph = load_module(path)["default"](ph.device("cpu"))
    graph.set_input("x", np.arange(8, dtype=np.float32).reshape(2, 4))
    graph.run()
    np.testing.assert_array_equal(np.asarray(graph.get_output(0)), expected)


def test_the_blob_is_a_factory_that_imports_the_library():
    model = linear(2).compile(LLVM)
    program, params = model._compiled.program, model._compiled.params
    tree = read_legacy_blob(b"".join(export.factory_blob(program, params)))
    assert [node.kind for node in tree.nodes] == ["GraphExecutorFactory", "_lib"]
    assert [tuple(node.imports) for node in tree.nodes] == [(1,), ()]
    payload = tree.nodes[0].payload
    assert isinstance(payload, Factory)
    assert json.loads(payload.graph_json)["heads"]
    for name, array in params.items():
        np.testing.assert_array_equal(payload.params[name], array)


def test_the_relax_form_runs_here_too(tmp_path):
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    with linear(2).compile(LLVM) as executable:
        expected = executable(x)
        executable.save(tmp_path / "deploy.so", form="relax")
    with ph.load(tmp_path / "deploy.so") as loaded:
        np.testing.assert_array_equal(loaded(x), expected)
    relax = load_relax(load_module(tmp_path / "deploy.so"))
    (found,) = relax.run([x])
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(PackhorseError, match="float64"):
        relax.run([x.astype(np.float64)])
    with pytest.raises(PackhorseError, match="dimension 0"):
        relax.run([x[:1]])


def test_the_relax_form_needs_kernels_and_a_library(tmp_path):
    with linear(2).compile(LLVM) as executable:
        program, params = executable._compiled.program, executable._compiled.params
        for path, form in (("deploy/", "relax"), ("a.packhorse", "relax"), ("a.so", "tvm")):
            with pytest.raises(ArgumentValueError, match="form is"):
                executable.save(tmp_path / path, form=form)
    mixed = replace(program, steps=(*program.steps, Step("packhorse.op.TopK", (0,), (1,), "n")))
    with pytest.raises(CompileError, match="Relax VM cannot run TopK"):
        export_relax.relax_executable(mixed, params)


def test_what_the_relax_form_holds():
    model = pair(2).compile(LLVM)
    chunks = export_relax.relax_executable(model._compiled.program, model._compiled.params)
    file = parse_relax(b"".join(chunks))
    assert len(file.functions[0].params) == 2
    names = [function.name for function in file.functions]
    assert "vm.builtin.make_tuple" in names
    assert len(set(names)) == len(names)
    assert "main" in names


def test_without_a_suffix_of_a_library_it_is_a_folder(tmp_path):
    with linear(2).compile(LLVM) as executable:
        executable.save(tmp_path / "deploy/")
    assert (tmp_path / "deploy" / "deploy.so").is_file()


def test_artifacts_cannot_be_linked_again(tmp_path):
    linear(2).compile(LLVM).save(tmp_path / "a.packhorse")
    with pytest.raises(CompileError, match=r"linked already.*compile\s+the model again"):
        ph.load(tmp_path / "a.packhorse").save(tmp_path / "a.so")


def test_nothing_compiled(tmp_path):
    with pytest.raises(CompileError, match="nothing compiled to be saved"):
        linear(2).compile("cpu").save(tmp_path / "a.so")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="could not be written"):
        linear(2).compile(LLVM).save(tmp_path / "file" / "a.so")


def test_host_operators_are_named(caplog):
    program = linear(2).compile(LLVM)._compiled.program
    assert export.host_operators(program) == []
    steps = [Step(f"packhorse.op.{op}", (0,), (1,), "n") for op in ("TopK", "Loop", "TopK")]
    mixed = replace(program, steps=(*program.steps, *steps))
    with caplog.at_level(logging.WARNING, "packhorse.export"):
        export.warn_of_host_operators(mixed, "'deploy.so'")
    assert "'deploy.so' runs in packhorse only: Loop, TopK have no compiled kernel" in caplog.text


def test_compiled_models_are_saved_silently(tmp_path, caplog):
    with linear(2).compile(LLVM) as executable:
        executable.save(tmp_path / "deploy/")
        executable.save(tmp_path / "deploy.so")
    assert not [r for r in caplog.records if r.name == "packhorse.export"]


# -- C ------------------------------------------------------------------------------------------

COMPILER = shutil.which("cc")
NEEDS_C = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc)")


@NEEDS_C
@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_the_c_example(tmp_path):
    pytest.importorskip("onnx")
    shutil.copytree(ROOT / "examples" / "c", tmp_path, dirs_exist_ok=True)
    path = {"PYTHONPATH": ":".join(p for p in sys.path if p)}
    done = subprocess.run(
        ["make", f"PYTHON={sys.executable}"], cwd=tmp_path, env={**os.environ, **path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "y[0] = 0.437824, y[999] = 0.562053, largest error below 1e-6" in done.stdout
    assert "argument 3 has elements of DLPack type code 2 and bits 64" in done.stdout
    for arguments, text in ((["./none.so"], "none.so"), (["./deploy.so", "f"], "no function")):
        done = subprocess.run(["./main", *arguments], cwd=tmp_path, capture_output=True, text=True,
                              check=False)  # fmt: skip
        assert done.returncode == 1
        assert text in done.stderr


@NEEDS_C
@pytest.mark.parametrize("language", ["c", "c++"])
def test_the_header_alone(tmp_path, language):
    if language == "c++" and shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    source = tmp_path / f"a.{language}"
    source.write_text("#include <packhorse.h>\n#include <packhorse.h>\nph_function f;\n")
    flags = ["-x", language, "-std=" + {"c": "c11", "c++": "c++17"}[language]]
    command = [COMPILER, *flags, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
    subprocess.run([*command, f"-I{export.include_dir()}", source], check=True)


# -- tvm-ffi, when it is not there --------------------------------------------------------------


def test_tvm_ffi_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "tvm_ffi", None)
    with pytest.raises(MissingExtra, match=r"pip install 'packhorse\[tvm-ffi\]'"):
        ph.from_tvm_ffi(object())
    with pytest.raises(MissingExtra, match="apache-tvm-ffi"):
        ph.convert(weights).as_tvm_ffi()
