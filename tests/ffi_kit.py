"""Small functions of the tvm-ffi ABI in C, as TVM 0.26 and 0.21 would compile them."""

HEAD = r"""
#include <stdint.h>
#include <string.h>
typedef struct { int32_t type, small; union { int64_t i; double f; void *p; const char *s;
                 char c[8]; }; } Any;
typedef struct { float *data; int32_t dev[2]; int32_t ndim; uint8_t code, bits; uint16_t lanes;
                 int64_t *shape, *strides; uint64_t offset; } Tensor;
typedef struct { void *sync; int32_t num; } Env;
#define ARGS void *self, const Any *args, int32_t n, Any *ret
#define SLOT __attribute__((weak))
#define T(k) ((Tensor *)args[k].p)
"""

SOURCE = (
    HEAD
    + r"""
void TVMFFIErrorSetRaisedFromCStrParts(const char *, const char **, int32_t);
SLOT void (*__TVMFFIErrorSetRaisedFromCStr)(const char *, const char *);
SLOT int (*__TVMFFIFunctionCall)(void *, const Any *, int32_t, Any *);
SLOT int (*__TVMFFIEnvModLookupFromImports)(void *, const char *, void **);
SLOT int (*__TVMFFIHandleInitOnce)(void **, int (*)(void **));
SLOT void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
SLOT int (*__TVMBackendFreeWorkspace)(int, int, void *);
SLOT int (*__TVMBackendParallelLaunch)(int (*)(int, Env *, void *), void *, int);
SLOT void *__tvm_ffi__library_ctx;
#define F(name) int __tvm_ffi_##name(ARGS)

F(echo) { *ret = args[0]; return 0; }
F(type_of) { ret->type = 1; ret->i = args[0].type; return 0; }
F(count) { ret->type = 1; ret->i = n; return 0; }
F(code_of) { ret->type = 1; ret->i = T(0)->code * 100 + T(0)->bits; return 0; }
F(address_of) { ret->type = 1; ret->i = (int64_t)T(0)->data; return 0; }
F(main) { ret->type = 2; ret->i = 1; return 0; }
F(_odd) { return 0; }
int __tvm_ffi__metadata_echo(ARGS) { return 0; }
int __tvm_ffi__doc_echo(ARGS) { return 0; }
F(small) { ret->type = 11; ret->small = 3; memcpy(ret->c, "abc", 4); return 0; }
F(small_bytes) { ret->type = 12; ret->small = 2; memcpy(ret->c, "\0z", 2); return 0; }
F(strange) { ret->type = args[0].i; return 0; }
F(silent) { return -1; }
F(fail) {
    __TVMFFIErrorSetRaisedFromCStr(args[0].s, "so it is");
    return -1;
}
F(fail_in_parts) {
    const char *parts[] = {"Mismatched ", 0, "shape", " on argument #0"};
    TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 4);
    return -1;
}
F(fail_at_length) {
    const char *parts[] = {args[0].s, args[0].s};
    TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 2);
    return -1;
}
static void *helper;
static int find(void **out) {
    return __TVMFFIEnvModLookupFromImports(__tvm_ffi__library_ctx, "test.ffi.helper", out);
}
F(call_helper) {
    if (__TVMFFIHandleInitOnce(&helper, find)) return -1;
    return __TVMFFIFunctionCall(helper, args, n, ret);
}
F(call_missing) {
    void *f;
    return __TVMFFIEnvModLookupFromImports(__tvm_ffi__library_ctx, "test.ffi.nothing", &f);
}
F(call_argument) { return __TVMFFIFunctionCall(args[0].p, args + 1, n - 1, ret); }
static int task(int id, Env *e, void *p) {
    const Any *args = p;
    Any one = {.type = 1, .i = id}, ret = {0};
    return __TVMFFIFunctionCall(args[0].p, &one, 1, &ret);
}
F(call_in_parallel) { return __TVMBackendParallelLaunch(task, (void *)args, 0); }
F(add) {
    float *copy = __TVMBackendAllocWorkspace(1, 0, T(0)->shape[0] * 4, 2, 32);
    for (int64_t i = 0; i < T(0)->shape[0]; i++) copy[i] = T(0)->data[i] + T(1)->data[i];
    memcpy(T(2)->data, copy, T(0)->shape[0] * 4);
    return __TVMBackendFreeWorkspace(1, 0, copy);
}
"""
)

TRANSITIONAL = (
    HEAD
    + r"""
SLOT int (*__TVMFFIFunctionCall)(void *, const Any *, int32_t, Any *);
SLOT int (*__TVMBackendGetFuncFromEnv)(void *, const char *, void **);
SLOT void *__tvm_ffi_library_ctx;
int echo(ARGS) { *ret = args[0]; return 0; }
int __tvm_ffi_main__(ARGS) { ret->type = 3; ret->f = 2.5; return 0; }
int call_helper(ARGS) {
    void *f;
    if (__TVMBackendGetFuncFromEnv(__tvm_ffi_library_ctx, "test.ffi.helper", &f)) return -1;
    return __TVMFFIFunctionCall(f, args, n, ret);
}
"""
)
"""TVM 0.21: plain names, and the legacy name for looking functions up."""

IMPORTING = (
    HEAD
    + r"""
void TVMFFIErrorSetRaisedFromCStrParts(const char *, const char **, int32_t);
void *TVMBackendAllocWorkspace(int, int, uint64_t, int, int);
int TVMBackendFreeWorkspace(int, int, void *);
static void (*volatile taken)(const char *, const char **, int32_t) = ADDRESS;
int __tvm_ffi_fail(ARGS) {
    const char *parts[] = {"no ", "way"};
    (taken ? taken : TVMFFIErrorSetRaisedFromCStrParts)("TypeError", parts, 2);
    return -1;
}
int __tvm_ffi_work(ARGS) {
    void *p = TVMBackendAllocWorkspace(1, 0, 64, 2, 32);
    memset(p, 0, 64);
    return TVMBackendFreeWorkspace(1, 0, p);
}
"""
)
"""Runtime functions imported by name; ADDRESS is NULL, or the one whose address is taken."""

SYSTEM = r"""
#include <stdint.h>
typedef union { int64_t i; double f; void *p; } Value;
int TVMBackendRegisterSystemLibSymbol(const char *, void *);
static void *(*__TVMFuncCall)(void);
static int answer(Value *args, int *codes, int n, Value *ret, int *rcode, void *res) {
    ret->i = __TVMFuncCall ? 42 : -1;
    *rcode = 0;
    return 0;
}
__attribute__((constructor)) static void start(void) {
    TVMBackendRegisterSystemLibSymbol("answer", (void *)answer);
    TVMBackendRegisterSystemLibSymbol("__TVMFuncCall", (void *)&__TVMFuncCall);
}
"""
"""A system library: static constructors register what others would export."""
