"""Small packed functions in C, compiled once per test session, for tests of the native core."""

import shutil
import subprocess

import numpy as np
import pytest

from packhorse.native import aligned_empty

SOURCE = r"""
#include <stdint.h>
#include <string.h>
#include <stdatomic.h>
#include <unistd.h>
typedef union { int64_t i; double f; void *p; const char *s; } Value;
typedef struct { float *data; int32_t dev[2]; int32_t ndim; uint8_t code, bits; uint16_t lanes;
                 int64_t *shape, *strides; uint64_t offset; } Tensor;
typedef struct { void *sync; int32_t num; } Env;
typedef int (*Body)(int, Env *, void *);
#define SLOT __attribute__((weak))
SLOT void (*__TVMAPISetLastError)(const char *);
SLOT void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
SLOT int (*__TVMBackendFreeWorkspace)(int, int, void *);
SLOT int (*__TVMBackendParallelLaunch)(Body, void *, int);
SLOT int (*__TVMBackendParallelBarrier)(int, Env *);
SLOT int (*__TVMFuncCall)(void *, Value *, int *, int, Value *, int *);
SLOT int (*__TVMBackendGetFuncFromEnv)(void *, const char *, void **);
SLOT void *__tvm_module_ctx;
#define ARGS Value *args, int *codes, int n, Value *ret, int *rcode, void *res
#define T(i) ((Tensor *)args[i].p)

int nop(ARGS) { return 0; }
int fail_silently(ARGS) { return -1; }
int fail(ARGS) { __TVMAPISetLastError("the kernel says no"); return -1; }
int echo_int(ARGS) { ret->i = args[0].i + 1; *rcode = codes[0]; return 0; }
int echo(ARGS) { *ret = args[0]; *rcode = codes[0]; return 0; }
int code_of(ARGS) { ret->i = codes[0]; *rcode = 0; return 0; }
int count_args(ARGS) { ret->i = n; *rcode = 0; return 0; }
int strange(ARGS) { ret->i = 1; *rcode = args[0].i; return 0; }
int address_of(ARGS) { ret->i = (int64_t)T(0)->data; *rcode = 0; return 0; }

static int add_part(int id, Env *e, void *c) {
    Value *args = c;
    int64_t all = T(0)->shape[0], lo = all * id / e->num, hi = all * (id + 1) / e->num;
    for (int64_t i = lo; i < hi; i++) T(2)->data[i] = T(0)->data[i] + T(1)->data[i];
    return 0;
}
int add(ARGS) { return __TVMBackendParallelLaunch(add_part, args, 0); }

/* counts[id] += 1 for every task; counts[63] = number of tasks */
static int count_part(int id, Env *e, void *c) {
    float *data = c;
    atomic_fetch_add((_Atomic int *)data + id % 63, 1);
    ((int *)data)[63] = e->num;
    usleep(200);
    return 0;
}
int tasks(ARGS) { return __TVMBackendParallelLaunch(count_part, T(0)->data, T(0)->shape[1]); }
static int nested_part(int id, Env *e, void *c) {
    return __TVMBackendParallelLaunch(count_part, c, 0);
}
int nested(ARGS) { return __TVMBackendParallelLaunch(nested_part, T(0)->data, 0); }
static int fail_part(int id, Env *e, void *c) {
    if (id < e->num - 1) return 0;
    __TVMAPISetLastError("the last task says no");
    return -1;
}
int fail_parallel(ARGS) { return __TVMBackendParallelLaunch(fail_part, 0, 0); }

/* phase 1: data[id] = id + 1; barrier; phase 2: out = sum, must be the same for every task */
static int barrier_part(int id, Env *e, void *c) {
    float *data = c;
    data[id] = id + 1;
    for (int round = 0; round < 50; round++)
        if (__TVMBackendParallelBarrier(id, e)) return -1;
    float sum = 0;
    for (int i = 0; i < e->num; i++) sum += data[i];
    data[16 + id] = sum / (e->num * (e->num + 1) / 2);
    return 0;
}
int barrier(ARGS) { return __TVMBackendParallelLaunch(barrier_part, T(0)->data, T(0)->shape[1]); }

/* ret = bytes by which the worst of three nested workspaces misses 128-byte alignment */
int workspace(ARGS) {
    void *p[3];
    int64_t worst = 0, size = args[0].i;
    for (int k = 0; k < 3; k++) {
        p[k] = __TVMBackendAllocWorkspace(1, 0, size << k, 2, 32);
        if (!p[k]) return -1;
        memset(p[k], k, size << k);
        if ((int64_t)p[k] % 128 > worst) worst = (int64_t)p[k] % 128;
    }
    for (int k = 2; k >= 0; k--) if (__TVMBackendFreeWorkspace(1, 0, p[k])) return -1;
    ret->i = worst; *rcode = 0;
    return 0;
}
int workspace_gpu(ARGS) { return __TVMBackendAllocWorkspace(2, 0, 64, 2, 32) ? 0 : -1; }
int workspace_bad_free(ARGS) { return __TVMBackendFreeWorkspace(1, 0, &args); }
int workspace_order(ARGS) {
    void *a = __TVMBackendAllocWorkspace(1, 0, 64, 2, 32);
    void *b = __TVMBackendAllocWorkspace(1, 0, 64, 2, 32);
    return a == b || __TVMBackendFreeWorkspace(1, 0, a) || __TVMBackendFreeWorkspace(1, 0, b);
}

/* calls the global function of this name with all arguments, its handle cached as TVM does */
static void *cached;
int call_helper(ARGS) {
    const char *name = "test.native.helper";
    if (!cached && __TVMBackendGetFuncFromEnv(__tvm_module_ctx, name, &cached)) return -1;
    return __TVMFuncCall(cached, args, codes, n, ret, rcode);
}
int call_missing(ARGS) {
    void *f;
    return __TVMBackendGetFuncFromEnv(__tvm_module_ctx, "test.native.helpr", &f);
}
int call_argument(ARGS) { return __TVMFuncCall(args[0].p, args + 1, codes + 1, n - 1, ret, rcode); }
static int call_part(int id, Env *e, void *c) {
    Value *args = c, ret; int rcode, code = 0;
    Value one = {.i = id};
    return __TVMFuncCall(args[0].p, &one, &code, 1, &ret, &rcode);
}
int call_in_parallel(ARGS) { return __TVMBackendParallelLaunch(call_part, args, 0); }
const char __tvm_main__[] = "echo_int";
"""


def compile_c(source, target, *flags):
    """Compile C text to a shared library; skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    file = target.with_suffix(".c")
    file.write_text(source)
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", str(target), str(file), *flags], check=True
    )
    return target


def floats(count, value=0.0):
    """An aligned float32 array."""
    array = aligned_empty(4 * count).view(np.float32)
    array[:] = value
    return array
