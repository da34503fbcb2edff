#include "engine.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

struct waker {
    struct engine *engine;
    int wake; /* not ours */
    int epoll, timer, quit;
    uint64_t signalled;
    pthread_t thread;
};

enum { QUIT = WAKER_MAX };

static void *watch(void *user)
{
    struct waker *waker = user;
    struct epoll_event events[16];
    for (;;) {
        int count = epoll_wait(waker->epoll, events, 16, -1);
        uint64_t seen = 0;
        for (int i = 0; i < count; i++) {
            if (events[i].data.u32 == QUIT)
                return NULL;
            seen |= 1ull << events[i].data.u32;
        }
        /* In this order: whoever sees the stop, or the count, finds the bits. */
        __atomic_fetch_or(&waker->signalled, seen, __ATOMIC_RELEASE);
        engine_stop(waker->engine);
        /* It does not block: the eventfd is non-blocking, and one that is full is awake. */
        (void)!write(waker->wake, &(uint64_t){ 1 }, 8);
    }
}

/* Edges: each later signal is told again, of an eventfd that nobody has emptied too. */
static int add(struct waker *waker, int fd, uint32_t number)
{
    struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.u32 = number };
    return epoll_ctl(waker->epoll, EPOLL_CTL_ADD, fd, &event) ? errno : 0;
}

static void close_all(struct waker *waker)
{
    int fds[] = { waker->epoll, waker->timer, waker->quit };
    for (unsigned i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(waker);
}

struct waker *waker_new(struct engine *engine, int wake)
{
    struct waker *waker = calloc(1, sizeof *waker);
    if (!waker)
        return NULL;
    waker->engine = engine;
    waker->wake = wake;
    waker->epoll = epoll_create1(EPOLL_CLOEXEC);
    waker->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    waker->quit = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = 0;
    if (waker->epoll < 0 || waker->timer < 0 || waker->quit < 0)
        error = errno;
    if (!error)
        error = add(waker, waker->timer, WAKER_TIMER);
    if (!error)
        error = add(waker, waker->quit, QUIT);
    if (!error) {
        /* Signals are for the threads of Python. */
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&waker->thread, NULL, watch, waker);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (error) {
        close_all(waker);
        errno = error;
        return NULL;
    }
    return waker;
}

void waker_free(struct waker *waker)
{
    (void)!write(waker->quit, &(uint64_t){ 1 }, 8);
    pthread_join(waker->thread, NULL);
    close_all(waker);
}

int waker_watch(struct waker *waker, int fd, unsigned number)
{
    return number == WAKER_TIMER || number >= WAKER_MAX ? EINVAL : add(waker, fd, number);
}

int waker_forget(struct waker *waker, int fd)
{
    return epoll_ctl(waker->epoll, EPOLL_CTL_DEL, fd, NULL) ? errno : 0;
}

uint64_t waker_take(struct waker *waker)
{
    return __atomic_exchange_n(&waker->signalled, 0, __ATOMIC_ACQUIRE);
}

void waker_set_timer(struct waker *waker, uint64_t at)
{
    struct itimerspec when = { .it_value = { at / 1000000000, at % 1000000000 } };
    timerfd_settime(waker->timer, TFD_TIMER_ABSTIME, &when, NULL);
}
