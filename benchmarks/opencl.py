"""OpenCL: what packhorse adds to pyopencl per kernel and per run, and the first call of a model.

    python benchmarks/opencl.py [--device opencl:0] [--model NAME ...] [--seconds S] [--json FILE]

Ours and pyopencl's own calls queue the same compiled kernels of one context, in turn, in one
process. An enqueue is the CPU time of the calling thread in batches of {batch}; the queue is
emptied between batches, outside the measured time. A run goes from arrays to arrays. A first
call is the CPU time of a fresh process; ``cold`` means empty cache directories of packhorse and of
PoCL, ``warm`` those that an earlier process filled.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _common import CASES, Case, arguments, describe, machine, measure, table
from _common import report as write
from startup import OURS, process

import packhorse
from packhorse.compiler.gpu_schedule import gpu_schedule
from packhorse.kernel import Kernel, Store, contiguous
from packhorse.kernel.expr import Load, affine

_BATCH = 200
_MODELS = ("silero", "ppocr-cls", "magika")
Call = Callable[[], Any]


def add_one(n: int = 64) -> Kernel:
    """y = x + 1: a kernel that takes as little time as one can."""
    i = (affine("i"),)
    buffers = {name: contiguous((n,), "float32") for name in ("x", "y")}
    return Kernel("add_one", (("i", n),), (Store("y", i, Load("x", i, "float32") + 1.0),), buffers)


def enqueue_calls(device: Any) -> dict[str, Call]:
    """Ways to queue one kernel."""
    import pyopencl as cl

    kernel = add_one()
    module = device.compile([("add_one", kernel, gpu_schedule(kernel, device.target))])
    function = module.function("add_one")
    x, y = (packhorse.tensor(np.zeros(64, np.float32), device=device) for _ in range(2))
    bound = function.bind(x, y)
    native, (total, group) = bound.kernel, bound.sizes
    queue, enqueue = device.queue, cl.enqueue_nd_range_kernel
    blocks: list[Any] = [tensor._open_block().memory for tensor in (x, y)]
    buffers = [block.buffer for block in blocks]
    return {
        "pyopencl: enqueue_nd_range_kernel(...)": lambda: enqueue(queue, native, total, group),
        "packhorse: bound()": lambda: bound(),
        "pyopencl: kernel(queue, sizes, x, y)": lambda: native(queue, total, group, *buffers),
        "packhorse: function(x, y)": lambda: function(x, y),
    }


def enqueue_times(device: Any, seconds: float) -> list[dict[str, Any]]:
    """Microseconds of the calling thread per enqueue; ratios to pyopencl's own call."""
    calls = enqueue_calls(device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    turn, end = list(calls.items()), time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[turn[0][0]]) < 5:
        random.shuffle(turn)  # what ran before leaves the driver's threads awake or asleep
        for name, call in turn:
            device.synchronize()
            began = time.thread_time_ns()
            for _ in range(_BATCH):
                call()
            times[name].append((time.thread_time_ns() - began) / _BATCH / 1e3)
    first = median(next(iter(times.values())))
    return [
        {"call": name, "us": median(found), "ratio": median(found) / first}
        for name, found in times.items()
    ]


def bare_run(device: Any, executor: Any, feeds: Mapping[str, Any]) -> Callable[[], list[Any]]:
    """The same kernels, inputs and outputs of a run, written with pyopencl alone."""
    import pyopencl as cl

    program, queue = executor.program, device.queue
    launches = [(call.kernel, *call.sizes) for _, call in executor._queue]
    buffers = {s: block.buffer for s, block in executor._blocks.items()}
    uploads = [
        (buffers[program.entries[i].storage], feeds[program.entries[i].name])
        for i in program.inputs
    ]
    results = [
        (np.empty(program.entries[i].shape, program.entries[i].dtype),
         buffers[program.entries[i].storage])
        for i in program.outputs
    ]  # fmt: skip
    enqueue, copy = cl.enqueue_nd_range_kernel, cl.enqueue_copy

    def run() -> list[Any]:
        for buffer, array in uploads:
            copy(queue, buffer, array)
        for kernel, total, group in launches:
            enqueue(queue, kernel, total, group)
        for array, buffer in results:
            copy(queue, array, buffer)
        return [array for array, _ in results]

    return run


def run_times(device: Any, case: Case, seconds: float) -> dict[str, Any]:
    """A model's run, ours against the bare one."""
    feeds: dict[str, Any] = case.feeds()
    small = {n: a for n, a in feeds.items() if a.dtype.kind in "biu" and a.size <= 16}
    model: Any = packhorse.load(case.path)
    shapes = {n: a.shape for n, a in feeds.items()}
    with model.compile(device, shapes=shapes, values=small) as executable:
        executor = executable._compiled.executor
        hosts = [step for step, _ in executor._queue if step.function.startswith("packhorse.op.")]
        if hosts:
            raise ValueError(f"{case.name} has steps of the host: {hosts[0].name}")
        bare = bare_run(device, executor, feeds)
        for ours, theirs in zip(executor.run(feeds), bare(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        calls: dict[str, Call] = {"ours": partial(executor.run, feeds), "bare": bare}
        times = measure(calls, seconds=seconds, batch=1e-3)
        kernels = len(executor._queue)
    ours, theirs = times["ours"], times["bare"]
    return {
        "model": case.name, "kernels": kernels, "ours_wall_ms": ours.wall * 1e3,
        "bare_wall_ms": theirs.wall * 1e3, "wall_ratio": ours.wall / theirs.wall,
        "ours_cpu_us": ours.cpu * 1e6, "bare_cpu_us": theirs.cpu * 1e6,
        "cpu_ratio": ours.cpu / theirs.cpu,
    }  # fmt: skip


def first_calls(case: Case, device: str, repeat: int) -> list[dict[str, Any]]:
    """CPU seconds per phase of a fresh process, caches empty and filled; medians."""
    found: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        feeds = Path(folder, "feeds.npz")
        arrays: dict[str, Any] = case.feeds()
        np.savez(feeds, **arrays)
        for turn in range(repeat):
            # PoCL keeps what it compiled besides; other drivers ignore the variable
            env = {name: str(Path(folder, f"{name}{turn}"))
                   for name in ("PACKHORSE_CACHE_DIR", "POCL_CACHE_DIR")}  # fmt: skip
            for made in env.values():
                Path(made).mkdir()
            for rows in found.values():  # cold comes first and fills the caches for warm
                (_, spent), text = process(OURS, str(case.path), str(feeds), device, env=env)
                laps = {n: cpu for n, (_, cpu) in json.loads(text).items() if cpu is not None}
                rows.append({"process": spent, **laps})
    return [
        {"model": case.name, "caches": kind, **{n: median(r[n] for r in rows) for n in rows[0]}}
        for kind, rows in found.items()
    ]


def print_enqueues(rows: Sequence[Mapping[str, Any]]) -> None:
    """One row per way to queue a kernel."""
    lines = [[r["call"], f"{r['us']:.2f}", f"{r['ratio']:.2f}"] for r in rows]
    print(table(lines, ("enqueue", "us", "ratio")), end="\n\n")


def print_runs(rows: Sequence[Mapping[str, Any]]) -> None:
    """One row per model."""
    lines = [
        [r["model"], r["kernels"], f"{r['ours_wall_ms']:.2f}", f"{r['bare_wall_ms']:.2f}",
         f"{r['wall_ratio']:.2f}", f"{r['ours_cpu_us']:.0f}", f"{r['bare_cpu_us']:.0f}"]
        for r in rows
    ]  # fmt: skip
    head = ("run", "kernels", "ours ms", "bare ms", "ratio", "ours cpu us", "bare cpu us")
    print(table(lines, head), end="\n\n")


def print_first(rows: Sequence[Mapping[str, Any]]) -> None:
    """One row per model and state of the caches; CPU seconds."""
    keys = ("process", "open the device", "compile", "first run")
    lines = [[r["model"], r["caches"], *(f"{r[k]:.3f}" for k in keys)] for r in rows]
    print(table(lines, ("first call", "caches", *keys)), end="\n\n")


def main() -> int:
    parser = arguments((__doc__ or "").replace("{batch}", str(_BATCH)))
    parser.add_argument("--device", default="opencl:0", help="default: %(default)s")
    parser.add_argument("--model", nargs="*", default=list(_MODELS), help="names of endtoend.py")
    parser.add_argument("--first", type=int, default=3, help="processes per model (%(default)s)")
    asked = parser.parse_args()
    unknown = set(asked.model) - {case.name for case in CASES}
    if unknown:
        parser.error(f"no model {min(unknown)}; there are {', '.join(c.name for c in CASES)}")
    cases = [case for case in CASES if case.name in asked.model]
    device: Any = packhorse.device(asked.device)
    found = machine(peak=False) | {"opencl": device.target.name}
    print(f"{describe(found)}\n{found['opencl']}\n")
    rows = enqueue_times(device, asked.seconds)
    print_enqueues(rows)
    runs = [run_times(device, case, asked.seconds) for case in cases]
    if runs:
        print_runs(runs)
    first = [
        row for case in cases if asked.first
        for row in first_calls(case, asked.device, asked.first)
    ]  # fmt: skip
    if first:
        print_first(first)
    write("opencl", found, [*rows, *runs, *first], asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
