"""Whole models on ``llvm-cpu`` beside onnxruntime, one thread each, in one process.

    python benchmarks/endtoend.py [MODEL ...] [--device llvm-cpu?threads=1] [--json FILE]

Milliseconds are medians of the thread's CPU time (they say what the work costs), with the wall
time beside them; ``ratio`` is ours to onnxruntime's, below 1 is faster. ``abs`` and ``rel`` are
the largest difference of an output to onnxruntime's, ``rel`` in units of its largest value.
Trained models come from ``python benchmarks/fetch_models.py``.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from _common import (
    CASES,
    Case,
    arguments,
    describe,
    errors,
    machine,
    measure,
    ort_session,
    pin,
    table,
)
from _common import report as write

HEADER = ("model", "ours ms", "ort ms", "ratio", "ours wall", "ort wall", "compile s", "abs", "rel")


def compare(case: Case, device: str, seconds: float) -> dict[str, Any]:
    """Run one model on both; the figures of its row."""
    import packhorse

    feeds = case.feeds()
    session = ort_session(case.path, 1)
    expected = session.run(None, feeds)
    model = packhorse.load(case.path)
    began = time.perf_counter()
    result = model(device=device, **feeds)
    compiled = time.perf_counter() - began
    absolute, relative = errors(result, expected)
    times = measure(
        {"ours": lambda: model(device=device, **feeds), "ort": lambda: session.run(None, feeds)},
        seconds=seconds,
    )
    model.close()
    ours, ort = times["ours"], times["ort"]
    return {
        "model": case.name,
        "ours_ms": ours.cpu * 1e3,
        "ort_ms": ort.cpu * 1e3,
        "ratio": ours.cpu / ort.cpu,
        "ours_wall_ms": ours.wall * 1e3,
        "ort_wall_ms": ort.wall * 1e3,
        "compile_s": compiled,
        "abs_error": absolute,
        "rel_error": relative,
        "rounds": ours.rounds,
    }


def cells(row: dict[str, Any]) -> list[str]:
    """One row as text."""
    return [
        row["model"],
        *(f"{row[key]:.3g}" for key in ("ours_ms", "ort_ms")),
        f"{row['ratio']:.2f}",
        *(f"{row[key]:.3g}" for key in ("ours_wall_ms", "ort_wall_ms")),
        f"{row['compile_s']:.2f}",
        *(f"{row[key]:.1e}" for key in ("abs_error", "rel_error")),
    ]


def main() -> int:
    parser = arguments(__doc__ or "")
    names = [case.name for case in CASES]
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(names)}")
    parser.add_argument("--device", default="llvm-cpu?threads=1", help="default: %(default)s")
    asked = parser.parse_args()
    if unknown := set(asked.models) - set(names):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    cores = pin(1)
    found = machine()
    print(describe(found))
    print(f"one thread, pinned to core {cores}; {asked.seconds:g} s per model\n")
    rows, failed = [], 0
    for case in CASES:
        if asked.models and case.name not in asked.models:
            continue
        try:
            rows.append(compare(case, asked.device, asked.seconds))
            print(f"  {case.name}: {rows[-1]['ratio']:.2f}", file=sys.stderr)
        except FileNotFoundError as error:
            print(f"  {case.name} is left out: {error}", file=sys.stderr)
        except Exception as error:
            failed += 1
            print(f"  {case.name} failed: {type(error).__name__}: {error}", file=sys.stderr)
    print(table([cells(row) for row in rows], HEADER))
    write("endtoend", found, rows, asked.json)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
