/* What compiled code calls back, by name; function handles of the legacy ABI.
 *
 * A handle is opaque to compiled code, which keeps it for life. An odd one holds the number of a
 * Python object (2 * id + 1), so a handle that outlived its object is an error, never a dangling
 * pointer. An even one points to the address of a native function and is never freed.
 */
#include "core.h"

#include <stdlib.h>
#include <string.h>

#define NULL_CODE 4

uintptr_t ph_handle_new(uintptr_t function, uintptr_t id) {
    if (!function) return 2 * id + 1;
    uintptr_t *h = malloc(sizeof *h);
    if (h) *h = function;
    return (uintptr_t)h;
}

/* 0 for the handle of a native function */
uintptr_t ph_handle_id(uintptr_t handle) { return handle & 1 ? handle / 2 : 0; }

int TVMFuncCall(void *opaque, TVMValue *args, int *codes, int count, TVMValue *result,
                int *result_code) {
    uintptr_t h = (uintptr_t)opaque;
    *result_code = NULL_CODE;
    if (!h) {
        TVMAPISetLastError("compiled code called a function that is NULL");
        return -1;
    }
    if (h & 1) return ph_py_call(ph_handle_id(h), args, codes, count, result, result_code);
    ph_step step = {.function = *(uintptr_t *)h, .values = args, .codes = codes, .count = count};
    ph_any any;
    int code = ph_run_step(&step, &any);
    *result = any.value;
    *result_code = any.type_index;
    return code;
}

static int look_up(void *context, const char *name, int32_t abi, void **out) {
    uintptr_t found = 0;
    int code = ph_py_lookup((uintptr_t)context, name, abi, &found);
    *out = (void *)found;
    return code;
}

int TVMBackendGetFuncFromEnv(void *context, const char *name, void **out) {
    return look_up(context, name, PH_LEGACY, out);
}

int TVMFFIEnvModLookupFromImports(void *context, const char *name, void **out) {
    return look_up(context, name, PH_FFI, out);
}

static int register_symbol(const char *name, void *address) {
    return ph_py_symbol(name, (uintptr_t)address);
}

/* Static constructors of a library, which the loader was kept from running. */
void ph_run_constructors(uintptr_t array, int32_t count) {
    typedef void (*constructor)(int, char **, char **);
    const constructor *all = (const constructor *)array;
    for (int32_t i = 0; i < count; i++)
        if (all[i] && all[i] != (constructor)-1) all[i](0, NULL, NULL);
}

/* Relax's exec_mode="compiled" keeps registers as TVM objects, which only TVM has. */
static int any_list(void) {
    TVMFFIErrorSetRaisedFromCStr(
        "NotImplementedError", "this function was compiled with exec_mode=\"compiled\", which "
                               "needs TVM's own objects; compile it with exec_mode=\"bytecode\"");
    return -1;
}

/* Streams belong to devices; host code has none. */
static void *no_stream(int32_t device_type, int32_t device_id) {
    (void)device_type, (void)device_id;
    return NULL;
}

/* Python's signal handlers run between its own bytecodes, after the call. */
static int no_signals(void) { return 0; }

#define BOTH 2
#define ENTRY(abi, name) {#name, abi, (uintptr_t)name}

uintptr_t ph_runtime_address(const char *name, int32_t abi) {
    const struct { const char *name; int32_t abi; uintptr_t address; } table[] = {
        ENTRY(BOTH, TVMBackendAllocWorkspace),
        ENTRY(BOTH, TVMBackendFreeWorkspace),
        ENTRY(BOTH, TVMBackendParallelLaunch),
        ENTRY(BOTH, TVMBackendParallelBarrier),
        {"TVMBackendRegisterSystemLibSymbol", BOTH, (uintptr_t)register_symbol},
        ENTRY(PH_LEGACY, TVMAPISetLastError),
        ENTRY(PH_LEGACY, TVMFuncCall),
        ENTRY(PH_LEGACY, TVMBackendGetFuncFromEnv),
        {"TVMBackendGetFuncFromEnv", PH_FFI, (uintptr_t)TVMFFIEnvModLookupFromImports},
        {"TVMFFIEnvModRegisterSystemLibSymbol", PH_FFI, (uintptr_t)register_symbol},
        {"TVMFFIEnvRegisterSystemLibSymbol", PH_FFI, (uintptr_t)register_symbol},
        {"TVMFFIEnvLookupFromImports", PH_FFI, (uintptr_t)TVMFFIEnvModLookupFromImports},
        {"TVMFFIEnvCheckSignals", PH_FFI, (uintptr_t)no_signals},
        {"TVMFFIEnvGetStream", PH_FFI, (uintptr_t)no_stream},
        ENTRY(PH_FFI, TVMFFIEnvModLookupFromImports),
        ENTRY(PH_FFI, TVMFFIErrorSetRaisedFromCStr),
        ENTRY(PH_FFI, TVMFFIErrorSetRaisedFromCStrParts),
        ENTRY(PH_FFI, TVMFFIFunctionCall),
        ENTRY(PH_FFI, TVMFFIHandleInitOnce),
        {"TVMBackendAnyListSetPackedArg", PH_FFI, (uintptr_t)any_list},
        {"TVMBackendAnyListMoveFromPackedReturn", PH_FFI, (uintptr_t)any_list},
        {"TVMBackendAnyListResetItem", PH_FFI, (uintptr_t)any_list},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if ((table[i].abi == BOTH || table[i].abi == abi) && !strcmp(table[i].name, name))
            return table[i].address;
    return 0;
}
