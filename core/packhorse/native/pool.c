/* The thread pool behind TVMBackendParallelLaunch.
 *
 * A launch publishes a job; its ticket holds (epoch << 32 | tasks nobody has claimed yet). Caller
 * and workers claim tasks by CAS on the ticket alone and read the job's fields only after a claim
 * succeeded: the job cannot end, nor its slot be reused, before that task is done. The caller
 * waits for tasks, never for workers, so a worker that lost its core delays nobody.
 *
 * Several threads may launch at once. Each launch reserves the workers it counts on and splits
 * its work by what it got, so tasks always find a thread, even when they meet in a barrier.
 */
#include "core.h"
#include "platform.h"

#include <string.h>

#define JOBS 16
#define WORKERS_MAX 1023

typedef struct {
    _Alignas(64) _Atomic uint64_t ticket;
    _Atomic uint32_t busy;
    FTVMParallelLambda lambda;
    void *cdata;
    TVMParallelGroupEnv env;
    uint32_t tasks;
    uint32_t threads; /* caller + reserved workers */
    _Alignas(64) _Atomic uint32_t left; /* tasks not finished */
    _Atomic uint32_t sleeping;          /* the caller sleeps on `left` */
    _Atomic uint32_t arrived, generation; /* barrier */
    _Atomic uint32_t failed;
    int code;
    ph_error error;
} job;

static job jobs[JOBS];
static _Alignas(64) _Atomic uint32_t published; /* counts launches; workers sleep on it */
static _Alignas(64) _Atomic int32_t spinning;
static _Atomic int32_t asleep;
static _Alignas(64) _Atomic int32_t idle; /* workers no launch has reserved */
static _Atomic int32_t started;
static int32_t default_threads = 1;
static uint64_t spin_ns = 60000;

static PH_THREAD_LOCAL int32_t my_threads; /* of the running plan; 0 = default */
static PH_THREAD_LOCAL int in_task;

static uint32_t unclaimed(uint64_t ticket) { return (uint32_t)ticket; }

static void run_task(job *j, int id) {
    int code = j->lambda(id, &j->env, j->cdata);
    if (code && !atomic_exchange(&j->failed, 1)) { /* the first error is the one reported */
        j->code = code;
        ph_error_save(&j->error);
    }
    if (atomic_fetch_sub(&j->left, 1) == 1 && atomic_load(&j->sleeping)) ph_wake(&j->left, 1);
}

/* Claim and run tasks until none is left; how many this thread ran. */
static int work(job *j) {
    int ran = 0;
    uint64_t ticket = atomic_load_explicit(&j->ticket, memory_order_acquire);
    while (unclaimed(ticket)) {
        if (!atomic_compare_exchange_weak(&j->ticket, &ticket, ticket - 1)) continue;
        run_task(j, (int)(j->tasks - unclaimed(ticket)));
        ran++;
        ticket = atomic_load_explicit(&j->ticket, memory_order_acquire);
    }
    return ran;
}

/* Spin until *word differs from `value`; 0 when the spin time is over. */
static int spin_while(_Atomic uint32_t *word, uint32_t value) {
    uint64_t end = 0;
    for (uint32_t i = 1; atomic_load_explicit(word, memory_order_acquire) == value; i++) {
        ph_relax();
        if (i % 32) continue; /* the clock costs as much as the whole round */
        uint64_t now = ph_now();
        if (!end) end = now + spin_ns;
        if (now >= end) return 0;
    }
    return 1;
}

static void worker(void) {
    in_task = 1; /* a launch from inside a task runs serially */
    for (;;) {
        uint32_t seen = atomic_load(&published);
        int ran = 0;
        for (int i = 0; i < JOBS; i++) ran += work(&jobs[i]);
        if (ran) continue;
        atomic_fetch_add(&spinning, 1);
        int changed = spin_while(&published, seen);
        atomic_fetch_sub(&spinning, 1);
        if (changed) continue;
        atomic_fetch_add(&asleep, 1);
        ph_wait(&published, seen);
        atomic_fetch_sub(&asleep, 1);
    }
}

/* `published` is raised before `spinning` is read: a spinner that gives up in between finds the
 * new value and does not fall asleep, so no launch goes unseen. */
static void announce(int32_t helpers) {
    atomic_fetch_add(&published, 1);
    int32_t needed = helpers - atomic_load(&spinning);
    if (needed > 0 && atomic_load(&asleep) > 0) ph_wake(&published, needed);
}

/* The child of a fork has one thread: forget workers and jobs, start afresh when needed. */
static void in_child(void) {
    memset(jobs, 0, sizeof jobs);
    atomic_store(&spinning, 0);
    atomic_store(&asleep, 0);
    atomic_store(&idle, 0);
    atomic_store(&started, 0);
}

static void start_workers(int32_t wanted) {
    if (wanted > WORKERS_MAX) wanted = WORKERS_MAX;
    if (atomic_load(&started) >= wanted) return;
    ph_on_fork(in_child);
    ph_lock();
    while (atomic_load(&started) < wanted && ph_thread_start(worker) == 0) {
        atomic_fetch_add(&started, 1);
        atomic_fetch_add(&idle, 1);
    }
    ph_unlock();
}

static int32_t reserve(int32_t wanted) {
    if (wanted <= 0) return 0;
    start_workers(wanted);
    int32_t free_now = atomic_load(&idle), got;
    do {
        got = wanted < free_now ? wanted : free_now;
        if (got <= 0) return 0;
    } while (!atomic_compare_exchange_weak(&idle, &free_now, free_now - got));
    return got;
}

static job *claim_slot(void) {
    for (int i = 0; i < JOBS; i++) {
        uint32_t no = 0;
        if (atomic_compare_exchange_strong(&jobs[i].busy, &no, 1)) return &jobs[i];
    }
    return NULL;
}

/* Always legal: compiled code divides its work by num_task. */
static int run_serially(FTVMParallelLambda lambda, void *cdata) {
    TVMParallelGroupEnv alone = {NULL, 1};
    int before = in_task;
    in_task = 1;
    int code = lambda(0, &alone, cdata);
    in_task = before;
    return code;
}

static void wait_for_tasks(job *j) {
    uint32_t left;
    while ((left = atomic_load(&j->left))) {
        if (spin_while(&j->left, left)) continue;
        atomic_store(&j->sleeping, 1);
        if (atomic_load(&j->left) == left) ph_wait(&j->left, left);
        atomic_store(&j->sleeping, 0);
    }
}

static int run_job(job *j, FTVMParallelLambda lambda, void *cdata, int tasks, int helpers) {
    j->lambda = lambda;
    j->cdata = cdata;
    j->env = (TVMParallelGroupEnv){j, tasks};
    j->tasks = (uint32_t)tasks;
    j->threads = (uint32_t)helpers + 1;
    atomic_store_explicit(&j->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&j->failed, 0, memory_order_relaxed);
    atomic_store_explicit(&j->left, (uint32_t)tasks, memory_order_relaxed);
    uint64_t epoch = (atomic_load_explicit(&j->ticket, memory_order_relaxed) >> 32) + 1;
    atomic_store_explicit(&j->ticket, epoch << 32 | (uint32_t)tasks, memory_order_release);
    announce(helpers);
    in_task = 1;
    work(j);
    in_task = 0;
    wait_for_tasks(j);
    int code = atomic_load(&j->failed) ? j->code : 0;
    if (code) ph_error_restore(&j->error);
    return code;
}

/* num_task 0: as many as the running plan has threads. More tasks than threads: they are claimed
 * one by one (dynamic scheduling), without barriers. Otherwise: no more tasks than threads. */
int TVMBackendParallelLaunch(FTVMParallelLambda lambda, void *cdata, int num_task) {
    int32_t limit = my_threads > 0 ? my_threads : default_threads;
    int32_t wanted = num_task > 0 && num_task < limit ? num_task : limit;
    int32_t helpers = in_task ? 0 : reserve(wanted - 1);
    job *j = helpers ? claim_slot() : NULL;
    if (!j) {
        atomic_fetch_add(&idle, helpers);
        return run_serially(lambda, cdata);
    }
    int code = run_job(j, lambda, cdata, num_task > limit ? num_task : helpers + 1, helpers);
    atomic_store(&j->busy, 0);
    atomic_fetch_add(&idle, helpers);
    return code;
}

int TVMBackendParallelBarrier(int task_id, TVMParallelGroupEnv *penv) {
    (void)task_id;
    job *j = penv->sync_handle;
    if (penv->num_task == 1) return 0;
    if (j->tasks > j->threads) {
        TVMAPISetLastError("parallel barrier: the function launched more tasks than it has "
                           "threads; run it with more threads");
        return -1;
    }
    uint32_t generation = atomic_load(&j->generation);
    if (atomic_fetch_add(&j->arrived, 1) + 1 == j->tasks) {
        atomic_store(&j->arrived, 0);
        atomic_fetch_add(&j->generation, 1);
        return 0;
    }
    while (!spin_while(&j->generation, generation)) {
        announce(WORKERS_MAX + 1); /* two launches may have counted on the same spinner */
        ph_yield();
    }
    return 0;
}

int32_t ph_pool_enter(int32_t threads) {
    int32_t before = my_threads;
    my_threads = threads;
    return before;
}

void ph_pool_configure(int32_t threads, int32_t spin_us) {
    default_threads = threads > 0 ? threads : 1;
    spin_ns = (uint64_t)(spin_us > 0 ? spin_us : 0) * 1000u;
}

int32_t ph_pool_workers(void) { return atomic_load(&started); }
