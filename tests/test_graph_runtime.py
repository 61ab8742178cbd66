"""The graph runtime under TVM's names, on libraries TVM compiled and on small ones of our own."""

import gc
import json
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from native_kit import compile_c

import packhorse as ph
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    DeviceClosed,
    DeviceError,
    DeviceUnavailable,
    FunctionNotFound,
    PackhorseError,
)
from packhorse.function import PackedFunction
from packhorse.graph.executor import live_bytes
from packhorse.graph.graph_json import program_to_json
from packhorse.graph.params import load_params, save_params
from packhorse.graph.program import Entry, Program, Step
from packhorse.graph.runtime_functions import create, create_cuda_graph
from packhorse.module import PythonModule, load_module
from packhorse.native import aligned_empty

DATA = Path(__file__).parent / "data" / "tvm"
CONVNETS = ("convnet", "convnet_c")

SOURCE = r"""
#include <stdint.h>
void *__tvm_module_ctx; /* shows which ABI this is */
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
F(copy16) { for (int64_t i = 0; i < size(a[0]); i++) ((int16_t *)Y)[i] = ((int16_t *)X)[i];
            return 0; }
F(address) { *(int64_t *)a[1]->data = (int64_t)a[0]->data; return 0; }
F(fail) { return -1; }
static const float weights[6] = {10, 20, 30, 40, 50, 60};
typedef union { int64_t i; const void *p; } V;
int linked(V *args, int *codes, int n, V *ret, int *rcode, void *resource)
{ if (args[0].i == 1) { ret->p = weights; *rcode = 3; } return 0; }
"""
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runtime")


@pytest.fixture(scope="module")
def kernels(folder):
    return load_module(compile_c(SOURCE, folder / "kernels.so", "-w"))


def entries(*names, shape=(2, 3), dtype="float32"):
    return tuple(Entry(name, shape, dtype, i) for i, name in enumerate(names))


STRICT = {"alignment": "strict"}  # as programs read from TVM's JSON
CHAIN = Program(
    "chain",
    entries("x", "t", "y"),
    (0,),
    (),
    (Step("inc", (0,), (1,), "first"), Step("twice", (1,), (2,), "second")),
    (2,),
    ("y",),
    STRICT,
)
WEIGHTED = Program(
    "weighted",
    entries("x", "w", "y"),
    (0,),
    (1,),
    (Step("add", (0, 1), (2,), "sum"),),
    (2,),
    ("y",),
    STRICT,
)
W = np.full((2, 3), 5, np.float32)


def graph(program, module, **options):
    return create(program_to_json(program), module, "cpu", **options)


def convnet(name, threads=1):
    folder = DATA / name
    lib = load_module(folder / "deploy.so")
    made = create((folder / "deploy.json").read_text(), lib, ph.device(f"cpu?threads={threads}"))
    made.load_params((folder / "deploy.params").read_bytes())
    return made, np.load(folder / "in_data.npy"), [np.load(folder / f"out_{i}.npy") for i in (0, 1)]


def aligned(array):
    made = aligned_empty(array.nbytes).view(array.dtype).reshape(array.shape)
    made[...] = array
    return made


# ---------------------------------------------------------------- TVM's own libraries


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CONVNETS)
def test_tvms_libraries_give_the_bits_tvm_gave(name, threads):
    module, data, expected = convnet(name, threads)
    for _ in range(2):
        module.set_input("data", data)
        module.run()
        for i, array in enumerate(expected):
            assert np.array_equal(module.get_output(i).numpy(), array)
        module.set_input("data", np.zeros_like(data))
        module.run()
        assert not np.array_equal(module.get_output(0).numpy(), expected[0])


def test_one_library_in_four_threads_at_once():
    folder = DATA / "convnet"
    lib = load_module(folder / "deploy.so")
    text, params = (folder / "deploy.json").read_text(), (folder / "deploy.params").read_bytes()
    data, expected = np.load(folder / "in_data.npy"), np.load(folder / "out_0.npy")
    inside, found = threading.Barrier(4), []

    def work():
        module = create(text, lib, ph.device("cpu?threads=2"))
        module.load_params(params)
        inside.wait()
        for _ in range(50):
            module.set_input("data", data)
            module.run()
            found.append(np.array_equal(module.get_output(0).numpy(), expected))
            module.set_input("data", -data)
            module.run()

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [True] * 200


def test_the_names_tvm_answers_with():
    module, data, expected = convnet("convnet")
    assert module.get_num_inputs() == 5
    assert module.get_num_outputs() == 2
    assert [module.get_input_index(n) for n in ("data", "p0", "p3", "nope")] == [0, 1, 4, -1]
    shapes = module.get_input_info()
    assert shapes == {"shape": {"data": data.shape}, "dtype": {"data": "float32"}}
    names = list(module.get_output_info()["shape"])
    assert names[0] == "tvmgen_default_fused_nn_softmax"
    assert module.get_output_info()["shape"][names[0]] == expected[0].shape
    assert [module.get_output_index(n) for n in (*names, "nope")] == [0, 1, -1]


# ---------------------------------------------------------------- inputs


def test_state_lasts_between_runs(kernels):
    module = graph(CHAIN, kernels)
    module.set_input("x", X)
    module.run()
    seen = module.get_output(0)
    assert np.array_equal(seen.numpy(), (X + 1) * 2)
    module.run(x=X + 1)
    assert np.array_equal(seen.numpy(), (X + 2) * 2)  # a view, as in TVM
    assert np.array_equal(module.get_input("x").numpy(), X + 1)
    assert np.array_equal(module.get_input(0).numpy(), X + 1)


@pytest.mark.parametrize(
    "value",
    [
        X,
        np.asfortranarray(X),
        ph.tensor(X),
        np.frombuffer(b"-" + X.tobytes(), np.uint8)[1:].view(np.float32).reshape(2, 3),
        type("Like", (), {"__array__": lambda self, dtype=None, copy=None: X})(),
        type(
            "Peer",
            (),
            {
                "__dlpack__": lambda self, **kw: X.__dlpack__(**kw),
                "__dlpack_device__": lambda self: (1, 0),
            },
        )(),
    ],
    ids=["array", "fortran", "tensor", "unaligned", "array-like", "dlpack"],
)
def test_set_input_copies_arrays_of_every_kind(kernels, value):
    module = graph(CHAIN, kernels)
    module.set_input("x", value)
    module.run()
    assert np.array_equal(module.get_output(0).numpy(), (X + 1) * 2)


def test_inputs_by_position_and_by_keyword(kernels):
    module = graph(WEIGHTED, kernels)
    module.set_input(0, X, w=W)
    module.run()
    assert np.array_equal(module.get_output("y").numpy(), X + W)
    module.set_input(np.int64(1), W * 2)
    module.set_input(x=X * 2)
    module.run()
    assert np.array_equal(module.get_output(0).numpy(), X * 2 + W * 2)


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        (
            "xx",
            X,
            ArgumentValueError,
            r"no input 'xx' \(did you mean 'x'\?\); the graph has 2: 'x'",
        ),
        (2, X, ArgumentValueError, "there is no input 2; the graph has 2"),
        (-1, X, ArgumentValueError, "there is no input -1"),
        (1.0, X, ArgumentTypeError, "by a str or by its position, not by a float"),
        (True, X, ArgumentTypeError, "not by a bool"),
        ("x", X.astype(np.float64), ArgumentTypeError, r"must be float32, found float64; convert"),
        ("x", X.T, ArgumentValueError, r"must have shape \(2, 3\), found \(3, 2\); reshape it"),
        ("x", X[:1], ArgumentValueError, "compile for that shape"),
        ("x", [[1.0]], ArgumentTypeError, "must be an array or a Tensor, found list"),
        ("x", None, ArgumentTypeError, "found NoneType"),
    ],
)
@pytest.mark.parametrize("method", ["set_input", "set_input_zero_copy"])
def test_inputs_that_do_not_fit(kernels, method, key, value, error, message):
    module = graph(WEIGHTED, kernels)
    with pytest.raises(error, match=message):
        getattr(module, method)(key, value)
    with pytest.raises(error, match=message):
        module[method](key, value)


def test_nothing_is_set_when_one_input_does_not_fit(kernels):
    module = graph(WEIGHTED, kernels)
    module.set_input(x=X, w=W)
    with pytest.raises(ArgumentTypeError, match="'w'"):
        module.set_input(x=X * 9, w=W.astype(np.int32))
    module.run()
    assert np.array_equal(module.get_output(0).numpy(), X + W)


def test_runs_with_unset_inputs_are_refused(kernels):
    module = graph(WEIGHTED, kernels)
    with pytest.raises(
        ArgumentValueError, match=r"2 of its 2 .* never set: 'x' float32\[2, 3\], 'w'"
    ):
        module.run()
    module.set_input("x", X)
    with pytest.raises(ArgumentValueError, match=r"1 of its 2 .* 'w' float32.*load_params"):
        module["run"]()
    module.load_params(save_params({"w": W}))
    module.run()
    assert np.array_equal(module.get_output(0).numpy(), X + W)


def test_inputs_no_step_reads_need_not_be_set(kernels):
    unused = Program("", entries("x", "idle", "y"), (0, 1), (), CHAIN.steps[:0], (0,), ("x",))
    module = graph(unused, kernels)
    module.run(x=X)
    assert np.array_equal(module.get_output(0).numpy(), X)


# ---------------------------------------------------------------- zero copy


def test_zero_copy_input_is_read_where_it_is(kernels):
    module = graph(CHAIN, kernels)
    mine = aligned(X)
    module.set_input_zero_copy("x", mine)
    module.run()
    mine[...] = 7
    module.run()
    assert np.array_equal(module.get_output(0).numpy(), np.full((2, 3), 16, np.float32))
    assert np.shares_memory(module.get_input(0).numpy(), mine)
    module.set_input("x", X)  # goes back to the module's own memory
    module.run()
    assert np.array_equal(module.get_output(0).numpy(), (X + 1) * 2)
    assert (mine == 7).all()


def test_zero_copy_memory_lives_as_long_as_it_is_used(kernels):
    module = graph(CHAIN, kernels)
    module.set_input_zero_copy("x", ph.tensor(X))
    gc.collect()
    module.run()
    assert np.array_equal(module.get_output(0).numpy(), (X + 1) * 2)


def test_zero_copy_output_is_written_where_it_is_wanted(kernels):
    module = graph(CHAIN, kernels)
    mine = aligned(np.zeros_like(X))
    module.set_output_zero_copy("y", mine)
    module.run(x=X)
    assert np.array_equal(mine, (X + 1) * 2)
    assert np.shares_memory(module.get_output(0).numpy(), mine)
    other = ph.empty((2, 3))
    module.set_output_zero_copy(0, other)
    module.run(x=X * 2)
    assert np.array_equal(other.numpy(), (X * 2 + 1) * 2)
    assert np.array_equal(mine, (X + 1) * 2)


@pytest.mark.parametrize("method", ["set_input_zero_copy", "set_output_zero_copy"])
def test_zero_copy_checks_alignment(kernels, method):
    module = graph(CHAIN, kernels)
    odd = aligned_empty(256)[4:28].view(np.float32).reshape(2, 3)
    with pytest.raises(ArgumentValueError, match=r"is 4 bytes past a multiple of 128.*copies"):
        getattr(module, method)(0, odd)
    strided = aligned(np.zeros((2, 6), np.float32))[:, ::2]
    with pytest.raises(ArgumentValueError, match="strided; zero copy needs a C-contiguous"):
        getattr(module, method)(0, strided)


def test_our_own_code_needs_elements_aligned_only(kernels):
    ours = Program("", CHAIN.entries, (0,), (), CHAIN.steps, (2,), ("y",))
    module = graph(ours, kernels)
    odd = aligned_empty(256)[4:28].view(np.float32).reshape(2, 3)
    odd[...] = X
    module.set_input_zero_copy(0, odd)
    module.run()
    assert np.array_equal(module.get_output(0).numpy(), (X + 1) * 2)
    odder = aligned_empty(256)[3:27].view(np.float32).reshape(2, 3)
    with pytest.raises(ArgumentValueError, match="3 bytes past a multiple of 4"):
        module.set_input_zero_copy(0, odder)


def test_outputs_are_not_written_to_read_only_memory(kernels):
    module = graph(CHAIN, kernels)
    frozen = aligned(X)
    frozen.flags.writeable = False
    with pytest.raises(ArgumentValueError, match="output 'y' is read-only"):
        module.set_output_zero_copy(0, frozen)
    module.run(x=X)
    with pytest.raises(ArgumentValueError, match="read-only"):
        module.get_output(0, frozen)
    with pytest.raises(ArgumentValueError, match="read-only"):
        module.get_output(0, ph.from_dlpack(frozen))


def test_memory_the_graph_writes_to_is_not_lent(kernels):
    shared = (Entry("x", (2, 3), "float32", 0), Entry("y", (2, 3), "float32", 0))
    program = Program("", shared, (0,), (), (Step("twice", (0,), (1,), "t"),), (1,), ("y",))
    module = graph(program, kernels)
    for method in ("set_input_zero_copy", "set_output_zero_copy"):
        with pytest.raises(ArgumentValueError, match=r"shares its memory .* which copies"):
            getattr(module, method)(0, aligned(X))


def test_device_tensors_are_copied_never_lent(kernels):
    class Device:
        name, dlpack_device = "far:0", (2, 0)

        def copy_to_host(self, memory, data, offset=0):
            data[...] = X

    class Memory:
        nbytes, address = 24, 128

        def close(self):
            pass

    far = ph.Tensor.from_memory(Memory(), Device(), (2, 3), "float32")
    module = graph(CHAIN, kernels)
    module.set_input("x", far)
    module.run()
    assert np.array_equal(module.get_output(0).numpy(), (X + 1) * 2)
    with pytest.raises(ArgumentTypeError, match="lies on far:0 and the graph runs on the host"):
        module.set_input_zero_copy("x", far)


# ---------------------------------------------------------------- outputs, params


def test_outputs_are_copied_into_arrays_and_tensors(kernels):
    module = graph(CHAIN, kernels)
    module.run(x=X)
    array, tensor = np.empty_like(X), ph.empty((2, 3))
    assert module.get_output(0, array) is None
    assert module["get_output"](0, tensor) is None
    assert np.array_equal(array, (X + 1) * 2)
    assert np.array_equal(tensor.numpy(), array)
    for out, error in (
        (np.empty((3, 2), np.float32), ArgumentValueError),
        (np.empty((2, 3)), ArgumentTypeError),
        (ph.empty((3, 2)), ArgumentValueError),
        (3, ArgumentTypeError),
    ):
        with pytest.raises(error):
            module.get_output(0, out)
    with pytest.raises(ArgumentValueError, match=r"no output 'z'.*the graph has 1: 'y'"):
        module.get_output("z")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_params_are_read_from_bytes_of_any_kind(kernels, kind):
    module = graph(WEIGHTED, kernels)
    module["load_params"](kind(save_params({"w": W, "unknown": X})))
    module.run(x=X)
    assert np.array_equal(module.get_output(0).numpy(), X + W)
    assert module.get_input_info()["shape"] == {"x": (2, 3)}


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("text", ArgumentTypeError, "bytes, not a str; open the file in binary mode"),
        (None, ArgumentTypeError, "params are bytes, not a NoneType"),
        (b"", ArtifactError, "truncated"),
        (b"\0" * 64, ArtifactError, "magic number"),
        (save_params({"w": X[:1]}), ArgumentValueError, r"'w' must have shape \(2, 3\)"),
        (save_params({"w": X.astype(np.int8)}), ArgumentTypeError, "'w' must be float32"),
    ],
)
def test_params_that_do_not_fit(kernels, source, error, message):
    module = graph(WEIGHTED, kernels)
    with pytest.raises(error, match=message):
        module.load_params(source)


def test_params_are_shared_without_a_copy(kernels):
    first, second = graph(WEIGHTED, kernels), graph(WEIGHTED, kernels)
    blob = save_params({"w": W, "unknown": X})
    with pytest.raises(ArgumentValueError, match=r"'w' float32.* was never set in the other"):
        second.share_params(first, blob)
    first.load_params(blob)
    second["share_params"](first, blob[:50])  # the names are enough
    assert np.shares_memory(first.get_input("w").numpy(), second.get_input("w").numpy())
    first.close()
    second.run(x=X)
    assert np.array_equal(second.get_output(0).numpy(), X + W)
    assert second.get_input_info()["shape"] == {"x": (2, 3)}
    second.set_input("w", W * 3)  # own memory again
    with pytest.raises(DeviceClosed):
        graph(WEIGHTED, kernels).share_params(first, blob)
    with pytest.raises(ArgumentTypeError, match="with a graph module, not with a NativeModule"):
        second.share_params(kernels, blob)


def test_setting_shared_params_leaves_the_other_module_alone(kernels):
    first, second = graph(WEIGHTED, kernels), graph(WEIGHTED, kernels)
    blob = save_params({"w": W})
    first.load_params(blob)
    second.share_params(first, blob)
    second.set_input("w", W * 3)
    assert np.array_equal(first.get_input("w").numpy(), W)
    assert np.array_equal(second.get_input("w").numpy(), W * 3)


def test_params_of_a_module_do_not_share_memory_with_the_file():
    folder = DATA / "convnet"
    module, data, expected = convnet("convnet")
    params = load_params((folder / "deploy.params").read_bytes())
    module.set_params(params, lend=True)  # unaligned in the file: copied
    module.run(data=data)
    assert np.array_equal(module.get_output(0).numpy(), expected[0])


@pytest.mark.parametrize("given", [True, False])
def test_weights_linked_into_the_library(folder, given):
    name = "linked" if given else "_lookup_linked_param"
    source = SOURCE.replace("int linked(", f"int {name}(")
    module = load_module(compile_c(source, folder / f"{name}.so", "-w"))
    where = (module["linked"], 1, 0) if given else (1, 0)
    made = create(program_to_json(WEIGHTED), module, *where)
    made.run(x=X)
    assert np.array_equal(made.get_output(0).numpy(), X + 10 * np.arange(1, 7).reshape(2, 3))
    assert made.get_input_info()["shape"] == {"x": (2, 3)}
    made.run(w=W)  # not written into the library
    assert np.array_equal(made.get_output(0).numpy(), X + W)


# ---------------------------------------------------------------- running


def test_run_from_inputs_returns_copies(kernels):
    module = graph(WEIGHTED, kernels)
    [first] = module.run_from_inputs(1, 0, "x", X, 1, W)
    [second] = module["run_from_inputs"](1, 0, "x", X * 2)
    assert np.array_equal(first.numpy(), X + W)
    assert np.array_equal(second.numpy(), X * 2 + W)
    with pytest.raises(ArgumentValueError, match="a name and an array for each"):
        module.run_from_inputs(1, 0, "x")
    with pytest.raises(ArgumentValueError, match="no input 'z'"):
        module.run_from_inputs(1, 0, "z", X)
    with pytest.raises(DeviceUnavailable, match="cuda"):
        module.run_from_inputs(2, 0, "x", X)


def test_a_failing_step_is_named_and_does_not_stick(kernels):
    steps = (CHAIN.steps[0], Step("fail", (1,), (2,), "broken"))
    program = Program("", CHAIN.entries, (0,), (), steps, (2,), ("y",))
    module = graph(program, kernels)
    for _ in range(2):
        with pytest.raises(PackhorseError, match="broken"):
            module.run(x=X)


FFI = r"""
#include <stdint.h>
typedef struct { float *data; int32_t device[2]; int32_t ndim; uint8_t code, bits; uint16_t lanes;
                 int64_t *shape; int64_t *strides; uint64_t offset; } T;
typedef struct { int32_t type; uint32_t pad; T *tensor; } Any;
int __tvm_ffi_inc(void *self, const Any *args, int32_t n, Any *result)
{ if (n != 2 || args[0].type != 7 || args[1].type != 7) return -1;
  for (int i = 0; i < 6; i++) args[1].tensor->data[i] = args[0].tensor->data[i] + 1;
  return 0; }
int __tvm_ffi_twice(void *self, const Any *args, int32_t n, Any *result)
{ for (int i = 0; i < 6; i++) args[1].tensor->data[i] = args[0].tensor->data[i] * 2; return 0; }
int __tvm_ffi_code(void *self, const Any *args, int32_t n, Any *result)
{ *(int64_t *)args[1].tensor->data = args[0].tensor->code; return 0; }
"""


def test_functions_of_the_newer_abi_are_called_by_it(folder):
    library = load_module(compile_c(FFI, folder / "ffi.so", "-w"))
    module = graph(CHAIN, library)
    module.run(x=X)
    assert np.array_equal(module.get_output(0).numpy(), (X + 1) * 2)
    mine = aligned(X * 3)
    module.set_input_zero_copy(0, mine)
    module.run()
    assert np.array_equal(module.get_output(0).numpy(), (X * 3 + 1) * 2)
    places = (Entry("x", (4,), "bool", 0), Entry("y", (1,), "int64", 1))
    steps = (Step("code", (0,), (1,), "code"),)
    module = graph(Program("", places, (0,), (), steps, (1,), ("y",), STRICT), library)
    module.run(x=np.ones(4, bool))
    assert module.get_output(0).numpy()[0] == 6  # bool is a type of its own there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("shape", 3, [2, 9]), r"'tvmgen_default_fused_nn.*_relu' does not fit.* 5 dimensions"),
        (("dltype", 1, "int32"), "does not fit its function.* float32.*compiled with this graph"),
    ],
)
def test_graphs_of_another_library_are_refused(change, message):
    """Compiled code would read beyond the tensors."""
    document = json.loads((DATA / "convnet" / "deploy.json").read_text())
    key, number, value = change
    document["attrs"][key][1][number] = value
    with pytest.raises(ArtifactError, match=message):
        create(json.dumps(document), load_module(DATA / "convnet" / "deploy.so"), "cpu")


def test_python_functions_run_as_steps():
    def negate(x, y):
        np.asarray(y)[...] = -np.asarray(x)

    program = Program(
        "", entries("x", "y"), (0,), (), (Step("negate", (0,), (1,), "n"),), (1,), ("y",)
    )
    module = graph(program, PythonModule({"negate": negate}))
    module.run(x=X)
    out = aligned(X)
    module.set_output_zero_copy(0, out)
    module.run(x=X * 2)
    assert np.array_equal(out, -X * 2)


def test_graphs_of_ours_with_reference_steps_run():
    from packhorse.compiler.host import encode
    from packhorse.graph.ir import Node

    attrs = encode(Node("Neg", ["i0"], ["o0"], {}, "neg", ""))
    step = Step("packhorse.op.Neg", (0,), (1,), "neg", attrs=attrs)
    program = Program("", entries("x", "y"), (0,), (), (step,), (1,), ("y",))
    module = create(program_to_json(program), None, "cpu")
    module.run(x=X)
    assert np.array_equal(module.get_output(0).numpy(), -X)


@pytest.mark.parametrize("shape", [(2, 3), (), (0, 3)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int16"])
def test_dtypes_and_odd_shapes(kernels, dtype, shape):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    program = Program(
        "",
        entries("x", "y", shape=shape, dtype=dtype),
        (0,),
        (),
        (Step("copy16", (0,), (1,), "c"),),
        (1,),
        ("y",),
        STRICT,
    )
    module = graph(program, kernels)
    array = aligned(np.ones(shape).astype(kind))
    module.set_input_zero_copy(0, array)
    module.run()
    assert module.get_output(0).dtype == kind
    assert np.array_equal(module.get_output(0).numpy().astype(float), np.ones(shape))


# ---------------------------------------------------------------- the module


def test_it_is_a_module_of_packed_functions(kernels):
    module = graph(CHAIN, kernels)
    assert "set_input" in module
    assert "nope" not in module
    assert {"run", "get_output", "share_params"} < set(module.functions)
    assert isinstance(module["run"], PackedFunction)
    bound = module["set_input"].bind("x", X)
    bound()
    module["run"]()
    assert module["get_num_outputs"]() == 1
    assert isinstance(module["get_output"](0), ph.Tensor)
    assert module["get_input_info"]()["dtype"] == {"x": "float32"}
    with pytest.raises(FunctionNotFound, match=r"no function 'set_inputs' \(did you mean"):
        module["set_inputs"]
    with pytest.raises(FunctionNotFound):
        module["program"]  # methods only


def test_methods_are_called_by_other_packed_functions(kernels):
    module = graph(CHAIN, kernels)
    apply = ph.convert(lambda f, *args: f(*args))
    apply(module["set_input"], "x", X)
    apply(module["run"])
    assert np.array_equal(apply(module["get_output"], 0).numpy(), (X + 1) * 2)
    assert ph.convert(lambda m: m)(module) is module


def test_methods_keep_the_module(kernels):
    module = graph(CHAIN, kernels)
    set_input, run, get = module["set_input"], module["run"], module["get_output"]
    del module
    set_input("x", X)
    run()
    assert np.array_equal(get(0).numpy(), (X + 1) * 2)


def test_close(kernels):
    module = graph(CHAIN, kernels)
    run = module["run"]
    module.run(x=X)
    seen = module.get_output(0)
    module.close()
    module.close()
    for use in (
        run,
        lambda: module.set_input("x", X),
        lambda: module.set_input_zero_copy("x", X),
        lambda: module.set_output_zero_copy(0, X),
        lambda: module.get_output(0),
        lambda: module.get_input(0),
        lambda: module["run"],
        lambda: module.load_params(save_params({})),
    ):
        with pytest.raises(DeviceClosed, match=r"after close\(\)"):
            use()
    assert np.array_equal(seen.numpy(), (X + 1) * 2)  # views keep what they show


@pytest.mark.parametrize("closed", [True, False])
def test_nothing_leaks_in_1000_cycles(kernels, closed):
    gc.collect()
    before, text = live_bytes(), program_to_json(WEIGHTED)
    gc.disable()  # reference counts alone must do
    try:
        for _ in range(1000):
            module = create(text, kernels, 1, 0)
            module["set_input"]("w", W)
            module["run_from_inputs"](1, 0, "x", X)
            assert live_bytes() > before
            if closed:
                module.close()
        del module
        assert live_bytes() == before
    finally:
        gc.enable()


# ---------------------------------------------------------------- making it


@pytest.mark.parametrize(
    "where",
    [
        ("cpu",),
        (1, 0),
        (ph.device("cpu"),),
        (ph.device("cpu"), 1, 0),
        (np.int32(1), 0),
        (1, 0, 4, 99),
    ],
)
def test_devices_as_tvm_writes_them(kernels, where):
    module = create(program_to_json(CHAIN), kernels, *where)
    module.run(x=X)
    assert np.array_equal(module.get_output(0).numpy(), (X + 1) * 2)


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ((), ArgumentValueError, r"no device was given; pass packhorse.device\('cpu'\)"),
        ((1,), ArgumentValueError, "device type 1 lacks its device id"),
        ((1, 0, 1), ArgumentValueError, "lacks its device id"),
        ((2, 7), DeviceError, "cuda"),  # without a plugin, or without an eighth GPU
        ((3, 0), DeviceUnavailable, r"do not run on device type 3 \(cuda_host\), index 0"),
        ((99, 0), DeviceUnavailable, r"do not run on device type 99"),
        ((1.5, 0), ArgumentTypeError, "not a float"),
        ((None,), ArgumentTypeError, "a Device, a device string or two ints"),
    ],
)
def test_devices_that_cannot_be(kernels, where, error, message):
    with pytest.raises(error, match=message):
        create(program_to_json(CHAIN), kernels, *where)


@pytest.mark.parametrize(
    ("text", "module", "error", "message"),
    [
        (None, None, ArgumentTypeError, "JSON text, not a NoneType"),
        (Path("deploy.json"), None, ArgumentTypeError, "pass the content of deploy.json"),
        ("deploy.json", None, ArtifactError, "not valid JSON"),
        ("{}", None, ArtifactError, "lacks the key"),
        (program_to_json(CHAIN), "deploy.so", ArgumentTypeError, "with packhorse.load_module"),
        (program_to_json(CHAIN), None, FunctionNotFound, "'inc', which is neither"),
    ],
)
def test_what_is_not_a_graph(text, module, error, message):
    with pytest.raises(error, match=message):
        create(text, module, "cpu")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tvm.graph_executor.create", "GraphExecutor"),
        ("tvm.graph_runtime.create", "GraphExecutor"),
        ("tvm.graph_executor_debug.create", "GraphExecutorDebug"),
        ("tvm.graph_runtime_debug.create", "GraphExecutorDebug"),
    ],
)
def test_global_functions_under_tvms_names(name, kind):
    folder = DATA / "convnet"
    make = ph.get_global_func(name)
    text = (folder / "deploy.json").read_text()
    module = make(text, load_module(folder / "deploy.so"), ph.device("cpu"))
    assert module.kind == kind
    module["load_params"]((folder / "deploy.params").read_bytes())
    module["set_input"]("data", ph.tensor(np.load(folder / "in_data.npy")))
    module["run"]()
    assert np.array_equal(module["get_output"](0).numpy(), np.load(folder / "out_0.npy"))
    assert name in ph.list_global_func_names()
    with pytest.raises(DeviceUnavailable):
        ph.get_global_func("tvm.graph_executor_cuda_graph.create")(text, None, 2, 0)


def test_looking_a_constructor_up_imports_no_executor():
    code = (
        "import sys, packhorse; packhorse.get_global_func('tvm.graph_executor.create'); "
        "print(*(name for name in sys.modules if name.startswith('packhorse.graph')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_cuda_graphs_are_refused():
    with pytest.raises(DeviceUnavailable, match=r"tvm\.graph_executor\.create"):
        create_cuda_graph("{}", None, 2, 0)


def test_heterogeneous_graphs_are_refused(kernels):
    document = json.loads(program_to_json(CHAIN))
    document["attrs"]["device_index"] = ["list_int", [1, 2, 1]]
    with pytest.raises(ArtifactError, match=r"devices of types \[1, 2\]"):
        create(json.dumps(document), kernels, 1, 0)
