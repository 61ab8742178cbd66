"""Who imports whom: the order in docs/architecture.md, and what `import packhorse` costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "core" / "packhorse"
PLUGINS = ROOT / "plugins"

LAYERS = (
    {"cli", "testing", "__main__"},
    {"__init__"},
    {"loading"},
    {"model"},
    {"executable", "feeds"},
    {"compiler"},
    {"ops"},
    {"artifact", "export"},
    {"graph"},
    {"module", "tensor"},
    {"function", "device", "_devices", "cpu", "tvm_ffi_bridge"},
    {"native"},
    {"plugin", "dtype", "_device_string"},
    {"kernel", "errors", "_config", "_version", "disk_cache"},
)
"""Highest first; a module imports from its own layer and those below."""

NATIVE_USERS = {
    *("native", "tensor", "tensor_base", "function", "module", "module_device", "graph", "cpu"),
    "tvm_ffi_bridge",
}
"""Who may touch the C core."""

OPTIONAL = ("llvmlite", "onnx", "rich", "pyopencl", "torch")
"""What only extras bring."""

HEAVY = (
    "packhorse.compiler",
    "packhorse.ops",
    "packhorse.plugin.manager",
    "packhorse.native._core",
    "packhorse_",
    "pluggy",
    "cffi",
    "_cffi_backend",
    "llvmlite",
    "onnx",
    "rich",
    "importlib.metadata",
    "subprocess",
)
"""Nothing of this is imported by `import packhorse`."""


def level(part: str) -> int:
    """Which layer a module of core belongs to; artifact_zip to that of artifact. -1: none."""
    part = part if any(part in layer for layer in LAYERS) else part.partition("_")[0]
    return next((i for i, layer in enumerate(LAYERS) if part in layer), -1)


def imports(tree: ast.AST, inside_functions: bool = True) -> Iterator[str]:
    """Dotted names a module imports when it runs.

    What is under TYPE_CHECKING is left out: annotations may look upwards.
    """
    if isinstance(tree, ast.FunctionDef) and not inside_functions:
        return
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this house"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from imports(ast.Module(node.orelse, []), inside_functions)
        else:
            yield from imports(node, inside_functions)


def imported_by_name(tree: ast.AST) -> Iterator[str]:
    """What ``importlib.import_module("...")`` is called with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant))


def parts(path: Path) -> set[str]:
    """First parts of packhorse's own modules that a file imports."""
    found = set()
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        words = name.split(".")
        if words[0] == "packhorse":
            found.add(words[1] if len(words) > 1 else "__init__")
    # "from packhorse.x import y" names packhorse.x.y too; "from packhorse import x" names both
    return {part for part in found if level(part) >= 0 or (CORE / f"{part}.py").exists()}


CORE_FILES = sorted(CORE.rglob("*.py"))
PLUGIN_FILES = sorted(PLUGINS.rglob("*.py"))


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda p: str(p.relative_to(CORE)))
def test_direction(path):
    own = path.relative_to(CORE).parts[0].removesuffix(".py")
    assert level(own) >= 0, f"{own} has no place in LAYERS: give it one, and in the architecture"
    used = parts(path)
    if own not in ("cli", "testing"):
        used.discard("__init__")  # "from packhorse import x" is an import of x
    above = {part for part in used if level(part) < level(own)}
    assert not above, f"{own} imports {sorted(above)}, which lie above it"
    if own not in NATIVE_USERS:
        assert "native" not in used, f"{own} touches the C core"


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda p: str(p.relative_to(CORE)))
def test_core_imports_no_plugin_and_nothing_optional(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in imports(tree):
        assert not name.startswith("packhorse_"), f"core imports the plugin {name}"
    # what an extra brings is imported inside the function that needs it
    for name in imports(tree, inside_functions=False):
        assert name.split(".")[0] not in OPTIONAL, f"core imports {name} when it is loaded"
    for name in imported_by_name(tree):
        assert name.split(".")[0] not in OPTIONAL, f"core imports {name}: that is its backend's"


@pytest.mark.parametrize("path", PLUGIN_FILES, ids=lambda p: str(p.relative_to(PLUGINS)))
def test_plugins_import_no_other_plugin(path):
    own = path.relative_to(PLUGINS).parts[0]
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        first = name.split(".")[0]
        assert not first.startswith("packhorse_") or first == own, f"imports {name}"


@pytest.mark.parametrize("module", ["packhorse", "packhorse.device"])
def test_importing_packhorse_imports_nothing_that_was_not_asked_for(module):
    # numpy is imported first: what it brings along is not ours.
    code = (
        "import sys, numpy; before = set(sys.modules); "
        f"import {module}; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = [name for name in done.stdout.split() if name.startswith(HEAVY)]
    assert not loaded


def test_listing_devices_imports_no_driver():
    code = "import sys; from packhorse.device import devices; devices(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # nor arrays, nor what probing and reading metadata by the library would bring
    heavy = {"llvmlite", "onnx", "packhorse_onnx", "pyopencl", "numpy", "importlib.metadata"}
    assert not (heavy | {"subprocess", "packhorse.native"}) & set(done.stdout.split())
