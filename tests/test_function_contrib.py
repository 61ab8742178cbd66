"""External functions of TVM's compiled code: sort, random, cblas; and handles that go stale."""

import gc
import sys
import threading

import numpy as np
import pytest
from native_kit import SOURCE, compile_c, floats

import packhorse as ph
from packhorse.errors import ArgumentTypeError, ArgumentValueError, PackhorseError
from packhorse.function import Handle, NativeFunction
from packhorse.module import load_module

EXTERN = (
    SOURCE
    + r"""
/* calls the global function named by the first argument with the others, as compiled code does */
int call_extern(ARGS) {
    void *f;
    if (__TVMBackendGetFuncFromEnv(__tvm_module_ctx, args[0].s, &f)) return -1;
    return __TVMFuncCall(f, args + 1, codes + 1, n - 1, ret, rcode);
}
static void *kept;
int keep(ARGS) { kept = args[0].p; return 0; }
int call_kept(ARGS) { return __TVMFuncCall(kept, args, codes, n, ret, rcode); }
static float weights[4] = {1, 2, 3, 4};
int _lookup_linked_param(ARGS) {
    if (args[0].i != 7) { *rcode = 4; return 0; }
    ret->p = weights; *rcode = 3;
    return 0;
}
"""
)


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return load_module(compile_c(EXTERN, tmp_path_factory.mktemp("extern") / "k.so"))


@pytest.fixture(params=["direct", "compiled"])
def call(request, module):
    """Call a global function from Python, and from compiled code."""
    if request.param == "compiled":
        return module["call_extern"]
    return lambda name, *args: ph.get_global_func(name)(*args)


def test_they_are_listed():
    names = ph.list_global_func_names()
    assert {"tvm.contrib.sort.topk", "tvm.contrib.cblas.matmul", "__tvm_set_device"} <= set(names)
    with pytest.raises(ph.PackhorseError, match="registered already"):
        ph.register_func("tvm.contrib.sort.topk", len)


DATA = np.array([[3, 1, 2, 3, 0], [5, 5, 4, 9, 5]], "float32")


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("ascending", [0, 1])
def test_argsort_and_sort(call, axis, ascending):
    order, values = np.zeros(DATA.shape, "int32"), np.zeros_like(DATA)
    call("tvm.contrib.sort.argsort", DATA, order, axis, ascending)
    call("tvm.contrib.sort.sort", DATA, values, axis, ascending)
    stable = np.argsort(DATA if ascending else -DATA, axis=axis, kind="stable")
    np.testing.assert_array_equal(order, stable)
    np.testing.assert_array_equal(values, np.take_along_axis(DATA, stable, axis))


def test_topk(call):
    """Largest first, ties in their order."""
    values, indices = np.zeros((2, 3), "float32"), np.zeros((2, 3), "int64")
    call("tvm.contrib.sort.topk", DATA, values, indices, 3, 1, "both", 0)
    assert values.tolist() == [[3, 3, 2], [9, 5, 5]]
    assert indices.tolist() == [[0, 3, 2], [3, 0, 1]]
    call("tvm.contrib.sort.topk", DATA, values, 3, -1, "values", 1)
    assert values.tolist() == [[0, 1, 2], [4, 5, 5]]
    every = np.zeros(DATA.shape, "int64")
    call("tvm.contrib.sort.topk", DATA, every, 0, 1, "indices", 1)
    np.testing.assert_array_equal(every, np.argsort(DATA, axis=1, kind="stable"))


@pytest.mark.parametrize(
    ("args", "match"),
    [((3, 1, "all", 0), "ret_type 'all'"), ((3, 2, "indices", 0), "axis 2 is out of range")],
)
def test_topk_refuses(call, args, match):
    with pytest.raises(ArgumentValueError, match=match):
        call("tvm.contrib.sort.topk", DATA, np.zeros((2, 3), "int32"), *args)


def test_argsort_nms(call):
    out = np.zeros(DATA.shape, "int32")
    sizes = np.array([3, 9], "int32")
    call("tvm.contrib.sort.argsort_nms", DATA, sizes, out, 1, 0)
    assert out.tolist() == [[0, 2, 1, 3, 4], [3, 0, 1, 4, 2]]


def test_random(call):
    out, whole = np.zeros(5000, "float32"), np.zeros(5000, "int32")
    call("tvm.contrib.random.seed", 5)
    call("tvm.contrib.random.uniform", -1.0, 1.0, out)
    assert (np.abs(out) <= 1).all()
    assert abs(out.mean()) < 0.1
    first = out.copy()
    call("tvm.contrib.random.seed", 5)
    call("tvm.contrib.random.uniform", -1.0, 1.0, out)
    np.testing.assert_array_equal(out, first)
    call("tvm.contrib.random.normal", 3.0, 0.5, out)
    assert abs(out.mean() - 3) < 0.1
    call("tvm.contrib.random.randint", -2, 3, whole)
    assert set(whole) == {-2, -1, 0, 1, 2}
    with pytest.raises(ArgumentValueError, match="low < high"):
        call("tvm.contrib.random.randint", 3, 3, whole)


@pytest.mark.parametrize("a_first", [False, True])
@pytest.mark.parametrize("b_first", [False, True])
@pytest.mark.parametrize(("name", "batch"), [("matmul", ()), ("batch_matmul", (3,))])
def test_cblas(call, name, batch, a_first, b_first):
    rng = np.random.default_rng(0)
    a, b = rng.random((*batch, 4, 5), "f4"), rng.random((*batch, 5, 6), "f4")
    out = np.ones((*batch, 4, 6), "float32")
    given = [
        np.ascontiguousarray(np.swapaxes(x, -1, -2)) if t else x
        for x, t in ((a, a_first), (b, b_first))
    ]
    call(f"tvm.contrib.cblas.{name}", *given, out, a_first, b_first)
    np.testing.assert_allclose(out, a @ b, rtol=1e-6)
    before = out.copy()
    call(f"tvm.contrib.cblas.{name}", *given, out, a_first, b_first, 2.0, 0.5)
    np.testing.assert_allclose(out, 2 * (a @ b) + 0.5 * before, rtol=1e-6)


def test_matmul_of_two_dtypes(call):
    with pytest.raises(ArgumentTypeError, match="one dtype"):
        call(
            "tvm.contrib.cblas.matmul",
            *(np.ones((2, 2), kind) for kind in ("f4", "f8", "f4")),
            False,
            False,
        )


def test_set_device(call):
    assert call("__tvm_set_device", 1, 0) is None
    with pytest.raises(ArgumentTypeError, match=r"runs kernels on a device 'cuda'.*'cuda:0'"):
        call("__tvm_set_device", 2, 0)


def test_linked_params(module):
    found = module["_lookup_linked_param"](7)
    assert isinstance(found, Handle)
    assert module["_lookup_linked_param"](8) is None


# ---------------------------------------------------------------- handles and lives


def test_a_callback_that_outlives_its_call(module):
    """Compiled code must not keep a function it was passed; if it does, it gets an error."""
    module["keep"](lambda: 1)
    gc.collect()
    with pytest.raises(PackhorseError, match=r"after the call .* ended; register the function"):
        module["call_kept"]()
    bound = module["keep"].bind(lambda: 2)
    bound()
    assert module["call_kept"]() == 2  # a bound call holds its arguments
    del bound
    gc.collect()
    with pytest.raises(PackhorseError, match="ended"):
        module["call_kept"]()
    with pytest.raises(PackhorseError, match="a function that is NULL"):
        module["call_argument"](None)


def test_calls_leave_no_references_behind(module):
    arrays = [floats(8), floats(8), floats(8)]
    tensors = [ph.from_dlpack(a) for a in arrays]
    add, text = module["add"], "a text of its own" * 2
    for args in (arrays, tensors):
        add(*args)
        before = [sys.getrefcount(arg) for arg in args]
        for _ in range(50):
            add(*args)
            add(args[0], args[1], floats(17)[1:9])
        assert [sys.getrefcount(arg) for arg in args] == before
    before = sys.getrefcount(text)
    for _ in range(50):
        module["echo"](text)
        with pytest.raises(PackhorseError):
            module["fail"](text, *arrays)
    assert sys.getrefcount(text) == before
    assert arrays[0].resize(8) is None  # no buffer is still exported


def test_functions_are_freed(module):
    import weakref

    function = NativeFunction(module["echo"].address, "f", module)
    function(1)
    bound, alive = function.bind(2), weakref.ref(function)
    del function
    assert bound() == 2
    del bound
    assert alive() is None


def test_calls_from_many_threads(module):
    out, errors = [ph.empty(64) for _ in range(8)], []

    def work(i):
        try:
            x = ph.tensor(np.full(64, i, "float32"))
            for _ in range(200):
                module["add"](x, x, out[i])
                assert module["call_argument"](lambda v: v + i, 1) == i + 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [int(o.numpy()[5]) for o in out] == [2 * i for i in range(8)]


def test_a_tensor_closed_during_a_call(module):
    """The call holds what it works on; closing takes effect after it."""
    x, started = ph.tensor(np.ones(64, "float32")), threading.Event()

    def callback():
        x.close()
        gc.collect()
        started.set()
        return 5

    ph.register_func("test.native.closer", callback, override=True)
    try:
        assert module["call_extern"]("test.native.closer") == 5
    finally:
        ph.remove_global_func("test.native.closer")
    assert started.is_set()
    assert x.closed
