"""Whole stories: file to result to artifact to another process; forks, cycles, parallel runs."""

import gc
import os
import sys
import weakref

import numpy as np
import pytest
from model_kit import (
    DEVICES,
    LLVM,
    NEEDS_LLVM,
    NEEDS_ONNX,
    batch_of,
    linear,
    linear_of,
    run_python,
    save_onnx,
    value,
)

import packhorse as ph
from packhorse.graph.executor import live_bytes
from packhorse.graph.ir import Graph, Node
from packhorse.model import Model

# ---------------------------------------------------------------- a small network


def convnet():
    """Convolution, batch normalisation, pooling, a residual, softmax: (n, 3, 12, 10) -> (n, 5)."""
    rng = np.random.default_rng(3)
    constants = {
        "w1": rng.standard_normal((8, 3, 3, 3), np.float32) * np.float32(0.3),
        "w2": rng.standard_normal((8, 8, 3, 3), np.float32) * np.float32(0.2),
        **{n: rng.uniform(0.5, 1.5, 8).astype(np.float32) for n in ("scale", "var")},
        **{n: rng.standard_normal(8, np.float32) for n in ("shift", "mean")},
        "w3": rng.standard_normal((8, 5), np.float32),
    }
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        Node("Conv", ["x", "w1"], ["c1"], same, name="conv1"),
        Node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n1"], name="norm"),
        Node("Relu", ["n1"], ["r1"], name="relu1"),
        Node("Conv", ["r1", "w2"], ["c2"], same, name="conv2"),
        Node("Add", ["c2", "r1"], ["sum"], name="residual"),
        Node("MaxPool", ["sum"], ["p"], {"kernel_shape": [2, 2], "strides": [2, 2]}, name="pool"),
        Node("GlobalAveragePool", ["p"], ["g"], name="mean"),
        Node("Flatten", ["g"], ["f"], name="flatten"),
        Node("MatMul", ["f", "w3"], ["logits"], name="head"),
        Node("Softmax", ["logits"], ["y"], {"axis": -1}, name="softmax"),
    ]
    inputs, outputs = [value("x", ("n", 3, 12, 10))], [value("y", ("n", 5))]
    return Model(Graph("convnet", inputs, outputs, nodes, constants))


def images(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, 12, 10), np.float32)


@NEEDS_LLVM
@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_equals_the_references(threads):
    model = convnet()
    for count in (1, 3):
        x = images(count)
        expected = model(x, device="cpu")
        np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-5)
        y = model(x, device=f"llvm-cpu?threads={threads}")
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)


@NEEDS_ONNX
@pytest.mark.parametrize("device", DEVICES)
def test_from_a_file(tmp_path, device):
    path = save_onnx(tmp_path / "relu.onnx", "Relu", inputs=(("x", ("n", 3)),))
    x = np.array([[-1, 0, 2]], np.float32)
    for source in (path, str(path)):
        with ph.load(source) as model:
            np.testing.assert_array_equal(model(x, device=device), [[0, 0, 2]])
    os.rename(path, tmp_path / "weights.bin")
    renamed = ph.load(tmp_path / "weights.bin", format="onnx")
    np.testing.assert_array_equal(renamed(x, device=device), [[0, 0, 2]])


# ---------------------------------------------------------------- artifacts elsewhere

RUN = """
    import numpy as np, packhorse as ph
    artifact, inputs, outputs = sys.argv[1:]
    np.save(outputs, ph.load(artifact)(np.load(inputs)))
    for name in ("llvmlite", "onnx"):
        assert sys.modules.get(name) is None, f"{name} was imported"
    assert not [m for m in sys.modules if m.startswith(("packhorse_llvm", "packhorse_onnx"))]
"""


@NEEDS_LLVM
@pytest.mark.parametrize("name", ["deploy", "convnet.packhorse"])
def test_artifacts_run_without_the_compiler(tmp_path, name):
    x, model = images(2), convnet()
    made = model.compile(LLVM, shapes={"x": x.shape})
    made.save(tmp_path / name)
    np.save(tmp_path / "x.npy", x)
    run_python(
        RUN,
        str(tmp_path / name),
        str(tmp_path / "x.npy"),
        str(tmp_path / "y.npy"),
        without=("llvmlite", "onnx", "rich"),
    )
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), made(x))


@NEEDS_LLVM
def test_the_graph_executor_runs_the_triple(tmp_path):
    """The interface of TVM's runtime, on what we saved."""
    from packhorse.graph.executor import GraphExecutor
    from packhorse.graph.graph_json import program_from_json
    from packhorse.graph.params import load_params

    x = images(1)
    made = convnet().compile(LLVM, shapes={"x": x.shape})
    folder = made.save(tmp_path / "deploy")
    program = program_from_json((folder / "deploy.json").read_text())
    params = load_params((folder / "deploy.params").read_bytes())
    with GraphExecutor(program, ph.load_module(folder / "deploy.so"), params) as executor:
        np.testing.assert_array_equal(executor.run([x])[0], made(x))


@NEEDS_LLVM
def test_a_warm_cache_compiles_nothing(tmp_path):
    """A second process finds the kernels of the first, and computes the same."""
    code = """
        import numpy as np, packhorse as ph
        from packhorse.graph.ir import Graph, Node, TensorType, Value
        kind = TensorType(np.dtype("f4"), (1000,))
        nodes = [Node("Exp", ["x"], ["e"], name="exp"), Node("Neg", ["e"], ["y"], name="neg")]
        graph = Graph("g", [Value("x", kind)], [Value("y", kind)], nodes, {})
        made = ph.Model(graph).compile("llvm-cpu?threads=1")
        print(made(np.linspace(-1, 1, 1000, dtype="f4")).tobytes().hex())
    """
    env = {"PACKHORSE_CACHE_DIR": str(tmp_path)}
    first = run_python(code, env=env)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert before
    assert run_python(code, env=env) == first
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == set(before)
    for path in before:  # damage costs time, never a wrong result
        path.write_bytes(path.read_bytes()[:-7] + b"damaged")
    assert run_python(code, env=env) == first


# ---------------------------------------------------------------- forks

FORK = """
    import os, warnings, numpy as np, packhorse as ph
    warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forks beside threads
    from packhorse.graph.ir import Graph, Node, TensorType, Value
    kind = TensorType(np.dtype("f4"), ("n", 64))
    nodes = [Node("MatMul", ["x", "w"], ["h"], name="m"), Node("Relu", ["h"], ["y"], name="r")]
    w = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    graph = Graph("g", [Value("x", kind)], [Value("y", kind)], nodes, {"w": w})
    model, x = ph.Model(graph), np.ones((256, 64), np.float32)
    expected = model(x, device="llvm-cpu?threads=2")
    child = os.fork()
    if not child:
        same = np.array_equal(model(x, device="llvm-cpu?threads=2"), expected)
        other = model(x[:7], device="llvm-cpu?threads=2")  # compiles in the child
        os._exit(0 if same and np.allclose(other, expected[:7], rtol=1e-5, atol=1e-5) else 7)
    _, status = os.waitpid(child, 0)
    assert np.array_equal(model(x, device="llvm-cpu?threads=2"), expected)
    print(os.waitstatus_to_exitcode(status))
"""


@NEEDS_LLVM
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_after_use():
    assert run_python(FORK).strip() == "0"


# ---------------------------------------------------------------- cycles


def open_files():
    """Descriptors and mapped artifacts of this process (Linux; elsewhere nothing)."""
    if not sys.platform.startswith("linux"):
        return 0, 0
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return len(os.listdir("/proc/self/fd")), sum(".packhorse" in line for line in maps)


@NEEDS_LLVM
@pytest.mark.parametrize("name", ["deploy", "linear.packhorse"])
def test_loading_running_closing_two_hundred_times(tmp_path, name):
    linear().compile(LLVM, shapes={"x": (2, 4)}).save(tmp_path / name)
    x, counts = batch_of(2), set()
    gc.collect()
    for i in range(200):
        with ph.load(tmp_path / name) as loaded:
            loaded(x)
        if i >= 20:
            counts.add((live_bytes(), *open_files()))
    assert len(counts) == 1, f"something grew: {sorted(counts)}"


@pytest.mark.parametrize("device", DEVICES)
def test_compiling_running_closing_many_times(device):
    x, counts = batch_of(2), set()
    where = ph.device(device)
    gc.collect()
    for i in range(50):
        with linear() as model:
            model(x, device=where)
        if i >= 10:
            counts.add((live_bytes(), where.memory().live, *open_files()))
    assert len(counts) == 1, f"something grew: {sorted(counts)}"


@NEEDS_LLVM
def test_closing_lets_go_of_code_and_weights():
    made = linear().compile(LLVM, shapes={"x": (2, 4)})
    held = [weakref.ref(a) for a in made._compiled.params.values()]
    held.append(weakref.ref(made._compiled.module))
    made.close()
    gc.collect()
    assert held
    assert not [ref for ref in held if ref() is not None]


@NEEDS_LLVM
def test_forgetting_is_as_good_as_closing(tmp_path, recwarn):
    """No ResourceWarning, nothing held: the garbage collector closes what nobody did."""
    linear().compile(LLVM, shapes={"x": (2, 4)}).save(tmp_path / "m.packhorse")
    gc.collect()
    before = live_bytes(), *open_files()
    for _ in range(5):
        ph.load(tmp_path / "m.packhorse")(batch_of(2))
        linear()(batch_of(2), device=LLVM)
    gc.collect()
    assert (live_bytes(), *open_files()) == before
    assert not [w for w in recwarn if issubclass(w.category, ResourceWarning)]


@NEEDS_LLVM
def test_results_outlive_everything(tmp_path):
    linear().compile(LLVM, shapes={"x": (2, 4)}).save(tmp_path / "m.packhorse")
    with ph.load(tmp_path / "m.packhorse") as loaded:
        y = loaded(batch_of(2))
    os.remove(tmp_path / "m.packhorse")
    gc.collect()
    np.testing.assert_allclose(y, linear_of(batch_of(2)), rtol=1e-5, atol=1e-6)
