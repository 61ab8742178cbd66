"""Our kernels in apache-tvm-ffi, and its functions and tensors here."""

import contextlib
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from interop_kit import network, optional, run_program

pytest.importorskip("llvmlite")

from export_kit import LARGE, SMALL, WRONG, library, vectors

import packhorse as ph
from packhorse.errors import ArgumentTypeError, ArgumentValueError
from packhorse.function import DLDevice

tvm_ffi = optional("tvm_ffi")
wrap = tvm_ffi.from_dlpack


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return library(tmp_path_factory.mktemp("lib"), {"add": SMALL, "large": LARGE}, threads=2)


@pytest.mark.parametrize("name", ["add", "large"])
def test_our_kernels_there(kernels, name):
    a, b, y = vectors(SMALL if name == "add" else LARGE)
    tvm_ffi.load_module(str(kernels))[name](wrap(a), wrap(b), wrap(y))
    np.testing.assert_array_equal(y, a + b)


def test_the_entry_there(tmp_path):
    a, b, y = vectors()
    tvm_ffi.load_module(str(library(tmp_path, {"add": SMALL})))["main"](*map(wrap, (a, b, y)))
    np.testing.assert_array_equal(y, a + b)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_there(kernels, case):
    change, text = WRONG[case]
    function = tvm_ffi.load_module(str(kernels))["add"]
    given = [wrap(x) if isinstance(x, np.ndarray) else x for x in change(*vectors())]
    with pytest.raises(ValueError if case == "size" else TypeError) as caught:
        function(*given)
    assert text in str(caught.value)


def test_a_network_kernel_by_kernel(tmp_path):
    model, x = network()
    executable = model.compile("llvm-cpu?threads=1")
    expected = executable(x)
    executable.save(tmp_path / "deploy/")
    module = tvm_ffi.load_module(str(tmp_path / "deploy" / "deploy.so"))
    compiled = executable._compiled
    got = run_program(compiled.program, compiled.params, [x], module.__getitem__, wrap)
    for ours, theirs in zip(expected, got, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# -- sharing ------------------------------------------------------------------------------------


def test_tensors_are_one_memory():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = ph.from_tvm_ffi(wrap(array))
    array[0, 0] = 42
    assert np.asarray(tensor)[0, 0] == 42
    assert tensor.shape == (2, 3)


def test_functions_there_and_back(kernels):
    a, b, y = vectors()
    function = ph.from_tvm_ffi(tvm_ffi.load_module(str(kernels))["add"])
    function(a, b, y)
    np.testing.assert_array_equal(y, a + b)
    y[:] = 0
    function(*map(ph.from_dlpack, (a, b, y)))
    np.testing.assert_array_equal(y, a + b)
    assert function.as_tvm_ffi().same_as(function._call.function)


@pytest.mark.parametrize("abi", ["legacy", "ffi"])
def test_compiled_functions_go_over_without_python(kernels, abi):
    a, b, y = vectors()
    function = ph.load_module(kernels, abi=abi)["add"]
    theirs = function.as_tvm_ffi()
    theirs(*map(wrap, (a, b, y)))
    np.testing.assert_array_equal(y, a + b)
    with pytest.raises(TypeError, match="add: 1 arguments were given; it takes 3"):
        theirs(wrap(a))
    with pytest.raises(Exception, match="add: 1 arguments were given; it takes 3"):
        function(a)  # the same library tells us too


def test_functions_outlive_their_module(kernels):
    a, b, y = vectors()
    with ph.load_module(kernels) as module:
        function = module["add"].as_tvm_ffi()
    function(*map(wrap, (a, b, y)))
    np.testing.assert_array_equal(y, a + b)


VALUES = [None, True, 3, -2.5, "text", b"raw\0bytes", "longer than the small strings are",
          np.dtype("float16"), np.dtype("bool"), DLDevice(1, 0)]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_values_cross_both_ways(value):
    ours = ph.from_tvm_ffi(ph.convert(lambda x: x).as_tvm_ffi())
    theirs = ph.from_tvm_ffi(tvm_ffi.convert_func(lambda x: x))
    for function in (ours, theirs):
        found = function(value)
        assert found == value
        assert isinstance(found, type(value))


def test_arrays_tensors_and_functions_cross():
    theirs = ph.from_tvm_ffi(tvm_ffi.convert_func(lambda x: x))
    array = np.arange(4.0)
    tensor = theirs(array)
    array[0] = 7
    assert np.asarray(tensor)[0] == 7
    assert np.asarray(theirs(ph.from_dlpack(array)))[0] == 7
    assert theirs(ph.convert(lambda x: x + 1))(41) == 42
    apply = ph.convert(lambda f, x: f(x)).as_tvm_ffi()
    assert apply(lambda x: 2 * x, 21) == 42


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn"])
def test_dtypes_that_numpy_lacks(name):
    tensor = ph.tensor([1, 2, 3], name)
    seen = []

    def look(x):
        seen.append((str(x.dtype), x.shape))
        return x

    found = ph.from_tvm_ffi(tvm_ffi.convert_func(look))(tensor)
    assert seen == [(name, (3,))]
    assert found.dtype == tensor.dtype
    np.testing.assert_array_equal(np.asarray(found), np.asarray(tensor))


def test_read_only_arrays_are_not_made_writable():
    array = np.arange(3.0)
    array.flags.writeable = False
    same = ph.from_tvm_ffi(tvm_ffi.convert_func(lambda x: x))
    with contextlib.suppress(BufferError):  # what tvm-ffi cannot express is refused
        assert not np.asarray(same(array)).flags.writeable


def test_devices_cross():
    seen = []
    ph.convert(seen.append).as_tvm_ffi()(tvm_ffi.device("cpu:0"))
    assert seen == [DLDevice(1, 0)]
    assert str(ph.from_tvm_ffi(tvm_ffi.convert_func(str))(ph.device("cpu"))) == "cpu:0"


@pytest.mark.parametrize("error", [KeyError, ValueError, ArgumentTypeError, ArgumentValueError])
def test_exceptions_keep_their_type(error):
    def fail():
        raise error("boom")

    for function in (ph.convert(fail).as_tvm_ffi(), ph.from_tvm_ffi(tvm_ffi.convert_func(fail))):
        with pytest.raises(error, match="boom"):
            function()


def test_what_cannot_cross():
    with pytest.raises(ArgumentTypeError, match=r"takes a tvm_ffi.Function or a tvm_ffi.Tensor"):
        ph.from_tvm_ffi(3)
    with pytest.raises(ArgumentTypeError, match="not ndarray"):
        ph.from_tvm_ffi(np.zeros(3))
    with pytest.raises(ArgumentTypeError, match="of type Array"):
        ph.from_tvm_ffi(tvm_ffi.convert_func(lambda: [1, 2]))()


def test_from_their_registry_and_threads(kernels):
    function = ph.load_module(kernels)["add"]
    tvm_ffi.register_global_func("packhorse.test.add", function.as_tvm_ffi(), override=True)
    found = tvm_ffi.get_global_func("packhorse.test.add")
    results = []

    def work():
        a, b, y = vectors()
        for _ in range(50):
            found(wrap(a), wrap(b), wrap(y))
        results.append((y == a + b).all())

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [True] * 4
    tvm_ffi.registry.remove_global_func("packhorse.test.add")
