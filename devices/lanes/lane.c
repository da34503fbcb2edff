/* The loop of a lane; the contract is in lane.h. */

#include "lane.h"

#include <poll.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static uint64_t time_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The clock that costs least. It moves every few milliseconds, and so do turns. */
uint64_t lane_now(void)
{
    return time_of(CLOCK_MONOTONIC_COARSE);
}

/* Nanoseconds to look out for work before sleeping; a gap between two looks that says that somebody
 * else wants this CPU; and the most times that looking out is left. */
enum { OUTLOOK_NS = 50000, GAP_NS = 20000, MOST_DOUBT = 1023, LOOKS = 16 };

static void pause_a_little(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Whether work comes while we look out for it, instead of sleeping: then nobody has to wake anybody.
 * Each time in vain doubles how often we sleep at once before the next; a time that paid halves it.
 * Who shares this CPU with us cannot give us work while we look, and is given way for longest; so is
 * anybody else who wants it, though it paid. */
static bool look_out(struct lane *lane)
{
    struct lane_outlook *outlook = &lane->outlook;
    if (outlook->skip) {
        outlook->skip--;
        return false;
    }
    uint64_t start = time_of(CLOCK_MONOTONIC), before = start, gap = 0;
    bool found = false;
    while (!found && before - start < OUTLOOK_NS && gap < GAP_NS) {
        for (int i = 0; i < LOOKS && !found; i++) {
            pause_a_little();
            found = ring_is_waiting(lane->ring);
        }
        if (found && before == start)
            break; /* at once: not worth the time to ask for it */
        uint64_t now = time_of(CLOCK_MONOTONIC);
        gap = now - before;
        before = now;
    }
    if (gap >= GAP_NS)
        outlook->doubt = MOST_DOUBT;
    else if (found)
        outlook->doubt /= 2;
    else if (outlook->doubt < MOST_DOUBT)
        outlook->doubt = outlook->doubt * 2 + 1;
    if (!found || gap >= GAP_NS)
        outlook->skip = outlook->doubt;
    return found;
}

void lane_publish(struct lane *lane)
{
    int wanted = ring_push(lane->ring, lane->done, lane->done_count);
    if (wanted < 0)
        abort(); /* our own mistake: a chain that carry_out wrote too much to */
    lane->done_count = 0;
    if (!wanted)
        return;
    lane->counters.interrupts++;
    PASS(LANE_INTERRUPT);
    /* A counter that is full is a doorbell that is ringing already; whoever reads a socket may be
     * gone; and where there is no call, the driver looks for itself. */
    ssize_t rung = write(lane->call, &(uint64_t){1}, sizeof(uint64_t));
    (void)rung;
}

/* It was not begun. */
static void give_back(struct lane *lane, const struct ring_chain *chain)
{
    lane->next--;
    lane->requests++;
    lane->bytes += (int64_t)chain->readable_size + chain->writable_size;
    lane->awaited = POLLOUT;
}

bool lane_is_over(const struct lane *lane, uint64_t end)
{
    return lane_ends(lane) || lane_now() >= end;
}

static enum lane_end decline(struct lane *lane, const struct ring_chain *chain,
                             const struct iovec *segments)
{
    lane->declined = (struct lane_kept){chain, segments, LANE_DECLINE};
    return LANE_DECLINED;
}

static void finish(struct lane *lane, const struct ring_chain *chain, int64_t written)
{
    lane->done[lane->done_count++] = (struct ring_completion){chain->head, written};
    lane->counters.chains++;
    lane->counters.bytes_read += chain->readable_size;
    lane->counters.bytes_written += written;
    if (lane->done_count == LANE_PUBLICATION)
        lane_publish(lane);
}

/* What was kept and has ended; LANE_IDLE when there is no more of it. */
static enum lane_end take_ended(struct lane *lane)
{
    struct lane_keeper *keeper = lane->keeper;
    struct lane_kept ended;
    while (keeper && keeper->kept && keeper->take(lane->device, &ended)) {
        if (ended.written == LANE_DECLINE)
            return decline(lane, ended.chain, ended.segments);
        finish(lane, ended.chain, ended.written);
    }
    return LANE_IDLE;
}

/* The chains that were popped, one after the other; LANE_IDLE when all are done. */
static enum lane_end carry_out_all(struct lane *lane, uint64_t end)
{
    while (lane->next < lane->count) {
        const struct ring_chain *chain = &lane->chains[lane->next];
        if (lane->requests <= 0 || lane->bytes <= 0)
            return LANE_SPENT;
        lane->requests--;
        lane->bytes -= (int64_t)chain->readable_size + chain->writable_size;
        lane->next++;
        PASS(LANE_BEGIN);
        int64_t written = LANE_DECLINE;
        if (!chain->error && !lane->declines)
            written = lane->carry_out(lane->device, chain, lane->segments + chain->first);
        if (written == LANE_DECLINE)
            return decline(lane, chain, lane->segments);
        if (written == LANE_LATER) {
            give_back(lane, chain);
            return LANE_WAITS;
        }
        if (written != LANE_KEEP)
            finish(lane, chain, written);
        if (lane_is_over(lane, end))
            return LANE_TURN;
    }
    return LANE_IDLE;
}

/* How many chains may be popped: each of them may be kept. */
static uint32_t room(const struct lane *lane)
{
    const struct lane_keeper *keeper = lane->keeper;
    uint32_t left = keeper ? keeper->most - keeper->kept : LANE_BATCH;
    return left < LANE_BATCH ? left : LANE_BATCH;
}

/* Pop until there is something; 0: nothing is there, and the driver was asked for a kick, or there
 * is no room before something has ended. */
static int pop(struct lane *lane)
{
    uint32_t most = room(lane);
    if (!most)
        return 0;
    for (;;) {
        int popped = ring_pop(lane->ring, lane->chains, most, lane->segments,
                              2 * RING_MAX_SEGMENTS);
        if (popped) {
            lane->counters.batches += popped > 0;
            return popped;
        }
        lane_publish(lane);
        if (!(lane->keeper && lane->keeper->kept) && look_out(lane))
            continue;
        if (!ring_enable_kicks(lane->ring))
            return 0;
        ring_disable_kicks(lane->ring);
    }
}

int lane_serve(struct lane *lane)
{
    if (lane->serve)
        return lane->serve(lane);
    uint64_t end = lane_now() + lane->turn_ns;
    lane->awaited = 0;
    ring_disable_kicks(lane->ring);
    do {
        enum lane_end why = take_ended(lane);
        if (why == LANE_IDLE && lane->next == lane->count) {
            int popped = pop(lane);
            lane->next = 0;
            lane->count = popped > 0 ? popped : 0;
            if (popped <= 0) {
                lane_publish(lane);
                return popped;
            }
        }
        if (why == LANE_IDLE)
            why = carry_out_all(lane, end);
        if (lane->keeper && !lane->keeper->submit(lane->device, 0) && why == LANE_IDLE)
            why = LANE_TURN;
        lane_publish(lane);
        if (why != LANE_IDLE)
            return why;
    } while (!lane_is_over(lane, end));
    return LANE_TURN;
}

int lane_finish(struct lane *lane)
{
    enum lane_end why = LANE_IDLE;
    while (why == LANE_IDLE && lane->keeper && lane->keeper->kept) {
        lane->keeper->submit(lane->device, 1);
        why = take_ended(lane);
        lane_publish(lane);
    }
    return why;
}

/* What else it waits for: it has a keeper, or a source, or neither. Below 0 poll looks at nothing. */
static struct pollfd third_of(const struct lane *lane)
{
    if (lane->keeper)
        return (struct pollfd){lane->keeper->ended, POLLIN, 0};
    return (struct pollfd){lane->awaited ? lane->source : -1, lane->awaited, 0};
}

int lane_attend(struct lane *lane, int others, int milliseconds)
{
    for (;;) {
        struct pollfd ready[] = {{.fd = lane->kick, .events = POLLIN},
                                 {.fd = others, .events = POLLIN},
                                 third_of(lane)};
        if (poll(ready, 3, milliseconds) <= 0)
            return LANE_IDLE;
        uint64_t kicks;
        bool kicked = ready[0].revents && read(lane->kick, &kicks, sizeof(kicks)) > 0;
        lane->counters.kicks += kicked;
        if (kicked || ready[2].revents) {
            int end = lane_serve(lane);
            if (end != LANE_IDLE && end != LANE_WAITS)
                return end;
        }
        if (ready[1].revents)
            return LANE_IDLE;
    }
}
