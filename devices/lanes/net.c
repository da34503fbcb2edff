/* The lanes of a network interface (virtio 1.2, section 5.1.6); the contract is in net.h.
 *
 * What the guest writes is looked at by nobody but the kernel, which takes the header of a packet as
 * it takes QEMU's. What comes from outside is received into memory of our own, checked there, and
 * then copied: so its size is known before buffers are taken for it, and nothing that was checked
 * can change. */

#include "net.h"

#include <errno.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

_Static_assert(sizeof(struct virtio_net_hdr_v1) == NET_HEADER, "virtio 1.2, section 5.1.6");
_Static_assert(offsetof(struct net, packet) % _Alignof(struct virtio_net_hdr_v1) == 0,
               "a packet begins with its header");

/* Each way may have a thread of its own, and this is what they share. */
static void count_dropped(struct net *net)
{
    __atomic_fetch_add(&net->dropped, 1, __ATOMIC_RELAXED);
}

/* To the outside. */

/* The segments without the header, which no socket wants. */
static uint32_t without_header(const struct iovec *segments, uint32_t count, struct iovec *pieces)
{
    uint32_t found = 0;
    size_t skip = NET_HEADER;
    for (uint32_t i = 0; i < count; i++) {
        size_t skipped = skip < segments[i].iov_len ? skip : segments[i].iov_len;
        skip -= skipped;
        if (skipped < segments[i].iov_len)
            pieces[found++] = (struct iovec){(uint8_t *)segments[i].iov_base + skipped,
                                             segments[i].iov_len - skipped};
    }
    return found;
}

int64_t net_send(void *device, const struct ring_chain *chain, const struct iovec *segments)
{
    struct net *net = device;
    struct iovec pieces[RING_MAX_SEGMENTS];
    uint32_t count = chain->readable;
    if (chain->writable || chain->readable_size < NET_LEAST || chain->readable_size > NET_MOST)
        return LANE_DECLINE;
    if (!net->has_headers) {
        count = without_header(segments, count, pieces);
        segments = pieces;
    }
    PASS(LANE_HANDLE);
    if (!net->down && writev(net->packets, segments, count) >= 0) {
        net->sent++;
    } else {
        if (!net->down && errno == EAGAIN)
            return LANE_LATER;
        count_dropped(net);
    }
    PASS(LANE_COMPLETE);
    return 0;
}

/* To the guest. */

enum { NOTHING, RECEIVED, LOST };

/* Whether the driver has agreed to this; what is left out of its header then, it need not know. */
static bool is_wanted(const struct net *net, struct virtio_net_hdr_v1 *header)
{
    uint8_t kind = header->gso_type & ~VIRTIO_NET_HDR_GSO_ECN;
    if (kind != VIRTIO_NET_HDR_GSO_NONE && (kind > 31 || !(net->segments >> kind & 1)))
        return false;
    if (header->gso_type & VIRTIO_NET_HDR_GSO_ECN && !net->congestion)
        return false;
    if (net->checksums)
        return true;
    if (header->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
        return false;
    header->flags = 0;
    return true;
}

/* The next packet that the driver is to have, if there is one. */
static int take(struct net *net)
{
    struct virtio_net_hdr_v1 header = {0};
    size_t offset = net->has_headers ? 0 : NET_HEADER;
    ssize_t size = read(net->packets, net->packet + offset, sizeof(net->packet) - offset);
    if (size <= 0)
        return size < 0 && (errno == EAGAIN || errno == EINTR) ? NOTHING : LOST;
    size += offset;
    if (net->has_headers && size >= NET_HEADER)
        memcpy(&header, net->packet, sizeof(header));
    if (net->down || size < NET_LEAST || size > NET_MOST || !is_wanted(net, &header)) {
        count_dropped(net);
        return RECEIVED;
    }
    memcpy(net->packet, &header, sizeof(header));
    net->waiting = size;
    net->has_waited = false;
    return RECEIVED;
}

/* A buffer that no packet goes into: it is used up at once, with nothing in it. */
static void refuse(struct lane *lane, const struct ring_chain *chain)
{
    lane->done[lane->done_count++] = (struct ring_completion){chain->head, 0};
    lane->counters.chains++;
    *(chain->error ? &lane->counters.errors : &((struct net *)lane->device)->refused) += 1;
}

/* Move the buffers that are there to the front; how many segments they have. */
static uint32_t move_up(struct lane *lane)
{
    uint32_t filled = 0;
    lane->count -= lane->next;
    memmove(lane->chains, lane->chains + lane->next, lane->count * sizeof(*lane->chains));
    lane->next = 0;
    for (uint32_t i = 0; i < lane->count; i++) {
        struct ring_chain *chain = &lane->chains[i];
        memmove(lane->segments + filled, lane->segments + chain->first,
                chain->writable * sizeof(*lane->segments));
        chain->first = filled;
        filled += chain->writable;
    }
    return filled;
}

/* Pop buffers behind the first `filled` segments. How many, or minus an enum ring_error. */
static int refill(struct lane *lane, uint32_t filled)
{
    if (lane->done_count)
        lane_publish(lane); /* those refused may be as many as there is room for */
    struct ring_chain *new = lane->chains + lane->count;
    int popped = ring_pop(lane->ring, new, LANE_WINDOW - lane->count, lane->segments + filled,
                          2 * RING_MAX_SEGMENTS - filled);
    lane->counters.batches += popped > 0;
    for (int i = 0; i < popped; i++) {
        if (new[i].error || new[i].readable || new[i].writable_size < NET_HEADER) {
            refuse(lane, &new[i]);
            continue;
        }
        new[i].first += filled;
        lane->chains[lane->count++] = new[i];
    }
    return popped;
}

/* Whether there is room for more buffers, and use: more than half the window no packet takes. */
static bool is_low(const struct lane *lane)
{
    uint32_t held = lane->count - lane->next;
    if (held == 0)
        return true;
    const struct ring_chain *last = &lane->chains[lane->count - 1];
    uint32_t used = last->first + last->writable - lane->chains[lane->next].first;
    return held < LANE_WINDOW / 2 && used <= RING_MAX_SEGMENTS;
}

/* How many of the buffers that are there the packet takes, or all of them; and their bytes. */
static uint32_t measure(const struct lane *lane, size_t *room)
{
    const struct net *net = lane->device;
    uint32_t taken = 0, most = net->merges ? LANE_WINDOW : 1;
    for (*room = 0; *room < net->waiting && taken < most && lane->next + taken < lane->count;)
        *room += lane->chains[lane->next + taken++].writable_size;
    return taken;
}

static uint32_t copy(const struct iovec *segments, uint32_t count, const uint8_t *from, uint32_t left)
{
    uint32_t copied = 0;
    for (uint32_t i = 0; i < count && copied < left; i++) {
        uint32_t size = left - copied < segments[i].iov_len ? left - copied : segments[i].iov_len;
        memcpy(segments[i].iov_base, from + copied, size);
        copied += size;
    }
    return copied;
}

/* Put the packet into the next `taken` buffers; its completions are published together, and with
 * those of others while they are few. */
static void place(struct lane *lane, uint32_t taken)
{
    struct net *net = lane->device;
    uint32_t copied = 0;
    if (lane->done_count && lane->done_count + taken > LANE_BATCH)
        lane_publish(lane);
    ((struct virtio_net_hdr_v1 *)net->packet)->num_buffers = taken;
    for (; taken; taken--) {
        const struct ring_chain *chain = &lane->chains[lane->next++];
        uint32_t size = copy(lane->segments + chain->first, chain->writable, net->packet + copied,
                             net->waiting - copied);
        copied += size;
        lane->done[lane->done_count++] = (struct ring_completion){chain->head, size};
        lane->counters.chains++;
    }
    lane->counters.bytes_written += copied;
    lane->requests--;
    lane->bytes -= copied;
    net->received++;
    net->waiting = 0;
}

static int drop(struct net *net)
{
    count_dropped(net);
    net->waiting = 0;
    return LANE_TURN;
}

/* Place the packet, or drop it if no buffers will do: the window is full of those that are too small,
 * or it has waited for more, and they were too few. LANE_TURN, or LANE_IDLE if it waits; or minus an
 * enum ring_error. Buffers are popped once: the guest may go on to add some that are of no use. */
static int deliver(struct lane *lane)
{
    struct net *net = lane->device;
    size_t room;
    uint32_t taken = measure(lane, &room);
    if (room < net->waiting) {
        uint32_t filled = move_up(lane);
        bool is_full = lane->count == LANE_WINDOW || filled > RING_MAX_SEGMENTS;
        if (is_full || (!net->merges && lane->count))
            return drop(net);
        int popped = refill(lane, filled);
        if (popped < 0)
            return popped;
        if (popped == 0) {
            net->has_waited = true;
            return ring_enable_kicks(lane->ring) ? LANE_TURN : LANE_IDLE;
        }
        taken = measure(lane, &room);
        if (room < net->waiting && net->has_waited)
            return drop(net);
    }
    if (room >= net->waiting)
        place(lane, taken);
    return LANE_TURN;
}

/* Nothing has come. Buffers are popped all the same, for what is wrong with them is to be told; and
 * while there are few the driver is asked for kicks. LANE_TURN if there may be more; or minus an enum
 * ring_error. */
static int stock_up(struct lane *lane)
{
    if (!is_low(lane))
        return LANE_IDLE;
    int popped = refill(lane, move_up(lane));
    if (popped < 0)
        return popped;
    return popped || (is_low(lane) && ring_enable_kicks(lane->ring)) ? LANE_TURN : LANE_IDLE;
}

/* LANE_TURN if there may be another packet. */
static int receive_one(struct lane *lane)
{
    struct net *net = lane->device;
    if (lane->requests <= 0 || lane->bytes <= 0)
        return LANE_SPENT;
    if (net->waiting)
        return deliver(lane);
    int taken = take(net);
    if (taken == LOST) {
        lane->source = -1; /* it is of no use any more, and would wake us all the time */
        if (!net->lost) {
            net->lost = true;
            return LANE_SPENT;
        }
    }
    lane->awaited = taken == RECEIVED ? 0 : POLLIN;
    return taken == RECEIVED ? LANE_TURN : stock_up(lane);
}

int net_receive(struct lane *lane)
{
    uint64_t end = lane_now() + lane->turn_ns;
    int why;
    lane->awaited = 0;
    ring_disable_kicks(lane->ring);
    do {
        why = receive_one(lane);
    } while (why == LANE_TURN && !lane_is_over(lane, end));
    lane_publish(lane);
    return why;
}
