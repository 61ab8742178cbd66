"""Models: inputs of every kind, a device per call, one compiled form per shape."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from model_kit import DEVICES, LLVM, NEEDS_LLVM, batch_of, linear, linear_of, pair, value

import packhorse as ph
from packhorse.graph.ir import Graph, Node
from packhorse.model import Model

# ---------------------------------------------------------------- calling


class OnlyDLPack:
    """An array of another library: nothing of NumPy's protocols but DLPack."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


KINDS = {
    "array": lambda x: x,
    "tensor": ph.tensor,
    "dlpack": OnlyDLPack,
    "fortran order": np.asfortranarray,
    "every second column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: x[::-1].copy()[::-1],
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "subclass": lambda x: np.ma.masked_array(x),
    "other byte offset": lambda x: np.append(np.float32(0), x)[1:].reshape(x.shape),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_every_kind(device, kind):
    x = batch_of(5)
    y = linear()(KINDS[kind](x), device=device)
    assert type(y) is np.ndarray
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, linear_of(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_by_position_by_name_and_mixed(device):
    a, b = np.full((2, 3), 3, np.float32), np.full((2, 3), 5, np.float32)
    model = pair()
    for given in (
        model(a, b, device=device),
        model(a, right=b, device=device),
        model(right=b, left=a, device=device),
    ):
        total, product = given  # several outputs are a tuple in the model's order
        assert isinstance(given, tuple)
        assert np.all(total == 8)
        assert np.all(product == 15)


@pytest.mark.parametrize("device", DEVICES)
def test_one_output_is_an_array_of_its_own(device):
    model, x = linear(), batch_of(2)
    first = model(x, device=device)
    kept = first.copy()
    second = model(x * 2, device=device)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)  # a later call does not write to it
    first[...] = 0  # the caller may write to it
    np.testing.assert_array_equal(model(x, device=device), kept)


@pytest.mark.parametrize("device", DEVICES)
def test_an_output_that_is_the_input_is_a_copy(device):
    nodes = [Node("Identity", ["x"], ["y"], name="same")]
    model = Model(Graph("same", [value("x", (3,))], [value("y", (3,))], nodes, {}))
    x = np.arange(3, dtype=np.float32)
    y = model(x, device=device)
    assert not np.shares_memory(x, y)
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("device", DEVICES)
def test_inputs_are_not_written_to(device):
    x = batch_of(3)
    before = x.copy()
    linear()(x, device=device)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_batches_of_any_size(device, rows):
    y = linear()(batch_of(rows), device=device)
    assert y.shape == (rows, 3)
    np.testing.assert_allclose(y, linear_of(batch_of(rows)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_not_a_number_in_is_not_a_number_out(device):
    x = np.array([[np.nan, 1, 2, 3], [1, 2, 3, 4]], np.float32)
    y = linear()(x, device=device)
    assert np.isnan(y[0]).all()
    np.testing.assert_allclose(y[1], linear_of(x[1:])[0], rtol=1e-5)
    x[0, 0] = np.inf
    assert not np.isfinite(linear()(x, device=device)[0]).all()


# ---------------------------------------------------------------- the device of the call


@NEEDS_LLVM
def test_a_device_per_call():
    model, x = linear(), batch_of(4)
    results = [model(x, device=d) for d in ("cpu", LLVM, "llvm-cpu:0?threads=2", ph.device("cpu"))]
    for y in results:
        np.testing.assert_allclose(y, linear_of(x), rtol=1e-5, atol=1e-6)


def test_the_default_is_the_variable(monkeypatch):
    monkeypatch.setenv("PACKHORSE_DEVICE", "cpu?threads=1")
    model = linear()
    model(batch_of(2))
    assert model.compile(shapes={"x": (2, 4)}).device.name == "cpu:0?threads=1"


@NEEDS_LLVM
def test_the_default_is_the_best_device_that_works():
    assert linear().compile(shapes={"x": (2, 4)}).device.name == "llvm-cpu:0"


def test_a_list_takes_the_first_that_works():
    made = linear().compile("no-such-backend,cpu", shapes={"x": (2, 4)})
    assert made.device.name == "cpu:0"


# ---------------------------------------------------------------- one compiled form per shape


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_once_per_shape(device):
    model = linear()
    model(batch_of(2), device=device)
    two = model.compile(device, shapes={"x": (2, 4)})
    three = model.compile(device, shapes={"x": (3, 4)})
    assert two is not three
    assert two is model.compile(device, shapes={"x": (2, 4)})
    for rows in (2, 3, 2):
        np.testing.assert_allclose(
            model(batch_of(rows), device=device), linear_of(batch_of(rows)), rtol=1e-5, atol=1e-6
        )
    assert not two.closed


def test_names_of_one_device_share_what_is_compiled():
    model, shapes = linear(), {"x": (2, 4)}
    assert model.compile("CPU", shapes=shapes) is model.compile("cpu:0", shapes=shapes)


def test_the_number_of_compiled_forms_is_bounded():
    model = linear()
    for rows in range(1, 100):
        model(batch_of(rows), device="cpu")
    assert len(model._ready) <= 64
    np.testing.assert_allclose(
        model(batch_of(1), device="cpu"), linear_of(batch_of(1)), rtol=1e-5, atol=1e-6
    )


def reshape():
    """y = reshape(x, shape): the shape of the result is the value of an input."""
    nodes = [Node("Reshape", ["x", "shape"], ["y"], name="reshape")]
    inputs = [value("x", (6,)), value("shape", (2,), np.int64)]
    return Model(Graph("reshape", inputs, [value("y", ("a", "b"))], nodes, {}))


@pytest.mark.parametrize("device", DEVICES)
def test_inputs_that_are_shapes(device):
    model, x = reshape(), np.arange(6, dtype=np.float32)
    for shape in ((2, 3), (3, 2), (1, -1), (2, 3)):
        y = model(x, np.array(shape), device=device)
        np.testing.assert_array_equal(y, x.reshape(shape))


@NEEDS_LLVM
def test_compiling_needs_the_value_of_a_shape():
    model = reshape()
    with pytest.raises(ph.PackhorseError, match=r"'shape'.*values=\{'shape'"):
        model.compile(LLVM)
    made = model.compile(LLVM, values={"shape": [3, 2]})
    assert made(np.arange(6, dtype=np.float32), np.array([3, 2])).shape == (3, 2)


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize("device", DEVICES)
def test_one_model_from_many_threads(device):
    model, start = linear(), threading.Barrier(4)

    def work(seed):
        start.wait()  # the first call of all threads compiles: once is enough
        for i in range(20):
            x = batch_of(1 + i % 3, seed)
            np.testing.assert_allclose(model(x, device=device), linear_of(x), rtol=1e-5, atol=1e-6)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(model._ready) == 3


# ---------------------------------------------------------------- looking and closing


def test_what_it_takes_and_gives():
    model = pair()
    assert {n: str(t) for n, t in model.inputs.items()} == {
        "left": "float32[n, 3]",
        "right": "float32[n, 3]",
    }
    assert list(model.outputs) == ["sum", "product"]
    assert "left" in repr(model)
    assert "2 nodes" in repr(model)


@pytest.mark.parametrize("device", DEVICES)
def test_closing_frees_and_calling_compiles_again(device):
    with linear() as model:
        made = model.compile(device, shapes={"x": (2, 4)})
        assert model(batch_of(2), device=device).shape == (2, 3)
    assert made.closed
    model.close()  # twice is fine
    assert model(batch_of(2), device=device).shape == (2, 3)
    assert model.compile(device, shapes={"x": (2, 4)}) is not made


def test_a_closed_executable_is_not_used_again():
    model = linear()
    model.compile("cpu", shapes={"x": (2, 4)}).close()
    assert model(batch_of(2), device="cpu").shape == (2, 3)
