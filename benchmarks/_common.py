"""What the benchmarks share: fair timing of several calls in one process, the machine, tables.

Every call that is compared runs in the same process and in turn with the others, so that a
neighbour on the machine slows all of them alike; read the ratios first. Comparisons on one
thread count the CPU time of the calling thread, which a neighbour does not lengthen, with the
wall time beside it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from fetch_models import models_dir

Call = Callable[[], Any]

__all__ = [
    "CASES",
    "Case",
    "Neighbours",
    "Times",
    "arguments",
    "describe",
    "errors",
    "fma_peak",
    "machine",
    "measure",
    "ort_session",
    "pin",
    "report",
    "table",
]

# ---------------------------------------------------------------- models


@dataclass(frozen=True)
class Case:
    """A model file and the inputs it is run on.

    ``inputs`` maps a name to a shape (random values of the model's dtype), or to an array.
    """

    name: str
    file: str
    inputs: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """The model: built on first use, or a trained one taken out of its wheel.

        Raises
        ------
        FileNotFoundError
            A trained model is not there: says how to get it.
        """
        if not self.file.endswith(".onnx"):
            import models

            return models.build(self.file)
        path = models_dir() / self.file
        if not path.exists():
            raise FileNotFoundError(
                f"'{path}' is not there; get it with: python benchmarks/fetch_models.py"
            )
        return path

    def feeds(self, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        """Inputs by name."""
        rng = np.random.default_rng(seed)
        made = {}
        for name, given in self.inputs.items():
            made[name] = given
            if isinstance(given, tuple):
                made[name] = rng.standard_normal(given, np.float32) * np.float32(0.5)
        return made


def _tokens(seq: int) -> dict[str, Any]:
    ids = np.random.default_rng(1).integers(0, 30522, (1, seq))
    mask = np.ones_like(ids)
    mask[:, seq - seq // 8 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


_FILE_BYTES = np.random.default_rng(2).integers(0, 256, (1, 2048)).astype(np.int32)
_VOICE = {"input": (1, 576), "state": (2, 1, 128)}
_RATE = {"sr": np.array(16000)}
_IMAGE = {"x": (1, 3, 224, 224)}

CASES: tuple[Case, ...] = (
    Case("resnet18", "resnet18", _IMAGE),
    Case("resnet50", "resnet50", _IMAGE),
    Case("mobilenet-v2", "mobilenet_v2", _IMAGE),
    Case("squeezenet-1.1", "squeezenet1_1", _IMAGE),
    Case("minilm-16", "minilm_l6", _tokens(16)),
    Case("minilm-128", "minilm_l6", _tokens(128)),
    Case("mlp-b1", "mlp3", {"x": (1, 784)}),
    Case("mlp-b64", "mlp3", {"x": (64, 784)}),
    Case("lstm", "lstm", {"x": (32, 1, 128)}),
    Case("magika", "magika_standard_v3_3.onnx", {"bytes": _FILE_BYTES}),
    Case("ppocr-det-320", "ch_PP-OCRv4_det_infer.onnx", {"x": (1, 3, 320, 320)}),
    Case("ppocr-det-480x640", "ch_PP-OCRv4_det_infer.onnx", {"x": (1, 3, 480, 640)}),
    Case("ppocr-cls", "ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": (1, 3, 48, 192)}),
    Case("ppocr-rec-160", "ch_PP-OCRv4_rec_infer.onnx", {"x": (1, 3, 48, 160)}),
    Case("ppocr-rec-320", "ch_PP-OCRv4_rec_infer.onnx", {"x": (1, 3, 48, 320)}),
    Case("silero", "silero_vad.onnx", {**_VOICE, **_RATE}),
    Case("silero-op15", "silero_vad_16k_op15.onnx", {**_VOICE, **_RATE}),
    Case("silero-half", "silero_vad_half.onnx", _VOICE),
    Case("silero-ifless", "silero_vad_op18_ifless.onnx", {**_VOICE, **_RATE}),
    Case("silero-openvino", "silero_vad_openvino_16k.onnx", _VOICE),
    Case(
        "silero-sequence",
        "silero_vad_16k_sequence.onnx",
        {"input": (8, 576), "h": (1, 1, 128), "c": (1, 1, 128)},
    ),
    Case("basic-pitch", "basic_pitch_nmp.onnx", {"serving_default_input_2:0": (1, 43844, 1)}),
)
"""The models of the comparisons, trained ones and published architectures with random weights."""


def ort_session(path: Path, threads: int) -> Any:
    """An onnxruntime session on the CPU with every optimisation.

    Its threads stop spinning when a run ends: they would take the core from what runs next.
    """
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def errors(ours: Any, peer: Sequence[Any]) -> tuple[float, float]:
    """Largest absolute difference, and the largest one relative to the largest peer value."""
    got = ours if isinstance(ours, tuple) else (ours,)
    worst, relative = 0.0, 0.0
    for a, b in zip(got, peer, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"shapes differ: {a.shape} and {b.shape}")
        if not a.size:
            continue
        b64 = np.asarray(b, np.float64)
        apart = float(np.abs(np.asarray(a, np.float64) - b64).max())
        worst = max(worst, apart)
        relative = max(relative, apart / max(float(np.abs(b64).max()), 1e-30))
    return worst, relative


# ---------------------------------------------------------------- timing


@dataclass(frozen=True)
class Times:
    """Over rounds, seconds per call: medians of the thread's CPU time and of the wall clock.

    ``best`` is the lower decile of the wall time: rounds that no neighbour disturbed.
    """

    cpu: float
    wall: float
    best: float
    rounds: int


def measure(
    calls: Mapping[str, Call], *, seconds: float = 1.0, batch: float = 1e-3, warmup: float = 0.2
) -> dict[str, Times]:
    """Time several calls in turn.

    Parameters
    ----------
    calls : mapping of name to callable
    seconds : float
        Time for the whole measurement; at least five rounds are made.
    batch : float
        A round repeats a call until it lasts about this long, so that the clock costs nothing.
    warmup : float
        Seconds each call runs before.
    """
    repeats = {name: _repeats(call, batch, warmup) for name, call in calls.items()}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(wall[next(iter(calls))]) < 5:
        for name, call in calls.items():
            count = repeats[name]
            began, thread = time.perf_counter_ns(), time.thread_time_ns()
            for _ in range(count):
                call()
            spent, lasted = time.thread_time_ns() - thread, time.perf_counter_ns() - began
            cpu[name].append(spent / count / 1e9)
            wall[name].append(lasted / count / 1e9)
    return {
        name: Times(
            median(cpu[name]),
            median(wall[name]),
            sorted(wall[name])[len(wall[name]) // 10],
            len(wall[name]),
        )
        for name in calls
    }


def _repeats(call: Call, batch: float, warmup: float) -> int:
    """How many calls last about ``batch`` seconds; warms the call up."""
    count, began = 0, time.perf_counter()
    while count < 3 or time.perf_counter() - began < warmup:
        call()
        count += 1
    return max(1, round(batch * count / (time.perf_counter() - began)))


def pin(cores: int) -> list[int]:
    """Bind this process to the last ``cores`` cores it may use; returns them.

    The last, because interrupts and other work mostly run on the first. Call it before threads
    are made. Where the system has no affinity, nothing is bound and the list is empty.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    chosen = sorted(os.sched_getaffinity(0))[-cores:]
    os.sched_setaffinity(0, chosen)
    return chosen


class Neighbours:
    """How many cores other processes use between creation and :meth:`cores` (Linux; else nan)."""

    def __init__(self) -> None:
        self._start = self._read()

    def cores(self) -> float:
        """Cores that other processes kept busy, on average."""
        wall, busy = (b - a for a, b in zip(self._start, self._read(), strict=True))
        return max(0.0, busy / wall) if wall > 0 else 0.0

    @staticmethod
    def _read() -> tuple[float, float]:
        try:
            with open("/proc/stat", encoding="ascii") as stat:
                fields = [int(word) for word in stat.readline().split()[1:9]]
        except OSError:
            return time.perf_counter(), float("nan")
        tick, own = os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])
        idle = fields[3] + fields[4]
        return time.perf_counter(), (sum(fields) - idle) / tick - own


# ---------------------------------------------------------------- the machine

_VERSIONS = ("packhorse", "numpy", "onnxruntime", "llvmlite", "onnx", "cffi")


def machine(*, peak: bool = True) -> dict[str, Any]:
    """Processor, cores, measured FMA peak of one core in GFLOP/s, versions, date."""
    import packhorse
    from packhorse.cpu import host_name

    versions = {"python": platform.python_version(), "packhorse": packhorse.__version__}
    for name in _VERSIONS[1:]:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": host_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "fma_peak_gflops": round(fma_peak(), 1) if peak else None,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": versions,
    }


_ACCUMULATORS = 24


def fma_peak(vector: int | None = None) -> float:
    """Measured fp32 multiply-add peak of one core in GFLOP/s; nan without llvmlite.

    Independent multiply-adds on registers, nothing loaded: what no kernel can exceed.
    """
    try:
        from llvmlite import binding as llvm  # type: ignore[import-untyped]
    except ImportError:
        return float("nan")
    import ctypes

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    width = vector or (16 if features.get("avx512f") else 8 if features.get("avx2") else 4)
    count = _ACCUMULATORS if width == 16 else 12
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=2, jit=True
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(_fma_loop(width, count)), target)
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64)(engine.get_function_address("peak"))
    steps = 200_000
    best = float("inf")
    for _ in range(8):
        began = time.thread_time_ns()
        run(steps)
        best = min(best, (time.thread_time_ns() - began) / 1e9)
    return 2.0 * width * count * steps / best / 1e9


def _fma_loop(width: int, count: int) -> str:
    """LLVM IR: ``count`` chains of multiply-adds of ``width`` floats."""
    kind = f"<{width} x float>"
    values = "<" + ", ".join(["float 0x3FF0000020000000"] * width) + ">"
    lines = [
        f"declare {kind} @llvm.fma.v{width}f32({kind}, {kind}, {kind})",
        "define float @peak(i64 %n) {",
        "entry: br label %loop",
        "loop:",
        "%i = phi i64 [0, %entry], [%next, %loop]",
    ]
    lines += [f"%a{k} = phi {kind} [{values}, %entry], [%b{k}, %loop]" for k in range(count)]
    lines += [
        f"%b{k} = call {kind} @llvm.fma.v{width}f32({kind} %a{k}, {kind} {values}, {kind} {values})"
        for k in range(count)
    ]
    lines += ["%next = add i64 %i, 1", "%go = icmp slt i64 %next, %n"]
    lines += ["br i1 %go, label %loop, label %done", "done:"]
    lines += [f"%s0 = fadd {kind} %b0, zeroinitializer"]
    lines += [f"%s{k} = fadd {kind} %s{k - 1}, %b{k}" for k in range(1, count)]
    return "\n".join(
        [*lines, f"%r = extractelement {kind} %s{count - 1}, i32 0", "ret float %r", "}"]
    )


# ---------------------------------------------------------------- output


def arguments(about: str, *, seconds: float = 2.0) -> argparse.ArgumentParser:
    """The options every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures to a file")
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="time per comparison (default %(default)s)"
    )
    return parser


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """A Markdown table, columns aligned; the first to the left, the others to the right."""
    cells = [[str(c) for c in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        pairs = zip(row, widths, strict=True)
        text = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(pairs)]
        return "| " + " | ".join(text) + " |"

    marks = [":" + "-" * (w - 1) if not i else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(cells[0]), line(marks), *(line(row) for row in cells[1:])])


def describe(found: Mapping[str, Any]) -> str:
    """The machine in two lines, for the head of a report."""
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    peak = found["fma_peak_gflops"]
    text = f"{found['cpu']}, {found['cores']} cores, {found['system']}, {found['date']}"
    return f"{text}{f', FMA peak {peak} GFLOP/s per core' if peak else ''}\n{versions}"


def report(
    name: str, found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], path: str | None
) -> None:
    """Write the figures as JSON where a file was named."""
    if path is None:
        return
    text = json.dumps({"benchmark": name, "machine": dict(found), "rows": list(rows)}, indent=1)
    Path(path).write_text(text + "\n", encoding="utf-8")
    print(f"figures written to {path}", file=sys.stderr)
