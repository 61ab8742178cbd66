/* The C core of packhorse: everything compiled code needs at run time, and nothing else.
 *
 * build.py hands the part between the two "cffi" lines to cffi, so Python sees exactly these
 * declarations. Structs have the layout of TVM's legacy C ABI (0.2 - 0.20) and of DLPack.
 */
#ifndef PACKHORSE_CORE_H
#define PACKHORSE_CORE_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
typedef struct { uint8_t code, bits; uint16_t lanes; } ph_dtype;
typedef struct { int32_t device_type, device_id; } ph_device;

/* DLTensor; the address is an integer so that Python can set it without a cast. */
typedef struct {
    uintptr_t data;
    ph_device device;
    int32_t ndim;
    ph_dtype dtype;
    int64_t *shape;
    int64_t *strides;
    uint64_t byte_offset;
} ph_tensor;

/* TVMValue */
typedef union {
    int64_t v_int64;
    double v_float64;
    uintptr_t v_handle;
    ph_tensor *v_tensor;
    const char *v_str;
    ph_dtype v_type;
    ph_device v_device;
    char v_bytes[8];
} ph_value;

/* TVMByteArray */
typedef struct { const char *data; size_t size; } ph_bytes;

/* DLManagedTensor and DLManagedTensorVersioned of DLPack 1.1 */
typedef struct ph_managed {
    ph_tensor tensor;
    void *owner;
    void (*deleter)(struct ph_managed *);
} ph_managed;

typedef struct ph_versioned {
    uint32_t major, minor;
    void *owner;
    void (*deleter)(struct ph_versioned *);
    uint64_t flags;
    ph_tensor tensor;
} ph_versioned;

/* TVMFFIAny: what the tvm-ffi ABI passes and returns. Results of legacy calls use it too, with
 * their own type codes. */
typedef struct {
    int32_t type_index;
    uint32_t small_len;
    ph_value value;
} ph_any;

/* One packed call. abi 0: a TVMBackendPackedCFunc with values and codes; 1: a TVMFFISafeCallType
 * with anys. */
typedef struct {
    uintptr_t function;
    ph_value *values;
    int *codes;
    ph_any *anys;
    int32_t count;
    int32_t abi;
    int32_t threads; /* of a bound call; plans say it per run */
} ph_step;

/* What a function is known to take, for calls that are checked in C. Zeros: unknown. */
typedef struct {
    int8_t is_tensor, has_ndim, has_dtype;
    uint8_t code, bits;
    int32_t ndim;
} ph_param;

/* A function to call with Python objects: see fast.c. count -1: unknown. */
typedef struct {
    uintptr_t function;
    int32_t abi;
    uint32_t alignment;
    int32_t count;
    ph_param *params;
} ph_callee;

typedef struct { ph_step *steps; int32_t count; } ph_plan;

/* plan.c: 0, or 1 + the index of the step that failed */
int32_t ph_plan_run(const ph_plan *plan, int32_t threads);
int32_t ph_plan_profile(const ph_plan *plan, int32_t threads, double *seconds);
int ph_call(const ph_step *step, ph_any *result);

/* runtime.c: addresses of what compiled code calls; handles of the legacy ABI */
uintptr_t ph_runtime_address(const char *name, int32_t abi);
uintptr_t ph_handle_new(uintptr_t function, uintptr_t id);
uintptr_t ph_handle_id(uintptr_t handle);
void ph_run_constructors(uintptr_t array, int32_t count);

/* ffi.c: objects of the tvm-ffi ABI, with one reference each; 0 = out of memory */
uintptr_t ph_ffi_function(uintptr_t function, uintptr_t id, int32_t type_index);
uintptr_t ph_ffi_text(const char *data, uint64_t size, int32_t type_index);
uintptr_t ph_ffi_tensor(const ph_tensor *view, uintptr_t id);
uintptr_t ph_ffi_id(uintptr_t object);
void ph_ffi_retain(uintptr_t object);
void ph_ffi_release(uintptr_t object);

/* fast.c: a function without arguments that returns a tuple of Python functions */
uintptr_t ph_fast_functions(void);

/* error.c: the calling thread's last error */
const char *ph_error_text(void);
const char *ph_error_kind(void);
uint64_t ph_error_token(void);
void ph_error_clear(void);
void ph_error_set(const char *text, uint64_t token);

/* pool.c */
void ph_pool_configure(int32_t threads, int32_t spin_us);
int32_t ph_pool_workers(void);

/* workspace.c: bytes the calling thread's pool holds, and giving unused pages back */
uint64_t ph_workspace_held(void);
void ph_workspace_trim(void);

/* platform_posix.c */
uintptr_t ph_dlopen(const char *path);
uintptr_t ph_dlsym(uintptr_t library, const char *name);
uintptr_t ph_dlbase(uintptr_t library);
const char *ph_dlerror(void);

/* dlpack.c */
uintptr_t ph_dlpack_new(const ph_tensor *view, uintptr_t owner, uint32_t major, uint32_t minor,
                        uint64_t flags);
uintptr_t ph_dlpack_destructor(int versioned);
uintptr_t ph_dlpack_name(int versioned, int used);
void ph_dlpack_release(void *managed);
void ph_dlpack_release_versioned(void *managed);
/* cffi: end */

typedef ph_value TVMValue;
typedef struct { void *sync_handle; int32_t num_task; } TVMParallelGroupEnv;
typedef int (*FTVMParallelLambda)(int task_id, TVMParallelGroupEnv *penv, void *cdata);
typedef int (*TVMBackendPackedCFunc)(TVMValue *args, int *type_codes, int num_args,
                                     TVMValue *out_ret, int *out_ret_tcode, void *resource_handle);

/* Implemented in Python (call.py, runtime.py, devices.py); they take the GIL themselves. */
int ph_py_call(uintptr_t id, ph_value *values, int *codes, int count, ph_value *result,
               int *result_code);
int ph_py_call_ffi(uintptr_t id, ph_any *args, int count, ph_any *result);
int ph_py_lookup(uintptr_t context, const char *name, int32_t abi, uintptr_t *handle);
int ph_py_symbol(const char *name, uintptr_t address);
int ph_py_release(uintptr_t id);
uintptr_t ph_py_workspace(int device_type, int device_id, uint64_t nbytes);
int ph_py_workspace_free(uintptr_t address);

enum { PH_LEGACY = 0, PH_FFI = 1 };
typedef int (*TVMFFISafeCallType)(void *handle, const ph_any *args, int32_t count, ph_any *result);

/* What compiled code calls: names and signatures of TVM's c_backend_api.h. */
void TVMAPISetLastError(const char *text);
void *TVMBackendAllocWorkspace(int device_type, int device_id, uint64_t nbytes, int code_hint,
                               int bits_hint);
int TVMBackendFreeWorkspace(int device_type, int device_id, void *ptr);
int TVMBackendParallelLaunch(FTVMParallelLambda lambda, void *cdata, int num_task);
int TVMBackendParallelBarrier(int task_id, TVMParallelGroupEnv *penv);
int TVMFuncCall(void *handle, TVMValue *args, int *codes, int count, TVMValue *result,
                int *result_code);
int TVMBackendGetFuncFromEnv(void *context, const char *name, void **out);

int ph_run_step(const ph_step *step, ph_any *result);

/* The same for the tvm-ffi ABI: names and signatures of tvm/ffi/c_api.h and extra/c_env_api.h. */
void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);
int TVMFFIFunctionCall(void *function, const ph_any *args, int32_t count, ph_any *result);
int TVMFFIEnvModLookupFromImports(void *context, const char *name, void **out);
int TVMFFIHandleInitOnce(void **handle, int (*init)(void **result));

#define PH_ERROR_MAX 4096
#define PH_KIND_MAX 64
typedef struct { uint64_t token; char kind[PH_KIND_MAX], text[PH_ERROR_MAX]; } ph_error;
void ph_error_save(ph_error *to);
void ph_error_restore(const ph_error *from);

/* Thread count of the plan that runs on this thread; returns the previous one. */
int32_t ph_pool_enter(int32_t threads);

#endif
