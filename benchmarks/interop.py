"""One compiled function, y = a + b over 1000 floats, called by packhorse, tvm-ffi and TVM.

    python benchmarks/interop.py [--json FILE]

The function is packhorse's own, from one exported library; beside it stands the same function
compiled by TVM where apache-tvm 0.27 is installed. tvm-ffi's rows need apache-tvm-ffi. Calls that
cross from one runtime to the other show what sharing costs. Microseconds of the thread's CPU time,
medians, one thread.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from _common import arguments, describe, machine, measure, pin, table
from _common import report as write

N = 1000
MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
add (float[1000] a, float[1000] b) => (float[1000] y) { y = Add(a, b) }
"""
Calls = dict[str, Callable[[], Any]]


def export(folder: Path) -> Path:
    """Our library of the function."""
    import onnx.parser

    import packhorse

    onnx.save(onnx.parser.parse_model(MODEL), folder / "add.onnx")
    model: Any = packhorse.load(folder / "add.onnx")
    saved: Path = model.compile("llvm-cpu?threads=1").save(folder / "add.so")
    return saved


def our_calls(library: Path, arrays: list[Any]) -> Calls:
    """packhorse calls it through both ABIs."""
    import packhorse

    tensors = [packhorse.tensor(array) for array in arrays]
    legacy, ffi = (kernel(packhorse.load_module(library, abi=abi)) for abi in ("legacy", "ffi"))
    ready = legacy.bind(*tensors)
    echo = packhorse.convert(lambda value: value)
    return {
        "packhorse, bound": lambda: ready(),
        "packhorse, 3 Tensors, legacy ABI": lambda: legacy(*tensors),
        "packhorse, 3 Tensors, tvm-ffi ABI": lambda: ffi(*tensors),
        "packhorse, 3 arrays": lambda: legacy(*arrays),
        "packhorse, a Python function": lambda: echo(1),
    }


def kernel(module: Any) -> Any:
    """The function in a library that holds a graph too."""
    library = module.imports[0] if module.imports else module
    return library[next(name for name in library.functions if not name.startswith("__"))]


def ffi_calls(library: Path, arrays: list[Any]) -> Calls:
    """tvm-ffi calls it, and each side calls the other."""
    import packhorse

    ffi = import_module("tvm_ffi")
    tensors = [ffi.from_dlpack(array) for array in arrays]
    function = ffi.load_module(str(library))["main"]
    shared = kernel(packhorse.load_module(library)).as_tvm_ffi()
    wrapped: Any = packhorse.from_tvm_ffi(function)
    mine = [packhorse.from_dlpack(array) for array in arrays]
    echo = ffi.convert_func(lambda value: value)
    both = packhorse.convert(lambda value: value).as_tvm_ffi()
    return {
        "tvm-ffi, 3 Tensors": lambda: function(*tensors),
        "tvm-ffi, ours by as_tvm_ffi": lambda: shared(*tensors),
        "packhorse, tvm-ffi's by from_tvm_ffi": lambda: wrapped(*mine),
        "tvm-ffi, a Python function": lambda: echo(1),
        "tvm-ffi, a Python function of ours": lambda: both(1),
    }


def tvm_calls(folder: Path, arrays: list[Any]) -> Calls:
    """TVM compiles the same function; TVM and packhorse call it."""
    import packhorse

    tvm, te = import_module("tvm"), import_module("tvm.te")
    a, b = (te.placeholder((N,), "float32", name) for name in "ab")
    y = te.compute((N,), lambda i: a[i] + b[i], "y")
    function = te.create_prim_func([a, b, y]).with_attr("global_symbol", "add")
    built = tvm.compile(tvm.IRModule({"add": function}), target="llvm")
    built.export_library(str(folder / "theirs.so"))
    shutil.copy(folder / "theirs.so", folder / "copy.so")  # slots are the file's: one loader each
    theirs = tvm.runtime.load_module(str(folder / "theirs.so"))["add"]
    ours = packhorse.load_module(folder / "copy.so")["add"]
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    mine = [packhorse.tensor(array) for array in arrays]
    ready = ours.bind(*mine)
    return {
        "TVM's function: TVM, 3 Tensors": lambda: theirs(*tensors),
        "TVM's function: packhorse, 3 Tensors": lambda: ours(*mine),
        "TVM's function: packhorse, bound": lambda: ready(),
    }


def main() -> int:
    asked = arguments(__doc__ or "", seconds=3.0).parse_args()
    cores = pin(1)
    found = machine(peak=False)
    print(describe(found))
    print(f"pinned to core {cores}\n")
    arrays = [np.ones(N, np.float32), np.ones(N, np.float32), np.zeros(N, np.float32)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = export(folder)
        calls = our_calls(library, arrays)
        if find_spec("tvm_ffi"):
            calls |= ffi_calls(Path(shutil.copy(library, folder / "ffi.so")), arrays)
        if find_spec("tvm"):
            calls |= tvm_calls(folder, arrays)
        times = measure(calls, seconds=asked.seconds, batch=1e-3, warmup=0.03)
    rows = [{"call": key, "cpu_us": t.cpu * 1e6, "wall_us": t.wall * 1e6}
            for key, t in times.items()]  # fmt: skip
    lines = [[row["call"], f"{row['cpu_us']:.3f}", f"{row['wall_us']:.3f}"] for row in rows]
    print(table(lines, ("call", "us", "wall us")))
    write("interop", found, rows, asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
