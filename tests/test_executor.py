import gc
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from packhorse import function
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    DeviceClosed,
    DeviceMemoryError,
    FunctionNotFound,
    PackhorseError,
)
from packhorse.graph.executor import GraphExecutor, live_bytes
from packhorse.graph.graph_json import program_from_json
from packhorse.graph.params import load_params
from packhorse.graph.program import Entry, Program, Step
from packhorse.module import load_module
from packhorse.native import aligned_empty

CONVNET = Path(__file__).parent / "data" / "tvm" / "convnet"

SOURCE = r"""
#include <stdint.h>
#include <string.h>
#include <unistd.h>
typedef struct { void *data; int32_t device[2]; int32_t ndim; uint8_t code, bits; uint16_t lanes;
                 int64_t *shape; int64_t *strides; uint64_t offset; } T;
#define F(name) int name(T **a, int *codes, int n, void *ret, int *rcode, void *resource)
static int64_t size(T *t) { int64_t n = 1; for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
                            return n; }
#define X ((float *)a[0]->data)
#define Y ((float *)a[1]->data)
F(inc) { for (int64_t i = 0; i < size(a[0]); i++) Y[i] = X[i] + 1; return 0; }
F(twice) { for (int64_t i = 0; i < size(a[0]); i++) Y[i] = 2 * X[i]; return 0; }
F(add) { for (int64_t i = 0; i < size(a[0]); i++) ((float *)a[2]->data)[i] = X[i] + Y[i];
         return 0; }
F(fill) { for (int64_t i = 0; i < size(a[0]); i++) X[i] += 5; return 0; }
F(sum_all) { float s = 0; for (int64_t i = 0; i < size(a[0]); i++) s += X[i];
             for (int64_t i = 0; i < size(a[1]); i++) Y[i] = s; return 0; }
F(rank) { *(int64_t *)a[1]->data = a[0]->ndim; return 0; }
F(copy_bytes) { memcpy(a[1]->data, a[0]->data, size(a[0]) * (a[0]->bits + 7) / 8); return 0; }
F(address) { *(int64_t *)a[1]->data = (int64_t)a[0]->data; return 0; }
F(fail) { return -1; }
F(slow) { usleep(150000); return inc(a, codes, n, ret, rcode, resource); }
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc to build the kernels of this test")
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "k.c").write_text(SOURCE)
    command = ["gcc", "-O1", "-shared", "-fPIC", "-w", "-o", "k.so", "k.c"]
    subprocess.run(command, cwd=folder, check=True)
    return load_module(folder / "k.so", abi="legacy")


def chain(*functions, shape=(2, 3), dtype="float32", **options) -> Program:
    """x -> f1 -> t1 -> f2 ... -> the last one writes y; every tensor its own storage."""
    names = ["x", *[f"t{i}" for i in range(1, len(functions))], "y"]
    entries = tuple(Entry(n, shape, dtype, i) for i, n in enumerate(names))
    steps = tuple(Step(f, (i,), (i + 1,), f"step{i}") for i, f in enumerate(functions))
    return Program("chain", entries, (0,), (), steps, (len(functions),), ("y",), **options)


X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_runs_by_name_and_by_position(kernels):
    with GraphExecutor(chain("inc", "twice"), kernels, {}) as executor:
        for inputs in ({"x": X}, [X], (X,)):
            [y] = executor.run(inputs)
            assert np.array_equal(y, (X + 1) * 2)
        assert executor.input_info() == {"x": ("float32", (2, 3))}
        assert executor.output_info() == {"y": ("float32", (2, 3))}
        assert executor.param_info() == {}


def test_outputs_are_new_arrays_each_run(kernels):
    executor = GraphExecutor(chain("inc"), kernels, {})
    [first], [second] = executor.run([X]), executor.run([X * 10])
    assert np.array_equal(first, X + 1)
    assert first.flags.owndata
    assert not np.shares_memory(first, second)


def test_inputs_are_read_where_they_are(kernels):
    entries = (Entry("x", (2, 3), "float32", 0), Entry("y", (1,), "int64", 1))
    program = Program("", entries, (0,), (), (Step("address", (0,), (1,), "a"),), (1,), ("y",))
    executor = GraphExecutor(program, kernels, {})
    [where] = executor.run([X])
    assert where[0] == X.ctypes.data
    frozen = X.copy()
    frozen.flags.writeable = False
    assert executor.run([frozen])[0][0] == frozen.ctypes.data
    assert executor.memory_bytes == 0


@pytest.mark.parametrize("offset", [0, 4, 64])
def test_strict_alignment_copies_what_is_not_aligned(kernels, offset):
    entries = (Entry("x", (6,), "float32", 0), Entry("y", (1,), "int64", 1))
    program = Program("", entries, (0,), (), (Step("address", (0,), (1,), "a"),), (1,), ("y",))
    executor = GraphExecutor(program, kernels, {}, strict_alignment=True)
    array = aligned_empty(256)[offset : offset + 24].view(np.float32)
    [where] = executor.run([array])
    assert where[0] % 128 == 0
    assert (where[0] == array.ctypes.data) == (offset == 0)
    assert where.ctypes.data % 128 == 0


def test_non_contiguous_inputs_are_copied(kernels):
    executor = GraphExecutor(chain("inc", shape=(3, 2)), kernels, {})
    assert np.array_equal(executor.run([X.T])[0], X.T + 1)


def test_arrays_whose_elements_are_not_aligned_are_copied(kernels):
    array = np.frombuffer(b"-" + X.tobytes(), np.uint8)[1:].view(np.float32).reshape(2, 3)
    assert not array.flags.aligned
    executor = GraphExecutor(chain("inc"), kernels, {})
    assert np.array_equal(executor.run([array])[0], X + 1)


def test_objects_with_the_array_protocol(kernels):
    class Like:
        def __array__(self, dtype=None, copy=None):
            return X

    executor = GraphExecutor(chain("inc"), kernels, {})
    assert np.array_equal(executor.run({"x": Like()})[0], X + 1)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({}, ArgumentValueError, "input 'x' is missing; the program takes 'x' float32"),
        ({"y": X}, ArgumentValueError, "input 'x' is missing|there is no input 'y'"),
        ({"x": X, "xx": X}, ArgumentValueError, "no input 'xx' .did you mean 'x'"),
        ([X, X], ArgumentValueError, "takes 1 inputs, found 2"),
        (X, ArgumentTypeError, "put a single array into a list"),
        (3, ArgumentTypeError, "found int"),
        ([X.astype(np.float64)], ArgumentTypeError, "'x' must be float32, found float64; convert"),
        ([X.astype(">f4")], ArgumentTypeError, "must be float32, found >f4"),
        ([X.T], ArgumentValueError, r"shape \(2, 3\), found \(3, 2\); reshape it"),
        ([X[:1]], ArgumentValueError, r"found \(1, 3\); compile for that shape"),
        ([[[1.0, 2.0]]], ArgumentTypeError, "must be an array, found list; pass np.asarray"),
        ([None], ArgumentTypeError, "found NoneType"),
    ],
)
def test_inputs_that_do_not_fit(kernels, inputs, error, message):
    executor = GraphExecutor(chain("inc"), kernels, {})
    with pytest.raises(error, match=message):
        executor.run(inputs)
    assert np.array_equal(executor.run([X])[0], X + 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e5m2", "int4", "bool", "float16", "int64"])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 3)])
def test_dtypes_and_odd_shapes(kernels, dtype, shape):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    executor = GraphExecutor(chain("copy_bytes", shape=shape, dtype=dtype), kernels, {})
    array = np.ones(shape).astype(kind)
    [found] = executor.run([array])
    assert found.dtype == kind
    assert found.shape == shape
    assert np.array_equal(found.astype(np.float32), array.astype(np.float32))


def weighted(shape=(32,)) -> Program:
    entries = (
        Entry("x", shape, "float32", 0),
        Entry("w", shape, "float32", 1),
        Entry("y", shape, "float32", 2),
    )
    return Program("", entries, (0,), (1,), (Step("add", (0, 1), (2,), "add"),), (2,), ("y",))


@pytest.mark.parametrize("offset", [0, 4])
def test_params_are_used_in_place_when_aligned(kernels, offset):
    weight = aligned_empty(256)[offset : offset + 128].view(np.float32)
    weight[:] = 1
    executor = GraphExecutor(weighted(), kernels, {"w": weight, "unused": weight})
    x = np.zeros(32, np.float32)
    assert executor.run([x])[0][0] == 1
    weight[:] = 2
    assert executor.run([x])[0][0] == (2 if offset == 0 else 1)
    assert executor.memory_bytes == (0 if offset == 0 else 128)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({}, ArgumentValueError, "param 'w' is missing; the program needs 1 params, 0 were given"),
        ({"w": np.zeros(32)}, ArgumentTypeError, "'w' must be float32, found float64"),
        ({"w": np.zeros(3, np.float32)}, ArgumentValueError, r"shape \(32,\), found \(3,\)"),
    ],
)
def test_params_that_do_not_fit(kernels, params, error, message):
    with pytest.raises(error, match=message):
        GraphExecutor(weighted(), kernels, params)


def test_once_steps_run_at_creation_and_last(kernels):
    entries = (
        Entry("x", (2,), "float32", 0),
        Entry("border", (4,), "float32", 1),
        Entry("y", (1,), "float32", 2),
    )
    steps = (Step("fill", (), (1,), "fill", once=True), Step("sum_all", (1,), (2,), "sum"))
    program = Program("", entries, (0,), (), steps, (2,), ("y",))
    executor = GraphExecutor(program, kernels, {})
    x = np.zeros(2, np.float32)
    assert [executor.run([x])[0][0] for _ in range(3)] == [20, 20, 20]  # zeroed, += 5 once
    assert executor.report().once_steps == 1


def test_once_steps_must_not_depend_on_a_run(kernels):
    entries = (Entry("x", (2,), "float32", 0), Entry("y", (2,), "float32", 1))
    steps = (Step("inc", (0,), (1,), "early", once=True),)
    with pytest.raises(ArtifactError, match="'early' is to run once"):
        GraphExecutor(Program("", entries, (0,), (), steps, (1,), ("y",)), kernels, {})


def test_outputs_that_share_memory_with_larger_tensors_are_copied(kernels):
    entries = (
        Entry("x", (4,), "float32", 0),
        Entry("big", (4,), "float32", 1),
        Entry("mid", (4,), "float32", 2),
        Entry("y", (1,), "float32", 1),
    )
    steps = (
        Step("inc", (0,), (1,), "a"),
        Step("inc", (1,), (2,), "b"),
        Step("sum_all", (2,), (3,), "c"),
    )
    program = Program("", entries, (0,), (), steps, (3, 2, 0, 2), ("y", "mid", "x", "again"))
    executor = GraphExecutor(program, kernels, {})
    x = np.arange(4, dtype=np.float32)
    y, mid, same, again = executor.run([x])
    assert y[0] == 6 + 8
    assert np.array_equal(mid, x + 2)
    assert np.array_equal(again, x + 2)
    assert np.array_equal(same, x)
    assert not np.shares_memory(same, x)
    assert not np.shares_memory(mid, again)


def test_inputs_whose_memory_is_written_are_copied(kernels):
    entries = (Entry("x", (4,), "float32", 0), Entry("y", (4,), "float32", 0))
    program = Program("", entries, (0,), (), (Step("twice", (0,), (1,), "t"),), (1,), ("y",))
    x = np.arange(4, dtype=np.float32)
    [y] = GraphExecutor(program, kernels, {}).run([x])
    assert np.array_equal(y, [0, 2, 4, 6])
    assert np.array_equal(x, [0, 1, 2, 3])


def test_nop_is_a_view(kernels):
    entries = (
        Entry("x", (2, 3), "float32", 0),
        Entry("t", (2, 3), "float32", 1),
        Entry("y", (6,), "float32", 1),
    )
    steps = (Step("inc", (0,), (1,), "inc"), Step("__nop", (1,), (2,), "reshape"))
    [y] = GraphExecutor(Program("", entries, (0,), (), steps, (2,), ("y",)), kernels, {}).run([X])
    assert np.array_equal(y, X.ravel() + 1)
    apart = (*entries[:2], Entry("y", (6,), "float32", 2))
    with pytest.raises(ArtifactError, match=r"'reshape' is __nop, but its output float32\[6\]"):
        GraphExecutor(Program("", apart, (0,), (), steps, (2,), ("y",)), kernels, {})


@pytest.mark.parametrize(("attrs", "expected"), [({}, 3), ({"flatten_data": "1"}, 1)])
def test_flatten_data(kernels, attrs, expected):
    entries = (Entry("x", (1, 2, 3), "float32", 0), Entry("y", (1,), "int64", 1))
    steps = (Step("rank", (0,), (1,), "rank", attrs=attrs),)
    executor = GraphExecutor(Program("", entries, (0,), (), steps, (1,), ("y",)), kernels, {})
    assert executor.run([X.reshape(1, 2, 3)])[0][0] == expected


def test_host_steps_run_between_native_ones(kernels):
    seen = []

    def host(step, inputs, outputs):
        seen.append((step.function, step.name, inputs[0].shape))
        outputs[0][...] = -inputs[0]

    names = ("packhorse.op.Neg", "inc", "packhorse.op.Neg", "twice", "twice", "packhorse.op.Neg")
    executor = GraphExecutor(chain(*names), kernels, {}, host=host)
    for scale in (1, 3):
        [y] = executor.run([X * scale])
        assert np.array_equal(y, 4 * (1 - X * scale))
    assert [name for _, name, _ in seen[:3]] == ["step0", "step2", "step5"]
    assert seen[0] == ("packhorse.op.Neg", "step0", (2, 3))
    report = executor.report()
    assert (report.native_steps, report.native_calls) == (3, 2)
    assert report.host_steps[0] == ("step0", "packhorse.op.Neg")
    assert "on the host: step0 (packhorse.op.Neg)" in str(report)


def test_an_error_of_a_host_step_comes_out_and_does_not_stick(kernels):
    def host(step, inputs, outputs):
        if inputs[0].max() > 100:
            raise ZeroDivisionError("host")
        outputs[0][...] = inputs[0]

    executor = GraphExecutor(chain("packhorse.op.Id", "inc"), kernels, {}, host=host)
    with pytest.raises(ZeroDivisionError):
        executor.run([X + 1000])
    assert np.array_equal(executor.run([X])[0], X + 1)


def test_global_functions_are_found_after_the_module(kernels):
    def negate(x, y):
        np.negative(np.asarray(x), out=np.asarray(y))

    function.register_func("test.executor.negate", negate)
    try:
        executor = GraphExecutor(chain("inc", "test.executor.negate"), kernels, {})
        assert np.array_equal(executor.run([X])[0], -(X + 1))
    finally:
        function.remove_global_func("test.executor.negate")


def test_a_missing_function_is_named(kernels):
    with pytest.raises(FunctionNotFound, match=r"'step0' calls 'twicee'.*did you mean 'twice'"):
        GraphExecutor(chain("twicee"), kernels, {})
    with pytest.raises(FunctionNotFound, match="neither in the module"):
        GraphExecutor(chain("packhorse.op.Relu"), None, {})


def test_copy_steps_need_no_function():
    assert np.array_equal(GraphExecutor(chain("__copy"), None, {}).run([X])[0], X)


def test_a_failing_kernel_is_named(kernels):
    executor = GraphExecutor(chain("inc", "fail"), kernels, {})
    with pytest.raises(PackhorseError, match="step1"):
        executor.run([X])


def test_programs_that_ask_for_too_much_are_refused(kernels):
    entries = (
        Entry("x", (1,), "float32", 0),
        Entry("t", (1 << 46,), "uint8", 1),
        Entry("y", (1,), "float32", 2),
    )
    steps = (Step("copy_bytes", (0,), (1,), "a"), Step("copy_bytes", (1,), (2,), "b"))
    program = Program("", entries, (0,), (), steps, (2,), ("y",))
    with pytest.raises(ArtifactError, match="more than the limit"):
        GraphExecutor(program, kernels, {})


def test_numpy_refusing_an_allocation(kernels, monkeypatch):
    def refuse(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("packhorse.graph._storage.np.zeros", refuse)
    with pytest.raises(DeviceMemoryError, match="could not allocate"):
        GraphExecutor(chain("inc", "inc"), kernels, {})


def test_close(kernels):
    executor = GraphExecutor(chain("inc", "inc"), kernels, {})
    [y] = executor.run([X])
    executor.close()
    executor.close()
    for use in (executor.run, executor.profile):
        with pytest.raises(DeviceClosed, match="closed"):
            use([X])
    assert np.array_equal(y, X + 2)


@pytest.mark.parametrize("closed", [True, False])
def test_nothing_leaks_in_1000_cycles(kernels, closed):
    gc.collect()
    before = live_bytes()
    program = chain("inc", "packhorse.op.Id", "inc", shape=(64,))

    def host(step, inputs, outputs):
        outputs[0][...] = inputs[0]

    x = np.zeros(64, np.float32)
    gc.disable()  # reference counts alone must do: no cycles
    try:
        for _ in range(1000):
            executor = GraphExecutor(program, kernels, {}, host=host)
            executor.run([x])
            assert live_bytes() > before
            if closed:
                executor.close()
        del executor
        assert live_bytes() == before
    finally:
        gc.enable()


def test_inputs_are_not_kept_after_a_run(kernels):
    def host(step, inputs, outputs):
        outputs[0][...] = inputs[0]

    executor = GraphExecutor(chain("packhorse.op.Id", "inc"), kernels, {}, host=host)
    x = X.copy()
    before = sys.getrefcount(x)
    [y] = executor.run({"x": x})
    assert sys.getrefcount(x) == before
    assert y.base is None


def test_profile(kernels):
    def host(step, inputs, outputs):
        outputs[0][...] = inputs[0]

    executor = GraphExecutor(chain("inc", "packhorse.op.Id", "twice"), kernels, {}, host=host)
    rows = executor.profile([X], repeat=3)
    assert [row[:2] for row in rows] == [
        ("step0", "inc"),
        ("step1", "packhorse.op.Id"),
        ("step2", "twice"),
    ]
    assert all(time >= 0 for _, _, time in rows)
    with pytest.raises(ArgumentValueError, match="repeat"):
        executor.profile([X], repeat=0)


def test_one_executor_serialises_and_many_run_in_parallel(kernels):
    executors = [GraphExecutor(chain("slow"), kernels, {}) for _ in range(2)]
    found, inside = [], threading.Barrier(4)

    def work(number):
        inside.wait()
        executor = executors[number % 2]
        for k in range(2):
            x = X + number * 10 + k
            found.append(np.array_equal(executor.run([x])[0], x + 1))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8


def test_two_arguments_in_one_storage_are_refused(kernels):
    entries = (
        Entry("x", (2,), "float32", 0),
        Entry("w", (2,), "float32", 0),
        Entry("y", (2,), "float32", 1),
    )
    program = Program("", entries, (0,), (1,), (Step("add", (0, 1), (2,), "a"),), (2,), ("y",))
    with pytest.raises(ArtifactError, match="same storage"):
        GraphExecutor(program, kernels, {"w": np.zeros(2, np.float32)})


@pytest.mark.parametrize("threads", [1, 2])
def test_tvm_convnet_gives_the_bits_tvm_gave(threads):
    params = load_params((CONVNET / "deploy.params").read_bytes())
    program = program_from_json((CONVNET / "deploy.json").read_bytes(), params)
    data = np.load(CONVNET / "in_data.npy")
    unaligned = np.empty(data.size + 1, np.float32)[1:].reshape(data.shape)
    unaligned[...] = data
    module = load_module(CONVNET / "deploy.so")
    with GraphExecutor(program, module, params, threads=threads) as run:
        for x in (data, unaligned, data):
            outputs = run.run({"data": x})
            for i, found in enumerate(outputs):
                assert np.array_equal(found, np.load(CONVNET / f"out_{i}.npy"))
        assert run.profile([data], 1)[0][0].endswith("layout_transform")
