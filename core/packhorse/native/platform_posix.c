#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "platform.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "core.h"

#if defined(__linux__) && !defined(PH_PORTABLE)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

void ph_wait(_Atomic uint32_t *word, uint32_t expected) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

void ph_wake(_Atomic uint32_t *word, int count) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void reset_waiters(void) {}
#else
/* Without futex: one condition for all words. Waking is broadcast, sleepers re-check. */
static pthread_mutex_t wait_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wait_changed = PTHREAD_COND_INITIALIZER;

void ph_wait(_Atomic uint32_t *word, uint32_t expected) {
    pthread_mutex_lock(&wait_mutex);
    if (atomic_load(word) == expected) pthread_cond_wait(&wait_changed, &wait_mutex);
    pthread_mutex_unlock(&wait_mutex);
}

void ph_wake(_Atomic uint32_t *word, int count) {
    (void)word, (void)count;
    pthread_mutex_lock(&wait_mutex);
    pthread_cond_broadcast(&wait_changed);
    pthread_mutex_unlock(&wait_mutex);
}

static void reset_waiters(void) {
    pthread_mutex_init(&wait_mutex, NULL);
    pthread_cond_init(&wait_changed, NULL);
}
#endif

void ph_yield(void) { sched_yield(); }

uint64_t ph_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *thread_main(void *body) {
    union { void *pointer; void (*function)(void); } entry = {.pointer = body};
    entry.function();
    return NULL;
}

int ph_thread_start(void (*body)(void)) {
    union { void (*function)(void); void *pointer; } entry = {.function = body};
    pthread_t thread;
    sigset_t all, before;
    /* Signals belong to the threads of the program: Python's handlers must not run here. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&thread, NULL, thread_main, entry.pointer);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0) pthread_detach(thread);
    return rc;
}

static pthread_mutex_t core_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static void (*_Atomic fork_child)(void);

void ph_lock(void) { pthread_mutex_lock(&core_mutex); }
void ph_unlock(void) { pthread_mutex_unlock(&core_mutex); }

static void after_fork(void) {
    pthread_mutex_init(&core_mutex, NULL);
    reset_waiters();
    void (*in_child)(void) = atomic_load(&fork_child);
    in_child();
}

static void register_fork(void) { pthread_atfork(ph_lock, ph_unlock, after_fork); }

void ph_on_fork(void (*in_child)(void)) {
    atomic_store(&fork_child, in_child);
    pthread_once(&fork_once, register_fork);
}

static pthread_key_t exit_key;
static pthread_once_t exit_once = PTHREAD_ONCE_INIT;
static void (*_Atomic exit_function)(void *);

static void make_exit_key(void) { pthread_key_create(&exit_key, atomic_load(&exit_function)); }

void ph_on_thread_exit(void (*at_exit)(void *), void *value) {
    atomic_store(&exit_function, at_exit);
    pthread_once(&exit_once, make_exit_key);
    pthread_setspecific(exit_key, value);
}

void *ph_aligned_alloc(size_t alignment, size_t nbytes) {
    void *ptr = NULL;
    return posix_memalign(&ptr, alignment, nbytes) == 0 ? ptr : NULL;
}

void ph_aligned_free(void *ptr) { free(ptr); }

/* RTLD_LOCAL: the weak __TVM* slots of two libraries must stay two. Never dlclosed: compiled
 * code caches function handles, and tensors may point into constants of the library. */
uintptr_t ph_dlopen(const char *path) { return (uintptr_t)dlopen(path, RTLD_LAZY | RTLD_LOCAL); }
uintptr_t ph_dlsym(uintptr_t library, const char *name) {
    return (uintptr_t)dlsym((void *)library, name);
}
const char *ph_dlerror(void) { return dlerror(); }

/* Where the library lies: what its file's addresses are relative to. 0 when unknown. */
uintptr_t ph_dlbase(uintptr_t library) {
    struct link_map *map = NULL;
    return dlinfo((void *)library, RTLD_DI_LINKMAP, &map) ? 0 : (uintptr_t)map->l_addr;
}
