"""Writes real distributions with entry points, for tests of the plugin system."""

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from textwrap import dedent

import pytest

GOOD = """
    from packhorse.cpu import HostDevice
    from packhorse.device import BackendInfo, DeviceInfo, OptionSpec
    from packhorse.plugin import hookimpl

    INFO = BackendInfo("{name}", "a test backend", dlpack_type=1, priority=150,
                       options={{"level": OptionSpec(int, "a level", minimum=1),
                                 "fast": OptionSpec(bool, "a flag")}},
                       aliases=("{name}-alias",))

    class Backend:
        info = INFO
        def open(self, index, options):
            return HostDevice(INFO, index, options)
        def probe(self):
            print("a driver that prints")
            return [DeviceInfo("{name}", 0, "probed", 1024, driver="7.1")]

    @hookimpl
    def packhorse_backend_info():
        return INFO

    @hookimpl
    def packhorse_open_backend(name, context):
        Backend.context = context
        return Backend()
"""


def needs_pip() -> None:
    """Skip a module where pip is missing.

    Only its metadata is asked: looking for the module would take setuptools' distutils away from
    this process.
    """
    try:
        importlib.metadata.distribution("pip")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("wheels are installed by pip", allow_module_level=True)


def write_dist(
    folder: Path,
    dist: str,
    module: str,
    source: str,
    entries: dict[str, dict[str, str]] | None = None,
    version: str = "1.2",
) -> None:
    """A distribution in ``folder`` with one module; default: a backend named like the module."""
    (folder / f"{module}.py").write_text(dedent(source))
    info = folder / f"{dist.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
    entries = entries or {"packhorse.backends": {module.replace("ph_", ""): module}}
    lines = []
    for group, names in entries.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in names.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def good(name: str) -> str:
    """Source of a sound backend plugin."""
    return dedent(GOOD.format(name=name))


INFO_ONLY = """
    from packhorse.plugin import BackendInfo, hookimpl
    INFO = BackendInfo("{name}", "x", dlpack_type=12{extra})

    @hookimpl
    def packhorse_backend_info():
        return INFO

    @hookimpl
    def packhorse_open_backend(name):
        {open}
"""


def info_only(name, extra="", open="return None"):
    """Source of a plugin with both hooks; ``open`` is the body of the second."""
    return INFO_ONLY.format(name=name, extra=extra, open=open)


def crashing():
    """Source of a backend of highest priority whose probe aborts the process."""
    source = good("crash").replace('print("a driver that prints")', "import os; os.abort()")
    return source.replace("priority=150", "priority=200").replace(
        "dlpack_type=1,", "dlpack_type=2,"
    )


def raised(kind, function, *arguments):
    """The message of the error that the call must raise."""
    with pytest.raises(kind) as caught:
        function(*arguments)
    return str(caught.value)


def write_wheel(
    folder: Path,
    dist: str,
    modules: dict[str, str],
    entries: dict[str, dict[str, str]],
    version: str = "1.2",
) -> Path:
    """A wheel for pip: modules by name, entry points by group."""
    info = f"{dist.replace('-', '_')}-{version}.dist-info"
    lines = []
    for group, names in entries.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in names.items())]
    files = {f"{name}.py": dedent(source) for name, source in modules.items()} | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "\n".join(lines) + "\n",
    }
    path = folder / f"{dist.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in files))
    return path


class Environment:
    """A virtual environment with packhorse as this process finds it, and with wheels by pip."""

    def __init__(self, folder: Path) -> None:
        venv = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        subprocess.run(venv, check=True, capture_output=True)
        self.python = next(folder / d / "python" for d in ("bin", "Scripts")
                            if (folder / d).is_dir())  # fmt: skip
        self.site = Path(self.run("import sysconfig; print(sysconfig.get_path('purelib'))").strip())

    def install(self, wheels: list[Path]) -> None:
        """Install wheels, from their files alone."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "-q"]
        pip += ["--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"]
        done = subprocess.run([*pip, *map(str, wheels)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run its Python; packhorse and what it needs come from where this process has them."""
        paths = os.pathsep.join(path for path in sys.path if path)
        return subprocess.run(
            [str(self.python), *arguments],
            env={**os.environ, "PYTHONPATH": paths, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, code: str, **environment: str) -> str:
        """What a piece of Python prints; it must not fail."""
        done = self.call("-c", dedent(code), **environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout
