"""Finding the ABI, and libraries of the tvm-ffi ABI: values, errors, callbacks, imports."""

import gc
import shutil
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from ffi_kit import IMPORTING, SOURCE, SYSTEM, TRANSITIONAL
from native_kit import SOURCE as LEGACY
from native_kit import compile_c, floats

import packhorse as ph
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ArtifactError,
    FunctionNotFound,
    PackhorseError,
)
from packhorse.function import DLDevice, Handle
from packhorse.module import NativeModule, PythonModule, load_module
from packhorse.native import Library, Plan, Slot


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return compile_c(SOURCE, tmp_path_factory.mktemp("ffi") / "k.so")


@pytest.fixture(scope="module")
def module(path):
    return load_module(path)


@pytest.fixture(scope="module")
def helper():
    """What the global function runs; compiled callers keep the handle of that function."""
    calls = SimpleNamespace(run=lambda *args: None)
    ph.register_func("test.ffi.helper", lambda *args: calls.run(*args))
    yield calls
    ph.remove_global_func("test.ffi.helper")


# ---------------------------------------------------------------- which ABI


def f(name):
    return f"int {name}(void) {{ return 0; }}"


@pytest.mark.parametrize(
    ("source", "abi", "generation"),
    [
        (f("__tvm_ffi_f"), "ffi", "TVM 0.22 or newer"),
        ("const char __tvm_ffi__library_bin[9];", "ffi", "TVM 0.22 or newer"),
        (f("__tvm_ffi_f") + "void *__TVMFFIHandleInitOnce;", "ffi", "TVM 0.26 or newer"),
        ("void *__TVMFFIFunctionCall;" + f("f"), "ffi", "TVM 0.21"),
        ("void *__tvm_ffi_library_ctx;" + f("f"), "ffi", "TVM 0.21"),
        (f("__tvm_ffi_main__") + f("f"), "ffi", "TVM 0.21"),
        ("void *__TVMAPISetLastError;", "legacy", "TVM 0.2 to 0.20"),
        ('const char __tvm_main__[] = "f";' + f("f"), "legacy", "TVM 0.2 to 0.20"),
        (f("__tvm_main__"), "legacy", "TVM 0.2 to 0.20"),
        (f("tvmgen_default_f"), "legacy", "TVM 0.8 to 0.19"),
        (f("_lookup_linked_param"), "legacy", "TVM 0.8 or 0.9"),
        ("int TVMFuncCall(void); int g(void) { return TVMFuncCall(); }", "legacy", "TVM 0.2 to"),
        (f("ph_conv"), "legacy", "packhorse"),
        (f("__tvm_ffi_f") + f("f"), "legacy", "TVM 0.2 to 0.20"),
        (f("__tvm_ffi_ph_f") + f("ph_f"), "legacy", "packhorse"),
    ],
)
def test_detection(tmp_path, source, abi, generation):
    module = NativeModule(Library(compile_c(source, tmp_path / "l.so")))
    assert module.abi == abi
    assert module.generation.startswith(generation)


def test_a_file_that_cannot_tell(tmp_path):
    path = compile_c(f("f") + "void *__TVMBackendAllocWorkspace;", tmp_path / "mute.so")
    with pytest.raises(ArtifactError, match=r"Pass abi='legacy' .* abi='ffi' for 0\.21 and newer"):
        load_module(path)
    for abi in ("legacy", "ffi"):
        said = load_module(path, abi=abi)
        assert (said.abi, said["f"]()) == (abi, None)
    with pytest.raises(ArgumentValueError, match="'legacy' or 'ffi', found 'modern'"):
        load_module(path, abi="modern")


def test_what_the_caller_says_must_fit_the_file(path, tmp_path):
    with pytest.raises(ArtifactError, match=r"TVM 0.26 .*abi='legacy' would crash"):
        load_module(path, abi="legacy")
    with pytest.raises(ArtifactError, match=r"TVM 0.2 to 0.20 .*abi='ffi' would crash"):
        load_module(compile_c(LEGACY, tmp_path / "old.so"), abi="ffi")


def test_both_abis_in_one_file(tmp_path):
    source = SOURCE + "int add(void *values, int *codes, int n) { return codes[0] - 7; }"
    path = compile_c(source, tmp_path / "both.so")
    old, new = load_module(path), load_module(path, abi="ffi")
    assert (old.abi, new.abi) == ("legacy", "ffi")
    assert old["add"](floats(2), floats(2), floats(2)) is None
    out = floats(2)
    new["add"](floats(2, 1), floats(2, 2), out)
    assert (out == 3).all()
    assert new.library.symbol("add") != old.library.symbol("add")  # one copy for each


def test_fmt(path, tmp_path):
    odd = tmp_path / "library.bin"
    shutil.copy(path, odd)
    with pytest.raises(ArtifactError, match="or any name with fmt='so'"):
        load_module(odd)
    assert load_module(odd, "so")["count"](1, 2) == 2
    assert load_module(odd, fmt="DLL")["count"]() == 0
    with pytest.raises(ArgumentValueError, match="fmt is 'wasm'; load_module takes so, dylib"):
        load_module(odd, "wasm")


def test_names(module):
    assert {"echo", "main", "_odd"} <= set(module.functions)
    assert not [name for name in module.functions if "metadata" in name or "doc" in name]
    assert module.entry() is True
    assert module() is True
    with pytest.raises(FunctionNotFound, match="has no function '__tvm_ffi_echo'"):
        module["__tvm_ffi_echo"]


def test_0_21(tmp_path, helper):
    module = load_module(compile_c(TRANSITIONAL, tmp_path / "t.so"))
    assert sorted(module.functions) == ["call_helper", "echo", "main"]
    assert module["echo"](True) is True
    assert module.entry() == 2.5
    helper.run = lambda x: x + 1
    assert module["call_helper"](41) == 42


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, -7, 2**63 - 1, 2.5, "täxt", "", b"by\0tes", b""),
        *(ph.tensor([1], "bfloat16").dtype, np.dtype("bool"), DLDevice(4, 1), Handle(12)),
    ],
    ids=repr,
)
def test_echo(module, value):
    found = module["echo"](value)
    assert (found, type(found)) == (value, type(value))
    assert module["echo"].bind(value)() == value


ONE = ph.tensor([0.5], "float32")  # its text is the name of a test: the same in every process
HOST = ONE.device


@pytest.mark.parametrize(
    ("value", "index"),
    [
        *((None, 0), (1, 1), (True, 2), (0.5, 3), (Handle(1), 4), (np.dtype("f4"), 5)),
        *((HOST, 6), (ONE, 7), (np.zeros(1), 7), ("a", 8), (b"a", 9)),
        *((len, 68), (PythonModule({}), 73), (np.int8(1), 1), (np.float32(1), 3)),
    ],
    ids=str,
)
def test_type_indices(module, value, index):
    assert module["type_of"](value) == index


def test_small_text(module):
    assert module["small"]() == "abc"
    assert module["small_bytes"]() == b"\0z"


@pytest.mark.parametrize("wrap", [np.asarray, ph.tensor])
def test_bool_is_a_type_of_its_own(module, wrap):
    assert module["code_of"](wrap(np.zeros(64, bool))) == 608
    assert module["code_of"](wrap(np.zeros(64, "f2"))) == 216
    assert module["code_of"](ph.tensor([1], "bfloat16")) == 416


@pytest.mark.parametrize("index", [67, 69, 71, 99, 200])
def test_results_that_cannot_be_taken(module, index):
    with pytest.raises(ArgumentTypeError, match=f"type code {index} .*cannot take"):
        module["strange"](index)


def test_arrays_that_do_not_fit_go_through_a_copy(module):
    a = floats(16, 1)
    for out in (floats(17)[1:], floats(32)[::2]):
        module["add"](a, a, out)
        assert (out == 2).all()
    assert module["address_of"](floats(17)[1:]) % 64 == 0


def test_many_arguments(module):
    assert module["count"](*range(40)) == 40


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("kind", "error", "match"),
    [
        ("TypeError", ArgumentTypeError, "'fail' failed: so it is"),
        ("ValueError", ArgumentValueError, "'fail' failed: so it is"),
        ("RuntimeError", PackhorseError, "'fail' failed: so it is"),
        ("IndexError", PackhorseError, "'fail' failed: IndexError: so it is"),
    ],
)
def test_error_kinds(module, kind, error, match):
    with pytest.raises(error, match=match):
        module["fail"](kind)
    with pytest.raises(error, match=match):
        module["fail"].bind(kind)()


def test_errors_in_parts(module):
    with pytest.raises(ArgumentValueError, match="Mismatched shape on argument #0"):
        module["fail_in_parts"]()
    with pytest.raises(ArgumentValueError, match=r"x{3000}"):
        module["fail_at_length"]("x" * 3000)
    with pytest.raises(PackhorseError, match="gave no reason"):
        module["silent"]()


# ---------------------------------------------------------------- functions


def test_callbacks(module, helper):
    helper.run = lambda *args: repr(args)
    assert module["call_helper"](1, True, "x", b"y", None, 0.5) == "(1, True, 'x', b'y', None, 0.5)"
    for answer in (None, 3, 2.5, False, "text" * 50, b"\0" * 9, np.dtype("int8"), DLDevice(2, 0)):
        helper.run = lambda answer=answer: answer
        assert module["call_helper"]() == answer
    helper.run = lambda x: float(x.sum())
    assert module["call_helper"](floats(4, 2)) == 8.0


@pytest.mark.parametrize("make", [lambda x: x, ph.tensor, lambda x: np.stack([x, x], 1)[:, 0]])
def test_tensors_returned_to_compiled_code(module, helper, make):
    helper.run = lambda: make(np.arange(6, dtype="float32"))
    found = module["call_helper"]()
    assert found.tolist() == [0, 1, 2, 3, 4, 5]
    helper.run = None
    gc.collect()
    assert found.tolist() == [0, 1, 2, 3, 4, 5]


def test_functions_as_values(module, helper):
    function, container = ph.convert(len), PythonModule({})
    assert module["echo"].bind(7)() == 7
    helper.run = lambda x: x
    assert module["call_helper"](function) is function
    assert module["call_helper"](container) is container
    assert module["call_argument"](lambda a, b: a * b, 6, 7) == 42
    assert module["call_argument"](module["count"], 1, 2) == 2
    helper.run = lambda: lambda x: x + 1
    assert module["call_helper"]()(1) == 2


def test_exceptions_cross_compiled_code(module, helper):
    class Odd(Exception):
        pass

    def fails(*args):
        raise Odd("here")

    helper.run = fails
    for call in (
        module["call_helper"],
        lambda: module["call_argument"](fails, 1),
        lambda: module["call_in_parallel"](fails),
        Plan([(module["call_helper"].address, (), "ffi")]).run,
    ):
        with pytest.raises(Odd, match="here") as caught:
            call()
        assert "fails" in [entry.name for entry in caught.traceback]


def test_callbacks_from_several_threads(module):
    seen = []
    bound = module["call_in_parallel"].bind(lambda i: seen.append((i, threading.get_ident())))
    bound.threads = 3
    for _ in range(20):
        bound()
    assert len(seen) >= 20


def test_missing_functions(module):
    with pytest.raises(FunctionNotFound, match=r"calls 'test.ffi.nothing', which is neither"):
        module["call_missing"]()
    with pytest.raises(ArgumentValueError, match="a function that is NULL"):
        module["call_argument"](None)


def test_arguments_are_let_go(module):
    class Callback:
        def __call__(self, *args):
            return 1

    alive = []
    for _ in range(3):
        callback = Callback()
        alive.append(weakref.ref(callback))
        assert module["call_argument"](callback) == 1
        del callback
    gc.collect()
    assert not any(ref() for ref in alive)


def test_imports_come_first(path, tmp_path, helper):
    library = load_module(shutil.copy(path, tmp_path / "own.so"))
    library.import_module(PythonModule({"test.ffi.helper": lambda x: x * 10}))
    helper.run = lambda x: -1
    assert library["call_helper"](7) == 70


def test_plans_of_both_abis(module, tmp_path):
    old = load_module(compile_c(LEGACY, tmp_path / "old.so"))
    a, b, c = floats(8, 1), floats(8), floats(8)
    modern = [Slot((8,), "float32", x.ctypes.data, abi="ffi") for x in (a, a, b)]
    legacy = [Slot((8,), "float32", x.ctypes.data) for x in (b, a, c)]
    plan = Plan([(module["add"].address, modern, "ffi"), (old["add"].address, legacy)])
    plan.run(1)
    assert (c == 3).all()
    source = 'F(no) { __TVMFFIErrorSetRaisedFromCStr("TypeError", "so it is"); return -1; }'
    bad = load_module(compile_c(SOURCE + source, tmp_path / "bad.so"))["no"]
    with pytest.raises(ArgumentTypeError, match=r"step 0 of 1 \('x'\) failed: so it is"):
        Plan([(bad.address, (), "ffi")], ["x"]).run()
    with pytest.raises(ArgumentValueError, match="abi 'modern'; it must be"):
        Plan([(1, (), "modern")])


def test_legacy_code_calls_modern_functions_and_back(module, tmp_path, helper):
    old = load_module(compile_c(LEGACY, tmp_path / "old.so"))
    helper.run = lambda x: old["echo_int"](x)
    assert module["call_helper"](41) == 42
    ph.register_func("test.native.helper", module["count"], override=True)
    try:
        assert old["call_helper"](1, 2, 3) == 3
    finally:
        ph.remove_global_func("test.native.helper")


# ---------------------------------------------------------------- imported runtime functions


@pytest.mark.parametrize("flags", [("-Wl,-z,lazy",), ("-Wl,-z,now",), ("-fno-plt",), ()])
@pytest.mark.parametrize("address", ["0", "TVMFFIErrorSetRaisedFromCStrParts"])
def test_imports_however_linked(tmp_path, flags, address):
    path = compile_c(IMPORTING, tmp_path / "i.so", f"-DADDRESS={address}", *flags)
    module = load_module(path)
    module["work"]()
    with pytest.raises(ArgumentTypeError, match="'fail' failed: no way"):
        module["fail"]()
    with pytest.raises(ArgumentTypeError, match="'fail' failed: no way"):
        load_module(shutil.copy(path, tmp_path / "again.so"))["fail"]()


def test_legacy_imports(tmp_path):
    source = """
    #include <stdint.h>
    void TVMAPISetLastError(const char *);
    int f(void *a, int *c, int n, int64_t *ret, int *rc) {
        TVMAPISetLastError("plainly no"); return -1;
    }"""
    with pytest.raises(PackhorseError, match="'f' failed: plainly no"):
        load_module(compile_c(source, tmp_path / "c.so"))["f"]()


def test_imports_nobody_offers(tmp_path):
    source = "int TVMFFITensorFromDLPack(void); int f(void) { return TVMFFITensorFromDLPack(); }"
    with pytest.raises(ArtifactError, match="imports TVMFFITensorFromDLPack from a TVM runtime"):
        load_module(compile_c(source, tmp_path / "c.so"))


@pytest.mark.parametrize("flags", [(), ("-Wl,-z,now",)])
def test_system_libraries(tmp_path, flags):
    module = load_module(compile_c(SYSTEM, tmp_path / "s.so", *flags))
    assert module.functions == ["answer"]
    assert module["answer"]() == 42
