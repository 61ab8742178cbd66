/* The last error of each thread: kind and text, and a token when a Python exception caused it. */
#include "core.h"
#include "platform.h"

#include <string.h>

static PH_THREAD_LOCAL ph_error last;

static void store(char *to, size_t room, const char *text) {
    size_t length = text ? strnlen(text, room - 1) : 0;
    if (length) memmove(to, text, length);
    to[length] = 0;
}

void ph_error_set(const char *text, uint64_t token) {
    store(last.text, PH_ERROR_MAX, text);
    last.kind[0] = 0;
    last.token = token;
}

void TVMAPISetLastError(const char *text) { ph_error_set(text, 0); }

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) {
    ph_error_set(message, 0);
    store(last.kind, PH_KIND_MAX, kind);
}

/* `parts` may hold NULLs; what does not fit is cut off. */
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    size_t used = 0;
    for (int32_t i = 0; parts && i < count && used < PH_ERROR_MAX - 1; i++) {
        store(last.text + used, PH_ERROR_MAX - used, parts[i]);
        used += strlen(last.text + used);
    }
    last.text[used] = 0;
    last.token = 0;
    store(last.kind, PH_KIND_MAX, kind);
}

const char *ph_error_text(void) { return last.text; }
const char *ph_error_kind(void) { return last.kind; }
uint64_t ph_error_token(void) { return last.token; }

void ph_error_clear(void) {
    last.text[0] = last.kind[0] = 0;
    last.token = 0;
}

void ph_error_save(ph_error *to) {
    to->token = last.token;
    strcpy(to->kind, last.kind);
    strcpy(to->text, last.text);
}

void ph_error_restore(const ph_error *from) {
    ph_error_set(from->text, from->token);
    strcpy(last.kind, from->kind);
}
