"""The debug form of the graph runtime, and the reports it makes."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

import packhorse as ph
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DeviceClosed,
    PackhorseError,
)
from packhorse.graph.graph_json import program_from_json, program_to_json
from packhorse.graph.program import Entry, Program, Step
from packhorse.graph.runtime_debug import nodes_of
from packhorse.graph.runtime_functions import create_debug
from packhorse.graph.runtime_report import ProfileReport, ProfileRow
from packhorse.module import PythonModule, load_module

CONVNET = Path(__file__).parent / "data" / "tvm" / "convnet"
X = np.arange(6, dtype=np.float32).reshape(2, 3)
ENTRIES = tuple(Entry(n, (2, 3), "float32", i) for i, n in enumerate(("x", "t", "u", "v", "y")))


def calls():
    """Python functions that count how often they ran."""
    seen = []

    def inc(x, y):
        seen.append("inc")
        np.asarray(y)[...] = np.asarray(x) + 1

    def split(x, y, z):
        seen.append("split")
        np.asarray(y)[...], np.asarray(z)[...] = np.asarray(x) * 2, np.asarray(x) * 3

    def fail(x, y):
        seen.append("fail")
        if np.asarray(x).max() > 100:
            raise ZeroDivisionError("too large")
        np.asarray(y)[...] = -np.asarray(x)

    return seen, PythonModule({"inc": inc, "split": split, "fail": fail})


PROGRAM = Program(
    "three",
    ENTRIES,
    (0,),
    (),
    (
        Step("inc", (0,), (1,), "first", attrs={"hash": "abc", "src_layout": "NCHW"}),
        Step("split", (1,), (2, 3), "second"),
        Step("fail", (3,), (4,), "third"),
    ),
    (4,),
    ("y",),
)


@pytest.fixture
def three():
    seen, functions = calls()
    module = create_debug(program_to_json(PROGRAM), functions, 1, 0)
    module.set_input("x", X)
    return module, seen


def convnet():
    module = create_debug(
        (CONVNET / "deploy.json").read_text(), load_module(CONVNET / "deploy.so"), "cpu?threads=1"
    )
    module.load_params((CONVNET / "deploy.params").read_bytes())
    module.set_input("data", np.load(CONVNET / "in_data.npy"))
    return module


def test_nodes_are_those_of_the_file():
    text = (CONVNET / "deploy.json").read_text()
    names = [node["name"] for node in json.loads(text)["nodes"]]
    assert [node.name for node in nodes_of(program_from_json(text, ()))] == names
    assert [node.name for node in convnet().nodes] == names


def test_debug_get_output_runs_up_to_a_node(three):
    module, seen = three
    assert np.array_equal(module.debug_get_output("first").numpy(), X + 1)
    assert seen == ["inc"]
    assert np.array_equal(module["debug_get_output"](2).numpy(), (X + 1) * 2)
    assert seen == ["inc", "inc", "split"]
    out, tensor = np.empty_like(X), ph.empty((2, 3))
    assert module.debug_get_output("third", out) is None
    module.debug_get_output(0, tensor)
    assert np.array_equal(out, -3 * (X + 1))
    assert np.array_equal(tensor.numpy(), X)
    with pytest.raises(ArgumentValueError, match="shape"):
        module.debug_get_output(0, np.empty((3, 2), np.float32))


def test_execute_node_goes_on_from_the_last_one(three):
    module, seen = three
    module.execute_node(1)
    module.execute_node(1)
    assert seen == ["inc"]
    module.execute_node("third")
    assert seen == ["inc", "split", "fail"]
    assert np.array_equal(module.get_node_output(3, 0).numpy(), -3 * (X + 1))
    module.execute_node(2)  # earlier: from the start
    assert seen[3:] == ["inc", "split"]
    assert np.array_equal(module.get_node_output(2, 1).numpy(), 3 * (X + 1))
    assert np.array_equal(module.get_output_by_layer("second", 0).numpy(), 2 * (X + 1))
    assert len(seen) == 5
    module.set_input("x", X * 2)  # whatever was computed is stale
    module.execute_node(2)
    assert np.array_equal(module.get_node_output(2).numpy(), 2 * (X * 2 + 1))


def test_outputs_of_another_node_than_the_last_are_refused(three):
    module, _ = three
    for change in (
        lambda: None,
        lambda: module.execute_node(3),
        lambda: (module.execute_node(2), module.run()),
        lambda: (module.execute_node(2), module.set_input("x", X)),
    ):
        change()
        with pytest.raises(
            ArgumentValueError, match=r"\('second'\) is not the one.*execute_node\(2"
        ):
            module.get_node_output(2, 0)


@pytest.mark.parametrize(
    ("node", "output", "error", "message"),
    [
        ("thirt", 0, ArgumentValueError, r"no node 'thirt' \(did you mean 'third'"),
        (4, 0, ArgumentValueError, "no node 4: the graph has 4, counted from 0"),
        (-1, 0, ArgumentValueError, "no node -1"),
        (1.5, 0, ArgumentTypeError, "a name or a number, not a float"),
        (False, 0, ArgumentTypeError, "not a bool"),
        (2, 2, ArgumentValueError, r"node 2 \('second'\) has 2 outputs, found output 2"),
        (2, -1, ArgumentValueError, "found output -1"),
        (2, "a", ArgumentTypeError, "an output is a number, not a str"),
    ],
)
def test_nodes_and_outputs_that_are_not_there(three, node, output, error, message):
    module, _ = three
    with pytest.raises(error, match=message):
        module.get_output_by_layer(node, output)


def test_unset_inputs_and_failing_nodes():
    seen, functions = calls()
    module = create_debug(program_to_json(PROGRAM), functions, 1, 0)
    uses = (
        lambda: module.debug_get_output(1),
        lambda: module.execute_node(1),
        lambda: module.run_individual(1),
        lambda: module.run_individual_node(1, 1),
        lambda: module.profile(),
    )
    for use in uses:
        with pytest.raises(ArgumentValueError, match="'x' float32"):
            use()
    assert seen == []
    module.set_input("x", X + 1000)
    for _ in range(2):
        with pytest.raises((ZeroDivisionError, PackhorseError)):
            module.execute_node(3)
    module.set_input("x", X)
    module.execute_node(3)
    module.close()
    for use in (*uses, lambda: module.get_node_output(0)):
        with pytest.raises(DeviceClosed):
            use()


def test_every_node_of_tvms_convnet_gives_the_bits_of_a_whole_run():
    module = convnet()
    for i in (0, 1):
        expected = np.load(CONVNET / f"out_{i}.npy")
        name = list(module.get_output_info()["shape"])[i]
        assert np.array_equal(module.debug_get_output(name).numpy(), expected)
    module.run()
    assert np.array_equal(module.get_output(0).numpy(), np.load(CONVNET / "out_0.npy"))


def test_run_individual_is_laid_out_as_tvms(three):
    module, seen = three
    raw = module["run_individual"](2, 3, 0, 0, 0, 1)
    assert isinstance(raw, bytes)
    [count] = struct.unpack_from("<q", raw)
    seconds = np.frombuffer(raw, "<f8", offset=8).reshape(count, 3)
    assert count == 4
    assert (seconds[0] == 0).all()  # an input
    assert (seconds[1:] > 0).all()
    assert seen.count("inc") == 1 + 1 + 2 * 3
    one = np.frombuffer(module.run_individual_node("first", 1, 4), "<f8")
    assert one.shape == (4,)
    assert len(np.frombuffer(module.run_individual_node(0, 1, 2), "<f8")) == 2


def test_measurements_last_as_long_as_asked(three):
    module, seen = three
    module.run_individual_node("first", 1, 1, min_repeat_ms=2, cooldown_interval_ms=1)
    assert len(seen) > 4


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        ((0,), ArgumentValueError, "number must be at least 1, found 0"),
        ((1, 0), ArgumentValueError, "repeat must be at least 1"),
        ((1, 1, -1), ArgumentValueError, "min_repeat_ms must be at least 0"),
        ((1, 1, 0, -1), ArgumentValueError, "limit_zero_time_iterations"),
        ((1, 1, 0, 0, -1), ArgumentValueError, "cooldown_interval_ms"),
        ((1, 1, 0, 0, 0, 0), ArgumentValueError, "repeats_to_cooldown must be at least 1"),
        (("1",), ArgumentTypeError, "number must be an int, found str"),
    ],
)
def test_counts_that_cannot_be(three, counts, error, message):
    with pytest.raises(error, match=message):
        three[0].run_individual(*counts)


def test_profile(three, tmp_path):
    module, _ = three
    report = module.profile(x=X * 2)
    assert [(row.node, row.name, row.function) for row in report.rows] == [
        (1, "first", "inc"),
        (2, "second", "split"),
        (3, "third", "fail"),
    ]
    starts = [row.start_us for row in report.rows]
    assert starts == sorted(starts)
    assert report.wall_us >= report.total_us * 0.5
    assert np.array_equal(module.get_output(0).numpy(), -3 * (X * 2 + 1))
    text = str(report)
    for word in ("split", "float32[2, 3], float32[2, 3], float32[2, 3]", "three on cpu:0", "total"):
        assert word in text
    path = report.chrome_trace(tmp_path / "trace.json")
    trace = json.loads(path.read_text())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert trace["traceEvents"][0]["args"] == {"name": "three"}
    assert [event["name"] for event in events] == ["inc", "split", "fail"]
    assert events[0]["args"]["src_layout"] == "NCHW"
    assert all({"ts", "dur", "pid", "tid"} <= set(event) for event in events)


def test_profile_rpc_is_tvms_json(three):
    report = json.loads(three[0]["profile_rpc"]())
    first = report["calls"][0]
    assert first["Name"] == {"string": "inc"}
    assert first["Hash"] == {"string": "abc"}
    assert first["src_layout"] == {"string": "NCHW"}
    assert set(first["Duration (us)"]) == {"microseconds"}
    assert report["configuration"] == {"Executor": {"string": "Graph"}}


def test_profile_of_nothing_and_collectors(three, tmp_path):
    with pytest.raises(ArgumentValueError, match="collectors are not offered"):
        three[0].profile([object()])
    assert three[0].profile([]).rows
    empty = ProfileReport("g", "cpu:0", (), 0.0)
    assert "total" in str(empty)
    assert empty.percent(ProfileRow(0, "a", "b", 0.0, 0.0, "")) == 0
    with pytest.raises(ArgumentValueError, match="cannot be written to"):
        empty.chrome_trace(tmp_path / "no" / "trace.json")


def test_views_need_no_call():
    entries = (*ENTRIES[:2], Entry("y", (6,), "float32", 1))
    steps = (Step("inc", (0,), (1,), "inc"), Step("__nop", (1,), (2,), "reshape"))
    program = Program("", entries, (0,), (), steps, (2,), ("y",))
    module = create_debug(program_to_json(program), calls()[1], 1, 0)
    module.set_input("x", X)
    assert np.array_equal(module.debug_get_output("reshape").numpy(), X.ravel() + 1)
    assert len(module.profile().rows) == 1
