/* Calling libraries that packhorse compiled, from C or C++, without packhorse.
 *
 * A library saved by packhorse ("deploy.so") exports packed functions under their plain names, in
 * the calling convention of TVM 0.2 to 0.20:
 *
 *     int function(TVMValue *args, int *type_codes, int num_args,
 *                  TVMValue *result, int *result_code, void *resource);
 *
 * Arguments are pointers to DLTensor (type code 7): C-contiguous host memory of the dtype and the
 * number of elements the function was compiled for; inputs first, then what it writes. It returns
 * 0, or -1 after it said why through the slot __TVMAPISetLastError. Nothing else is needed: the
 * library imports nothing and allocates nothing.
 *
 * Slots are pointer variables that the library exports and whoever loads it may fill:
 *     __TVMAPISetLastError         void (*)(const char *message)
 *     __TVMBackendParallelLaunch   int (*)(int (*task)(int id, TVMParallelGroupEnv *env, void *data),
 *                                          void *data, int num_task)
 * With the second one NULL, as ph_open leaves it, functions run on the calling thread alone.
 * A launch calls task(id, env, data) for each id in 0 ... env->num_task - 1, in any order, on any
 * threads; num_task 0 leaves the number to the launcher.
 *
 * Everything here is static: include it where it is used, link with -ldl where that is needed.
 */
#ifndef PACKHORSE_H
#define PACKHORSE_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#define PH_THREAD_LOCAL thread_local
#else
#define PH_THREAD_LOCAL _Thread_local
#endif

#ifndef DLPACK_DLPACK_H_ /* the same as in dlpack.h, which may be included before */
typedef struct { int32_t device_type, device_id; } DLDevice;
typedef struct { uint8_t code, bits; uint16_t lanes; } DLDataType;
typedef struct {
    void *data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t *shape;
    int64_t *strides; /* in elements; NULL: C-contiguous */
    uint64_t byte_offset;
} DLTensor;
#endif

#ifndef TVM_RUNTIME_C_RUNTIME_API_H_ /* the same as in TVM's c_runtime_api.h */
typedef union {
    int64_t v_int64;
    double v_float64;
    void *v_handle;
    const char *v_str;
    DLDataType v_type;
    DLDevice v_device;
} TVMValue;
#endif

#ifndef TVM_RUNTIME_C_BACKEND_API_H_ /* the same as in TVM's c_backend_api.h */
typedef struct { void *sync_handle; int32_t num_task; } TVMParallelGroupEnv;
#endif

/* A packed function of a library. */
typedef int (*ph_function)(TVMValue *args, int *type_codes, int num_args, TVMValue *result,
                           int *result_code, void *resource);

enum { PH_CPU = 1, PH_TENSOR = 7, PH_NULL = 4, PH_MAX_ARGS = 64 };
enum { PH_INT = 0, PH_UINT = 1, PH_FLOAT = 2, PH_BFLOAT = 4, PH_BOOL = 6 };

/* Message of the calling thread's last failed call; "" before the first. */
static inline char *ph_error(void) {
    static PH_THREAD_LOCAL char text[1024];
    return text;
}

static inline void ph_set_error(const char *message) {
    strncpy(ph_error(), message, 1023);
}

/* A tensor over your memory. `code` is PH_FLOAT and so on; `shape` must outlive the tensor. */
static inline DLTensor ph_tensor(void *data, int code, int bits, int ndim, int64_t *shape) {
    DLTensor made;
    memset(&made, 0, sizeof made);
    made.data = data;
    made.device.device_type = PH_CPU;
    made.ndim = ndim;
    made.dtype.code = (uint8_t)code;
    made.dtype.bits = (uint8_t)bits;
    made.dtype.lanes = 1;
    made.shape = shape;
    return made;
}

/* Fill a slot of a library; 0 when it has no such slot. */
static inline int ph_fill(void *library, const char *slot, void *value) {
    void **place = (void **)dlsym(library, slot);
    if (place) *place = value;
    return place != NULL;
}

/* Load a library and fill its error slot; NULL and ph_error() when it cannot be loaded. */
static inline void *ph_open(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void (*set)(const char *) = ph_set_error;
    void *address;
    if (!library) {
        const char *why = dlerror();
        ph_set_error(why ? why : "dlopen failed");
        return NULL;
    }
    memcpy(&address, &set, sizeof address); /* ISO C has no cast from function to object pointer */
    ph_fill(library, "__TVMAPISetLastError", address);
    return library;
}

/* A function of a library; NULL and ph_error() when it has none of that name. `name` NULL: the
 * library's entry, which it has when it holds a single kernel. */
static inline ph_function ph_get(void *library, const char *name) {
    void *address;
    ph_function found;
    if (!name) name = (const char *)dlsym(library, "__tvm_main__");
    address = name ? dlsym(library, name) : NULL;
    if (!address) ph_set_error(name ? "the library has no function of that name"
                                    : "the library has no entry function; give a name");
    memcpy(&found, &address, sizeof found);
    return found;
}

/* Call a function on tensors: 0, or -1 and ph_error(). At most PH_MAX_ARGS of them. */
static inline int ph_call(ph_function function, DLTensor *const *tensors, int count) {
    TVMValue args[PH_MAX_ARGS], result;
    int codes[PH_MAX_ARGS], i, result_code = PH_NULL;
    if (count < 0 || count > PH_MAX_ARGS) {
        ph_set_error("ph_call takes at most PH_MAX_ARGS arguments");
        return -1;
    }
    for (i = 0; i < count; i++) {
        args[i].v_handle = tensors[i];
        codes[i] = PH_TENSOR;
    }
    return function(args, codes, count, &result, &result_code, NULL);
}

#ifdef __cplusplus
}
#endif
#endif
