/* Calls with Python objects that need no Python: tensors, arrays, numbers, text, None.
 *
 * A function made here takes the arguments themselves, checks them against what is known of the
 * callee, and runs it without the GIL. Whatever it does not know, or would have to copy or refuse,
 * it leaves to Python by returning NotImplemented before anything ran.
 */
#include "python.h"

#include "core.h"

#include <stdlib.h>
#include <string.h>

#define MAX_ARGS 16
#define MAX_DIMS 8
#define CPU 1

static const char CALLEE[] = "ph_callee", STEP[] = "ph_step", TENSOR_NAME[] = "ph_packed";

/* A tensor as both ABIs describe it; alive as long as its capsule, like the memory behind it. */
typedef struct {
    ph_tensor of[2];
    PyObject *owner;
    int64_t dims[];
} packed_tensor;

/* Type codes that differ between the ABIs. */
typedef struct { int none, integer, boolean, real, text, bytes; } codes;
static const codes CODES[2] = {{4, 0, 0, 2, 11, 12}, {0, 1, 2, 3, 8, 9}};
enum { TENSOR_CODE = 7, LEGACY_BOOL = 15 };

/* Set once by setup(): Python types, attributes, and what finishes a call. */
static PyObject *tensor_type, *array_type, *finish, *fail, *packed_name, *pack_name;

typedef struct {
    const ph_callee *callee;
    ph_any anys[MAX_ARGS];
    ph_value values[MAX_ARGS];
    int codes[MAX_ARGS];
    ph_tensor tensors[MAX_ARGS];
    ph_bytes bytes[MAX_ARGS];
    PyObject *kept[MAX_ARGS];
    Py_buffer views[MAX_ARGS];
    int kept_count, view_count;
} frame;

static void release(frame *f) {
    for (int i = 0; i < f->kept_count; i++) Py_DecRef(f->kept[i]);
    for (int i = 0; i < f->view_count; i++) PyBuffer_Release(&f->views[i]);
}

static int fits(const ph_callee *callee, int i, const ph_tensor *t) {
    uintptr_t data = t->data;
    if (data % callee->alignment) return 0;
    if (!data) { /* legal only where there is nothing to read */
        int64_t size = 1;
        for (int32_t d = 0; d < t->ndim; d++) size *= t->shape[d];
        if (size) return 0;
    }
    if (callee->count < 0) return 1;
    const ph_param *p = &callee->params[i];
    if (p->has_ndim && p->ndim != t->ndim) return 0;
    return !p->has_dtype || (p->code == t->dtype.code && p->bits == t->dtype.bits);
}

static int put_tensor(frame *f, int i, const ph_tensor *t) {
    if (!fits(f->callee, i, t)) return 0;
    f->anys[i].type_index = TENSOR_CODE;
    f->anys[i].value.v_tensor = (ph_tensor *)t;
    return 1;
}

/* A packhorse Tensor keeps a capsule; the capsule is held during the call, so that another thread
 * may close the tensor meanwhile. */
static int put_packed(frame *f, int i, PyObject *arg) {
    PyObject *capsule = PyObject_GetAttr(arg, packed_name);
    if (capsule == Py_None) {
        Py_DecRef(capsule);
        capsule = PyObject_CallMethodObjArgs(arg, pack_name, NULL);
    }
    if (!capsule) {
        PyErr_Clear();
        return 0;
    }
    f->kept[f->kept_count++] = capsule;
    if (capsule == Py_None) return 0;
    packed_tensor *t = PyCapsule_GetPointer(capsule, TENSOR_NAME);
    if (!t) PyErr_Clear();
    return t && put_tensor(f, i, &t->of[f->callee->abi]);
}

/* DLPack's code of a buffer format; 0xff: none. */
static uint8_t dtype_code(const char *format) {
    if (!format || format[0] == 0 || format[1] != 0) return 0xff;
    if (strchr("bhilqn", format[0])) return 0;
    if (strchr("BHILQN", format[0])) return 1;
    if (strchr("efd", format[0])) return 2;
    return format[0] == '?' ? 6 : 0xff;
}

static int put_array(frame *f, int i, PyObject *arg) {
    Py_buffer *view = &f->views[f->view_count];
    if (PyObject_GetBuffer(arg, view, PyBUF_RECORDS_RO)) {
        PyErr_Clear(); /* dtypes of ml_dtypes */
        return 0;
    }
    f->view_count++;
    uint8_t code = dtype_code(view->format);
    if (code == 0xff || view->ndim > MAX_DIMS || sizeof(Py_ssize_t) != sizeof(int64_t) ||
        !PyBuffer_IsContiguous(view, 'C'))
        return 0;
    uint8_t bits = (uint8_t)(8 * view->itemsize);
    int legacy_bool = code == 6 && f->callee->abi == PH_LEGACY;
    f->tensors[i] = (ph_tensor){
        .data = (uintptr_t)view->buf,
        .device = {CPU, 0},
        .ndim = view->ndim,
        .dtype = legacy_bool ? (ph_dtype){1, 1, 1} : (ph_dtype){code, bits, 1},
        .shape = (int64_t *)view->shape,
    };
    return put_tensor(f, i, &f->tensors[i]);
}

static int put_text(frame *f, int i, PyObject *arg, const codes *known) {
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(arg, &size);
    if (!text || strlen(text) != (size_t)size) {
        PyErr_Clear();
        return 0;
    }
    f->anys[i].type_index = known->text;
    f->anys[i].value.v_str = text;
    return 1;
}

static int put_bytes(frame *f, int i, PyObject *arg, const codes *known) {
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(arg, &data, &size)) return 0;
    f->bytes[i] = (ph_bytes){data, (size_t)size};
    f->anys[i].type_index = known->bytes;
    f->anys[i].value.v_handle = (uintptr_t)&f->bytes[i];
    return 1;
}

static int put_integer(frame *f, int i, PyObject *arg, const codes *known) {
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(arg, &overflow);
    f->anys[i].type_index = known->integer;
    f->anys[i].value.v_int64 = value;
    return !overflow;
}

/* 1 when argument `i` was stored; 0 leaves the whole call to Python. */
static int put(frame *f, int i, PyObject *arg) {
    PyObject *type = (PyObject *)Py_TYPE(arg);
    if (type == tensor_type) return put_packed(f, i, arg);
    if (type == array_type) return put_array(f, i, arg);
    if (f->callee->count >= 0 && f->callee->params[i].is_tensor) return 0;
    const codes *known = &CODES[f->callee->abi];
    if (PyLong_CheckExact(arg)) return put_integer(f, i, arg, known);
    if (PyUnicode_CheckExact(arg)) return put_text(f, i, arg, known);
    if (PyBytes_CheckExact(arg)) return put_bytes(f, i, arg, known);
    if (PyFloat_CheckExact(arg)) {
        f->anys[i].type_index = known->real;
        f->anys[i].value.v_float64 = PyFloat_AsDouble(arg);
    } else if (arg == Py_True || arg == Py_False) {
        f->anys[i].type_index = known->boolean;
        f->anys[i].value.v_int64 = arg == Py_True;
    } else if (arg == Py_None) {
        f->anys[i].type_index = known->none;
        f->anys[i].value.v_int64 = 0;
    } else {
        return 0;
    }
    return 1;
}

static PyObject *result_of(const ph_any *any, int32_t abi, PyObject *name) {
    const codes *known = &CODES[abi];
    int code = any->type_index;
    if (code == known->none) Py_RETURN_NONE;
    if (code == known->integer) return PyLong_FromLongLong(any->value.v_int64);
    if (code == known->real) return PyFloat_FromDouble(any->value.v_float64);
    if (code == (abi ? known->boolean : LEGACY_BOOL)) return PyBool_FromLong(any->value.v_int64 != 0);
    return PyObject_CallFunction(finish, "KiO", (unsigned long long)(uintptr_t)any, (int)abi, name);
}

static PyObject *run(const ph_step *step, PyObject *name) {
    ph_any result;
    int code;
    Py_BEGIN_ALLOW_THREADS
    code = ph_call(step, &result);
    Py_END_ALLOW_THREADS
    if (!code) return result_of(&result, step->abi, name);
    return PyObject_CallFunctionObjArgs(fail, name, NULL); /* always raises */
}

static PyObject *not_implemented(void) {
    Py_IncRef(Py_NotImplemented);
    return Py_NotImplemented;
}

/* self: a capsule of a ph_callee whose context is the name errors use */
static PyObject *call(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    const ph_callee *callee = PyCapsule_GetPointer(self, CALLEE);
    if (!callee) return NULL;
    if (count > MAX_ARGS || (callee->count >= 0 && callee->count != count))
        return not_implemented();
    frame f;
    f.callee = callee;
    f.kept_count = f.view_count = 0;
    int ok = 1;
    for (int i = 0; ok && i < count; i++) {
        f.anys[i].small_len = 0;
        ok = put(&f, i, args[i]);
    }
    PyObject *result;
    if (ok) {
        for (int i = 0; i < count && callee->abi == PH_LEGACY; i++) {
            f.values[i] = f.anys[i].value;
            f.codes[i] = f.anys[i].type_index;
        }
        ph_step step = {callee->function, f.values, f.codes, f.anys, (int32_t)count, callee->abi, 0};
        result = run(&step, PyCapsule_GetContext(self));
    } else {
        result = not_implemented();
    }
    release(&f);
    return result;
}

/* self: a capsule of a ph_step whose context is the name errors use */
static PyObject *call_bound(PyObject *self, PyObject *ignored) {
    (void)ignored;
    const ph_step *step = PyCapsule_GetPointer(self, STEP);
    return step ? run(step, PyCapsule_GetContext(self)) : NULL;
}

static PyMethodDef call_def = {"call", (PyCFunction)(void (*)(void))call, METH_FASTCALL, NULL};
static PyMethodDef bound_def = {"call", call_bound, METH_NOARGS, NULL};

static void drop_context(PyObject *capsule) { Py_DecRef(PyCapsule_GetContext(capsule)); }

/* (address of the struct, name): a callable. The caller keeps the struct alive. */
static PyObject *make(PyObject *args, const char *kind, PyMethodDef *def) {
    PyObject *address = PyTuple_GetItem(args, 0), *name = PyTuple_GetItem(args, 1);
    void *pointer = address && name ? PyLong_AsVoidPtr(address) : NULL;
    PyObject *capsule = pointer ? PyCapsule_New(pointer, kind, drop_context) : NULL;
    if (!capsule) return NULL;
    Py_IncRef(name);
    PyCapsule_SetContext(capsule, name);
    PyObject *made = PyCFunction_NewEx(def, capsule, NULL);
    Py_DecRef(capsule);
    return made;
}

static PyObject *make_call(PyObject *self, PyObject *args) {
    (void)self;
    return make(args, CALLEE, &call_def);
}

static PyObject *make_bound(PyObject *self, PyObject *args) {
    (void)self;
    return make(args, STEP, &bound_def);
}

static void destroy_tensor(PyObject *capsule) {
    packed_tensor *t = PyCapsule_GetPointer(capsule, TENSOR_NAME);
    Py_DecRef(t->owner);
    free(t);
}

/* (address of a ph_tensor, dtype code and bits of the tvm-ffi ABI, owner of the memory) */
static PyObject *make_tensor(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long address;
    int code, bits;
    PyObject *owner;
    if (!PyArg_ParseTuple(args, "KiiO", &address, &code, &bits, &owner)) return NULL;
    const ph_tensor *view = (const ph_tensor *)(uintptr_t)address;
    size_t n = (size_t)view->ndim;
    packed_tensor *t = malloc(sizeof *t + n * sizeof(int64_t));
    if (!t) return PyErr_NoMemory();
    for (size_t i = 0; i < n; i++) t->dims[i] = view->shape[i];
    t->of[0] = *view;
    t->of[0].shape = t->dims;
    t->of[1] = t->of[0];
    t->of[1].dtype = (ph_dtype){(uint8_t)code, (uint8_t)bits, 1};
    PyObject *capsule = PyCapsule_New(t, TENSOR_NAME, destroy_tensor);
    if (!capsule) {
        free(t);
        return NULL;
    }
    Py_IncRef(owner);
    t->owner = owner;
    return capsule;
}

/* (Tensor, ndarray, finish, fail): either type may come later, when it exists */
static PyObject *setup(PyObject *self, PyObject *args) {
    (void)self;
    PyObject **to[] = {&tensor_type, &array_type, &finish, &fail};
    for (Py_ssize_t i = 0; i < 4; i++) {
        PyObject *given = PyTuple_GetItem(args, i);
        if (!given) return NULL;
        if (given == Py_None) continue;
        Py_IncRef(given);
        *to[i] = given;
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"setup", setup, METH_VARARGS, NULL},
    {"make_call", make_call, METH_VARARGS, NULL},
    {"make_bound", make_bound, METH_VARARGS, NULL},
    {"make_tensor", make_tensor, METH_VARARGS, NULL},
};

static PyObject *all_functions(void) {
    packed_name = PyUnicode_InternFromString("_packed");
    pack_name = PyUnicode_InternFromString("_pack");
    Py_ssize_t count = sizeof functions / sizeof functions[0];
    PyObject *made = PyTuple_New(count);
    for (Py_ssize_t i = 0; made && i < count; i++)
        PyTuple_SetItem(made, i, PyCFunction_NewEx(&functions[i], NULL, NULL));
    return made;
}

uintptr_t ph_fast_functions(void) { return (uintptr_t)all_functions; }
