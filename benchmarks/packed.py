"""Calls of packed functions: a Python closure, TVM's `myadd`, and making a graph module.

    python benchmarks/packed.py [--json FILE] [--seconds S]

Beside our calls stand the same of apache-tvm-ffi and of TVM, run in turn in the same process, where
those are installed. Where they are not, figures recorded elsewhere are printed and called *quoted*:
they come from another machine, so compare orders of magnitude only. Microseconds are medians of
the thread's CPU time on one core, the wall time beside them. What each runtime computed is compared
before anything is timed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from _common import arguments, describe, machine, measure, pin, table
from _common import report as write

DATA = Path(__file__).resolve().parent.parent / "tests" / "data" / "tvm"
NAME = "packhorse.bench.same"

GOALS = {
    "closure, found by name before": 0.6,
    "myadd, 3 Tensors, bound": 0.35,
    "myadd, 3 Tensors": 1.0,
    "create + load_params": 2000.0,
}
"""Microseconds that packhorse promises."""

QUOTED = {
    "myadd, 3 Tensors": "0.15 (TVM 0.16), 0.39 (TVM 0.27)",
    "create + load_params": "900 (TVM 0.16)",
}
"""Microseconds of TVM itself on the same libraries, recorded on another machine."""

Calls = dict[str, Callable[[], Any]]


def arrays() -> list[np.ndarray[Any, Any]]:
    """Two inputs of myadd, and room for its result."""
    a, b = (np.load(DATA / "legacy_myadd" / f"{name}.npy") for name in "ab")
    return [a, b, np.zeros_like(a)]


def closure(value: object) -> object:
    """What is registered under NAME."""
    return value


def checked(who: str, result: np.ndarray[Any, Any]) -> None:
    """Stop when myadd did not compute the sum."""
    a, b, _ = arrays()
    if not np.array_equal(result, a + b):
        raise SystemExit(f"{who} computed another sum: nothing is timed")


# ---------------------------------------------------------------- packhorse


def our_closure(packhorse: Any) -> Calls:
    """A closure, through the registry."""
    packhorse.register_func(NAME, closure, override=True)
    found = packhorse.get_global_func(NAME)
    tensor = packhorse.empty((4,))
    return {
        "closure, found by name before": lambda: found(1),
        "closure, found by name each time": lambda: packhorse.get_global_func(NAME)(1),
        "closure, with a Tensor": lambda: found(tensor),
    }


def our_myadd(packhorse: Any) -> Calls:
    """Compiled code of both ABIs."""
    tensors = [packhorse.tensor(array) for array in arrays()]
    plain = [tensor.numpy() for tensor in tensors]
    found = {}
    for abi in ("legacy", "modern"):
        add = packhorse.load_module(DATA / f"{abi}_myadd" / "deploy.so")["myadd"]
        tensors[2].numpy()[:] = 0
        add(*tensors)
        checked(f"packhorse ({abi})", tensors[2].numpy())
        found[abi] = add
    legacy, modern = found["legacy"], found["modern"]
    return {
        "myadd, 3 Tensors, bound": legacy.bind(*tensors),
        "myadd, 3 Tensors": lambda: legacy(*tensors),
        "myadd, 3 arrays": lambda: legacy(*plain),
        "myadd of the tvm-ffi ABI, bound": modern.bind(*tensors),
        "myadd of the tvm-ffi ABI, 3 Tensors": lambda: modern(*tensors),
    }


def our_graph(packhorse: Any) -> Calls:
    """A graph module with its weights."""
    folder = DATA / "convnet"
    text, params = (folder / "deploy.json").read_text(), (folder / "deploy.params").read_bytes()
    library = packhorse.load_module(folder / "deploy.so")
    create = packhorse.get_global_func("tvm.graph_runtime.create")
    device = packhorse.device("cpu")

    def made() -> Any:
        graph = create(text, library, device)
        graph.load_params(params)
        return graph

    graph = made()
    graph.run(data=np.load(folder / "in_data.npy"))
    if not np.array_equal(graph.get_output(0).numpy(), np.load(folder / "out_0.npy")):
        raise SystemExit("the network computed something else than TVM: nothing is timed")
    return {"create + load_params": made}


# ---------------------------------------------------------------- the others


def ffi_calls(library: Path) -> Calls:
    """tvm-ffi's own; none where it is not installed."""
    if find_spec("tvm_ffi") is None:
        return {}
    import tvm_ffi  # type: ignore[import-not-found]

    tvm_ffi.register_global_func(NAME, closure, override=True)
    same = tvm_ffi.get_global_func(NAME)
    tensors = [tvm_ffi.from_dlpack(array) for array in aligned()]
    add = tvm_ffi.load_module(str(library))["myadd"]
    add(*tensors)
    checked("tvm-ffi", np.from_dlpack(tensors[2]))
    return {
        "closure, found by name before": lambda: same(1),
        "closure, found by name each time": lambda: tvm_ffi.get_global_func(NAME)(1),
        "closure, with a Tensor": lambda: same(tensors[0]),
        "myadd of the tvm-ffi ABI, 3 Tensors": lambda: add(*tensors),
    }


def tvm_calls(library: Path) -> Calls:
    """TVM's own; none where it is not installed."""
    if find_spec("tvm") is None:
        return {}
    import tvm  # type: ignore[import-not-found]

    given = [tvm.runtime.tensor(array) for array in arrays()]
    add = tvm.runtime.load_module(str(library))["myadd"]
    add(*given)
    checked("TVM", given[2].numpy())
    return {"myadd of the tvm-ffi ABI, 3 Tensors": lambda: add(*given)}


def aligned() -> list[np.ndarray[Any, Any]]:
    """The arrays where compiled code wants them."""
    from packhorse.native.memory import aligned_array

    made = []
    for array in arrays():
        made.append(aligned_array(array.shape, array.dtype))
        made[-1][...] = array
    return made


# ---------------------------------------------------------------- the table


def rows_of(ours: Calls, peers: dict[str, Calls], seconds: float) -> list[dict[str, Any]]:
    """A row for each of our calls with those of the others."""
    both = dict(ours)
    for who, calls in peers.items():
        both |= {f"{who}: {name}": call for name, call in calls.items()}
    times = measure(both, seconds=seconds, batch=2e-3, warmup=0.05)
    return [
        {
            "call": name,
            "cpu_us": times[name].cpu * 1e6,
            "wall_us": times[name].wall * 1e6,
            "goal_us": GOALS.get(name),
            "quoted_us": QUOTED.get(name),
            **{
                f"{who}_cpu_us": times[f"{who}: {name}"].cpu * 1e6 if name in calls else None
                for who, calls in peers.items()
            },
        }
        for name in ours
    ]


def line(row: dict[str, Any], peers: list[str]) -> list[str]:
    """A row as text."""
    figures = [row["cpu_us"], row["wall_us"], *(row[f"{who}_cpu_us"] for who in peers)]
    goal = f"<= {row['goal_us']:g}" if row["goal_us"] else ""
    shown = ["" if f is None else f"{f:.2f}" for f in figures]
    return [row["call"], *shown, goal, row["quoted_us"] or ""]


def main() -> int:
    asked = arguments(__doc__ or "", seconds=4.0).parse_args()
    cores = pin(1)
    found = machine(peak=False)
    print(describe(found))
    print(f"pinned to cores {cores}\n")
    import packhorse

    with tempfile.TemporaryDirectory() as folder:
        # each runtime loads a copy of its own: they fill in the same variables of a library
        copy = partial(shutil.copy, DATA / "modern_myadd" / "deploy.so")
        peers = {
            "tvm-ffi": ffi_calls(Path(copy(Path(folder) / "ffi.so"))),
            "TVM": tvm_calls(Path(copy(Path(folder) / "tvm.so"))),
        }
        peers = {who: calls for who, calls in peers.items() if calls}
        ours = our_closure(packhorse) | our_myadd(packhorse) | our_graph(packhorse)
        rows = rows_of(ours, peers, asked.seconds)
    heads = ("call", "us", "wall us", *(f"{who} us" for who in peers), "goal", "quoted, elsewhere")
    print(table([line(row, list(peers)) for row in rows], heads))
    missing = {"tvm-ffi", "TVM"} - set(peers)
    if missing:
        print(f"\nnot installed, so not compared here: {', '.join(sorted(missing))}")
    write("packed", found, rows, asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
