"""A Relax executable run by packhorse and, where apache-tvm is installed, by TVM's own VM.

    python benchmarks/relax.py [--json FILE] [LIBRARY]

The default library is the convolutional network of the tests, compiled by TVM 0.27. Each runtime
loads its own copy of it, since they fill in the same variables. "arrays" takes NumPy arrays and
gives NumPy arrays back; "tensors" starts from a tensor that is the runtime's own and leaves the
results where they are. One thread; largest differences from TVM's results are printed too.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import arguments, describe, errors, machine, measure, pin, table
from _common import report as write

DEFAULT = Path(__file__).resolve().parent.parent / "tests/data/tvm/relax_convnet/deploy.so"


def feeds(executable: Any) -> list[np.ndarray[Any, Any]]:
    """Random inputs; symbolic sizes are 4."""
    rng = np.random.default_rng(0)
    made = []
    for row in executable.signature():
        if row.shape is None or row.kind != "tensor":
            raise SystemExit(f"the shape of input '{row}' is not known: bind it with set_params")
        shape = [d if isinstance(d, int) else 4 for d in row.shape]
        made.append(rng.standard_normal(shape).astype(row.dtype))
    return made


def packhorse_calls(executable: Any, arrays: list[Any]) -> dict[str, Callable[[], Any]]:
    """Ways to run it here."""
    from packhorse.native.memory import aligned_array

    aligned = []
    for array in arrays:
        aligned.append(aligned_array(array.shape, array.dtype))
        aligned[-1][...] = array
    return {
        "packhorse, arrays": lambda: executable.run(arrays),
        "packhorse, tensors": lambda: executable.run(aligned),
    }


def tvm_calls(library: Path, arrays: list[Any]) -> dict[str, Callable[[], Any]]:
    """Ways to run it in TVM; none where TVM is not installed."""
    try:
        import tvm  # type: ignore[import-not-found]
        from tvm import relax
    except ImportError:
        print("apache-tvm is not installed: no comparison\n")
        return {}
    main = relax.VirtualMachine(tvm.runtime.load_module(str(library)), tvm.cpu())["main"]
    tensors = [tvm.runtime.tensor(array) for array in arrays]

    def from_arrays() -> list[Any]:
        found = main(*(tvm.runtime.tensor(array) for array in arrays))
        parts = [found] if isinstance(found, tvm.runtime.Tensor) else list(found)
        return [part.numpy() for part in parts]

    return {"TVM, arrays": from_arrays, "TVM, tensors": lambda: main(*tensors)}


def main() -> int:
    os.environ["TVM_NUM_THREADS"] = "1"
    parser = arguments(__doc__ or "", seconds=4.0)
    parser.add_argument("library", nargs="?", type=Path, default=DEFAULT, metavar="LIBRARY")
    asked = parser.parse_args()
    cores = pin(1)
    from packhorse.graph.relax import load_relax
    from packhorse.module import load_module

    found = machine(peak=False)
    print(describe(found))
    print(f"pinned to core {cores}\n")
    with tempfile.TemporaryDirectory() as folder:
        executable = load_relax(load_module(asked.library), threads=1)
        arrays = feeds(executable)
        calls = packhorse_calls(executable, arrays)
        calls |= tvm_calls(Path(shutil.copy(asked.library, Path(folder) / "tvm.so")), arrays)
        times = measure(calls, seconds=asked.seconds, batch=2e-3, warmup=0.1)
    print(executable.report()[0])
    rows = [
        {"call": name, "cpu_us": t.cpu * 1e6, "wall_us": t.wall * 1e6, "best_us": t.best * 1e6}
        for name, t in times.items()
    ]
    if "TVM, arrays" in calls:
        peer = calls["TVM, arrays"]()
        worst, _ = errors(tuple(executable.run(arrays)), peer)
        print(f"largest difference from TVM: {worst}")
        for kind in ("arrays", "tensors"):
            ratio = times[f"packhorse, {kind}"].cpu / times[f"TVM, {kind}"].cpu
            print(f"packhorse / TVM, {kind}: {ratio:.2f}")
    lines = [[r["call"], *(f"{r[k]:.2f}" for k in ("cpu_us", "wall_us", "best_us"))] for r in rows]
    print(table(lines, ("call", "us", "wall us", "best us")))
    write("relax", found, rows, asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
