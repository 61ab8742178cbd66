"""What ten plugins cost: a list of devices as a whole process, and naming the device in a call.

    python benchmarks/plugins.py [--plugins N] [--repeat N] [--json FILE]

N packages with one backend each are put into a folder of their own, beside packhorse's own
plugins. Processes are medians of fresh ones, run in turn: ``ms`` from spawn to exit, ``cpu`` the
processor time, which a busy machine does not lengthen. Calls are medians of the thread's CPU time
for a model of one Add on four floats; ``above`` is what they take longer than a call that names
no device.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _common import arguments, describe, machine, measure, pin, table
from _common import report as write
from overhead import one_op

LIMIT_MS = 150
LIMIT_US = 1.0

PLUGIN = """
from packhorse.plugin import BackendInfo, OptionSpec, hookimpl

INFO = BackendInfo("{name}", "an accelerator card", dlpack_type=12, package="packhorse-{name}",
                   requires=("numpy",), options={{"clock": OptionSpec(int, "MHz", minimum=1)}})


@hookimpl
def packhorse_backend_info():
    return INFO


@hookimpl
def packhorse_open_backend():
    from packhorse_{name}.backend import Backend

    return Backend(INFO)
"""

LISTED = "import packhorse; packhorse.devices()"
PROCESSES = {
    "python -c pass": ("-c", "pass"),
    "import numpy": ("-c", "import numpy"),
    "packhorse --version": ("-m", "packhorse", "--version"),
    "packhorse devices, no plugin": ("-m", "packhorse", "devices"),
    "packhorse devices": ("-m", "packhorse", "devices"),
    "packhorse.devices()": ("-c", LISTED),
    "packhorse.device('cpu')": ("-c", "import packhorse; packhorse.device('cpu')"),
}


def install(folder: Path, count: int) -> None:
    """Packages as pip leaves them: a folder of modules and a folder of metadata each."""
    for i in range(count):
        name = f"card{i}"
        package = folder / f"packhorse_{name}"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "plugin.py").write_text(PLUGIN.format(name=name))
        info = folder / f"packhorse_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: packhorse-{name}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(
            f"[packhorse.backends]\n{name} = packhorse_{name}.plugin\n"
        )


def once(arguments: tuple[str, ...], env: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU milliseconds of one process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=env, check=True, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return wall * 1e3, cpu * 1e3


def processes(count: int, repeat: int) -> list[dict[str, Any]]:
    """Rows of :data:`PROCESSES`."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in PROCESSES}
    with tempfile.TemporaryDirectory() as folder:
        install(Path(folder), count)
        paths = os.pathsep.join([folder, *filter(None, sys.path)])
        alone = {**os.environ, "PACKHORSE_PLUGINS": "off"}
        every = {**os.environ, "PYTHONPATH": paths}
        for turn in range(repeat + 1):
            for name, words in PROCESSES.items():
                found = once(words, alone if name.endswith("no plugin") else every)
                if turn:  # the first turn fills the page cache and __pycache__
                    times[name].append(found)
    return [
        {"process": name, "ms": median(t[0] for t in taken), "least_ms": min(taken)[0],
         "cpu_ms": median(t[1] for t in taken)}
        for name, taken in times.items()
    ]  # fmt: skip


def calls(seconds: float) -> list[dict[str, Any]]:
    """Microseconds of a call, with and without a device named."""
    import packhorse

    x = np.arange(4, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        model: Any = packhorse.load(one_op(Path(folder)))
    device = packhorse.device("llvm-cpu")
    os.environ["PACKHORSE_DEVICE"] = "llvm-cpu"
    ways = {
        "model(x)": lambda: model(x),
        "model(x, device='llvm-cpu')": lambda: model(x, device="llvm-cpu"),
        "model(x, device='llvm-cpu:0')": lambda: model(x, device="llvm-cpu:0"),
        "model(x, device=Device)": lambda: model(x, device=device),
        "packhorse.device('llvm-cpu')": lambda: packhorse.device("llvm-cpu"),
    }
    for way in ways.values():  # the first call compiles
        way()
    times = measure(ways, seconds=seconds, batch=2e-3, warmup=0.05)
    plain = times["model(x)"].cpu
    return [
        {"call": name, "us": t.cpu * 1e6, "above_us": (t.cpu - plain) * 1e6}
        for name, t in times.items()
    ]


def main() -> int:
    parser = arguments(__doc__ or "", seconds=4.0)
    parser.add_argument("--plugins", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--repeat", type=int, default=15, help="processes of each (%(default)s)")
    asked = parser.parse_args()
    found = machine()
    print(describe(found), end="\n\n")
    rows = processes(asked.plugins, asked.repeat)
    keys = ("ms", "least_ms", "cpu_ms")
    lines = [[row["process"], *(f"{row[key]:.1f}" for key in keys)] for row in rows]
    print(table(lines, (f"process, {asked.plugins} plugins installed", "ms", "least", "cpu")))
    print(f"limit of 'packhorse devices': {LIMIT_MS} ms\n")
    pin(1)
    named = calls(asked.seconds)
    lines = [
        [
            row["call"],
            f"{row['us']:.2f}",
            f"{row['above_us']:+.2f}" if "model" in row["call"] else "",
        ]
        for row in named
    ]
    print(table(lines, ("call", "us", "above")))
    print(f"limit of naming a device in a call: {LIMIT_US:g} us")
    write("plugins", found, rows + named, asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
