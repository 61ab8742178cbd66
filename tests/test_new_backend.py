"""``packhorse new-backend``: the package it writes installs, works and passes the kit."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from packhorse import cli
from packhorse.cli._new_backend import create
from packhorse.errors import ArgumentValueError

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


@pytest.fixture
def acme(tmp_path):
    return create("acme", tmp_path)


def test_what_is_written(tmp_path, capsys):
    assert cli.main(["new-backend", "acme-npu", "--dir", str(tmp_path)]) == 0
    folder = tmp_path / "packhorse-acme-npu"
    assert f"wrote {folder}" in capsys.readouterr().out
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert files == [
        "README.md",
        "packhorse_acme_npu/__init__.py",
        "packhorse_acme_npu/backend.py",
        "packhorse_acme_npu/plugin.py",
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


def test_it_is_short(acme):
    for file in acme.rglob("*.py"):
        ast.parse(file.read_text())
        assert max(map(len, file.read_text().splitlines())) <= 100
    text = "\n".join(file.read_text() for file in (acme / "packhorse_acme").glob("*.py"))
    code = [line for line in text.splitlines() if line.strip() and '"""' not in line]
    assert len(code) < 100  # without empty lines and docstrings
    assert len((acme / "tests/test_acme.py").read_text().splitlines()) == 5


def test_its_device_is_there_and_passes_the_kit(acme, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    install(acme, site)
    report = tmp_path / "report.json"
    arguments = ["-m", "pytest", "-q", "-W", "error", "-p", "packhorse.testing.plugin"]
    out = python(*arguments, "--packhorse-report", report, site=site, cwd=acme)
    assert " passed" in out
    assert " failed" not in out
    assert '"device": "acme:0"' in report.read_text()
    out = python("-m", "packhorse", "devices", site=site, cwd=tmp_path)
    assert "acme:0" in out


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
    assert row.split()[1:3] == ["yes", "yes"]


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


def test_the_tutorial_shows_what_is_written(acme):
    page = (ROOT / "docs" / "authors.md").read_text()
    shown = re.findall(
        r"^```(?:python|toml)\n# ([\w/]+\.(?:py|toml))\n(.*?)^```$", page, re.M | re.S
    )
    assert [name for name, _ in shown] == [
        "pyproject.toml",
        "packhorse_acme/plugin.py",
        "packhorse_acme/backend.py",
        "tests/test_acme.py",
    ]
    for name, text in shown:
        assert text == (acme / name).read_text(), name
