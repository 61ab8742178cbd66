/* DLPack exports: managed tensors that keep a Python object alive until the consumer is done.
 *
 * Deleters may run on any thread, with or without the GIL, so they take it themselves.
 */
#include "python.h"
#include "core.h"

#include <stdlib.h>
#include <string.h>

static void drop(void *owner) {
    if (!Py_IsInitialized()) return;
    PyGILState_STATE state = PyGILState_Ensure();
    Py_DecRef((PyObject *)owner);
    PyGILState_Release(state);
}

static void delete_managed(ph_managed *m) {
    drop(m->owner);
    free(m);
}

static void delete_versioned(ph_versioned *m) {
    drop(m->owner);
    free(m);
}

/* Shape and strides live right behind the struct: one allocation, one free. */
static void fill(ph_tensor *to, const ph_tensor *view, int64_t *room) {
    size_t n = (size_t)view->ndim * sizeof(int64_t);
    *to = *view;
    to->shape = room;
    to->strides = room + view->ndim;
    if (n) {
        memcpy(to->shape, view->shape, n);
        memcpy(to->strides, view->strides, n);
    }
}

/* `owner` is a live PyObject*; major 0 makes an unversioned tensor. 0 = out of memory. */
uintptr_t ph_dlpack_new(const ph_tensor *view, uintptr_t owner, uint32_t major, uint32_t minor,
                        uint64_t flags) {
    size_t room = 2 * (size_t)view->ndim * sizeof(int64_t);
    void *made;
    if (major == 0) {
        ph_managed *m = made = malloc(sizeof *m + room);
        if (!m) return 0;
        m->owner = (void *)owner;
        m->deleter = delete_managed;
        fill(&m->tensor, view, (int64_t *)(m + 1));
    } else {
        ph_versioned *m = made = malloc(sizeof *m + room);
        if (!m) return 0;
        m->major = major;
        m->minor = minor;
        m->owner = (void *)owner;
        m->deleter = delete_versioned;
        m->flags = flags;
        fill(&m->tensor, view, (int64_t *)(m + 1));
    }
    PyGILState_STATE state = PyGILState_Ensure(); /* cffi released it around this call */
    Py_IncRef((PyObject *)owner);
    PyGILState_Release(state);
    return (uintptr_t)made;
}

/* Capsules point to their names, so the names must live as long as the process. */
static const char *const names[2][2] = {
    {"dltensor", "used_dltensor"},
    {"dltensor_versioned", "used_dltensor_versioned"},
};

uintptr_t ph_dlpack_name(int versioned, int used) { return (uintptr_t)names[!!versioned][!!used]; }

/* Consumers rename a capsule they take over; one that kept its name was never consumed. */
static void destroy_capsule(PyObject *capsule, int versioned) {
    const char *name = names[versioned][0];
    if (!PyCapsule_IsValid(capsule, name)) return;
    void *managed = PyCapsule_GetPointer(capsule, name);
    if (versioned)
        ph_dlpack_release_versioned(managed);
    else
        ph_dlpack_release(managed);
}

static void destroy_plain(PyObject *capsule) { destroy_capsule(capsule, 0); }
static void destroy_versioned(PyObject *capsule) { destroy_capsule(capsule, 1); }

uintptr_t ph_dlpack_destructor(int versioned) {
    return versioned ? (uintptr_t)destroy_versioned : (uintptr_t)destroy_plain;
}

void ph_dlpack_release(void *managed) {
    ph_managed *m = managed;
    if (m && m->deleter) m->deleter(m);
}

void ph_dlpack_release_versioned(void *managed) {
    ph_versioned *m = managed;
    if (m && m->deleter) m->deleter(m);
}
