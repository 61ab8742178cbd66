/* The last error of each thread: its text, and a token when a Python exception caused it. */
#include "core.h"
#include "platform.h"

#include <string.h>

static PH_THREAD_LOCAL ph_error last;

void ph_error_set(const char *text, uint64_t token) {
    size_t length = text ? strnlen(text, PH_ERROR_MAX - 1) : 0;
    if (length) memmove(last.text, text, length);
    last.text[length] = 0;
    last.token = token;
}

void TVMAPISetLastError(const char *text) { ph_error_set(text, 0); }
const char *ph_error_text(void) { return last.text; }
uint64_t ph_error_token(void) { return last.token; }

void ph_error_clear(void) {
    last.text[0] = 0;
    last.token = 0;
}

void ph_error_save(ph_error *to) {
    to->token = last.token;
    strcpy(to->text, last.text);
}

void ph_error_restore(const ph_error *from) { ph_error_set(from->text, from->token); }
