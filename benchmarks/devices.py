"""Whole models on a device beside onnxruntime on the CPU: results, host steps, times.

    python benchmarks/devices.py [MODEL ...] [--device opencl:0] [--json FILE]

``abs`` and ``rel`` are the largest difference of an output to onnxruntime's, ``rel`` in units of
its largest value. ``host`` counts the nodes that run by their NumPy references, of all that are
left after folding. ``cold`` is the first compilation, with caches on disk that were empty when the
benchmark began, and ``warm`` the one after it, from the model in memory to a result; milliseconds
are medians of the wall time of whole calls, inputs and outputs in host memory, both runtimes in
turn and with all cores. The exit status is 1 where a model fails, differs by more than 1e-3 or
leaves over 5 % of its nodes to the host. Trained models: ``python benchmarks/fetch_models.py``.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from typing import Any

from _common import CASES, Case, arguments, describe, errors, machine, measure, ort_session, table
from _common import report as write

HEADER = (
    "model", "device", "abs", "rel", "host nodes", "cold s", "warm s", "run ms", "ort ms",
)  # fmt: skip
_TOLERANCE, _HOST_SHARE = 1e-3, 0.05


def _first(case: Case, device: str, feeds: dict[str, Any]) -> tuple[float, Any, Any]:
    """Seconds from a loaded model to its first result, the result and the model."""
    import packhorse

    model = packhorse.load(case.path)
    began = time.perf_counter()
    result = model(device=device, **feeds)
    return time.perf_counter() - began, result, model


def compare(case: Case, device: str, seconds: float) -> dict[str, Any]:
    """Run one model on the device and by onnxruntime; the figures of its row."""
    feeds = case.feeds()
    session = ort_session(case.path, os.cpu_count() or 1)
    expected = session.run(None, feeds)
    cold, _, model = _first(case, device, feeds)
    model.close()
    warm, result, model = _first(case, device, feeds)
    absolute, relative = errors(result, expected)
    scalars = {name: array for name, array in feeds.items() if not array.ndim}
    shapes = {name: array.shape for name, array in feeds.items()}
    with model.compile(device, shapes=shapes, values=scalars) as executable:
        rows = executable.report()
    times = measure(
        {"ours": lambda: model(device=device, **feeds), "ort": lambda: session.run(None, feeds)},
        seconds=seconds,
    )
    model.close()
    return {
        "model": case.name,
        "device": device,
        "abs_error": absolute,
        "rel_error": relative,
        "host_nodes": sum(row.device != device for row in rows),
        "nodes": len(rows),
        "cold_s": cold,
        "warm_s": warm,
        "run_ms": times["ours"].wall * 1e3,
        "ort_ms": times["ort"].wall * 1e3,
    }


def cells(row: dict[str, Any]) -> list[str]:
    """One row as text."""
    return [
        row["model"],
        row["device"],
        *(f"{row[key]:.1e}" for key in ("abs_error", "rel_error")),
        f"{row['host_nodes']} of {row['nodes']}",
        *(f"{row[key]:.1f}" for key in ("cold_s", "warm_s")),
        *(f"{row[key]:.3g}" for key in ("run_ms", "ort_ms")),
    ]


def _bad(row: dict[str, Any]) -> bool:
    """Whether a model is not what is promised of every device."""
    apart = row["abs_error"] > _TOLERANCE and row["rel_error"] > _TOLERANCE
    return apart or row["host_nodes"] > _HOST_SHARE * row["nodes"]


def main() -> int:
    parser = arguments(__doc__ or "", seconds=1.0)
    names = [case.name for case in CASES]
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(names)}")
    parser.add_argument("--device", default="opencl:0", help="default: %(default)s")
    asked = parser.parse_args()
    if unknown := set(asked.models) - set(names):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    found = machine(peak=False)
    print(describe(found), end="\n\n")
    rows, failed = [], 0
    for case in CASES:
        if asked.models and case.name not in asked.models:
            continue
        try:
            rows.append(compare(case, asked.device, asked.seconds))
            failed += _bad(rows[-1])
            print(f"  {' '.join(cells(rows[-1]))}", file=sys.stderr, flush=True)
        except FileNotFoundError as error:
            print(f"  {case.name} is left out: {error}", file=sys.stderr)
        except Exception as error:
            failed += 1
            print(f"  {case.name} failed: {type(error).__name__}: {error}", file=sys.stderr)
    print(table([cells(row) for row in rows], HEADER))
    write("devices", found, rows, asked.json)
    return 1 if failed else 0


if __name__ == "__main__":
    # caches of an empty folder, ours and those of drivers: the first compilation is a first one
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(PACKHORSE_CACHE_DIR=folder, POCL_CACHE_DIR=folder)
        sys.exit(main())
