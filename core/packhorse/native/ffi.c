/* Objects of the tvm-ffi ABI: functions, strings and tensors with a reference count each.
 *
 * Their layout is that of tvm-ffi 0.1, so both its users and compiled code can take them.
 */
#include "core.h"
#include "platform.h"

#include <stdlib.h>
#include <string.h>

enum { TENSOR = 70 };
enum { STRONG = 1, WEAK = 2, BOTH = 3 };
#define STRONG_ONE ((uint64_t)1)
#define WEAK_ONE ((uint64_t)1 << 32)
#define STRONG_MASK (WEAK_ONE - 1)

typedef struct object {
    _Atomic uint64_t count; /* strong references below, weak ones above 32 bits */
    int32_t type_index;
    uint32_t pad;
    void (*deleter)(void *self, int flags);
} object;

typedef struct {
    object head;
    TVMFFISafeCallType safe_call;
    void *cpp_call;
    uintptr_t function, id;
} function_object;

typedef struct { object head; ph_bytes bytes; char text[]; } text_object;
typedef struct { object head; ph_tensor tensor; uintptr_t id; int64_t dims[]; } tensor_object;

static void delete_text(void *self, int flags) {
    if (flags & WEAK) free(self);
}

static void delete_function(void *self, int flags) {
    function_object *f = self;
    if (flags & STRONG && f->id) ph_py_release(f->id);
    if (flags & WEAK) free(self);
}

static void delete_tensor(void *self, int flags) {
    tensor_object *t = self;
    if (flags & STRONG && t->id) ph_py_release(t->id);
    if (flags & WEAK) free(self);
}

static object head(int32_t type_index, void (*deleter)(void *, int)) {
    return (object){STRONG_ONE + WEAK_ONE, type_index, 0, deleter};
}

static int call_python(void *self, const ph_any *args, int32_t count, ph_any *result) {
    return ph_py_call_ffi(((function_object *)self)->id, (ph_any *)args, count, result);
}

/* A function of an address, or else of the Python object with this number; the number is given
 * back to Python when the last reference goes. Modules travel the same way, under their own index. */
uintptr_t ph_ffi_function(uintptr_t function, uintptr_t id, int32_t type_index) {
    function_object *f = malloc(sizeof *f);
    if (!f) return 0;
    f->head = head(type_index, delete_function);
    f->safe_call = function ? (TVMFFISafeCallType)function : call_python;
    f->cpp_call = NULL;
    f->function = function;
    f->id = id;
    return (uintptr_t)f;
}

uintptr_t ph_ffi_text(const char *data, uint64_t size, int32_t type_index) {
    text_object *t = malloc(sizeof *t + size + 1);
    if (!t) return 0;
    t->head = head(type_index, delete_text);
    memcpy(t->text, data, size);
    t->text[size] = 0;
    t->bytes = (ph_bytes){t->text, size};
    return (uintptr_t)t;
}

uintptr_t ph_ffi_tensor(const ph_tensor *view, uintptr_t id) {
    size_t n = (size_t)view->ndim;
    tensor_object *t = malloc(sizeof *t + 2 * n * sizeof(int64_t));
    if (!t) return 0;
    t->head = head(TENSOR, delete_tensor);
    t->tensor = *view;
    t->tensor.shape = t->dims;
    t->tensor.strides = t->dims + n;
    for (size_t i = 0; i < n; i++) t->dims[i] = view->shape[i];
    int64_t step = 1;
    for (size_t i = n; i-- > 0; step *= view->shape[i]) t->tensor.strides[i] = step;
    t->id = id;
    return (uintptr_t)t;
}

/* The number of the Python object behind a function; 0 for objects of somebody else. */
uintptr_t ph_ffi_id(uintptr_t address) {
    object *o = (object *)address;
    return o && o->deleter == delete_function ? ((function_object *)o)->id : 0;
}

void ph_ffi_retain(uintptr_t address) {
    if (address) atomic_fetch_add(&((object *)address)->count, STRONG_ONE);
}

/* The last strong reference holds one weak reference: the memory goes with the last of those. */
void ph_ffi_release(uintptr_t address) {
    object *o = (object *)address;
    if (!o) return;
    uint64_t before = atomic_fetch_sub(&o->count, STRONG_ONE);
    if (before == STRONG_ONE + WEAK_ONE) {
        if (o->deleter) o->deleter(o, BOTH);
    } else if ((before & STRONG_MASK) == STRONG_ONE) {
        if (o->deleter) o->deleter(o, STRONG);
        if ((atomic_fetch_sub(&o->count, WEAK_ONE) & ~STRONG_MASK) == WEAK_ONE && o->deleter)
            o->deleter(o, WEAK);
    }
}

int TVMFFIFunctionCall(void *function, const ph_any *args, int32_t count, ph_any *result) {
    if (!function) {
        TVMFFIErrorSetRaisedFromCStr("ValueError", "compiled code called a function that is NULL");
        return -1;
    }
    return ((function_object *)function)->safe_call(function, args, count, result);
}

/* No lock: two threads may both run `init`, which looks a function up and finds the same one, and
 * the first to finish wins. A lock held while Python answers could meet the GIL the other way. */
int TVMFFIHandleInitOnce(void **handle, int (*init)(void **result)) {
    _Atomic uintptr_t *shared = (_Atomic uintptr_t *)handle;
    if (atomic_load(shared)) return 0;
    void *made = NULL;
    int code = init(&made);
    uintptr_t none = 0;
    if (!code && !made) {
        TVMFFIErrorSetRaisedFromCStr("RuntimeError", "a handle was initialised with NULL");
        return -1;
    }
    if (!code) atomic_compare_exchange_strong(shared, &none, (uintptr_t)made);
    return code;
}
