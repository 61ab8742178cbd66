"""Packed functions: values in and out, native calls, binding, conversion, the registry."""

import gc
import threading
import weakref

import numpy as np
import pytest
from native_kit import SOURCE, compile_c, floats

import packhorse as ph
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    FunctionExists,
    FunctionNotFound,
    PackhorseError,
)
from packhorse.function import DLDevice, Handle, NativeFunction, PackedFunction, TypeCode
from packhorse.module import NativeModule, PythonModule
from packhorse.native import Library


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return NativeModule(Library(compile_c(SOURCE, tmp_path_factory.mktemp("function") / "k.so")))


@pytest.fixture
def registered():
    before = set(ph.list_global_func_names())
    yield
    for name in set(ph.list_global_func_names()) - before:
        ph.remove_global_func(name)


# ---------------------------------------------------------------- Python functions

VALUES = [
    None,
    True,
    7,
    2.5,
    "text",
    b"bytes",
    np.dtype("int8"),
    ph.empty(2).device,
    ph.tensor([1, 2]),
    np.arange(3),
    PythonModule({}),
    PackedFunction(len),
    Handle(12),
    DLDevice(4, 1),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda v: type(v).__name__)
def test_every_value_passes_unchanged(value):
    assert ph.convert(lambda x: x)(value) is value


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (np.int8(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (np.float32, np.dtype("float32")),
    ],
)
def test_relatives_are_converted(given, seen):
    found = ph.convert(lambda x: x)(given)
    assert (found, type(found)) == (seen, type(seen))


def test_callables_become_packed_functions():
    apply = ph.convert(lambda f, x: f(x))
    assert apply(lambda x: x + 1, 1) == 2
    made = ph.convert(lambda: lambda: 5)()
    assert isinstance(made, PackedFunction)
    assert made() == 5


def test_other_values_are_refused():
    f = ph.convert(lambda *args: {"a": 1} if not args else None)
    f.name = "f"
    with pytest.raises(ArgumentTypeError, match="argument 1 of function 'f' is of type list; wrap"):
        f(1, [2])
    with pytest.raises(ArgumentTypeError, match="result of function 'f' is of type dict"):
        f()
    with pytest.raises(ArgumentTypeError, match="argument 0 of function 'f' is of type dict"):
        f.bind({})


def test_exceptions_pass_unchanged():
    with pytest.raises(ZeroDivisionError):
        ph.convert(lambda: 1 / 0)()


def test_convert():
    f = ph.convert(len)
    assert (f.name, f.address, repr(f)) == ("len", None, "<PackedFunction len>")
    assert ph.convert(f) is f
    assert f(b"abc") == 3
    with pytest.raises(ArgumentTypeError, match="int cannot be called"):
        ph.convert(3)


def test_bind():
    bound = ph.convert(lambda a, b: a + b).bind(1, np.int64(2))
    assert bound() == bound() == 3


# ---------------------------------------------------------------- native functions


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, -7, 2**63 - 1, -(2**63), 2.5, "täxt", "", b"by\0tes", b""),
        *(ph.tensor([1], "bfloat16").dtype, np.dtype("bool"), DLDevice(4, 1), Handle(12)),
        ph.convert(len),
        PythonModule({}),
    ],
    ids=repr,
)
def test_native_echo(module, value):
    assert module["echo"](value) == value


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, TypeCode.NULL),
        (True, TypeCode.INT),
        (3, TypeCode.INT),
        (0.5, TypeCode.FLOAT),
        ("a", TypeCode.STR),
        (b"a", TypeCode.BYTES),
        (np.dtype("f4"), TypeCode.DTYPE),
        (ph.empty(1).device, TypeCode.DEVICE),
        (np.zeros(1), TypeCode.TENSOR),
        (ph.empty(1), TypeCode.TENSOR),
        (len, TypeCode.FUNCTION),
        (Handle(1), TypeCode.HANDLE),
    ],
)
def test_native_type_codes(module, value, code):
    assert module["code_of"](value) == code


def test_native_argument_count(module):
    assert module["count_args"]() == 0
    assert module["count_args"](*range(40)) == 40


def test_native_handles_are_opaque(module):
    found = module["echo"](Handle(2**63 + 5))
    assert isinstance(found, Handle)
    assert found == 2**63 + 5


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (2**63, ArgumentValueError, "argument 0 is 9223372036854775808, which does not fit int64"),
        ("a\0b", ArgumentValueError, "NUL"),
        (object(), ArgumentTypeError, "argument 0 of function 'echo' is of type object"),
        ([1], ArgumentTypeError, "argument 0 of function 'echo' is of type list"),
        (np.array(["a"]), ArgumentTypeError, "argument 0: unknown dtype 'str"),
        (np.array([None, 1])[::-1], ArgumentTypeError, "argument 0: unknown dtype 'object'"),
        (np.ones(3, ">f4"), ArgumentTypeError, "argument 0: dtype 'float32' in foreign byte"),
    ],
    ids=["big", "nul", "object", "list", "strings", "objects", "byte order"],
)
def test_native_refuses(module, value, error, match):
    with pytest.raises(error, match=match):
        module["echo"](value)


@pytest.mark.parametrize(("code", "name"), [(8, "object"), (13, "ndarray"), (99, "unknown")])
def test_native_results_that_cannot_be_taken(module, code, name):
    with pytest.raises(ArgumentTypeError, match=rf"code {code} \({name}\)"):
        module["strange"](code)


def test_native_tensors_are_used_in_place(module):
    t, array = ph.empty(16), floats(16)
    assert module["address_of"](t) == t.address
    assert module["address_of"](array) == array.ctypes.data


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: ph.from_dlpack(a)])
def test_native_arrays_that_do_not_fit_go_through_a_copy(module, wrap):
    misaligned = floats(17)[1:]
    strided = floats(32)[::2]
    a = floats(16, 1)
    for out in (misaligned, strided):
        bound = module["add"].bind(a, a, wrap(out))
        bound()
        assert (out == 2).all()
        a[:] = 3  # a bound call sees what is in the arrays when it runs
        bound()
        assert (out == 6).all()
        a[:] = 1
    assert module["address_of"](wrap(misaligned)) % 128 == 0


def test_read_only_arrays_are_not_written_back(module):
    source = np.ones(17, np.float32)[1:]
    source.flags.writeable = False
    out = floats(16)
    module["add"](source, source, out)
    assert (out == 2).all()


def test_alignment_is_what_the_code_assumes(module):
    relaxed = NativeFunction(module["address_of"].address, "f", module, alignment=4)
    array = floats(17)[1:]
    assert relaxed(array) == array.ctypes.data
    assert relaxed(ph.from_dlpack(array)) == array.ctypes.data


def test_native_threads(module):
    data = floats(64).view(np.int32)
    bound = module["tasks"].bind(ph.from_dlpack(data).reshape(64, 1))
    bound.threads = 3
    bound()
    assert data[63] == 1


def test_native_errors(module):
    with pytest.raises(PackhorseError, match="function 'fail' failed: the kernel says no"):
        module["fail"]()
    with pytest.raises(PackhorseError, match="gave no reason"):
        module["fail_silently"]()
    with pytest.raises(ArgumentValueError, match="function 'x' has no address"):
        NativeFunction(0, "x")


def test_native_calls_its_function_arguments(module):
    assert module["call_argument"](lambda a, b: a * b, 6, 7) == 42
    assert module["call_argument"](module["echo_int"], 41) == 42

    def fails():
        raise LookupError("inside")

    with pytest.raises(LookupError, match="inside"):
        module["call_argument"](fails)
    with pytest.raises(PackhorseError, match="the kernel says no"):
        module["call_argument"](module["fail"])


def test_functions_through_native_code_stay_themselves(module):
    f = ph.convert(len)
    assert module["echo"](f) is f
    native = module["echo"]
    assert native(native) is native


def test_strings_returned_to_native_code(module):
    assert module["call_argument"](lambda: "text" * 100) == "text" * 100
    assert module["call_argument"](lambda: b"\0\1") == b"\0\1"
    assert module["call_argument"](lambda: None) is None


def test_keepalive():
    class Owner:
        pass

    owner = Owner()
    alive = weakref.ref(owner)
    function = NativeFunction(1, "f", owner)
    del owner
    bound = function.bind()
    del function
    assert alive() is not None
    del bound
    gc.collect()
    assert alive() is None


# ---------------------------------------------------------------- the registry


@pytest.mark.usefixtures("registered")
def test_register_in_every_way():
    @ph.register_func("test.named")
    def first(x):
        return x + 1

    @ph.register_func
    def test_bare(x):
        return x + 2

    @ph.register_func()
    def test_called(x):
        return x + 3

    assert ph.register_func("test.direct", lambda x: x + 4)(0) == 4
    assert ph.register_func(len) is len
    names = ["test.named", "test_bare", "test_called", "test.direct"]
    assert [ph.get_global_func(name)(0) for name in names] == [1, 2, 3, 4]
    assert first(1) == 2
    assert {*names, "len"} <= set(ph.list_global_func_names())
    assert ph.list_global_func_names() == sorted(ph.list_global_func_names())
    assert ph.get_global_func("test.named").name == "test.named"


@pytest.mark.usefixtures("registered")
def test_register_twice():
    ph.register_func("test.f", lambda: 1)
    with pytest.raises(FunctionExists, match=r"'test.f' is registered already; pass override=True"):
        ph.register_func("test.f", lambda: 2)
    assert ph.get_global_func("test.f")() == 1

    @ph.register_func("test.f", override=True)
    def _():
        return 3

    assert ph.get_global_func("test.f")() == 3


@pytest.mark.usefixtures("registered")
def test_missing_functions():
    ph.register_func("test.argsort", len)
    with pytest.raises(FunctionNotFound, match=r"did you mean 'test.argsort'\?"):
        ph.get_global_func("test.argsrot")
    assert ph.get_global_func("test.argsrot", allow_missing=True) is None
    with pytest.raises(FunctionNotFound, match="no global function 'nonesuch'"):
        ph.remove_global_func("nonesuch")
    ph.remove_global_func("test.argsort")
    assert "test.argsort" not in ph.list_global_func_names()


@pytest.mark.parametrize("args", [(3, len), ("name", 3)])
def test_registering_nonsense(args):
    with pytest.raises(ArgumentTypeError):
        ph.register_func(*args)


@pytest.mark.usefixtures("registered")
def test_registry_is_thread_safe():
    won = []

    def register(i):
        try:
            ph.register_func("test.race", lambda: i)
            won.append(i)
        except FunctionExists:
            pass

    threads = [threading.Thread(target=register, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ph.get_global_func("test.race")()] == won
