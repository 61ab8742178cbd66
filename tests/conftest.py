"""Every test runs with an empty cache directory and no packhorse variables of the caller."""

import importlib.metadata
import os
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # helper modules beside the tests (importlib import mode)
_KEPT = ("PACKHORSE_MODELS_DIR",)


def _write_entry_points(folder: Path) -> None:
    """A checkout that was not installed has no entry points: write those of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / "packhorse-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: packhorse\nVersion: 0\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session", autouse=True)
def _packhorse_environment(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("PACKHORSE_") and n not in _KEPT]:
            patch.delenv(name)
        patch.setenv("PACKHORSE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        try:
            importlib.metadata.distribution("packhorse")
        except importlib.metadata.PackageNotFoundError:
            folder = tmp_path_factory.mktemp("entry_points")
            _write_entry_points(folder)
            patch.setattr(sys, "path", [*sys.path, str(folder)])
        yield


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on sys.path for distributions; modules imported from it are forgotten."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("ph_"):
            del sys.modules[name]
