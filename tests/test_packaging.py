"""What is shipped: the wheel's size and content, entry points, and what an import imports."""

import importlib
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {
    path.parent.name: path.parent
    for where in PROJECT["tool"]["setuptools"]["packages"]["find"]["where"]
    for path in (ROOT / where).glob("*/__init__.py")
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what is in the checkout and not ignored."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("source")
    for name in ("core", "plugins"):
        ignored = shutil.ignore_patterns("*.so", "*.o", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    (found,) = out.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_is_small_and_serves_every_python(wheel):
    assert wheel.stat().st_size <= 1_000_000
    assert "-cp311-abi3-" in wheel.name


@pytest.mark.slow
def test_what_the_wheel_ships(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
    assert any(name.startswith("packhorse/native/_core") and name.endswith(".so") for name in names)
    assert "packhorse/include/packhorse.h" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == set(PACKAGES)
    assert "License-Expression: Apache-2.0" in metadata
    assert "# packhorse" in metadata  # the README
    missing = [
        f"{package}/{path.relative_to(folder)}"
        for package, folder in PACKAGES.items()
        for path in (*folder.rglob("*.py"), *folder.rglob("*.tmpl"))
        if f"{package}/{path.relative_to(folder)}" not in names
    ]
    assert not missing


def test_the_core_depends_on_three_packages():
    names = {line.partition(">")[0] for line in PROJECT["project"]["dependencies"]}
    assert names == {"numpy", "cffi", "pluggy"}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed(package):
    assert (PACKAGES[package] / "py.typed").is_file()


def entries():
    groups = PROJECT["project"]["entry-points"].items()
    own = [(group, items) for group, items in groups if group.startswith("packhorse.")]
    return [(group, *item) for group, items in own for item in items.items()]


@pytest.mark.parametrize(("group", "name", "module"), entries())
def test_entry_points_lead_to_plugins_of_their_name(group, name, module):
    plugin = importlib.import_module(module)
    kind = {"packhorse.backends": "backend", "packhorse.frontends": "frontend"}[group]
    info = getattr(plugin, f"packhorse_{kind}_info")
    assert info(name).name == name if info.__code__.co_argcount else info().name == name


def test_the_console_script_is_the_command_line():
    module, _, function = PROJECT["project"]["scripts"]["packhorse"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def imported(statement):
    """Modules that are loaded after a statement in a fresh interpreter."""
    code = f"{statement}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    paths = [path for path in sys.path if path]
    code = f"import sys; sys.path[:0] = {paths!r}\n{code}"
    command = [sys.executable, "-I", "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def under(modules, *prefixes):
    return [m for m in modules if any(m == p or m.startswith(p + ".") for p in prefixes)]


def test_import_packhorse_imports_no_compiler_plugin_or_driver():
    modules = imported("import packhorse")
    heavy = [f"packhorse.{name}" for name in ("compiler", "ops", "cli", "native", "testing")]
    others = ["pluggy", "cffi", "_cffi_backend", "llvmlite", "onnx", "rich", "importlib.metadata"]
    plugins = [name for name in PACKAGES if name != "packhorse"]
    assert not under(modules, *heavy, *others, *plugins)


def test_listing_commands_imports_none_of_them():
    modules = imported("from packhorse.cli import COMMANDS")
    assert not under(modules, "packhorse.model", "packhorse.cli._run", "rich")


def test_opening_cpu_imports_no_plugin_package():
    modules = imported("import packhorse; packhorse.device('cpu')")
    assert not under(modules, "packhorse_llvm_cpu", "packhorse_onnx", "llvmlite", "onnx")
