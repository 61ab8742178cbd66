"""One thread and two, ours and onnxruntime's, in one process.

    python benchmarks/threads.py [MODEL ...] [--threads N] [--json FILE]

Milliseconds are lower deciles of the wall time: with N threads on N cores, anything else that runs
takes a core from the comparison, so the runs that had all of them count. ``speed-up`` is one
thread's time over that of N threads, ``ratio`` ours over onnxruntime's at N threads. ``others``
says how many cores other processes used meanwhile; a row measured beside more than 0.1 is
measured again, up to ``--tries`` times, and the quietest is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from _common import (
    CASES,
    Case,
    Neighbours,
    arguments,
    describe,
    machine,
    measure,
    ort_session,
    pin,
    table,
)
from _common import report as write

DEFAULT = ("resnet50", "resnet18", "mobilenet-v2", "minilm-128", "mlp-b64", "ppocr-det-480x640")
QUIET = 0.1
"""Cores that other processes may use beside a measurement that counts."""


def quietest(
    calls: Mapping[str, Any], seconds: float, tries: int
) -> tuple[float, dict[str, float]]:
    """Cores that others used, and milliseconds of each call, of the quietest measurement."""
    best: tuple[float, dict[str, float]] | None = None
    for _ in range(tries):
        neighbours = Neighbours()
        times = {name: t.best * 1e3 for name, t in measure(calls, seconds=seconds).items()}
        others = neighbours.cores()
        if best is None or others < best[0]:
            best = others, times
        if not others > QUIET:  # nan where the system does not tell
            break
    assert best is not None
    return best


def compare(case: Case, threads: int, seconds: float, tries: int) -> dict[str, Any]:
    """Both runtimes with one thread and with several; the figures of the row."""
    import packhorse

    feeds = case.feeds()
    model: Any = packhorse.load(case.path)
    calls: dict[str, Any] = {}
    for count in (1, threads):
        device, session = f"llvm-cpu?threads={count}", ort_session(case.path, count)
        calls[f"ours_{count}"] = lambda device=device: model(device=device, **feeds)
        calls[f"ort_{count}"] = lambda session=session: session.run(None, feeds)
    others, times = quietest(calls, seconds, tries)
    model.close()
    return {
        "model": case.name,
        "threads": threads,
        "others_cores": others,
        **{f"{name}_ms": value for name, value in times.items()},
        "ours_speedup": times["ours_1"] / times[f"ours_{threads}"],
        "ort_speedup": times["ort_1"] / times[f"ort_{threads}"],
        "ratio": times[f"ours_{threads}"] / times[f"ort_{threads}"],
    }


def main() -> int:
    parser = arguments(__doc__ or "", seconds=4.0)
    names = [case.name for case in CASES]
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(names)}")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--tries", type=int, default=3, help="default: %(default)s")
    asked = parser.parse_args()
    if asked.tries < 1:
        parser.error(f"--tries {asked.tries}: at least one is needed")
    if asked.threads < 2:
        parser.error(f"--threads {asked.threads}: compare at least 2 threads with one")
    if unknown := set(asked.models) - set(names):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    found = machine()
    cores = pin(asked.threads)
    print(describe(found))
    print(f"pinned to cores {cores}; {asked.seconds:g} s per model\n")
    if cores and len(cores) < asked.threads:
        parser.error(f"only {len(cores)} cores may be used here, {asked.threads} are asked for")
    wanted = asked.models or DEFAULT
    rows = [
        compare(c, asked.threads, asked.seconds, asked.tries) for c in CASES if c.name in wanted
    ]
    many = asked.threads
    header = ("model", "ours 1", f"ours {many}", "speed-up", "ort 1", f"ort {many}", "speed-up")
    lines = [
        [
            row["model"],
            *(f"{row[f'ours_{n}_ms']:.3g}" for n in (1, many)),
            f"{row['ours_speedup']:.2f}",
            *(f"{row[f'ort_{n}_ms']:.3g}" for n in (1, many)),
            f"{row['ort_speedup']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['others_cores']:.2f}",
        ]
        for row in rows
    ]
    print(table(lines, (*header, f"ratio at {many}", "others")))
    write("threads", found, rows, asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
