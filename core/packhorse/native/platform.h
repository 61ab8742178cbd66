/* Every call into the operating system goes through here: porting means one more file like
 * platform_posix.c. Threads, sleeping and waking, dynamic libraries, aligned memory. */
#ifndef PACKHORSE_PLATFORM_H
#define PACKHORSE_PLATFORM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define PH_THREAD_LOCAL __thread

/* Tell the core that this thread is in a spin loop. */
static inline void ph_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

/* Sleep while *word == expected; may return early. Wake at most `count` sleepers. */
void ph_wait(_Atomic uint32_t *word, uint32_t expected);
void ph_wake(_Atomic uint32_t *word, int count);
void ph_yield(void);

/* Monotonic nanoseconds. */
uint64_t ph_now(void);

/* A detached thread that takes no signals; 0 when it started. */
int ph_thread_start(void (*body)(void));

/* One lock, for starting workers; held across fork so that the child finds it free. */
void ph_lock(void);
void ph_unlock(void);
/* `in_child` runs in the child after every fork; registering again is harmless. */
void ph_on_fork(void (*in_child)(void));

/* `at_exit(value)` runs when the calling thread ends. */
void ph_on_thread_exit(void (*at_exit)(void *), void *value);

void *ph_aligned_alloc(size_t alignment, size_t nbytes);
void ph_aligned_free(void *ptr);

#endif
