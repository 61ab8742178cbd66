"""What we compile, called through both ABIs by others' rules: ctypes plays the other runtime."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from codegen_kit import at, dense, to
from export_kit import LARGE, SMALL, WRONG, compiled, library, open_device, vectors

from packhorse.compiler.schedule import schedule
from packhorse.errors import ArgumentTypeError, ArgumentValueError
from packhorse.kernel import Kernel
from packhorse.kernel.expr import call
from packhorse.module import load_module

ABIS = ("legacy", "ffi")


class Tensor(ctypes.Structure):
    """DLTensor"""

    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


class Boxed(ctypes.Structure):
    """A tensor object of tvm-ffi: the DLTensor lies behind a header of 24 bytes."""

    _fields_ = [("header", ctypes.c_uint64 * 3), ("tensor", Tensor)]


class Any(ctypes.Structure):
    """TVMFFIAny"""

    _fields_ = [("kind", ctypes.c_int32), ("zero", ctypes.c_uint32), ("value", ctypes.c_void_p)]


def tensor_of(array: np.ndarray, **changed) -> Tensor:
    dims = (ctypes.c_int64 * max(1, array.ndim))(*array.shape)
    code = {"f": 2, "i": 0, "u": 1, "b": 6}[array.dtype.kind]
    fields = {
        "data": array.ctypes.data, "device_type": 1, "device_id": 0, "ndim": array.ndim,
        "code": code, "bits": 8 * array.itemsize, "lanes": 1, "shape": dims, "byte_offset": 0,
    }  # fmt: skip
    return Tensor(**(fields | changed))


def strided(array: np.ndarray, *steps: int) -> Tensor:
    return tensor_of(array, strides=(ctypes.c_int64 * len(steps))(*steps))


class Caller:
    """A library loaded by nobody's runtime; its slots stay NULL until :meth:`listen`."""

    def __init__(self, path: Path, abi: str) -> None:
        self.library, self.abi, self.said = ctypes.CDLL(str(path)), abi, []

    def listen(self) -> None:
        if self.abi == "ffi":
            kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p)
            self.hook = kind(lambda kind, text: self.said.append((kind.decode(), text.decode())))
            slot = "__TVMFFIErrorSetRaisedFromCStr"
        else:
            self.hook = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(
                lambda text: self.said.append(text.decode())
            )
            slot = "__TVMAPISetLastError"
        place = ctypes.c_void_p.in_dll(self.library, slot)
        place.value = ctypes.cast(self.hook, ctypes.c_void_p).value

    def __call__(self, name: str, *tensors: Tensor | None, code: int = 7) -> int:
        addresses = [ctypes.addressof(t) if t is not None else None for t in tensors]
        if self.abi == "ffi":
            args = (Any * 9)(*(Any(code, 0, address) for address in addresses))
            result = Any(0, 0, None)
            found = self.library[f"__tvm_ffi_{name}"]
            return found(None, args, ctypes.c_int32(len(tensors)), ctypes.byref(result))
        values = (ctypes.c_void_p * 9)(*addresses)
        codes = (ctypes.c_int * 9)(*[code] * 9)
        result, kind = ctypes.c_int64(), ctypes.c_int(4)
        return self.library[name](
            values, codes, len(tensors), ctypes.byref(result), ctypes.byref(kind), None
        )


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return library(tmp_path_factory.mktemp("lib"), {"add": SMALL, "large": LARGE}, threads=2)


@pytest.fixture
def caller(kernels, tmp_path):
    """Callers of a private copy: slots of a library are shared by all who load the same file."""

    def make(abi):
        return Caller(shutil.copy(kernels, tmp_path / f"{abi}.so"), abi)

    return make


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize("name", ["add", "large"])
def test_without_any_runtime(caller, abi, name):
    a, b, y = vectors(SMALL if name == "add" else LARGE)
    assert caller(abi)(name, *map(tensor_of, (a, b, y))) == 0
    np.testing.assert_array_equal(y, a + b)


def kind_of(case):
    return ArgumentValueError if case == "size" else ArgumentTypeError


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_through_our_loader(kernels, abi, case):
    change, text = WRONG[case]
    function = load_module(kernels, abi=abi)["add"]
    with pytest.raises(kind_of(case)) as caught:
        function(*change(*vectors()))
    assert text in str(caught.value)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls_of_what_was_just_compiled(case):
    change, text = WRONG[case]
    with compiled({"add": SMALL}) as module, pytest.raises(kind_of(case)) as caught:
        module["add"](*change(*vectors()))
    assert text in str(caught.value)


@pytest.mark.parametrize("abi", ABIS)
def test_threads_of_our_pool(kernels, abi):
    a, b, y = vectors(LARGE)
    bound = load_module(kernels, abi=abi)["large"].bind(a, b, y)
    bound.threads = 2
    bound()
    np.testing.assert_array_equal(y, a + b)


REFUSED = {
    "null": (lambda a, b, y: (tensor_of(a), None, tensor_of(y)), "ValueError", "1 is NULL"),
    "data": (
        lambda a, b, y: (tensor_of(a), tensor_of(b), tensor_of(y, data=None)),
        "ValueError", "argument 2 has no memory: its data pointer is NULL",
    ),
    "device": (
        lambda a, b, y: (tensor_of(a, device_type=2), tensor_of(b), tensor_of(y)),
        "ValueError", "argument 0 is in memory of DLPack device type 2",
    ),
    "lanes": (
        lambda a, b, y: (tensor_of(a, lanes=4), tensor_of(b), tensor_of(y)),
        "TypeError", "argument 0 has elements of DLPack type code 2 and bits 32",
    ),
    "strides": (
        lambda a, b, y: (strided(a, 2), tensor_of(b), tensor_of(y)),
        "ValueError", "argument 0 is not contiguous; its rank is 1",
    ),
    "shape": (
        lambda a, b, y: (tensor_of(a.reshape(10, 10, 10)), tensor_of(b), tensor_of(y[:-1])),
        "ValueError", "argument 2 has another number of elements: 999",
    ),
    "count": (lambda a, b, y: [tensor_of(a)] * 4, "TypeError", "4 arguments were given; it takes"),
}  # fmt: skip


@pytest.mark.parametrize("abi", ABIS)
@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_said_why(caller, abi, case):
    make, kind, text = REFUSED[case]
    function = caller(abi)
    tensors = make(*vectors())
    assert function("add", *tensors) == -1  # nobody listens: no crash
    function.listen()
    assert function("add", *tensors) == -1
    (said,) = function.said
    if abi == "ffi":
        assert said[0] == kind
        said = said[1]
    assert said.startswith("add: ")
    assert text in said


@pytest.mark.parametrize("abi", ABIS)
def test_strides_that_mean_nothing(caller, abi):
    a, b, y = vectors()
    cube = a.reshape(1, 10, 1, 100)
    tensors = strided(cube, 77, 100, 5, 1), strided(b, 1), strided(y, 1)
    assert caller(abi)("add", *tensors) == 0
    np.testing.assert_array_equal(y, a + b)


@pytest.mark.parametrize("abi", ABIS)
def test_byte_offset(caller, abi):
    a, b, y = vectors()
    long = np.concatenate([np.full(5, -1, np.float32), a])
    shifted = tensor_of(a, data=long.ctypes.data, byte_offset=20)
    assert caller(abi)("add", shifted, tensor_of(b), tensor_of(y)) == 0
    np.testing.assert_array_equal(y, a + b)


@pytest.mark.parametrize(("abi", "code"), [("legacy", 3), ("legacy", 13), ("ffi", 4)])
def test_other_codes_of_tensors(caller, abi, code):
    a, b, y = vectors()
    assert caller(abi)("add", *map(tensor_of, (a, b, y)), code=code) == 0
    np.testing.assert_array_equal(y, a + b)


def test_tensor_objects(caller):
    a, b, y = vectors()
    boxes = [Boxed(tensor=tensor_of(x)) for x in (a, b, y)]
    function = caller("ffi")
    assert function("add", *boxes, code=70) == 0
    np.testing.assert_array_equal(y, a + b)
    function.listen()
    assert function("add", None, None, None, code=70) == -1
    assert "argument 0 is NULL (type code 70)" in function.said[0][1]


@pytest.mark.parametrize("pair", [(6, 8), (1, 1)], ids=["DLPack", "TVM"])
def test_bool_of_either_kind(tmp_path, pair):
    value = call("not", at("x", "i", dtype="bool"))
    kernel = Kernel("flip", (("i", 9),), (to("y", ("i",), value),),
                    {n: dense(9, dtype="bool") for n in "xy"})  # fmt: skip
    device = open_device()
    module = device.compile([("flip", kernel, schedule(kernel, device.target))])
    caller = Caller(module.export_library(tmp_path / "flip.so"), "legacy")
    x, y = np.arange(9) % 2 == 0, np.zeros(9, bool)
    code, bits = pair
    assert caller("flip", *(tensor_of(v, code=code, bits=bits) for v in (x, y))) == 0
    np.testing.assert_array_equal(y, ~x)
    assert caller("flip", *(tensor_of(v, code=0, bits=8) for v in (x, y))) == -1


def test_long_names_are_cut(tmp_path):
    name = "k" * 5000
    function = Caller(library(tmp_path, {name: SMALL}), "legacy")
    function.listen()
    assert function(name) == -1
    assert function.said == ["k" * 1023]


def test_single_functions_are_entries(tmp_path):
    path = library(tmp_path, {"add": SMALL})
    module = load_module(path, abi="legacy")
    a, b, y = vectors()
    module["__tvm_main__"](a, b, y)
    np.testing.assert_array_equal(y, a + b)
    y[:] = 0
    assert Caller(path, "ffi")("main", *map(tensor_of, (a, b, y))) == 0
    np.testing.assert_array_equal(y, a + b)


def test_several_functions_have_no_entry(kernels):
    opened = ctypes.CDLL(str(kernels))
    for name in ("__tvm_main__", "__tvm_ffi_main"):
        assert not hasattr(opened, name)


def test_a_function_called_main(tmp_path):
    a, b, y = vectors()
    assert (
        Caller(library(tmp_path, {"main": SMALL}), "ffi")("main", *map(tensor_of, (a, b, y))) == 0
    )
    np.testing.assert_array_equal(y, a + b)
