"""One model on several devices: choice per call, placement, copies, inputs of other devices."""

import gc
import weakref

import numpy as np
import pytest
from gpu_kit import opencl
from model_kit import F32, LLVM, NEEDS_LLVM, linear, linear_of, value

import packhorse as ph
from packhorse.compiler.placement import Placement, partition
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    CompileError,
    DeviceClosed,
    DeviceStringError,
)
from packhorse.graph.ir import Graph, Node
from packhorse.model import Model
from packhorse.ops import registry

pytestmark = NEEDS_LLVM
DEVICE = "opencl:0"


@pytest.fixture(autouse=True)
def _driver():
    pytest.importorskip("pyopencl", reason="pyopencl is not installed (extra opencl)")
    opencl()


def diamond():
    """Two branches that meet, twice: every value crosses somewhere in some placement."""
    nodes = [
        Node("Relu", ["x"], ["a"], name="first/relu"),
        Node("Softmax", ["a"], ["b"], name="first/softmax"),
        Node("Mul", ["a", "k"], ["c"], name="second/mul"),
        Node("Add", ["b", "c"], ["d"], name="meet"),
        Node("Exp", ["d"], ["e"], name="second/exp"),
        Node("Add", ["e", "a"], ["y"], name="last"),
    ]
    outputs = [value("y", ("n", 6)), value("d", ("n", 6))]
    k = np.linspace(-1, 1, 6, dtype=np.float32)
    return Model(Graph("diamond", [value("x", ("n", 6))], outputs, nodes, {"k": k}))


def diamond_of(x):
    a = np.maximum(x, 0)
    e = np.exp(a - a.max(1, keepdims=True))
    d = e / e.sum(1, keepdims=True) + a * np.linspace(-1, 1, 6, dtype=np.float32)
    return np.exp(d) + a, d


def some(rows=3):
    return np.random.default_rng(rows).standard_normal((rows, 6), np.float32)


def check(model, choice, x):
    for found, expected in zip(model(x, device=choice), diamond_of(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# -- choice per call ------------------------------------------------------------------------------


def test_devices_take_turns_without_compiling_again(monkeypatch):
    from packhorse.compiler import compile as compiling

    made = []
    known = compiling.compile_static
    monkeypatch.setattr(
        compiling, "compile_static", lambda *a, **k: made.append(a[1].name) or known(*a, **k)
    )
    model, x = linear(), np.ones((2, 4), np.float32)
    opened = ph.device(DEVICE)
    gc.collect()
    before = opened.memory()
    for name in (DEVICE, LLVM, "cpu") * 20:
        np.testing.assert_allclose(model(x, device=name), linear_of(x), rtol=1e-5)
    assert made == [DEVICE, "llvm-cpu:0?threads=1"]
    held = opened.memory().used
    for name in (DEVICE, LLVM) * 20:
        model(x, device=name)
    assert opened.memory().used == held
    model.close()
    after = opened.memory()
    assert (after.used, after.live) == (before.used, before.live)


def test_a_device_opened_anew_compiles_anew():
    model, x = linear(), np.ones((2, 4), np.float32)
    model(x, device=DEVICE)
    ph.device(DEVICE).close()
    np.testing.assert_allclose(model(x, device=DEVICE), linear_of(x), rtol=1e-5)


# -- several devices for one model ----------------------------------------------------------------


@pytest.mark.parametrize(
    "choice",
    [
        {DEVICE: ["first/softmax", "second/exp"], LLVM: "rest"},
        {DEVICE: ["first/*", "meet"], LLVM: "rest"},
        {LLVM: ["first/*", "second/mul"], DEVICE: "rest"},
        {DEVICE: ["second/*"], LLVM: ["first/softmax"], "cpu": "rest"},
        {DEVICE: ["first/relu", "last"], "cpu": ["meet"], LLVM: "rest"},
        {DEVICE: "auto", LLVM: "rest"},
        {DEVICE: ["*"]},
        {"cpu": "rest"},
    ],
    ids=lambda choice: "+".join(f"{k}={v}" for k, v in choice.items()),
)
def test_results_do_not_depend_on_the_placement(choice):
    with diamond() as model:
        for rows in (1, 5, 1):
            check(model, choice, some(rows))


def test_random_placements():
    rng = np.random.default_rng(5)
    names = [node.name for node in diamond().graph.nodes]
    for _ in range(12):
        lists = {DEVICE: [], LLVM: [], "cpu": []}
        for name in names:
            lists[rng.choice(list(lists))].append(name)
        with diamond() as model:
            check(model, lists, some())


def test_parts_are_reported_with_their_copies():
    model = diamond()
    executable = model.compile({DEVICE: ["second/*", "meet"], LLVM: "rest"}, shapes={"x": (3, 6)})
    executable(some())
    where = {row.node: row.device for row in executable.report()}
    assert where == {
        "'first/relu' (Relu)": "llvm-cpu:0?threads=1",
        "'first/softmax' (Softmax)": "llvm-cpu:0?threads=1",
        "'second/mul' (Mul)": DEVICE,
        "'meet' (Add)": DEVICE,
        "'second/exp' (Exp)": DEVICE,
        "'last' (Add)": "llvm-cpu:0?threads=1",
    }
    assert sorted(str(copy) for copy in executable.report().copies) == [
        "'a': host -> opencl:0, 72 bytes",
        "'b': host -> opencl:0, 72 bytes",
        "'d': opencl:0 -> host, 72 bytes",
        "'e': opencl:0 -> host, 72 bytes",
    ]
    assert "copied: 'a': host -> opencl:0, 72 bytes" in str(executable.report())
    assert [d.name for d in executable.devices] == [DEVICE, "llvm-cpu:0?threads=1"]
    assert executable.compiled_for == f"{DEVICE}=second/*,meet; llvm-cpu:0?threads=1=rest"
    assert {n: t.dims for n, t in executable.outputs.items()} == {"y": (3, 6), "d": (3, 6)}
    rows = executable.profile(some(), repeat=2)
    assert len(rows) == len({row.step for row in executable.report()})
    assert all(microseconds > 0 for _, _, microseconds in rows)


def test_what_stays_on_a_device_is_not_copied():
    """'a' is made there and read there again after a part elsewhere; it never comes down."""
    model = diamond()
    executable = model.compile(
        {DEVICE: ["first/relu", "second/mul", "meet", "second/exp", "last"], "cpu": "rest"},
        shapes={"x": (3, 6)},
    )
    x = some()
    for _ in range(2):
        np.testing.assert_allclose(executable(x)[0], diamond_of(x)[0], rtol=1e-5)
    moved = [str(copy) for copy in executable.report().copies]
    assert sorted(moved) == [
        "'a': opencl:0 -> host, 72 bytes",  # the softmax on cpu reads it
        "'b': host -> opencl:0, 72 bytes",
        "'d': opencl:0 -> host, 72 bytes",
        "'x': host -> opencl:0, 72 bytes",
        "'y': opencl:0 -> host, 72 bytes",
    ]


def test_auto_takes_what_the_device_has_kernels_for(monkeypatch):
    from dataclasses import replace

    known = registry.get
    monkeypatch.setattr(
        registry, "get",
        lambda node: replace(known(node), lower=None) if node.op == "Softmax" else known(node),
    )  # fmt: skip
    with diamond() as model:
        choice = {DEVICE: "auto", "cpu": "rest"}
        check(model, choice, some())
        where = {row.node: row.device for row in
                 model.compile(choice, shapes={"x": (3, 6)}).report()}  # fmt: skip
    assert {n for n, d in where.items() if d != DEVICE} == {"'first/softmax' (Softmax)"}


def test_memory_of_parts_comes_back():
    opened = ph.device(DEVICE)
    gc.collect()
    before = opened.memory()
    choice = {DEVICE: ["first/relu", "second/*"], LLVM: "rest"}
    for _ in range(10):
        with diamond().compile(choice, shapes={"x": (2, 6)}) as executable:
            executable(some(2))
            kept = executable
        with pytest.raises(DeviceClosed):
            kept(some(2))
    after = opened.memory()
    assert (after.used, after.live) == (before.used, before.live)


def test_code_and_weights_of_parts_go_when_it_is_closed():
    executable = diamond().compile({DEVICE: ["first/*"], LLVM: "rest"}, shapes={"x": (2, 6)})
    held = [weakref.ref(part.module) for part in executable._compiled.parts]
    assert len(held) > 1
    executable.close()
    assert [module() for module in held] == [None] * len(held)
    assert not any(part.params for part in executable._compiled.parts)


def test_compile_takes_models_graphs_and_files(tmp_path):
    x = np.ones((2, 4), np.float32)
    model = linear()
    for what in (model, model.graph):
        made = ph.compile(what, LLVM, shapes={"x": (2, 4)})
        np.testing.assert_allclose(made(x), linear_of(x), rtol=1e-5)
    made.save(tmp_path / "m.packhorse")
    again = ph.compile(tmp_path / "m.packhorse")
    np.testing.assert_allclose(again(x), linear_of(x), rtol=1e-5)
    with pytest.raises(ArgumentTypeError, match="not int"):
        ph.compile(3)


@pytest.mark.parametrize(
    ("choice", "error", "words"),
    [
        ({}, ArgumentValueError, "no device was given"),
        ({DEVICE: ["nothing"], LLVM: "rest"}, ArgumentValueError, "has no such node"),
        ({DEVICE: ["first/rely"], LLVM: "rest"}, ArgumentValueError, "first/relu"),
        ({DEVICE: ["last"], LLVM: ["last"]}, ArgumentValueError, "name it once"),
        ({DEVICE: ["last"]}, ArgumentValueError, "and 4 more nodes"),
        ({DEVICE: "rest", LLVM: "rest"}, ArgumentValueError, "only one can"),
        ({DEVICE: "last"}, ArgumentTypeError, "list of node names"),
        ({DEVICE: [3]}, ArgumentTypeError, "are strings"),
        ({DEVICE: None}, ArgumentTypeError, "list of node names"),
        ({"llvm-cpu": "rest", "llvm-cpu:0": ["last"]}, ArgumentValueError, "named twice"),
        ({"opencl:0?what=1": "rest"}, DeviceStringError, "what"),
    ],
)
def test_choices_that_make_no_sense(choice, error, words):
    with pytest.raises(error, match=words):
        diamond()(some(), device=choice)


def test_an_executable_of_parts_refuses_other_devices_and_saving(tmp_path):
    model = diamond()
    executable = model.compile({DEVICE: ["last"], LLVM: "rest"}, shapes={"x": (3, 6)})
    with pytest.raises(ArgumentValueError, match="was compiled for opencl:0=last"):
        executable(some(), device=DEVICE)
    with pytest.raises(ArgumentValueError, match=r"not for opencl:0=meet; llvm-cpu:0\?threads=1="):
        executable(some(), device={DEVICE: ["meet"], LLVM: "rest"})
    with pytest.raises(ArgumentTypeError, match="not list"):
        linear().compile([DEVICE, LLVM], shapes={"x": (2, 4)})
    same = {DEVICE: ["last"], LLVM: "rest"}
    assert executable.compile(same) is executable.compile(Placement.of(same)) is executable
    with pytest.raises(CompileError, match="cannot be saved as one"):
        executable.save(tmp_path / "m.packhorse")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ArgumentValueError, match="must have shape"):
        executable(some(4))


def test_shapes_that_depend_on_data_cannot_be_cut():
    nodes = [Node("NonZero", ["x"], ["i"], name="where"), Node("Abs", ["i"], ["y"], name="abs")]
    graph = Graph("g", [value("x", (2, 3))], [value("y", (2, "m"), np.int64)], nodes)
    with pytest.raises(CompileError, match="cannot be cut into parts"):
        Model(graph)(np.ones((2, 3), np.float32), device={"cpu": ["abs"], LLVM: "rest"})


def test_parts_are_few_and_in_order():
    """Alternating devices along a chain: as many parts as stretches; side branches join them."""
    nodes = [
        Node("Abs", ["x"], ["a"], name="a"), Node("Abs", ["x"], ["p"], name="p"),
        Node("Abs", ["a"], ["b"], name="b"), Node("Abs", ["p"], ["q"], name="q"),
        Node("Add", ["b", "q"], ["y"], name="y"),
    ]  # fmt: skip
    types = {n: value(n, (2,)).type for n in "xabpqy"}
    graph = Graph("g", [value("x", (2,))], [value("y", (2,))], nodes, {}, types)
    parts = partition(graph, [0, 1, 0, 1, 0])
    assert [(k, [n.name for n in part.nodes]) for k, part in parts] == [
        (1, ["p", "q"]), (0, ["a", "b", "y"]),
    ]  # fmt: skip
    assert [v.name for v in parts[1][1].inputs] == ["x", "q"]
    assert [v.name for v in parts[0][1].outputs] == ["q"]


def test_an_output_that_is_an_input_is_not_the_callers_array():
    nodes = [Node("Relu", ["x"], ["y"], name="relu")]
    graph = Graph("g", [value("x", (2,))], [value("y", (2,)), value("x", (2,))], nodes)
    x = np.array([-1, 1], F32)
    y, same = Model(graph)(x, device={LLVM: ["relu"]})
    same[:] = 5
    assert x.tolist() == [-1, 1]
    assert y.tolist() == [0, 1]


@pytest.mark.parametrize("choice", ["cpu", LLVM, DEVICE, {LLVM: ["relu"]}, {DEVICE: ["re*"]}])
def test_a_value_that_is_two_outputs_is_two_arrays(choice):
    graph = Graph("g", [value("x", (2,))], [value("y", (2,))] * 2,
                  [Node("Relu", ["x"], ["y"], name="relu")])  # fmt: skip
    y, z = Model(graph)(np.array([-1, 1], F32), device=choice)
    y[:] = 5
    assert z.tolist() == [0, 1]


@pytest.mark.parametrize("wrong", [np.zeros(2), np.zeros(3, F32)])
def test_inputs_that_no_part_reads_are_checked(wrong):
    nodes = [Node("Relu", ["x"], ["y"], name="relu")]
    inputs = [value("x", (2,)), value("unread", (2,))]
    graph = Graph("g", inputs, [value("y", (2,)), inputs[1]], nodes)
    executable = Model(graph).compile({LLVM: ["relu"]})
    assert str(executable.outputs["unread"]) == "float32[2]"
    x = np.array([-1, 1], F32)
    assert executable(x, x)[1].tolist() == [-1, 1]
    with pytest.raises((ArgumentTypeError, ArgumentValueError), match="'unread' must"):
        executable(x, wrong)


def test_the_name_of_a_placement_is_its_key():
    choice = {"opencl": ["a", "b*"], "llvm-cpu": "rest"}
    assert Placement.of(choice).name == "opencl:0=a,b*; llvm-cpu:0=rest"
    rules = [["a,b"], ["a", "b"], ["'a,b'"], ["a", "b; cpu:0=c"], "rest", ["rest"], ["'rest'"], []]
    assert len({Placement.of({"cpu": rule}).name for rule in rules}) == len(rules)


def test_brackets_in_names_are_no_wildcards():
    names = ["layer[0]/relu", "layer[1]/exp"]
    nodes = [Node("Relu", ["x"], ["a"], name=names[0]), Node("Exp", ["a"], ["y"], name=names[1])]
    model = Model(Graph("g", [value("x", (2,))], [value("y", (2,))], nodes))
    rows = model.compile({"cpu": ["layer[0]*"], LLVM: ["layer[1]/ex?"]}).report()
    assert [row.device for row in rows] == ["cpu:0", "llvm-cpu:0?threads=1"]


# -- inputs that lie on a device ------------------------------------------------------------------


def test_inputs_on_the_device_stay_there():
    x = np.random.default_rng(1).standard_normal((5, 4), np.float32)
    there = ph.tensor(x, device=DEVICE)
    with linear().compile(DEVICE, shapes={"x": (5, 4)}) as executable:
        downloads = []
        opened = ph.device(DEVICE)
        known = opened.copy_to_host
        opened.copy_to_host = lambda *a, **k: downloads.append(a[0]) or known(*a, **k)
        try:
            np.testing.assert_allclose(executable(there), linear_of(x), rtol=1e-5)
        finally:
            del opened.copy_to_host
        assert len(downloads) == 1  # the output
    np.testing.assert_array_equal(there.numpy(), x)


@pytest.mark.parametrize("device", [LLVM, "cpu", DEVICE])
def test_inputs_of_another_device_are_copied_and_the_report_says_so(device):
    x = np.random.default_rng(1).standard_normal((2, 4), np.float32)
    model = linear()
    there = ph.tensor(x, device=DEVICE)
    np.testing.assert_allclose(model(there, device=device), linear_of(x), rtol=1e-5)
    copies = [str(c) for c in model.compile(device, shapes={"x": (2, 4)}).report().copies]
    assert ("'x': opencl:0 -> host, 32 bytes" in copies) is (device != DEVICE)
    check_types = [(there.reshape(4, 2), ArgumentValueError), (x.astype(np.float64), TypeError)]
    for wrong, error in check_types:
        with pytest.raises(error, match="input 'x'"):
            model(wrong, device=device)


def test_parts_take_inputs_of_any_device():
    x = some()
    with diamond() as model:
        check(model, {DEVICE: ["first/*"], LLVM: "rest"}, x)
        y, _ = model(ph.tensor(x, device=DEVICE), device={DEVICE: ["first/*"], LLVM: "rest"})
    np.testing.assert_allclose(y, diamond_of(x)[0], rtol=1e-5)


def test_packed_calls_refuse_tensors_of_another_device():
    executable = linear().compile(DEVICE, shapes={"x": (2, 4)})
    (step,) = {row.step for row in executable.report()}
    function = executable.module[step]
    host = ph.tensor(np.ones((2, 4), np.float32))
    there = ph.empty((2, 3), device=DEVICE)
    params = [ph.tensor(array, device=DEVICE) for array in executable._compiled.params.values()]
    with pytest.raises(ArgumentTypeError, match="must be a tensor on opencl:0, found cpu:0"):
        function(host, *params, there)
    compiled = linear().compile(LLVM, shapes={"x": (2, 4)})
    (step,) = {row.step for row in compiled.report()}
    with pytest.raises(ArgumentTypeError, match="lies on opencl:0"):
        compiled.module[step](there, *[host] * 3)
