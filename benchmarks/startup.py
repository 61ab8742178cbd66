"""What starting costs: imports, ResNet-50 from its file to the first result, the wheel's size.

    python benchmarks/startup.py [--model NAME] [--repeat N] [--no-wheel] [--json FILE]

Every figure is the median of fresh processes, run in turn. ``cold`` means an empty
``PACKHORSE_CACHE_DIR``, ``warm`` one that an earlier process filled; the model file is in the page
cache for all. ``process`` is the time from spawn to exit, interpreter and imports included; a
column ``cpu`` holds the processor time, which a busy machine does not lengthen.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from _common import CASES, arguments, describe, machine, table
from _common import report as write

ROOT = Path(__file__).resolve().parent.parent

IMPORTS = {
    "python -c pass": "pass",
    "import numpy": "import numpy",
    "import packhorse": "import packhorse",
    "import packhorse, numpy": "import packhorse, numpy",
    "packhorse.devices()": "import packhorse; packhorse.devices()",
    "packhorse.device('cpu')": "import packhorse; packhorse.device('cpu')",
    "packhorse.device('llvm-cpu')": "import packhorse; packhorse.device('llvm-cpu')",
    "import onnxruntime": "import onnxruntime",
}

OURS = """
import json, sys, time
laps, last = {}, (time.perf_counter(), time.process_time())
def lap(name):
    global last
    now = time.perf_counter(), time.process_time()
    laps[name], last = [now[0] - last[0], now[1] - last[1]], now
import numpy
import packhorse
feeds = dict(numpy.load(sys.argv[2]))
lap("imports, inputs")
model = packhorse.load(sys.argv[1])
lap("read the file")
device = packhorse.device(sys.argv[3])
lap("open the device")
small = {n: a for n, a in feeds.items() if a.dtype.kind in "biu" and a.size <= 16}
shapes = {n: a.shape for n, a in feeds.items()}
executable = model.compile(device, shapes=shapes, values=small)
lap("compile")
executable(**feeds)
lap("first run")
laps |= {"  " + name: [seconds, None] for name, seconds in executable.timings.items()}
print(json.dumps(laps))
"""

PEER = """
import json, sys, time
laps, last = {}, (time.perf_counter(), time.process_time())
def lap(name):
    global last
    now = time.perf_counter(), time.process_time()
    laps[name], last = [now[0] - last[0], now[1] - last[1]], now
import numpy
import onnxruntime
feeds = dict(numpy.load(sys.argv[2]))
lap("imports, inputs")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = int(sys.argv[3]), 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
lap("create the session")
session.run(None, feeds)
lap("first run")
print(json.dumps(laps))
"""


def process(
    code: str, *args: str, env: Mapping[str, str] | None = None
) -> tuple[tuple[float, float], str]:
    """Wall and CPU seconds of a fresh interpreter from spawn to exit, and what it printed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    lasted = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"a process failed:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return (lasted, spent), done.stdout


def imports(repeat: int) -> list[dict[str, Any]]:
    """Milliseconds of a whole process for each of :data:`IMPORTS`."""
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    spent: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for turn in range(repeat + 1):
        for name, code in IMPORTS.items():
            (lasted, cpu), _ = process(code)
            if turn:  # the first turn fills the page cache and __pycache__
                times[name].append(lasted)
                spent[name].append(cpu)
    empty = median(times["python -c pass"])
    numpy = median(times["import numpy"])
    return [
        {
            "process": name,
            "ms": median(t) * 1e3,
            "above_python_ms": (median(t) - empty) * 1e3,
            "above_numpy_ms": (median(t) - numpy) * 1e3,
            "cpu_ms": median(spent[name]) * 1e3,
        }
        for name, t in times.items()
    ]


def first_result(name: str, threads: int, repeat: int) -> list[dict[str, Any]]:
    """Seconds per phase: ours cold and warm, onnxruntime's; medians of ``repeat`` processes."""
    import numpy as np

    case = next(case for case in CASES if case.name == name)
    runs: dict[str, list[dict[str, Sequence[float | None]]]] = {
        "cold": [],
        "warm": [],
        "onnxruntime": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        feeds = Path(folder, "feeds.npz")
        arrays: dict[str, Any] = case.feeds()
        np.savez(feeds, **arrays)
        ours = (str(case.path), str(feeds), f"llvm-cpu?threads={threads}")
        process(PEER, str(case.path), str(feeds), str(threads))  # fills the page cache
        for turn in range(repeat):
            env = {"PACKHORSE_CACHE_DIR": str(Path(folder, f"cache{turn}"))}
            for kind, code, args in (
                ("cold", OURS, ours),
                ("warm", OURS, ours),
                ("onnxruntime", PEER, (*ours[:2], str(threads))),
            ):
                lasted, text = process(code, *args, env=env)
                runs[kind].append({"process": lasted, **json.loads(text)})
    rows = []
    for kind, found in runs.items():
        for i, what in enumerate((kind, f"{kind} cpu")):
            laps = {p: [r[p][i] for r in found] for p in found[0]}
            known = {p: median(v for v in t if v is not None) for p, t in laps.items() if t[0]}
            rows.append({"what": what, **known})
    return rows


def phases(rows: Sequence[Mapping[str, Any]]) -> str:
    """Phases down, runs across."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "what"))
    lines = [[name, *(f"{row[name]:.3f}" if name in row else "" for row in rows)] for name in names]
    return table(lines, ("seconds", *(row["what"] for row in rows)))


def wheel_bytes() -> int:
    """Size of the wheel, built from a copy so that the checkout stays clean."""
    with tempfile.TemporaryDirectory() as folder:
        copy, out = Path(folder, "source"), Path(folder, "out")
        ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.o", "*.egg-info", "build")
        for part in ("core", "plugins"):
            shutil.copytree(ROOT / part, copy / part, ignore=ignore)
        for file in ROOT.iterdir():
            if file.suffix in (".toml", ".py", ".md", ".cfg", ".in") or file.name == "LICENSE":
                shutil.copy(file, copy)
        command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out)]
        subprocess.run([*command, str(copy)], check=True)
        return next(out.glob("packhorse-*.whl")).stat().st_size


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default="resnet50", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--repeat", type=int, default=15, help="processes per import (%(default)s)")
    parser.add_argument("--first", type=int, default=5, help="processes per model (%(default)s)")
    parser.add_argument("--no-wheel", action="store_true", help="do not build the wheel")
    asked = parser.parse_args()
    if asked.model not in {case.name for case in CASES}:
        parser.error(f"no model {asked.model}; there are {', '.join(c.name for c in CASES)}")
    found = machine()
    print(describe(found), end="\n\n")
    rows = imports(asked.repeat)
    keys = ("ms", "above_python_ms", "above_numpy_ms", "cpu_ms")
    lines = [[row["process"], *(f"{row[key]:.1f}" for key in keys)] for row in rows]
    print(table(lines, ("process", "ms", "above python", "above numpy", "cpu")), end="\n\n")
    if asked.first:
        ready = first_result(asked.model, asked.threads, asked.first)
        print(f"{asked.model}, from the file to the first result, {asked.threads} thread(s)\n")
        print(phases(ready), end="\n\n")
        rows += ready
    if not asked.no_wheel:
        size = wheel_bytes()
        rows.append({"what": "wheel", "bytes": size})
        print(f"wheel without dependencies: {size / 1e6:.3f} MB")
    write("startup", found, rows, asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
