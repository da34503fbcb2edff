/* The loop of a lane; the contract is in lane.h. */

#include "lane.h"

#include <poll.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* The clock that costs least. It moves every few milliseconds, and so do turns. */
uint64_t lane_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
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
            return LANE_DECLINED;
        if (written == LANE_LATER) {
            give_back(lane, chain);
            return LANE_WAITS;
        }
        lane->done[lane->done_count++] = (struct ring_completion){chain->head, written};
        lane->counters.chains++;
        lane->counters.bytes_read += chain->readable_size;
        lane->counters.bytes_written += written;
        if (lane_now() >= end)
            return LANE_TURN;
    }
    return LANE_IDLE;
}

int lane_serve(struct lane *lane)
{
    if (lane->serve)
        return lane->serve(lane);
    uint64_t end = lane_now() + lane->turn_ns;
    lane->awaited = 0;
    ring_disable_kicks(lane->ring);
    do {
        if (lane->next == lane->count) {
            int popped = ring_pop(lane->ring, lane->chains, LANE_BATCH, lane->segments,
                                  2 * RING_MAX_SEGMENTS);
            if (popped < 0)
                return popped;
            lane->next = 0;
            lane->count = popped;
            if (popped == 0) {
                if (!ring_enable_kicks(lane->ring))
                    return LANE_IDLE;
                ring_disable_kicks(lane->ring);
                continue;
            }
            lane->counters.batches++;
        }
        enum lane_end why = carry_out_all(lane, end);
        lane_publish(lane);
        if (why != LANE_IDLE)
            return why;
    } while (lane_now() < end);
    return LANE_TURN;
}

int lane_attend(struct lane *const *lanes, uint32_t count, int others, int milliseconds,
                uint32_t *which)
{
    struct pollfd ready[1 + 2 * LANE_TOGETHER] = {{.fd = others, .events = POLLIN}};
    for (;;) {
        for (uint32_t i = 0; i < count; i++) {
            const struct lane *lane = lanes[i];
            /* Below 0 poll looks at nothing. */
            int source = lane->ring && lane->awaited ? lane->source : -1;
            ready[1 + 2 * i] = (struct pollfd){lane->ring ? lane->kick : -1, POLLIN, 0};
            ready[2 + 2 * i] = (struct pollfd){source, lane->awaited, 0};
        }
        if (poll(ready, 1 + 2 * count, milliseconds) <= 0)
            return LANE_IDLE;
        for (uint32_t i = 0; i < count; i++) {
            struct lane *lane = lanes[i];
            uint64_t kicks;
            bool kicked = ready[1 + 2 * i].revents && read(lane->kick, &kicks, sizeof(kicks)) > 0;
            lane->counters.kicks += kicked;
            if (!kicked && !ready[2 + 2 * i].revents)
                continue;
            int end = lane_serve(lane);
            if (end != LANE_IDLE && end != LANE_WAITS) {
                *which = i;
                return end;
            }
        }
        if (ready[0].revents)
            return LANE_IDLE;
    }
}
