/* Temporary memory of compiled code: per thread, last in first out, pages kept for reuse.
 *
 * A run of a CNN asks thousands of times, always in the same nesting, so a request is nearly
 * always served by the page it had last time. When no free page is large enough the largest one
 * is replaced by a larger one: the pool never holds more pages than were in use at once. Memory of
 * other devices than the host comes from the device of the call in progress (devices.py).
 */
#include "core.h"
#include "platform.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE ((size_t)4096)
#define ALIGNMENT 128
#define CPU 1

typedef struct { void *ptr; size_t size; } page;
typedef struct {
    page *used, *unused; /* used: in order of allocation; unused: smallest first */
    int used_count, unused_count, capacity;
    uint64_t held;
} workspace;

static PH_THREAD_LOCAL workspace *mine;

static void trim(workspace *w) {
    while (w->unused_count) {
        page p = w->unused[--w->unused_count];
        w->held -= p.size;
        ph_aligned_free(p.ptr);
    }
}

static void destroy(void *value) {
    workspace *w = value;
    trim(w);
    while (w->used_count) ph_aligned_free(w->used[--w->used_count].ptr);
    free(w->used);
    free(w->unused);
    free(w);
    mine = NULL;
}

static workspace *get(void) {
    if (!mine && (mine = calloc(1, sizeof *mine))) ph_on_thread_exit(destroy, mine);
    return mine;
}

/* Room for one more page in both lists: a free then never needs memory. */
static int reserve(workspace *w) {
    if (w->used_count + w->unused_count < w->capacity) return 1;
    int capacity = w->capacity ? 2 * w->capacity : 16;
    page *used = realloc(w->used, (size_t)capacity * sizeof *used);
    if (used) w->used = used;
    page *unused = realloc(w->unused, (size_t)capacity * sizeof *unused);
    if (unused) w->unused = unused;
    if (!used || !unused) return 0;
    w->capacity = capacity;
    return 1;
}

/* The smallest unused page of at least `size`, or an empty one. */
static page take(workspace *w, size_t size) {
    for (int i = 0; i < w->unused_count; i++) {
        if (w->unused[i].size < size) continue;
        page found = w->unused[i];
        w->unused_count--;
        memmove(w->unused + i, w->unused + i + 1, (size_t)(w->unused_count - i) * sizeof(page));
        return found;
    }
    if (w->unused_count) { /* replace the largest */
        page old = w->unused[--w->unused_count];
        w->held -= old.size;
        ph_aligned_free(old.ptr);
    }
    page fresh = {ph_aligned_alloc(ALIGNMENT, size), size};
    if (fresh.ptr) w->held += size;
    return fresh;
}

static void *refuse(uint64_t nbytes) {
    char text[96];
    snprintf(text, sizeof text, "workspace of %llu bytes: out of memory", (unsigned long long)nbytes);
    TVMAPISetLastError(text);
    return NULL;
}

void *TVMBackendAllocWorkspace(int device_type, int device_id, uint64_t nbytes, int code_hint,
                               int bits_hint) {
    (void)code_hint, (void)bits_hint;
    if (device_type != CPU) return (void *)ph_py_workspace(device_type, device_id, nbytes);
    if (nbytes > SIZE_MAX - PAGE) return refuse(nbytes);
    size_t size = nbytes ? ((size_t)nbytes + PAGE - 1) / PAGE * PAGE : PAGE;
    workspace *w = get();
    if (!w || !reserve(w)) return refuse(nbytes);
    page p = take(w, size);
    if (!p.ptr) return refuse(nbytes);
    w->used[w->used_count++] = p;
    return p.ptr;
}

static void put_back(workspace *w, page p) {
    int i = w->unused_count++;
    for (; i > 0 && w->unused[i - 1].size > p.size; i--) w->unused[i] = w->unused[i - 1];
    w->unused[i] = p;
}

int TVMBackendFreeWorkspace(int device_type, int device_id, void *ptr) {
    (void)device_id;
    if (device_type != CPU) return ph_py_workspace_free((uintptr_t)ptr);
    workspace *w = get();
    for (int i = w ? w->used_count - 1 : -1; i >= 0; i--) { /* nearly always the last */
        if (w->used[i].ptr != ptr) continue;
        put_back(w, w->used[i]);
        w->used_count--;
        memmove(w->used + i, w->used + i + 1, (size_t)(w->used_count - i) * sizeof(page));
        return 0;
    }
    TVMAPISetLastError("freeing a workspace that this thread did not allocate");
    return -1;
}

uint64_t ph_workspace_held(void) { return mine ? mine->held : 0; }
void ph_workspace_trim(void) {
    if (mine) trim(mine);
}
