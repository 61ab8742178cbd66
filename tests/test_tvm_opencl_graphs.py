"""Whole models that TVM compiled for OpenCL: graph modules, executables, the Relax VM."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from gpu_kit import opencl
from model_kit import NEEDS_LLVM
from relax_kit import Assembler, reg, tensor

import packhorse as ph
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    DeviceClosed,
    DeviceError,
    DeviceUnavailable,
    FunctionNotFound,
)
from packhorse.graph.factory import load_factory
from packhorse.graph.graph_json import program_from_json
from packhorse.graph.relax import load_relax
from packhorse.graph.relax_device import DeviceMemory
from packhorse.graph.relax_values import Callee, Step, View
from packhorse.module import DeviceModule, EmbeddedModule
from packhorse.module_blob import DeviceCode, Opaque

DATA = Path(__file__).parent / "data" / "tvm"
LEGACY, MODERN = DATA / "opencl" / "legacy", DATA / "opencl" / "modern"
CPU = DATA / "convnet"
JSON, PARAMS = (LEGACY / "deploy.json").read_text(), (LEGACY / "deploy.params").read_bytes()
DEVICE = "opencl:0"


@pytest.fixture
def device():
    """A device of the test's own."""
    opencl()
    from packhorse_opencl.plugin import OpenClBackend

    with OpenClBackend().open(0, {}) as own:
        yield own


def image(folder=LEGACY):
    return np.load(folder / "in_data.npy")


def check(outputs, folder=LEGACY):
    for i, found in enumerate(outputs):
        expected = np.load(folder / f"out_{i}.npy")
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-5)


def create(*where, name="tvm.graph_executor.create", library=LEGACY / "deploy.so"):
    graph = ph.get_global_func(name)(JSON, ph.load_module(library), *where)
    graph.load_params(PARAMS)
    return graph


def both(graph):
    return graph.get_output(0), graph.get_output(1)


# ---------------------------------------------------------------- graph modules


@pytest.mark.parametrize(
    "where", [(4, 0), (DEVICE,), (1, 0, 4, 0), ("cpu", DEVICE), (ph.DeviceType.OPENCL, 0)], ids=str
)
def test_devices_as_tvm_writes_them(where):
    opencl()
    graph = create(*where)
    graph.set_input("data", image())
    graph.run()
    outputs = both(graph)
    assert {t.device.name for t in outputs} == {DEVICE}
    check(outputs)


def test_the_old_name_and_a_device_object(device):
    graph = create(device, name="tvm.graph_runtime.create")
    graph.run(data=image())
    assert graph.get_output(0).device is device
    check(both(graph))


def test_inputs_and_outputs_of_any_place(device):
    graph = create(device)
    expected = np.load(LEGACY / "out_0.npy")
    for given in (image(), ph.tensor(image()), ph.tensor(image(), device=device)):
        graph.set_input("data", np.zeros_like(image()))
        graph.set_input("data", given)
        graph.run()
        outs = [ph.empty((1, 10), device=where) for where in ("cpu", device, opencl())]
        for out in (np.empty((1, 10), np.float32), *outs):
            assert graph.get_output(0, out) is None
            np.testing.assert_allclose(np.asarray(out), expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(graph.get_input("data").numpy(), image())


def test_tensors_of_the_device_are_used_in_place(device):
    graph = create(device)
    given, result = ph.tensor(image(), device=device), ph.empty((1, 10), device=device)
    graph.set_input_zero_copy("data", given)
    graph.set_output_zero_copy(0, result)
    graph.run()
    check([result])
    given.copy_from(np.zeros_like(image()))
    graph.run()
    assert not np.allclose(result.numpy(), np.load(LEGACY / "out_0.npy"))
    assert np.array_equal(graph.get_output(0).numpy(), result.numpy())
    graph.set_input("data", image())  # into the graph's own memory again
    graph.run()
    check([result])
    assert not given.numpy().any()


@pytest.mark.parametrize("where", ["host", "array", "another opening"])
def test_tensors_that_cannot_be_used_in_place(device, where):
    graph = create(device)
    given = {"host": ph.tensor(image()), "array": image()}.get(where)
    if given is None:
        given = ph.tensor(image(), device=opencl())
    with pytest.raises(ArgumentTypeError, match=r"must be a tensor on 'opencl:0' .* use set_input"):
        graph.set_input_zero_copy("data", given)
    with pytest.raises(ArgumentTypeError, match=r"use get_output\(i, out\)"):
        graph.set_output_zero_copy(0, np.empty((1, 10), np.float32))


def test_tensors_that_do_not_fit(device):
    graph = create(device)
    for wrong, error in (
        (ph.empty((1, 3, 32, 31), device=device), ArgumentValueError),
        (ph.empty((1, 3, 32, 32), "float64", device), ArgumentTypeError),
    ):
        for method in (graph.set_input, graph.set_input_zero_copy):
            with pytest.raises(error, match="input 'data' must"):
                method("data", wrong)
    with pytest.raises(ArgumentValueError, match=r"'data' .* were never set|never set: 'data'"):
        graph.run()


def test_weights_are_shared_on_the_device(device):
    first, second = create(device), create(device)
    before = device.memory().used
    second.share_params(first, PARAMS)
    names = ("p0", "p1", "p2", "p3")
    sizes = sum(-(-first.get_input(name).nbytes // 128) * 128 for name in names)
    assert device.memory().used == before - sizes
    for name in names:
        assert first.get_input(name).address == second.get_input(name).address
    first.close()
    second.run(data=image())
    check(both(second))


def test_run_from_inputs_returns_copies_on_the_host(device):
    graph = create(device)
    outputs = graph["run_from_inputs"](1, 0, "data", image())
    assert {t.device.name for t in outputs} == {"cpu:0"}
    check(outputs)
    with pytest.raises(DeviceUnavailable, match=r"device type 4 \(opencl\), index 0; pass 1, 0"):
        graph.run_from_inputs(4, 0, "data", image())


def test_the_debug_form(device):
    graph = create(device, name="tvm.graph_executor_debug.create")
    graph.set_input("data", image())
    names = [node.name for node in graph.nodes]
    conv = next(name for name in names if "conv2d" in name)
    graph.execute_node(conv)
    found = graph.get_node_output(conv)
    assert found.shape == (1, 4, 32, 32)
    assert found.device.name == "cpu:0"
    assert (found.numpy() >= 0).all()
    assert found.numpy().any()
    graph.run()
    check(both(graph))
    report = graph.profile()
    assert len(report.rows) == sum(
        node.step is not None and node.step.function != "__nop" for node in graph.nodes
    )
    assert report.device == DEVICE
    times = graph.run_individual(2, 1)
    assert struct.unpack_from("<q", times)[0] == len(names)


def test_factories(device):
    factory = ph.load_module(LEGACY / "deploy_factory.so")
    create = factory["default"]
    for where in ((device,), (DEVICE,), (4, 0)):
        graph = create(*where)
        graph.run(data=image())
        check(both(graph))
    debug = factory["debug_create"]("default", device)
    debug.run(data=image())
    check(both(debug))
    check(load_factory(factory, device).run([image()]))


# ---------------------------------------------------------------- the wrong device


@pytest.mark.parametrize(
    "where",
    [("cpu",), (1, 0), pytest.param(("llvm-cpu",), marks=NEEDS_LLVM), (2, 0), (8, 3)],
    ids=str,
)
def test_a_graph_for_a_gpu_runs_nowhere_else(where):
    with pytest.raises(DeviceUnavailable, match=r"compiled for a device 'opencl' .*'opencl:0'\)"):
        create(*where)
    with pytest.raises(DeviceUnavailable, match="compiled for a device 'opencl'"):
        ph.load_module(LEGACY / "deploy_factory.so")["default"](*where)


def test_a_graph_for_the_host_runs_on_no_gpu(device):
    with pytest.raises(DeviceUnavailable, match="compiled for a device 'cpu'"):
        ph.load_module(CPU / "deploy_factory.so")["default"](device)


def without_devices(text):
    document = json.loads(text)
    del document["attrs"]["device_index"]
    return json.dumps(document)


def test_graphs_of_old_that_name_no_device(device, tmp_path):
    make = ph.get_global_func("tvm.graph_executor.create")
    graph = make(without_devices(JSON), ph.load_module(LEGACY / "deploy.so"), device)
    graph.load_params(PARAMS)
    graph.run(data=image())
    check(both(graph))
    folder = tmp_path / "deploy"
    folder.mkdir()
    for name in ("deploy.params", "deploy.so"):
        shutil.copy(LEGACY / name, folder)
    (folder / "deploy.json").write_text(without_devices(JSON))
    check(ph.load(folder)(image(), device=DEVICE))


def test_code_of_the_host_gets_no_handles(device):
    make = ph.get_global_func("tvm.graph_executor.create")
    text = without_devices((CPU / "deploy.json").read_text())
    with pytest.raises(ArtifactError, match=r"is code of the host: .* no kernels for 'opencl:0'"):
        make(text, ph.load_module(CPU / "deploy.so"), device)
    with pytest.raises(FunctionNotFound, match="neither in the module"):
        make(JSON, ph.load_module(CPU / "deploy.so"), device)


@pytest.mark.parametrize(("kind", "word"), [(2, "cuda"), (7, "vulkan"), (8, "metal"), (15, "web")])
def test_graphs_for_devices_that_are_not_here(kind, word):
    text = JSON.replace("[4, 4, 4, 4, 4, 4, 4, 4, 4, 4]", str([kind] * 10))
    assert program_from_json(text).metadata["device_type"] == str(kind)
    make = ph.get_global_func("tvm.graph_executor.create")
    library = ph.load_module(LEGACY / "deploy.so")
    with pytest.raises(DeviceUnavailable, match=f"compiled for a device '{word}"):
        make(text, library, "cpu")
    with pytest.raises(DeviceError, match=word):
        make(text, library, kind, 63)


def test_a_device_closed_meanwhile():
    opencl()
    from packhorse_opencl.plugin import OpenClBackend

    own = OpenClBackend().open(0, {})
    graph = create(own)
    graph.run(data=image())
    own.close()
    with pytest.raises(DeviceClosed):
        graph.run()
    with pytest.raises(DeviceClosed):
        graph.set_input("data", image())
    graph.close()


# ---------------------------------------------------------------- executables


@pytest.fixture(params=["folder", "factory", "relax"])
def model(request, tmp_path):
    """A model in each of its forms, and the folder of its inputs and outputs."""
    opencl()
    if request.param == "relax":
        return MODERN / "relax.so", MODERN
    if request.param == "factory":
        return LEGACY / "deploy_factory.so", LEGACY
    for name in ("deploy.json", "deploy.params", "deploy.so"):
        shutil.copy(LEGACY / name, tmp_path)
    return tmp_path, LEGACY


def test_models_load_for_their_device(model):
    path, data = model
    with ph.load(path) as network:
        assert network.device.name == DEVICE
        assert list(network.inputs) == ["data"]
        for _ in range(3):
            check(network(image(data)), data)
        check(network(image(data), device=DEVICE), data)
        check(network(ph.tensor(image(data), device=DEVICE)), data)
        assert {row.device for row in network.report()} == {DEVICE}
        other = network(np.zeros_like(image(data)))[0]
        assert not np.allclose(other, network(image(data))[0])


def test_models_refuse_other_devices(model):
    path, data = model
    network = ph.load(path)
    for name in ("cpu", "llvm-cpu"):
        with pytest.raises(DeviceUnavailable, match="opencl"):
            network(image(data), device=name)
        with pytest.raises(DeviceUnavailable, match="opencl"):
            ph.load(path, device=name)
    check(network(image(data)), data)


def test_models_refuse_wrong_inputs(model):
    path, data = model
    network = ph.load(path)
    with pytest.raises((ArgumentTypeError, ArgumentValueError)):
        network(image(data).astype(np.float64))
    with pytest.raises((ArgumentTypeError, ArgumentValueError)):
        network(image(data)[:, :, 1:])
    check(network(image(data)), data)


def test_models_leave_nothing_on_the_device(model):
    path, data = model
    where = opencl()
    before = where.memory()
    for _ in range(10):
        with ph.load(path) as network:
            network(image(data))
    after = where.memory()
    assert (after.used, after.live) == (before.used, before.live)


def test_graph_modules_leave_nothing_on_the_device(device):
    for _ in range(20):
        with create(device) as graph:
            graph.run(data=image())
            check([graph.get_output(0)])
    assert (device.memory().used, device.memory().live) == (0, 0)


def test_tensors_given_out_outlive_the_graph(device):
    with create(device) as graph:
        graph.run(data=image())
        kept = graph.get_output(0)
        kept_too = graph.get_output(0)
        kept_too.close()  # the caller's own view
        graph.run()
    check([kept])


def test_a_folder_is_profiled_and_saved(tmp_path):
    opencl()
    for name in ("deploy.json", "deploy.params", "deploy.so"):
        shutil.copy(LEGACY / name, tmp_path)
    network = ph.load(tmp_path)
    rows = network.profile(image(), repeat=2)
    assert [row[1] for row in rows] == [row.step for row in network.report() if row.step != "__nop"]
    path = network.save(tmp_path / "model.packhorse")
    again = ph.load(path)
    assert again.device.name == DEVICE
    check(again(image()))


def test_models_for_the_host_refuse_a_gpu():
    opencl()
    for path in (CPU, CPU / "deploy_factory.so", DATA / "relax_convnet" / "deploy.so"):
        with pytest.raises(DeviceUnavailable, match=r"cpu|host"):
            ph.load(path, device=DEVICE)


# ---------------------------------------------------------------- the Relax VM

KERNELS = DeviceModule("opencl", DeviceCode("cl", {}, b""))
V = np.arange(4, dtype=np.float32)


def relax(made, device):
    return load_relax(
        EmbeddedModule("relax.VMExecutable", Opaque(made.bytes()), [KERNELS]), device=device
    )


@pytest.fixture
def functions():
    """Python functions that executables call."""

    def add(x, y, out):
        np.asarray(out)[...] = np.asarray(x) + np.asarray(y)

    def twice(x):
        return np.asarray(x) * 2

    found = {"test.there.add": add, "test.there.twice": twice}
    for name, function in found.items():
        ph.register_func(name, function)
    yield
    for name in found:
        ph.remove_global_func(name)


def test_relax_python_functions_get_copies(device, functions):
    made = Assembler()
    main = made.function("main", "x")
    tensor(made, main, 1, (4,))
    made.call(main, "test.there.add", reg(0), made.const(V), reg(1))
    tensor(made, main, 2, (4,))
    made.call(main, "test.there.add", reg(1), reg(0), reg(2))
    made.call(main, "reshape", reg(2), made.const((2, 2)), dst=3)
    main.code.append([2, 3])
    executable = relax(made, device)
    for factor in (1, 3, 5):
        (found,) = executable.run([V * factor])
        np.testing.assert_array_equal(found, (V + 2 * V * factor).reshape(2, 2))
    assert "0 kernels in 0 native calls, 2 Python functions" in executable.report()[0]
    executable.close()
    assert device.memory().used == 0


def test_relax_values_that_depend_on_data(device, functions):
    made = Assembler()
    main = made.function("main", "x c")
    made.call(main, "read_if_cond", reg(1), dst=2)
    main.code.append([4, 2, 3])
    made.call(main, "test.there.twice", reg(0), dst=3)
    main.code.append([2, 3])
    main.code.append([2, 0])
    executable = relax(made, device)
    for condition, factor in ((True, 2), (False, 1), (True, 2)):
        (found,) = executable.run([V, np.array(condition)])
        np.testing.assert_array_equal(found, V * factor)
    assert "interpreted each time" in executable.report()[0]


def test_relax_tensors_inside_a_storage(device, functions):
    """Handles have no offsets: such an executable is refused, not miscomputed."""
    made = Assembler()
    main = made.function("main", "x")
    scope, u8 = made.const("global"), made.const(np.dtype(np.uint8))
    made.call(
        main, "alloc_storage", reg((1 << 54) + 1), made.const((256,)), 1 << 56, u8, scope, dst=1
    )
    tensor(made, main, 2, (4,), storage=1, offset=64)
    made.call(main, "test.there.add", reg(0), reg(0), reg(2))
    main.code.append([2, 2])
    with pytest.raises(ArtifactError, match=r"64 bytes into a storage .* no offsets"):
        relax(made, device).run([V])


def test_relax_other_devices_of_an_executable(device):
    made = Assembler()
    main = made.function("main", "x")
    made.call(main, "to_device", reg(0), 1 << 56 | 1, 1 << 56, dst=1)
    main.code.append([2, 1])
    with pytest.raises(ArtifactError, match=r"device type 1, .* lie on device type 4"):
        relax(made, device).run([V])


def test_relax_params_are_uploaded_once(device, functions):
    made = Assembler()
    main = made.function("main", "x w")
    tensor(made, main, 2, (4,))
    made.call(main, "test.there.add", reg(0), reg(1), reg(2))
    main.code.append([2, 2])
    executable = relax(made, device)
    executable.set_params({"w": V})
    (found,) = executable.run([V])
    np.testing.assert_array_equal(found, V + V)
    used = device.memory().used
    for size in (1, 2, 3):
        (found,) = executable.run([V * size])
        np.testing.assert_array_equal(found, (1 + size) * V)
    assert device.memory().used == used


def test_code_of_libraries_gets_tensors_of_the_device(device):
    library = ph.load_module(MODERN / "myadd.so")
    memory, function = DeviceMemory(device), library["myadd"]
    views = [memory.uploaded(View(memory.storage(16), 0, (4,), V.dtype)) for _ in range(3)]
    for view in views[:2]:
        view.buffer.tensor.copy_from(V.view(np.uint8))
    memory.run([Step(Callee("myadd", function, function.address), tuple(views), True)])
    np.testing.assert_array_equal(views[2].array, V + V)
