"""Single-file libraries: graph, weights and code in one module."""

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import packhorse as ph
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    DeviceClosed,
    DeviceUnavailable,
    FunctionNotFound,
)
from packhorse.graph.executor import GraphExecutor
from packhorse.graph.factory import (
    GraphFactory,
    create_factory,
    find_factory,
    from_payload,
    load_factory,
)
from packhorse.graph.graph_json import program_to_json
from packhorse.graph.params import load_params, save_params
from packhorse.graph.program import Entry, Program, Step
from packhorse.graph.runtime import GraphModule
from packhorse.graph.runtime_debug import DebugModule
from packhorse.module import PythonModule, load_module
from packhorse.module_blob import read_legacy_blob

DATA = Path(__file__).parent / "data" / "tvm"
CONVNET = DATA / "convnet"


def convnet() -> GraphFactory:
    params = load_params((CONVNET / "deploy.params").read_bytes())
    library = load_module(CONVNET / "deploy.so")
    return GraphFactory((CONVNET / "deploy.json").read_text(), params, "default", [library])


@pytest.fixture
def data():
    return np.load(CONVNET / "in_data.npy")


@pytest.fixture
def expected():
    return [np.load(CONVNET / f"out_{i}.npy") for i in (0, 1)]


@pytest.mark.parametrize("where", [("cpu?threads=1",), (1, 0), ("cpu?threads=2",)])
def test_the_default_function_makes_a_graph_ready_to_run(where, data, expected):
    factory = convnet()
    module = factory["default"](*where)
    assert type(module) is GraphModule
    module.run(data=data)
    for i, array in enumerate(expected):
        assert np.array_equal(module.get_output(i).numpy(), array)
    assert module.get_input_info()["shape"] == {"data": data.shape}


def test_graphs_of_one_factory_share_weights_but_not_tensors(data, expected):
    factory = convnet()
    first, second = factory["default"]("cpu"), factory["default"]("cpu")
    weight = first.get_input("p2").numpy()
    assert np.shares_memory(weight, second.get_input("p2").numpy())
    assert not weight.flags.writeable
    first.set_input("p2", weight * 0)
    first.run(data=data)
    second.run(data=data)
    factory.close()
    assert not np.array_equal(first.get_output(0).numpy(), expected[0])
    assert np.array_equal(second.get_output(0).numpy(), expected[0])
    second.run()
    with pytest.raises(DeviceClosed):
        factory["default"]


def test_debug_create(data, expected):
    factory = convnet()
    module = factory["debug_create"]("default", "cpu")
    assert type(module) is DebugModule
    module.set_input("data", data)
    assert np.array_equal(module.debug_get_output(10).numpy(), expected[0])
    with pytest.raises(ArgumentValueError, match="makes 'default', not 'other'"):
        factory["debug_create"]("other", "cpu")


def test_json_params_and_a_factory_without_them(data):
    factory = convnet()
    assert factory["get_graph_json"]() == (CONVNET / "deploy.json").read_text()
    params = factory["get_graph_params"]()
    assert set(params) == {"p0", "p1", "p2", "p3"}
    assert params["p3"].shape == (1, 10)
    bare = factory["remove_params"]()
    assert bare["get_graph_params"]() == {}
    module = bare["default"]("cpu")
    with pytest.raises(ArgumentValueError, match=r"4 of its 5 .* never set: 'p0'"):
        module.run(data=data)
    module.set_params({name: tensor.numpy() for name, tensor in params.items()})
    module.run()


def test_the_functions_of_a_factory():
    factory = convnet()
    assert set(factory.functions) == {
        *("default", "get_graph_json", "get_graph_params", "debug_create", "remove_params"),
        "cuda_graph_create",
    }
    softmax = "tvmgen_default_fused_nn_softmax"
    assert factory.get_function(softmax, query_imports=True).address
    with pytest.raises(FunctionNotFound):
        factory[softmax]
    with pytest.raises(DeviceUnavailable):
        factory["cuda_graph_create"](2, 0)
    with pytest.raises(DeviceUnavailable, match="cuda"):
        factory["default"](2, 0)
    assert ph.convert(lambda m: m)(factory) is factory


def double(x, w, y):
    np.asarray(y)[...] = np.asarray(x) * np.asarray(w)


ENTRIES = tuple(Entry(n, (2,), "float32", i) for i, n in enumerate("xwy"))
PROGRAM = Program("", ENTRIES, (0,), (1,), (Step("mul", (0, 1), (2,), "mul"),), (2,), ("y",))
TWO = np.full(2, 2, np.float32)


def test_create_takes_names_and_arrays_in_turn():
    library = PythonModule({"mul": double})
    factory = create_factory(program_to_json(PROGRAM), library, "net", "w", ph.tensor(TWO))
    module = factory["net"](1, 0)
    module.run(x=TWO)
    assert np.array_equal(module.get_output(0).numpy(), TWO * 2)
    assert factory.imports == (library,)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((b"{}", PythonModule({})), ArgumentTypeError, "JSON as str"),
        (("{}", PythonModule({}), 3), ArgumentTypeError, "found str and int"),
        (("{}", "deploy.so"), ArgumentTypeError, r"not a str; load it with packhorse\.load_module"),
        (("{}", PythonModule({}), "net", "w"), ArgumentValueError, "name and array in turn"),
        (("{}", PythonModule({}), "net", TWO, "w"), ArgumentValueError, "found ndarray, str"),
        (("{}", PythonModule({}), "net", "w", 3), ArgumentTypeError, "'w' must be an array"),
    ],
)
def test_what_makes_no_factory(args, error, message):
    with pytest.raises(error, match=message):
        create_factory(*args)


@pytest.mark.parametrize("threads", [1, 2])
def test_load_factory_gives_an_executor_without_state(threads, data, expected):
    for module in (convnet(), PythonModule({})):
        if not isinstance(module, GraphFactory):
            module.import_module(convnet())
        with load_factory(module, threads=threads) as executor:
            assert isinstance(executor, GraphExecutor)
            assert list(executor.input_info()) == ["data"]
            for found, array in zip(executor.run([data]), expected, strict=True):
                assert np.array_equal(found, array)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["convnet", "convnet_c"])
def test_single_file_libraries_give_the_bits_tvm_gave(name, threads):
    folder = DATA / name
    library = load_module(folder / "deploy_factory.so")
    data = np.load(folder / "in_data.npy")
    assert type(library) is GraphFactory
    module = library["default"](ph.device(f"cpu?threads={threads}"))
    module.run(data=data)
    outputs = load_factory(library, threads=threads).run({"data": data})
    for i, found in enumerate(outputs):
        expected = np.load(folder / f"out_{i}.npy")
        assert np.array_equal(found, expected)
        assert np.array_equal(module.get_output(i).numpy(), expected)


def test_a_factory_is_called_by_its_entry_and_made_by_name(data, expected):
    made = ph.get_global_func("tvm.graph_executor_factory.create")(
        (CONVNET / "deploy.json").read_text(), load_module(CONVNET / "deploy.so"), "net"
    )
    assert made.functions[-1] == "net"
    module = load_module(CONVNET / "deploy_factory.so")("cpu")
    module.run(data=data)
    assert np.array_equal(module.get_output(0).numpy(), expected[0])


def text(word: str) -> bytes:
    return struct.pack("<Q", len(word)) + word.encode()


def blob() -> bytes:
    """What a single-file library holds besides code, small enough that damage hits structure."""
    names, arrays = ["w"], save_params({"w": TWO})[-(32 + 16 + 8) :]
    payload = text(program_to_json(PROGRAM)) + struct.pack("<Q", 1)
    payload += struct.pack("<Q", len(names)) + text("w") + arrays + text("net")
    tree = struct.pack("<4Q", 3, 0, 1, 1) + struct.pack("<2Q", 1, 1)
    entries = text("GraphExecutorFactory") + payload + text("_lib") + text("_import_tree") + tree
    content = struct.pack("<Q", 3) + entries
    return struct.pack("<Q", len(content)) + content


def unpack(raw: bytes) -> GraphFactory:
    tree = read_legacy_blob(raw)
    node = tree.nodes[0]
    return from_payload(node.kind, node.payload, [PythonModule({"mul": double})])


def test_the_factory_within_a_blob():
    module = unpack(blob())["net"](1, 0)
    module.run(x=TWO)
    assert np.array_equal(module.get_output(0).numpy(), TWO * 2)
    with pytest.raises(ArtifactError, match="of kind 'x' should hold a graph with weights"):
        from_payload("x", None, [])


def _fuzz(data: st.DataObject) -> None:
    raw = bytearray(blob())
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(ArtifactError):
        factory = unpack(bytes(raw))
        factory.weights()
        factory.program()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_gives_artifact_errors_only(data):
    _fuzz(data)


@pytest.mark.fuzz
@settings(max_examples=100_000, deadline=None)
@given(st.data())
def test_damage_long(data):
    _fuzz(data)


def test_modules_without_a_graph():
    assert find_factory(PythonModule({})) is None
    with pytest.raises(ArgumentTypeError, match="'python' holds no graph"):
        load_factory(PythonModule({}))


def test_a_damaged_graph_is_found_when_it_is_read():
    factory = GraphFactory("{", {}, "default", [])
    assert factory.get_graph_json() == "{"
    with pytest.raises(ArtifactError, match="graph JSON"):
        factory["default"]("cpu")
