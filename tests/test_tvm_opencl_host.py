"""Host code that launches kernels wrongly, as no compiler would write it: errors, never a crash."""

import gc

import numpy as np
import pytest
from gpu_kit import opencl
from native_kit import compile_c

import packhorse as ph
from packhorse.errors import (
    ArgumentTypeError,
    ArgumentValueError,
    DeviceClosed,
    DeviceMemoryError,
    PackhorseError,
)
from packhorse.module import DeviceModule
from packhorse.module_blob import DeviceCode
from packhorse.module_blob_reader import FunctionInfo

SOURCE = r"""
#include <stdint.h>
typedef union { int64_t i; double f; void *p; } Value;
typedef struct { char *data; int32_t dev[2]; int32_t ndim; uint8_t code, bits; uint16_t lanes;
                 int64_t *shape, *strides; uint64_t offset; } Tensor;
#define SLOT __attribute__((weak))
SLOT void (*__TVMAPISetLastError)(const char *);
SLOT void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
SLOT int (*__TVMBackendFreeWorkspace)(int, int, void *);
SLOT int (*__TVMFuncCall)(void *, Value *, int *, int, Value *, int *);
SLOT int (*__TVMBackendGetFuncFromEnv)(void *, const char *, void **);
SLOT void *__tvm_module_ctx;
#define ARGS Value *args, int *codes, int n, Value *ret, int *rcode, void *res
#define T(i) ((Tensor *)args[i].p)

static int launch(void *x, int x_code, int64_t size) {
    static void *found;
    if (!found && __TVMBackendGetFuncFromEnv(__tvm_module_ctx, "plus_one", &found)) return -1;
    Value given[3] = {{.p = x}, {.i = size}, {.i = 8}}, result;
    int codes[3] = {x_code, 0, 0}, code;
    return __TVMFuncCall(found, given, codes, 3, &result, &code);
}
int once(ARGS) { return launch(T(0)->data, 3, T(0)->shape[0]); }
int shifted(ARGS) { return launch(T(0)->data + 4, 3, T(0)->shape[0]); }
int garbage(ARGS) { return launch((void *)args[1].i, 3, T(0)->shape[0]); }
int as_tensor(ARGS) { return launch(args[0].p, 7, T(0)->shape[0]); }
int as_number(ARGS) { return launch((void *)12345, 0, T(0)->shape[0]); }

/* type, id, bytes of temporary memory; then: 0 gives it back, 1 forgets it, 2 fails, 3 twice */
int workspace(ARGS) {
    void *p = __TVMBackendAllocWorkspace(args[1].i, args[2].i, args[3].i, 2, 32);
    if (!p) return -1;
    if (launch(p, 3, args[3].i / 4)) return -1;
    if (args[4].i == 1) return 0;
    if (args[4].i == 2) { __TVMAPISetLastError("the host code gives up"); return -1; }
    if (__TVMBackendFreeWorkspace(args[1].i, args[2].i, p)) return -1;
    return args[4].i == 3 ? __TVMBackendFreeWorkspace(args[1].i, args[2].i, p) : 0;
}
int set_device(ARGS) {
    void *f;
    Value given[2] = {args[1], args[2]}, result;
    int kinds[2] = {0, 0}, code;
    return __TVMBackendGetFuncFromEnv(__tvm_module_ctx, "__tvm_set_device", &f)
        || __TVMFuncCall(f, given, kinds, 2, &result, &code);
}
/* a kernel, a Python function, a kernel */
int around(ARGS) {
    void *f;
    Value result;
    int code;
    return launch(T(0)->data, 3, T(0)->shape[0])
        || __TVMBackendGetFuncFromEnv(__tvm_module_ctx, "test.tvm.between", &f)
        || __TVMFuncCall(f, args, codes, 0, &result, &code)
        || launch(T(0)->data, 3, T(0)->shape[0]);
}
const char __tvm_main__[] = "once";
"""
PLUS = b"""__kernel void plus_one(__global float *x, int n) {
    for (int i = get_global_id(0); i < n; i += get_global_size(0)) x[i] += 1; }"""
INFO = FunctionInfo("plus_one", ("handle", "int32"), ("threadIdx.x",))
X = np.arange(100, dtype=np.float32)


@pytest.fixture(scope="module")
def lib(tmp_path_factory):
    found = ph.load_module(compile_c(SOURCE, tmp_path_factory.mktemp("host") / "host.so"))
    found.import_module(DeviceModule("opencl", DeviceCode("cl", {"plus_one": INFO}, PLUS)))
    return found


@pytest.fixture
def x():
    return ph.tensor(X, device=opencl())


def test_kernels_of_an_imported_module_are_found(lib, x):
    lib["once"](x)
    lib["once"](x)
    assert np.array_equal(x.numpy(), X + 2)


@pytest.mark.parametrize("address", [0, 1, 0x1000, -1, 2**62])
def test_handles_that_are_none(lib, x, address):
    with pytest.raises(ArgumentTypeError, match="is no memory of 'opencl:0' that was passed"):
        lib["garbage"](x, address)
    with pytest.raises(ArgumentTypeError, match="is no memory of"):
        lib["shifted"](x)
    assert np.array_equal(x.numpy(), X)


def test_handles_of_memory_that_was_not_passed(lib, x):
    other = ph.tensor(X, device=opencl())
    with pytest.raises(ArgumentTypeError, match="argument 0 of kernel 'plus_one' is no memory"):
        lib["garbage"](x, other.address)
    lib["garbage"](x, x.address)
    assert np.array_equal(x.numpy(), X + 1)
    assert np.array_equal(other.numpy(), X)


def test_values_that_are_no_handles(lib, x):
    with pytest.raises(ArgumentTypeError, match="device type 4"):
        lib["as_tensor"](x)
    with pytest.raises(ArgumentTypeError, match="is no memory"):
        lib["as_number"](x)


def test_temporary_memory(lib, x):
    device = opencl()
    gc.collect()  # what earlier tests forgot is not to be freed in between
    before = device.memory()
    lib["workspace"](x, 4, 0, 4000, 0)
    lib["workspace"](x, 4, 0, 4000, 1)  # forgotten: taken back when the call ends
    with pytest.raises(PackhorseError, match="gives up"):
        lib["workspace"](x, 4, 0, 4000, 2)
    with pytest.raises(ArgumentValueError, match="that this call did not take"):
        lib["workspace"](x, 4, 0, 4000, 3)
    after = device.memory()
    assert (after.used, after.live) == (before.used, before.live)
    assert after.allocations == before.allocations + 4


@pytest.mark.parametrize(
    ("kind", "index", "message"),
    [
        (2, 0, r"kernels on 'cuda:0' \(device type 2\), but its tensors lie on 'opencl:0'"),
        (4, 1, "kernels on 'opencl:1'"),
        (99, 0, "of type 99"),
        (-4, 0, "of type -4"),
    ],
)
def test_the_wrong_device(lib, x, kind, index, message):
    with pytest.raises(ArgumentTypeError, match=message):
        lib["workspace"](x, kind, index, 64, 0)
    with pytest.raises(ArgumentTypeError, match=message):
        lib["set_device"](x, kind, index)
    lib["set_device"](x, 4, 0)
    lib["set_device"](x, 1, 0)


def test_temporary_memory_that_there_is_not(lib, x):
    for nbytes in (2**62, 2**63 - 1, -1):
        with pytest.raises((DeviceMemoryError, ArgumentValueError, OverflowError)):
            lib["workspace"](x, 4, 0, nbytes, 0)
    lib["workspace"](x, 4, 0, 64, 0)


def test_arrays_of_the_host_reach_no_kernel(lib):
    array = X.copy()
    for name in ("once", "as_number"):
        with pytest.raises(ArgumentTypeError, match=r"of a device 'opencl' .*'opencl:0'\)"):
            lib[name](array)
    with pytest.raises(ArgumentTypeError, match="no argument lies on one"):
        lib["workspace"](array, 4, 0, 64, 0)
    assert np.array_equal(array, X)


def test_calls_within_calls_keep_their_devices(lib, x):
    """A Python function called by one call makes another, on another opening of the device."""
    from packhorse_opencl.plugin import OpenClBackend

    with OpenClBackend().open(0, {}) as other:
        y = ph.tensor(X, device=other)
        ph.register_func("test.tvm.between", lambda: lib["once"](y))
        try:
            lib["around"](x)
        finally:
            ph.remove_global_func("test.tvm.between")
        assert np.array_equal(y.numpy(), X + 1)
    assert np.array_equal(x.numpy(), X + 2)
    with pytest.raises(DeviceClosed):
        lib["once"](y)
