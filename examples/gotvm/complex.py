"""Two networks through the graph runtime's packed functions. gotvm's complex.go.

The first was compiled by TVM, the second by packhorse a moment before: one code runs both.

python examples/gotvm/complex.py
"""

import tempfile
from pathlib import Path

import numpy as np

import packhorse as ph

HERE = Path(__file__).parent
CONVNET = HERE / "data" / "convnet"
MAGIKA = HERE.parent / "magika" / "model.onnx"


def run(folder: Path, name: str, data: np.ndarray) -> np.ndarray:
    """The first output of deploy.json, deploy.params and deploy.so."""
    module = ph.load_module(folder / "deploy.so")
    print("Module imported:", len(module.functions), "functions")

    # The library's functions are single layers; the graph says in which order they run.
    create = ph.get_global_func("tvm.graph_runtime.create")  # or tvm.graph_executor.create
    graph = create((folder / "deploy.json").read_text(), module, ph.DeviceType.CPU, 0)
    print("Graph runtime created:", graph["get_num_outputs"](), "outputs")

    load_params = graph["load_params"]
    load_params((folder / "deploy.params").read_bytes())
    print("Module params loaded")

    set_input = graph["set_input"]
    set_input(name, ph.tensor(data))
    print("Module input is set")

    graph["run"]()
    print("Module executed")

    get_output = graph["get_output"]
    first = get_output(0)  # the memory that the next run writes
    out = ph.empty(first.shape, first.dtype)
    get_output(0, out)  # a copy of our own
    print("Got module output:", out.shape, out.dtype)
    return out.numpy()


def main() -> None:
    print("packhorse version:", ph.__version__)
    print("DLPack version:   ", "{}.{}".format(*ph.__dlpack_version__))
    print("Global functions: ", len(ph.list_global_func_names()))

    print("\nCompiled by TVM")
    result = run(CONVNET, "data", np.load(CONVNET / "in_data.npy"))
    print(f"Result: class {result.argmax()}, {result.max():.4f}")
    print("Equal to what TVM computed:", np.array_equal(result, np.load(CONVNET / "out_0.npy")))

    print("\nCompiled by packhorse")
    with tempfile.TemporaryDirectory() as scratch:
        model = ph.load(MAGIKA)
        executable = model.compile("llvm-cpu", shapes={"bytes": (1, 2048)})
        executable.save(Path(scratch) / "deploy")
        data = np.full((1, 2048), 256, np.int32)
        result = run(Path(scratch) / "deploy", "bytes", data)
        print(f"Result: class {result.argmax()}, {result.max():.4f}")
        print("Equal to what the executable computes:", np.array_equal(result, executable(data)))


if __name__ == "__main__":
    main()
