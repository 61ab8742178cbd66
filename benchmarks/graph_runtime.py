"""The graph runtime on a library that TVM compiled: create and load, run, a whole inference.

    python benchmarks/graph_runtime.py [--folder DIR] [--threads N] [--json FILE]

DIR holds ``deploy.so``, ``deploy.json``, ``deploy.params`` and ``in_data.npy``; default is the
small network of the tests. Where a TVM that still has ``tvm.contrib.graph_executor`` (0.8 to
0.19) can be imported, it runs the same library in turn with ours. Where not, what TVM 0.16 took
for the default network is printed beside our figures: recorded once with the same library on
another machine, so compare orders of magnitude only.

Microseconds are medians of the thread's CPU time (one thread) with the wall time beside them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import arguments, describe, machine, measure, pin, table
from _common import report as write

CONVNET = Path(__file__).resolve().parent.parent / "tests" / "data" / "tvm" / "convnet"

RECORDED: Mapping[str, str] = {
    "create + load_params": "900",
    "run": "10.7",
    "set_input + run + output to numpy": "34 - 36",
}
"""Microseconds of TVM 0.16 on the default network, one thread, recorded beside the prototype of
this runtime (which took 6600, 10.3 and 11.5) on another machine."""

Calls = dict[str, Callable[[], Any]]


class Files:
    """What a deployment folder holds."""

    def __init__(self, folder: Path) -> None:
        self.library = folder / "deploy.so"
        self.graph = (folder / "deploy.json").read_text(encoding="utf-8")
        self.params = (folder / "deploy.params").read_bytes()
        self.data = np.load(folder / "in_data.npy")
        self.expected = folder / "out_0.npy"


def ours(files: Files, threads: int) -> Calls:
    """Calls of packhorse."""
    import packhorse
    from packhorse.graph.executor import GraphExecutor
    from packhorse.graph.graph_json import program_from_json
    from packhorse.graph.params import load_params
    from packhorse.graph.runtime_functions import create

    library = packhorse.load_module(files.library)
    device = packhorse.device(f"cpu?threads={threads}")

    def made() -> Any:
        graph = create(files.graph, library, device)
        graph.load_params(files.params)
        return graph

    graph, data = made(), files.data
    name = next(iter(graph.get_input_info()["shape"]))
    graph.set_input(name, data)
    graph.run()
    if files.expected.exists():
        worst = np.abs(graph.get_output(0).numpy() - np.load(files.expected)).max()
        print(f"largest difference to TVM's output: {worst}")
    set_input, run, get_output = (graph[n] for n in ("set_input", "run", "get_output"))

    def whole() -> Any:
        graph.set_input(name, data)
        graph.run()
        return graph.get_output(0).numpy()

    def packed() -> Any:
        set_input(name, data)
        run()
        return get_output(0).numpy()

    params = load_params(files.params)
    executor = GraphExecutor(
        program_from_json(files.graph, params), library, params, threads=threads
    )
    kernels = sum(us for _, _, us in executor.profile({name: data}, 200))
    print(f"the kernels alone, by the clock of the C core: {kernels:.2f} us\n")
    return {
        "create + load_params": made,
        "run": graph.run,
        "set_input + run + output to numpy": whole,
        "the same, packed functions": packed,
        "without state: executor.run({...})": lambda: executor.run({name: data}),
    }


def theirs(files: Files) -> Calls:
    """The same calls of TVM, where one is installed that has a graph executor."""
    try:
        import tvm  # type: ignore[import-not-found]
        from tvm.contrib import graph_executor  # type: ignore[import-not-found]
    except ImportError:
        return {}
    library, device = tvm.runtime.load_module(str(files.library)), tvm.cpu(0)

    def made() -> Any:
        graph = graph_executor.create(files.graph, library, device)
        graph.load_params(files.params)
        return graph

    graph, data = made(), files.data
    name = next(iter(graph.get_input_info()[0]))
    graph.set_input(name, data)

    def whole() -> Any:
        graph.set_input(name, data)
        graph.run()
        return graph.get_output(0).numpy()

    return dict(zip(RECORDED, (made, graph.run, whole), strict=True))


def main() -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--folder", type=Path, default=CONVNET, help="default: the tests' network")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    asked = parser.parse_args()
    cores = pin(asked.threads)
    found, files = machine(), Files(asked.folder)
    print(describe(found))
    print(f"pinned to cores {cores}\n")
    calls, peers = ours(files, asked.threads), theirs(files)
    both = {**calls, **{f"tvm: {name}": call for name, call in peers.items()}}
    times = measure(both, seconds=asked.seconds, batch=2e-3, warmup=0.05)
    rows = [
        {
            "call": name,
            "cpu_us": times[name].cpu * 1e6,
            "wall_us": times[name].wall * 1e6,
            "tvm_wall_us": times[f"tvm: {name}"].wall * 1e6 if name in peers else None,
            "recorded": RECORDED.get(name) if asked.folder == CONVNET else None,
        }
        for name in calls
    ]
    lines = [
        [
            row["call"],
            *(f"{row[key]:.2f}" for key in ("cpu_us", "wall_us")),
            f"{row['tvm_wall_us']:.2f}" if row["tvm_wall_us"] else "",
            row["recorded"] or "",
        ]
        for row in rows
    ]
    print(table(lines, ("call", "us", "wall us", "TVM here", "TVM 0.16, recorded elsewhere")))
    write("graph_runtime", found, rows, asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
