/* Running packed calls, one or a whole plan, and the functions compiled code calls back. */
#include "core.h"
#include "platform.h"

#include <stdlib.h>
#include <string.h>

#define NULL_CODE 4

static int call_step(const ph_step *s, ph_value *result, int *result_code) {
    *result_code = NULL_CODE;
    /* Six arguments also for functions compiled for the older, shorter signatures: the calling
     * conventions of every supported CPU ignore the extra ones. */
    return ((TVMBackendPackedCFunc)s->function)(s->values, s->codes, s->count, result, result_code,
                                                NULL);
}

int ph_call(const ph_step *step, int32_t threads, ph_value *result, int *result_code) {
    int32_t before = ph_pool_enter(threads);
    ph_error_clear();
    int code = call_step(step, result, result_code);
    ph_pool_enter(before);
    return code;
}

int32_t ph_plan_run(const ph_plan *plan, int32_t threads) {
    int32_t before = ph_pool_enter(threads), failed = 0;
    ph_value result;
    int result_code;
    ph_error_clear();
    for (int32_t i = 0; i < plan->count && !failed; i++)
        if (call_step(&plan->steps[i], &result, &result_code)) failed = i + 1;
    ph_pool_enter(before);
    return failed;
}

int32_t ph_plan_profile(const ph_plan *plan, int32_t threads, double *seconds) {
    int32_t before = ph_pool_enter(threads), failed = 0;
    ph_value result;
    int result_code;
    ph_error_clear();
    for (int32_t i = 0; i < plan->count && !failed; i++) {
        uint64_t start = ph_now();
        if (call_step(&plan->steps[i], &result, &result_code)) failed = i + 1;
        seconds[i] = (double)(ph_now() - start) * 1e-9;
    }
    ph_pool_enter(before);
    return failed;
}

/* What a function handle points to. Never freed: compiled code caches handles for life. */
typedef struct { uintptr_t function, id; } handle;

uintptr_t ph_handle_new(uintptr_t function, uintptr_t id) {
    handle *h = malloc(sizeof *h);
    if (h) *h = (handle){function, id};
    return (uintptr_t)h;
}

int TVMFuncCall(void *opaque, TVMValue *args, int *codes, int count, TVMValue *result,
                int *result_code) {
    const handle *h = opaque;
    *result_code = NULL_CODE;
    if (!h->function) return ph_py_call(h->id, args, codes, count, result, result_code);
    ph_step step = {h->function, args, codes, count};
    return call_step(&step, result, result_code);
}

int TVMBackendGetFuncFromEnv(void *context, const char *name, void **out) {
    uintptr_t found = 0;
    int code = ph_py_lookup((uintptr_t)context, name, &found);
    *out = (void *)found;
    return code;
}

#define ENTRY(name) {#name, (uintptr_t)name}

uintptr_t ph_runtime_address(const char *name) {
    const struct { const char *name; uintptr_t address; } table[] = {
        ENTRY(TVMAPISetLastError),       ENTRY(TVMBackendAllocWorkspace),
        ENTRY(TVMBackendFreeWorkspace),  ENTRY(TVMBackendParallelLaunch),
        ENTRY(TVMBackendParallelBarrier), ENTRY(TVMFuncCall),
        ENTRY(TVMBackendGetFuncFromEnv),
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (!strcmp(table[i].name, name)) return table[i].address;
    return 0;
}
