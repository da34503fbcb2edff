/* A thread for a lane; the contract is in thread.h. */

#include "thread.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Of its stack: blk_carry_out has 16 KiB of segments there (arbitrary, and ten times that). */
enum { STACK_SIZE = 256 * 1024 };

struct lane_thread {
    struct lane *lane;
    pthread_t thread;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t changed;
    bool goes, ends;
    int end;
    int wake; /* eventfds: to it, and from it */
    int bell;
};

static void ring(int bell)
{
    /* Ours, and nobody fills it. */
    ssize_t rung = write(bell, &(uint64_t){1}, sizeof(uint64_t));
    (void)rung;
}

/* Until an end that is not for us, or it is to park. */
static int attend(struct lane_thread *t)
{
    int end = LANE_TURN;
    while ((end == LANE_TURN || end == LANE_IDLE) && !lane_ends(t->lane))
        end = end == LANE_TURN ? lane_serve(t->lane) : lane_attend(t->lane, t->wake, -1);
    return end == LANE_TURN ? LANE_IDLE : end;
}

static void *run(void *context)
{
    struct lane_thread *t = context;
    pthread_mutex_lock(&t->lock);
    for (;;) {
        while (!t->goes && !t->ends)
            pthread_cond_wait(&t->changed, &t->lock);
        if (t->ends)
            break;
        pthread_mutex_unlock(&t->lock);
        int end = attend(t);
        pthread_mutex_lock(&t->lock);
        t->goes = false;
        t->end = end;
        pthread_cond_broadcast(&t->changed);
        ring(t->bell);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

/* With all signals blocked, which it inherits: they are the other thread's. */
static int begin(struct lane_thread *t)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    int error = pthread_create(&t->thread, &attributes, run, t);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

static void let_go(struct lane_thread *t)
{
    if (t->wake >= 0)
        close(t->wake);
    if (t->bell >= 0)
        close(t->bell);
    free(t);
}

struct lane_thread *lane_thread_new(struct lane *lane)
{
    struct lane_thread *t = calloc(1, sizeof(*t));
    if (!t)
        return NULL;
    t->lane = lane;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->changed, NULL);
    t->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    t->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = t->wake < 0 || t->bell < 0 ? errno : begin(t);
    if (!error)
        return t;
    let_go(t);
    errno = error;
    return NULL;
}

void lane_thread_free(struct lane_thread *t)
{
    lane_thread_park(t);
    pthread_mutex_lock(&t->lock);
    t->ends = true;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
    pthread_join(t->thread, NULL);
    let_go(t);
}

int lane_thread_wake(const struct lane_thread *t)
{
    return t->wake;
}

int lane_thread_bell(const struct lane_thread *t)
{
    return t->bell;
}

void lane_thread_go(struct lane_thread *t)
{
    pthread_mutex_lock(&t->lock);
    t->goes = true;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
}

int lane_thread_park(struct lane_thread *t)
{
    uint64_t count;
    pthread_mutex_lock(&t->lock);
    if (t->goes) {
        __atomic_store_n(&t->lane->ends, true, __ATOMIC_RELEASE);
        ring(t->wake);
        while (t->goes)
            pthread_cond_wait(&t->changed, &t->lock);
        __atomic_store_n(&t->lane->ends, false, __ATOMIC_RELEASE);
        ssize_t drained = read(t->wake, &count, sizeof(count));
        (void)drained;
    }
    int end = t->end;
    t->end = LANE_IDLE;
    pthread_mutex_unlock(&t->lock);
    return end;
}

bool lane_thread_is_parked(struct lane_thread *t)
{
    pthread_mutex_lock(&t->lock);
    bool parked = !t->goes;
    pthread_mutex_unlock(&t->lock);
    return parked;
}
