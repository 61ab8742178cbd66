/* Running packed calls: one, or a whole plan. */
#include "core.h"
#include "platform.h"

#define NULL_CODE 4
#define FFI_OBJECT 64 /* type indices from here on are references to objects */

int ph_run_step(const ph_step *s, ph_any *result) {
    *result = (ph_any){0};
    if (s->abi == PH_FFI)
        return ((TVMFFISafeCallType)s->function)(NULL, s->anys, s->count, result);
    int code = NULL_CODE;
    /* Six arguments also for functions compiled for the older, shorter signatures: the calling
     * conventions of every supported CPU ignore the extra ones. */
    int failed = ((TVMBackendPackedCFunc)s->function)(s->values, s->codes, s->count,
                                                      &result->value, &code, NULL);
    result->type_index = code;
    return failed;
}

int ph_call(const ph_step *step, ph_any *result) {
    int32_t before = ph_pool_enter(step->threads);
    ph_error_clear();
    int code = ph_run_step(step, result);
    ph_pool_enter(before);
    return code;
}

/* A step of a plan: nobody wants its result. */
static int run_and_drop(const ph_step *s) {
    ph_any result;
    int code = ph_run_step(s, &result);
    if (!code && s->abi == PH_FFI && result.type_index >= FFI_OBJECT)
        ph_ffi_release(result.value.v_handle);
    return code;
}

int32_t ph_plan_run(const ph_plan *plan, int32_t threads) {
    int32_t before = ph_pool_enter(threads), failed = 0;
    ph_error_clear();
    for (int32_t i = 0; i < plan->count && !failed; i++)
        if (run_and_drop(&plan->steps[i])) failed = i + 1;
    ph_pool_enter(before);
    return failed;
}

int32_t ph_plan_profile(const ph_plan *plan, int32_t threads, double *seconds) {
    int32_t before = ph_pool_enter(threads), failed = 0;
    ph_error_clear();
    for (int32_t i = 0; i < plan->count && !failed; i++) {
        uint64_t start = ph_now();
        if (run_and_drop(&plan->steps[i])) failed = i + 1;
        seconds[i] = (double)(ph_now() - start) * 1e-9;
    }
    ph_pool_enter(before);
    return failed;
}
