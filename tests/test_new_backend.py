"""``packhorse new-backend``: the package it writes installs, works and passes the kit."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from packhorse import cli
from packhorse.cli._new_backend import KINDS, create
from packhorse.errors import ArgumentValueError
from packhorse.testing import report

ROOT = Path(__file__).resolve().parent.parent
PATHS = [p for p in sys.path if p]
"""Where this process finds packhorse: a checkout, or what tox installed."""


def install(package: Path, site: Path) -> None:
    """What pip does with a pure Python package: copy it, and write down its entry points."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    name = project["name"].replace("-", "_")
    (site / name).symlink_to(package / name)
    info = site / f"{name}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def python(*arguments, site, cwd):
    """Run Python with packhorse and the packages of a folder; its output."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*PATHS, str(site)])}
    line = [sys.executable, *arguments]
    done = subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


NO_COMPILER = not any(map(shutil.which, ("cc", "gcc", "clang")))
DEVICES = [
    "numpy",
    pytest.param(
        "codegen", marks=pytest.mark.skipif(NO_COMPILER, reason="no C compiler: cc, gcc, clang")
    ),
]
"""The kinds whose devices can be opened here."""


@pytest.fixture
def acme(tmp_path):
    return create("acme", tmp_path)


@pytest.fixture(params=KINDS)
def package(request, tmp_path):
    """The package of each kind."""
    return create("acme", tmp_path, request.param)


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


FILES = {
    "numpy": ["__init__.py", "backend.py", "plugin.py"],
    "codegen": ["__init__.py", "backend.py", "language.py", "plugin.py", "toolchain.py"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written(kind, tmp_path, capsys):
    line = ["new-backend", "acme-npu", "--kind", kind, "--dir", str(tmp_path)]
    assert cli.main(line) == 0
    folder = tmp_path / "packhorse-acme-npu"
    assert f"wrote {folder}" in capsys.readouterr().out
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == [
        "README.md",
        *(f"packhorse_acme_npu/{file}" for file in FILES[kind]),
        "pyproject.toml",
        "tests/test_acme_npu.py",
        "tox.ini",
    ]
    for path in folder.rglob("*"):
        if path.is_file():
            assert not re.search(r"@\w+@", path.read_text()), path
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["packhorse.backends"] == {
        "acme-npu": "packhorse_acme_npu.plugin"
    }


@pytest.mark.parametrize(("kind", "lines"), [("numpy", 100), ("codegen", 220)])
def test_it_is_short(kind, lines, tmp_path):
    acme = create("acme", tmp_path, kind)
    for file in acme.rglob("*.py"):
        ast.parse(file.read_text())
        assert max(map(len, file.read_text().splitlines())) <= 100, file
    text = "\n".join(file.read_text() for file in (acme / "packhorse_acme").glob("*.py"))
    code = [line for line in text.splitlines() if line.strip() and '"""' not in line]
    assert len(code) < lines  # without empty lines and docstrings
    assert len((acme / "tests/test_acme.py").read_text().splitlines()) == 5


def test_it_is_formatted(package):
    pytest.importorskip("ruff", reason="ruff is not installed (tox -e lint has it)")
    for words in (["check", "--select", "E,F,W,I,B,UP,SIM"], ["format", "--check"]):
        line = [
            sys.executable,
            "-m",
            "ruff",
            *words,
            "--isolated",
            "--line-length",
            "100",
            str(package),
        ]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


SAMPLE = (
    *("Conv[", "Gemm", "MatMul[", "MaxPool", "AveragePool", "Softmax", "LayerNorm", "LSTM"),
    *("Resize", "Gather[", "ScatterND", "CumSum", "ArgMax", "ReduceMean", "Cast[", "Pow", "Mod"),
)
"""What the C compiler, which takes a tenth of a second per test, is asked to build each time."""
CHOSEN = {
    "numpy": [],
    "codegen": ["-k", f"not test_operator or {' or '.join(word.rstrip('[') for word in SAMPLE)}"],
}


@pytest.mark.parametrize("kind", DEVICES)
def test_its_device_is_there_and_passes_the_kit(kind, site, tmp_path):
    package, report = create("acme", tmp_path, kind), tmp_path / "report.json"
    install(package, site)
    arguments = ["-m", "pytest", "-q", "-W", "error", "-p", "packhorse.testing.plugin"]
    out = python(*arguments, *CHOSEN[kind], "--packhorse-report", report, site=site, cwd=package)
    assert " passed" in out
    assert " failed" not in out
    content = json.loads(report.read_text())
    assert content["device"] == "acme:0"
    assert content["counts"]["passed"] == len(content["tests"]) > 200
    out = python("-m", "packhorse", "devices", site=site, cwd=tmp_path)
    assert "acme:0" in out


@pytest.mark.parametrize("kind", DEVICES)
def test_a_sample_of_the_onnx_tests(kind, site, tmp_path):
    name, count = {"numpy": ("acme", 180), "codegen": ("acme-c", 60)}[kind]
    pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    install(create(name, tmp_path, kind), site)
    file = tmp_path / "report.json"
    arguments = ["testing", "onnx", "--device", name, "--tier", "dense", "--tier", "control"]
    arguments += ["--sample", str(count), "--report", str(file)]
    python("-m", "packhorse", *arguments, site=site, cwd=tmp_path)
    committed = report.read(ROOT / f"docs/conformance/onnx-{name}.json")
    before = {result.name: result for result in committed.results}
    found = report.read(file).results
    assert len(found) == count
    for result in found:
        known = before[result.name]
        assert result.outcome == "passed" or known.outcome != "passed", result
        assert result.host <= known.host or known.outcome != "passed", result


@pytest.mark.slow
def test_pip_installs_it(acme, tmp_path):
    site = tmp_path / "site"
    line = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*line, "--target", str(site), str(acme)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    code = (
        "import numpy as np, packhorse as ph\n"
        "device = ph.device('acme')\n"
        "device.check()\n"
        "print(device.name, ph.tensor([1, 2], device=device).numpy())\n"
    )
    assert python("-c", code, site=site, cwd=tmp_path) == "acme:0 [1 2]\n"
    row = next(
        line
        for line in python(
            "-m", "packhorse", "devices", "--probe", site=site, cwd=tmp_path
        ).splitlines()
        if line.startswith("acme:0")
    )
    assert row.split()[1:4] == ["cpu", "yes", "yes"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Acme", "lower-case letters"),
        ("acme_npu", "lower-case letters"),
        ("../acme", "lower-case letters"),
        ("2acme", "lower-case letters"),
        ("", "lower-case letters"),
        ("cpu", "'cpu' is taken (by packhorse"),
        ("llvm-cpu", "is taken"),
        ("auto", "packhorse uses the word itself"),
    ],
)
def test_names_that_cannot_be(name, words, tmp_path):
    with pytest.raises(ArgumentValueError) as caught:
        create(name, tmp_path)
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(acme, tmp_path, capsys):
    before = (acme / "README.md").read_text()
    assert cli.main(["new-backend", "acme", "--dir", str(tmp_path)]) == 2
    assert "exists already and is left as it is" in capsys.readouterr().err
    assert (acme / "README.md").read_text() == before
    with pytest.raises(ArgumentValueError, match="is no folder"):
        create("acme", tmp_path / "missing")
