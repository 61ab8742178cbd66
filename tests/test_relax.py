"""Relax executables TVM 0.27 compiled: exactly TVM's outputs, and every way to call them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from relax_kit import DATA

from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    DeviceClosed,
    FunctionNotFound,
    PackhorseError,
)
from packhorse.function import register_func, remove_global_func
from packhorse.graph.relax import disassemble, load_relax
from packhorse.module import load_module


def load(folder, name):
    return np.load(DATA / f"relax_{folder}" / f"{name}.npy")


def library(folder):
    return load_module(DATA / f"relax_{folder}" / "deploy.so")


@pytest.fixture(scope="module")
def modules():
    return {name: library(name) for name in ("convnet", "convnet_params", "dyn_bytecode")}


@pytest.fixture(scope="module")
def control():
    return load_relax(library("control"))


def exactly(found, folder, names):
    assert len(found) == len(names)
    for array, name in zip(found, names, strict=True):
        want = load(folder, name)
        assert array.dtype == want.dtype
        np.testing.assert_array_equal(array, want)


PARAMS = [f"param_{i}" for i in range(4)]
CASES = {
    "convnet": ("convnet", ["in_data"], ["out_0", "out_1"]),
    "params": ("convnet_params", ["in_data", *PARAMS], ["out_0", "out_1"]),
    "batch 1": ("dyn_bytecode", ["in_1"], ["out_1"]),
    "batch 5": ("dyn_bytecode", ["in_5"], ["out_5"]),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_outputs_are_exactly_those_of_tvm(modules, case, threads):
    folder, inputs, outputs = CASES[case]
    with load_relax(modules[folder], threads=threads) as executable:
        for _ in range(3):  # interpreted, then replayed
            exactly(executable.run([load(folder, i) for i in inputs]), folder, outputs)


def test_four_executables_of_one_library_at_once(modules):
    executables = [load_relax(modules["convnet"]) for _ in range(4)]
    x, barrier = load("convnet", "in_data"), threading.Barrier(4)

    def work(executable):
        barrier.wait()
        return [executable.run([x]) for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        for runs in pool.map(work, executables):
            for found in runs:
                exactly(found, "convnet", ["out_0", "out_1"])


def test_one_executable_from_many_threads(modules):
    executable = load_relax(modules["dyn_bytecode"])
    batches = {b: load("dyn_bytecode", f"in_{b}") for b in (1, 5)}
    with ThreadPoolExecutor(4) as pool:
        runs = pool.map(lambda b: (b, executable.run([batches[b]])), [1, 5] * 50)
        for b, found in runs:
            exactly(found, "dyn_bytecode", [f"out_{b}"])
    assert len(executable.report()) == 2


def test_it_looks_like_an_executable(modules):
    executable = load_relax(modules["convnet"])
    assert executable.functions == ["main"]
    assert list(executable.inputs) == ["data"]
    assert str(executable.inputs["data"]) == "float32[1, 3, 32, 32]"
    assert executable.output_names == ("output_0", "output_1")
    assert not executable.closed
    x = load("convnet", "in_data")
    for found in (executable(x), executable(data=x)):
        exactly(found, "convnet", ["out_0", "out_1"])
    assert executable.memory_bytes > 0
    # 8 in the file; the one that transposes a constant weight is not run again
    assert "7 kernels in 1 native calls" in executable.report()[0]
    assert "main" in repr(executable)


def test_one_output_is_an_array(modules):
    executable = load_relax(modules["dyn_bytecode"])
    assert str(executable.inputs["x"]) == "float32[batch, 16]"
    assert executable.output_names == ("output_0",)
    exactly([executable(load("dyn_bytecode", "in_5"))], "dyn_bytecode", ["out_5"])


@pytest.mark.parametrize("misaligned", [False, True])
def test_inputs_of_any_alignment_and_layout(modules, misaligned):
    executable = load_relax(modules["convnet"])
    x = load("convnet", "in_data")
    memory = np.zeros(x.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + (4 if misaligned else 0)
    placed = memory[start : start + x.nbytes].view(np.float32).reshape(x.shape)
    placed[...] = x
    fortran = np.asfortranarray(x)
    readonly = x.copy()
    readonly.flags.writeable = False
    for _ in range(2):
        for array in (placed, fortran, readonly, x):
            exactly(executable.run([array]), "convnet", ["out_0", "out_1"])
            np.testing.assert_array_equal(array, x)


def test_outputs_belong_to_the_caller(modules):
    executable = load_relax(modules["convnet"])
    x = load("convnet", "in_data")
    runs = [executable.run([x]) for _ in range(3)]
    for run in runs:
        for output in run:
            output += 1
    exactly(executable.run([x]), "convnet", ["out_0", "out_1"])
    flat = [output for run in runs for output in run]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(flat) for b in flat[:i])


def test_params_are_bound_once(modules):
    params = {"w": "param_0", "b": "param_1", "w2": "param_2", "b2": "param_3"}
    arrays = {name: load("convnet_params", file) for name, file in params.items()}
    executable = load_relax(modules["convnet_params"], arrays)
    assert list(executable.inputs) == ["data"]
    for _ in range(2):
        exactly(executable(load("convnet_params", "in_data")), "convnet_params", ["out_0", "out_1"])
    executable.set_params({"w": np.zeros_like(arrays["w"])})
    assert np.any(executable(load("convnet_params", "in_data"))[0] != load("convnet", "out_0"))


@pytest.mark.parametrize("shape", [(3, 16), (0, 16), (17, 16)])
def test_other_batches(modules, shape):
    executable = load_relax(modules["dyn_bytecode"])
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for _ in range(2):
        found = executable(x)
        rows = [executable(row[None]) for row in x]
        np.testing.assert_array_equal(found, np.concatenate([found[:0], *rows]))


def test_the_oldest_plans_are_dropped(modules):
    executable = load_relax(modules["dyn_bytecode"])
    for batch in [*range(1, 30), 1]:
        assert executable(np.zeros((batch, 16), np.float32)).shape[0] == batch
    assert len(executable.report()) == 16


WRONG = [
    ([np.zeros((2, 16))], ArgumentTypeError, "input 'x' of 'main'.*float32 is expected.*float64"),
    ([np.zeros((2, 5), np.float32)], ArgumentValueError, r"dimension 1 of shape \(2, 5\)"),
    ([np.zeros(16, np.float32)], ArgumentValueError, "2 dimensions"),
    ([], ArgumentValueError, "0 inputs were given; the function takes x: float32"),
    ([1, 2], ArgumentValueError, "2 inputs were given"),
    ([3], ArgumentTypeError, "'x' must be an array, found int"),
    ([[1.0]], ArgumentTypeError, "'x' must be an array, found list"),
    ([np.zeros((2, 16), ">f4")], ArgumentTypeError, "foreign byte order"),
    ([np.array(["a"])], ArgumentTypeError, "array 0 of the inputs: unknown dtype"),
    ({"y": 1}, ArgumentValueError, "no input 'y'.*takes x"),
    ({}, ArgumentValueError, "'x' is missing"),
    (np.zeros((2, 16), np.float32), ArgumentTypeError, "put a single array into a list"),
]


@pytest.mark.parametrize(("inputs", "error", "words"), WRONG)
def test_wrong_inputs_are_refused_before_compiled_code(modules, inputs, error, words):
    executable = load_relax(modules["dyn_bytecode"])
    for _ in range(2):
        with pytest.raises(error, match=words):
            executable.run(inputs)
    exactly(executable.run([load("dyn_bytecode", "in_1")]), "dyn_bytecode", ["out_1"])


def test_wrong_weights_are_refused_by_the_kernels(modules):
    inputs = [load("convnet_params", i) for i in ("in_data", *PARAMS)]
    inputs[1] = inputs[1][:4]
    with pytest.raises(PackhorseError):
        load_relax(modules["convnet_params"]).run(inputs)


def test_wrong_calls(modules):
    executable = load_relax(modules["convnet"])
    x = load("convnet", "in_data")
    with pytest.raises(ArgumentValueError, match="2 inputs were given"):
        executable(x, x)
    with pytest.raises(ArgumentValueError, match="given twice"):
        executable(x, data=x)
    with pytest.raises(FunctionNotFound, match=r"no function 'mian'.*'main'"):
        executable.run([x], function="mian")
    with pytest.raises(ArgumentValueError, match=r"no input 'date'.*'data'"):
        executable.set_params({"date": x})
    with pytest.raises(ArgumentTypeError, match="must be an array"):
        executable.set_params({"data": 3})


def test_closing(modules):
    executable = load_relax(modules["convnet"])
    x = load("convnet", "in_data")
    executable.run([x])
    executable.close()
    executable.close()
    assert executable.closed
    assert executable.memory_bytes == 0
    for _ in range(2):
        with pytest.raises(DeviceClosed, match="closed"):
            executable.run([x])
    assert "closed" in repr(executable)


def test_the_file_is_not_kept_beside_what_was_read_of_it():
    module = library("convnet")
    first = load_relax(module)
    assert not module.payload.data
    x = load("convnet", "in_data")
    for again in (load_relax(module), first):  # nor needed for another executable
        np.testing.assert_array_equal(again.run([x])[0], load("convnet", "out_0"))


def test_a_compiled_executable_is_refused_and_can_be_listed():
    module = library("dyn_compiled")
    with pytest.raises(ArtifactError, match=r'exec_mode="compiled".*exec_mode="bytecode"'):
        load_relax(module)
    assert disassemble(module) == (DATA / "relax_dyn_compiled" / "vm.txt").read_text()


@pytest.mark.parametrize("name", ["convnet", "convnet_params", "dyn_bytecode", "control"])
def test_the_listing_is_that_of_tvm(name):
    text = load_relax(library(name)).as_text()
    assert text == (DATA / f"relax_{name}" / "vm.txt").read_text()


# ---------------------------------------------------------------- relax_control/make.py

X = np.arange(-4, 8, dtype=np.float32).reshape(3, 4)
FOUR = np.array([1, 2, 3, 4], np.float32)
CONTROL = {
    "branch, true": ("branch", [X, np.array(True)], [X + X]),
    "branch, false": ("branch", [X, np.array(False)], [X * X]),
    "tuples": ("tuples", [[X, -X]], [np.maximum(X + X, 0), -X > X, X]),
    "recursion": ("recur", [FOUR, np.array(3)], [FOUR + 3]),
    "no recursion": ("recur", [FOUR, np.array(0)], [FOUR]),
    "data shape": ("data_shape", [X[0, :].copy(), np.array([2, 2])], [2 * X[0].reshape(2, 2)]),
    "shape argument": ("shapes", [(3, 2), np.arange(6)], [np.arange(6).reshape(3, 2)]),
    "shape result": ("sizes", [np.zeros((2, 5), np.float16)], [np.array([2, 5])]),
    "number": ("number", [FOUR, 7], [np.array(7)]),
    "same tensor twice": ("same", [FOUR], [FOUR + 1, FOUR + 1]),
}


@pytest.mark.parametrize("case", CONTROL)
def test_control_flow_and_values(control, case):
    function, inputs, outputs = CONTROL[case]
    for _ in range(3):
        found = control.run(inputs, function)
        for array, want in zip(found, outputs, strict=True):
            assert array.dtype == want.dtype
            np.testing.assert_array_equal(array, want)
            assert not any(np.shares_memory(array, other) for other in (X, FOUR))
            assert not any(array is not o and np.shares_memory(array, o) for o in found)


def test_what_depends_on_data_is_interpreted_and_says_so():
    executable = load_relax(library("control"))
    executable.run([X, np.array(True)], "branch")
    assert executable.report() == [
        "branch(float32[3, 4], bool[]): interpreted each time: a condition is read from a tensor "
        "(vm.builtin.read_if_cond)"
    ]
    bound = load_relax(library("control"))
    bound.set_params({"c": np.array(False)}, "branch")  # then nothing depends on data
    for _ in range(2):
        np.testing.assert_array_equal(bound.run([X], "branch")[0], X * X)
    assert "1 kernels in 1 native calls" in bound.report()[0]


def test_python_functions_among_the_kernels():
    executable = load_relax(library("control"))
    with pytest.raises(FunctionNotFound, match=r"'packhorse.test.flip'.*register_func"):
        executable.run([X], "extern")

    def flip(x, out):
        out[...] = x[::-1]

    register_func("packhorse.test.flip", flip)
    try:
        for shift in range(3):
            x = X + shift
            found = executable.run([x], "extern")
            np.testing.assert_array_equal(found[0], (x + x)[::-1] * x)
    finally:
        remove_global_func("packhorse.test.flip")
    assert "2 kernels in 2 native calls, 1 Python functions" in executable.report()[0]


def test_signatures(control):
    shown = {name: [str(p) for p in control.signature(name)] for name in control.functions}
    assert shown["branch"] == ["x: float32[n, 4]", "c: bool[]"]
    assert shown["shapes"] == ["s: shape[m, 2]", "x: int64[k]"]
    assert shown["number"] == ["x: float32[n]", "a: int64"]
    assert shown["tuples"] == ["p: tuple"]
    with pytest.raises(FunctionNotFound, match="no function 'main'"):
        control.signature()


KINDS = [
    ("shapes", [3, np.arange(6)], "'s' must be a tuple of non-negative ints, found int"),
    ("shapes", [(3, -2), np.arange(6)], "'s' must be a tuple of non-negative ints"),
    ("number", [FOUR, "7"], "'a' must be a number, found str"),
    ("number", [FOUR, 7.5], "'a'.*a number .int64. is expected"),
    ("tuples", [X], "'p' must be .* a list"),
    ("tuples", [["a", X]], r"'p\[0\]' must be"),
    ("tuples", [[X, 1.0]], "a tensor is expected"),
]


@pytest.mark.parametrize(("function", "inputs", "words"), KINDS)
def test_wrong_kinds(control, function, inputs, words):
    with pytest.raises(ArgumentTypeError, match=words):
        control.run(inputs, function)


def test_wrong_sizes_of_tuples_and_shapes(control):
    with pytest.raises(ArgumentValueError, match="a tuple of 2 is expected"):
        control.run([[X]], "tuples")
    with pytest.raises(ArgumentValueError, match="a shape of 2 dimensions is expected"):
        control.run([(3,), np.arange(3)], "shapes")
