/* One thread between a guest and a device; the contract is in pump.h. */

#define _GNU_SOURCE
#include "pump.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Beside the numbers of queues, in an event. */
#define CALL UINT32_MAX
#define STOP (UINT32_MAX - 1)

#define MOST_EVENTS 16

struct queue {
    struct mediator *mediator;
    int bell;
    bool rung;   /* by the guest, and not looked at yet */
    bool broken; /* by the guest: its kicks mean nothing any more */
};

struct pump {
    int epoll, stop, line, call;
    bool stopping; /* atomic */
    bool called;
    uint32_t count;
    struct queue queues[];
};

/* SIGRTMIN is the vCPUs' (kvm.c). Here without SA_RESTART, or write() went on. */
static int nudge_signal(void)
{
    return SIGRTMIN + 1;
}

static void do_nothing(int signal)
{
    (void)signal;
}

static void prepare_signal(void)
{
    struct sigaction action = {.sa_handler = do_nothing};
    sigset_t set;
    sigemptyset(&action.sa_mask);
    sigaction(nudge_signal(), &action, NULL);
    sigemptyset(&set);
    sigaddset(&set, nudge_signal());
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static bool is_stopping(const struct pump *p)
{
    return __atomic_load_n(&p->stopping, __ATOMIC_ACQUIRE);
}

/* False if it is full. One that waits where it should not is left when somebody stops us. */
static bool ring(const struct pump *p, int bell)
{
    const uint64_t one = 1;
    while (write(bell, &one, sizeof(one)) < 0) {
        if (errno != EINTR)
            return false;
        if (is_stopping(p))
            return true;
    }
    return true;
}

/* What a step of the mediator of queue leads to. The guest hears first, for the device may be one
 * whose doorbell holds us up. */
static struct pump_end follow(struct pump *p, uint32_t index, struct mediator_outcome outcome)
{
    struct queue *queue = &p->queues[index];
    struct pump_end end = {PUMP_STOPPED, outcome.guest, outcome.device, index};
    if (outcome.device) {
        end.reason = PUMP_DEVICE_BROKE;
        return end;
    }
    bool breaks = outcome.guest && !queue->broken;
    queue->broken |= breaks;
    queue->rung |= outcome.more && !queue->broken;
    if (outcome.interrupt_guest || breaks)
        ring(p, p->line);
    if ((outcome.ring_device || breaks) && !ring(p, queue->bell))
        end.reason = PUMP_BELL_FULL;
    else if (breaks)
        end.reason = PUMP_GUEST_BROKE;
    return end;
}

/* Completions first: they make room. */
static struct pump_end look(struct pump *p)
{
    struct pump_end end = {PUMP_STOPPED, RING_OK, MEDIATOR_OK, 0};
    bool called = p->called;
    p->called = false;
    for (uint32_t i = 0; i < p->count && called && !end.reason; i++)
        if (p->queues[i].mediator)
            end = follow(p, i, mediator_complete(p->queues[i].mediator));
    for (uint32_t i = 0; i < p->count && !end.reason; i++) {
        struct queue *queue = &p->queues[i];
        bool rung = queue->rung && queue->mediator;
        queue->rung = false;
        if (rung && !queue->broken)
            end = follow(p, i, mediator_kick(queue->mediator));
    }
    return end;
}

static bool has_work(const struct pump *p)
{
    for (uint32_t i = 0; i < p->count; i++)
        if (p->queues[i].rung)
            return true;
    return p->called;
}

static void note(struct pump *p, uint32_t what)
{
    if (what == CALL)
        p->called = true;
    else if (what < p->count)
        p->queues[what].rung = true;
}

struct pump_end pump_run(struct pump *p)
{
    struct pump_end end = {PUMP_STOPPED, RING_OK, MEDIATOR_OK, 0};
    prepare_signal();
    note(p, CALL);
    for (uint32_t i = 0; i < p->count; i++)
        note(p, i);
    while (!is_stopping(p)) {
        end = look(p);
        if (end.reason)
            break;
        struct epoll_event events[MOST_EVENTS];
        int count = epoll_wait(p->epoll, events, MOST_EVENTS, has_work(p) ? 0 : -1);
        for (int i = 0; i < count; i++)
            note(p, events[i].data.u32);
    }
    return end;
}

void pump_stop(struct pump *p)
{
    __atomic_store_n(&p->stopping, true, __ATOMIC_RELEASE);
    ring(p, p->stop);
}

void pump_nudge(int thread)
{
    syscall(SYS_tgkill, getpid(), thread, nudge_signal());
}

static int listen_to(struct pump *p, int fd, uint32_t what)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = what};
    return epoll_ctl(p->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? errno : 0;
}

void pump_serve(struct pump *p, uint32_t index, struct mediator *mediator)
{
    struct queue *queue = &p->queues[index];
    *queue = (struct queue){.mediator = mediator, .bell = queue->bell};
}

int pump_connect(struct pump *p, int call, const int *bells)
{
    if (p->call >= 0)
        epoll_ctl(p->epoll, EPOLL_CTL_DEL, p->call, NULL);
    p->call = call;
    for (uint32_t i = 0; i < p->count; i++)
        p->queues[i].bell = bells[i];
    return listen_to(p, call, CALL);
}

void pump_arm(struct pump *p)
{
    __atomic_store_n(&p->stopping, false, __ATOMIC_RELEASE);
}

struct pump *pump_new(uint32_t count, const int *kicks, int line)
{
    struct pump *p = calloc(1, sizeof(*p) + count * sizeof(p->queues[0]));
    if (!p)
        return NULL;
    p->count = count;
    p->line = line;
    p->call = -1;
    p->epoll = epoll_create1(EPOLL_CLOEXEC);
    p->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = p->epoll < 0 || p->stop < 0 ? errno : listen_to(p, p->stop, STOP);
    for (uint32_t i = 0; i < count && !error; i++)
        error = listen_to(p, kicks[i], i);
    if (!error)
        return p;
    pump_free(p);
    errno = error;
    return NULL;
}

void pump_free(struct pump *p)
{
    if (p->epoll >= 0)
        close(p->epoll);
    if (p->stop >= 0)
        close(p->stop);
    free(p);
}
