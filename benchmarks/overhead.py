"""What a call costs besides the work: a model of one Add on four floats, device names, functions.

    python benchmarks/overhead.py [--json FILE]

Microseconds are medians of the thread's CPU time over batches of calls, all made in turn in one
process; the wall time stands beside them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _common import arguments, describe, machine, measure, ort_session, pin, table
from _common import report as write


def one_op(folder: Path) -> Path:
    """A model file: y = x + 1 on four floats."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    value = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy"}
    one = numpy_helper.from_array(np.ones(4, np.float32), "one")
    node = helper.make_node("Add", ["x", "one"], ["y"])
    graph = helper.make_graph([node], "add1", [value["x"]], [value["y"]], [one])
    path = folder / "add1.onnx"
    onnx.save(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]), path
    )
    return path


def bound(session: Any, x: Any) -> Callable[[], Any]:
    """onnxruntime's fastest way: input and output bound before."""
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    return lambda: session.run_with_iobinding(binding)


def model_calls(path: Path, x: Any) -> dict[str, Callable[[], Any]]:
    """Ways to run the model."""
    import packhorse

    model: Any = packhorse.load(path)
    named = "llvm-cpu?threads=1"
    device = packhorse.device(named)
    executable = model.compile(device)
    run, session, feeds = executable._run, ort_session(path, 1), {"x": x}
    return {
        "model(x)": lambda: model(x),
        f"model(x, device='{named}')": lambda: model(x, device=named),
        "model(x, device=Device)": lambda: model(x, device=device),
        "model(x=x)": lambda: model(x=x),
        "executable(x)": lambda: executable(x),
        "executor.run(feeds)": lambda: run(feeds),
        "onnxruntime session.run(None, feeds)": lambda: session.run(None, feeds),
        "onnxruntime run_with_iobinding": bound(session, x),
        "numpy x + 1": lambda: x + 1,
    }


def function_calls(path: Path, x: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    """Device names, and functions in Python and in compiled code."""
    import packhorse

    loaded: Any = packhorse.load(path)
    executable = loaded.compile("llvm-cpu?threads=1")
    symbol = executable.report()[0].step
    executable.save(folder / "deploy")
    compiled = packhorse.load_module(folder / "deploy" / "deploy.so")[symbol]
    weights = next(iter(executable._compiled.params.values()))  # as packed for this kernel
    ones, out = np.ones(weights.shape, np.float32), np.empty(4, np.float32)
    packhorse.register_func("bench.same", lambda value: value, override=True)
    same = packhorse.get_global_func("bench.same")
    ready, tensor = compiled.bind(x, ones, out), packhorse.tensor(x)
    return {
        "packhorse.device('cpu')": lambda: packhorse.device("cpu"),
        "packhorse.device('llvm-cpu?threads=1')": lambda: packhorse.device("llvm-cpu?threads=1"),
        "get_global_func(name)": lambda: packhorse.get_global_func("bench.same"),
        "Python function(int)": lambda: same(1),
        "Python function(Tensor)": lambda: same(tensor),
        "compiled function(3 arrays)": lambda: compiled(x, ones, out),
        "compiled function, bound": lambda: ready(),
        "from_dlpack(array)": lambda: packhorse.from_dlpack(x),
        "Python lambda": lambda: None,
    }


def main() -> int:
    asked = arguments(__doc__ or "", seconds=4.0).parse_args()
    cores = pin(1)
    found = machine()
    print(describe(found))
    print(f"pinned to core {cores}\n")
    x, rows = np.arange(4, dtype=np.float32), []
    with tempfile.TemporaryDirectory() as folder:
        path = one_op(Path(folder))
        for calls in (model_calls(path, x), function_calls(path, x, Path(folder))):
            times = measure(calls, seconds=asked.seconds / 2, batch=2e-3, warmup=0.05)
            rows += [
                {"call": name, "cpu_us": t.cpu * 1e6, "wall_us": t.wall * 1e6}
                for name, t in times.items()
            ]
    lines = [[row["call"], f"{row['cpu_us']:.2f}", f"{row['wall_us']:.2f}"] for row in rows]
    print(table(lines, ("call", "us", "wall us")))
    write("overhead", found, rows, asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
