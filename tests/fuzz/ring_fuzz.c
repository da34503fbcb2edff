/* Coverage-guided fuzzing of the ring engine: bytes become a queue, and what a hostile driver
 * and a careless device do to it. Built by run.sh with libFuzzer, ASan and UBSan.
 *
 * Each region of guest memory is an allocation of its own, so that an access that leaves it
 * is seen by ASan. Beside the engine runs a model of what it has promised, and every
 * disagreement aborts.
 *
 * A journal may be anything. As long as it is what the engine itself wrote, a ring that takes over
 * has to resubmit just what was in flight, in order.
 *
 * Input: a byte for log2 of the size, a byte of options, then operations, each an opcode and
 * its operands. ring_seeds.py writes some. Missing bytes read as zero.
 */
#include "../../protocol/ring/ring.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOW_SIZE = 8192, HIGH_SIZE = 2048, MOST_OPERATIONS = 400, BATCH = 16 };
enum { MOST_HEADS = LOW_SIZE / 16 }; /* the descriptor table has to fit */
enum { OPTION_EVENT_IDX = 1, OPTION_INDIRECT = 2, OPTION_RAW_CONFIG = 4, OPTION_START = 8 };
enum { OPTION_JOURNAL = 16, OPTION_FORGED = 32 };
static const uint64_t HIGH_GPA = 0x10000;
static const uint32_t TABLE = 4096; /* where descriptors of indirect tables are written */

#define CHECK(what)                                                                               \
    do {                                                                                          \
        if (!(what)) {                                                                            \
            fprintf(stderr, "%s:%d: broken promise: %s\n", __FILE__, __LINE__, #what);            \
            abort();                                                                              \
        }                                                                                         \
    } while (0)

struct input {
    const uint8_t *at, *end;
};

struct world {
    struct input in;
    uint8_t *low, *high;
    struct ring_config config;
    struct ring *ring;
    uint32_t max_chain;
    uint16_t used_idx; /* the model: what the engine has promised */
    uint32_t in_flight;
    uint8_t flying[MOST_HEADS];
    uint32_t room[MOST_HEADS];
    bool broken;
    struct ring_journal journal; /* none: region is NULL */
    bool forged;                 /* by somebody else than the engine, or used.idx was */
    uint32_t left;               /* chains to be resubmitted */
    uint16_t order[MOST_HEADS];  /* of those in flight, as they were popped; size of the ring */
    uint64_t position;
};

static uint64_t take(struct input *in, size_t bytes)
{
    uint64_t value = 0;
    for (size_t i = 0; i < bytes && in->at < in->end; i++)
        value |= (uint64_t)*in->at++ << (8 * i);
    return value;
}

/* Addresses and lengths near the edges, and now and then any. */
static uint64_t take_address(struct input *in)
{
    static const uint64_t places[] = {
        0, TABLE, LOW_SIZE - 16, LOW_SIZE, HIGH_GPA - 1, HIGH_GPA, HIGH_GPA + HIGH_SIZE - 16,
        UINT64_MAX - 15,
    };
    uint8_t choice = take(in, 1);
    if (choice >= 0xf0)
        return take(in, 8);
    return places[choice % 8] + (choice >> 3);
}

static uint32_t take_length(struct input *in)
{
    uint8_t choice = take(in, 1);
    return choice >= 0xf0 ? take(in, 4) : choice;
}

/* The driver's side: plain stores into whatever the ring was laid over. */

static uint8_t *guest(struct world *w, uint64_t gpa, uint64_t len)
{
    if (gpa < LOW_SIZE && len <= LOW_SIZE - gpa)
        return w->low + gpa;
    if (gpa >= HIGH_GPA && gpa - HIGH_GPA < HIGH_SIZE && len <= HIGH_SIZE - (gpa - HIGH_GPA))
        return w->high + (gpa - HIGH_GPA);
    return NULL;
}

static uint16_t get16(struct world *w, uint64_t gpa)
{
    uint16_t value;
    memcpy(&value, guest(w, gpa, 2), 2);
    return value;
}

static void put16(struct world *w, uint64_t gpa, uint16_t value)
{
    memcpy(guest(w, gpa, 2), &value, 2);
}

static void write_descriptor(struct world *w, uint64_t table, uint32_t entries)
{
    uint64_t where = table + 16 * (take(&w->in, 1) % entries);
    uint64_t address = take_address(&w->in);
    uint32_t length = take_length(&w->in);
    uint8_t *to = guest(w, where, 16);
    if (to) {
        memcpy(to, &address, 8);
        memcpy(to + 8, &length, 4);
        put16(w, where + 12, take(&w->in, 1));
        put16(w, where + 14, take(&w->in, 1));
    }
}

static void offer(struct world *w)
{
    uint16_t idx = get16(w, w->config.avail + 2);
    uint8_t head = take(&w->in, 1);
    put16(w, w->config.avail + 4 + 2 * (idx & (w->config.size - 1)), head);
    put16(w, w->config.avail + 2, idx + 1);
}

static void poke(struct world *w)
{
    uint64_t where = take(&w->in, 2), value = take(&w->in, 8);
    uint8_t *to = guest(w, where % (LOW_SIZE - 8), 8);
    memcpy(to, &value, 8);
}

/* Values near the interesting ones, anywhere in the journal. */
static void forge(struct world *w)
{
    if (!w->journal.region)
        return;
    uint32_t region = 16 + 16 * w->journal.size, where = take(&w->in, 2) % (region + 32);
    uint8_t *to = where < region ? (uint8_t *)w->journal.region + where
                                 : (uint8_t *)w->journal.positions + (where - region);
    *to = take(&w->in, 1);
    w->forged = true;
}

/* The device's side, checked against the model. */

static void check_chain(struct world *w, const struct ring_chain *chain,
                        const struct iovec *segments)
{
    CHECK(chain->head < w->config.size && !w->flying[chain->head]);
    CHECK(chain->error <= RING_CHAIN_INDIRECT_OUTSIDE_RAM);
    uint32_t count = chain->readable + chain->writable;
    CHECK(count <= w->max_chain && (!chain->error || count == 0));
    uint64_t sizes[2] = {0, 0};
    for (uint32_t i = 0; i < count; i++) {
        const struct iovec *segment = &segments[chain->first + i];
        volatile uint8_t *bytes = segment->iov_base;
        uint8_t *low = w->low, *high = w->high, *start = segment->iov_base;
        CHECK(segment->iov_len > 0);
        CHECK((start >= low && start < low + LOW_SIZE &&
               segment->iov_len <= (size_t)(low + LOW_SIZE - start)) ||
              (start >= high && start < high + HIGH_SIZE &&
               segment->iov_len <= (size_t)(high + HIGH_SIZE - start)));
        (void)bytes[0];
        (void)bytes[segment->iov_len - 1];
        sizes[i >= chain->readable] += segment->iov_len;
    }
    CHECK(sizes[0] == chain->readable_size && sizes[1] == chain->writable_size);
}

/* Of the w->left chains to be resubmitted the first is the oldest one in flight not yet seen. */
static void note_popped(struct world *w, uint16_t head)
{
    if (!w->left) {
        w->order[w->in_flight++] = head;
        return;
    }
    uint32_t place = w->in_flight - w->left--;
    CHECK(w->forged || w->order[place] == head);
    w->order[place] = head;
}

static void note_completed(struct world *w, uint16_t head)
{
    uint32_t place = 0, seen = w->in_flight - w->left;
    while (place < seen && w->order[place] != head)
        place++;
    CHECK(place < seen);
    w->in_flight--;
    memmove(&w->order[place], &w->order[place + 1], 2 * (w->in_flight - place));
    w->flying[head] = 0;
}

static void pop(struct world *w)
{
    static struct ring_chain chains[BATCH];
    static struct iovec segments[RING_MAX_SEGMENTS + BATCH];
    static uint8_t before[LOW_SIZE + HIGH_SIZE];
    uint32_t limit = take(&w->in, 1) % (BATCH + 1);
    memcpy(before, w->low, LOW_SIZE);
    memcpy(before + LOW_SIZE, w->high, HIGH_SIZE);
    uint16_t waiting = get16(w, w->config.avail + 2) - (uint16_t)(w->used_idx + w->in_flight);

    int popped = ring_pop(w->ring, chains, limit, segments, RING_MAX_SEGMENTS + BATCH);

    CHECK(!memcmp(before, w->low, LOW_SIZE) && !memcmp(before + LOW_SIZE, w->high, HIGH_SIZE));
    CHECK(popped <= (int)limit && popped <= (int)(w->left + waiting));
    CHECK(popped >= -RING_HEAD_IN_FLIGHT && (popped > -RING_AVAIL_JUMP || popped < 0));
    CHECK(!w->broken || popped < 0);
    CHECK(popped != 0 || limit == 0 || w->left + waiting == 0);
    CHECK(waiting <= w->config.size || popped < 0);
    w->broken |= popped < 0;
    for (int i = 0; i < popped; i++) {
        check_chain(w, &chains[i], segments);
        w->flying[chains[i].head] = 1;
        w->room[chains[i].head] = chains[i].writable_size;
        note_popped(w, chains[i].head);
    }
    CHECK(ring_in_flight(w->ring) == w->in_flight && w->in_flight <= w->config.size);
}

static bool legal(struct world *w, const struct ring_completion *done, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t head = done[i].head;
        if (head >= w->config.size || !w->flying[head] || done[i].written > w->room[head])
            return false;
        for (uint32_t j = 0; j < i; j++)
            if (done[j].head == head)
                return false;
    }
    return true;
}

/* The rule of 2.7.7.2, entry by entry. The event is read afterwards: it may lie in the used
 * ring of a driver that overlaps the two. */
static bool interrupt_due(struct world *w, uint16_t before)
{
    if (!w->config.event_idx)
        return !(get16(w, w->config.avail) & 1);
    uint16_t event = get16(w, w->config.avail + 4 + 2 * w->config.size);
    for (uint16_t idx = before; idx != w->used_idx; idx++)
        if (idx == event)
            return true;
    return false;
}

static void push(struct world *w)
{
    struct ring_completion done[BATCH];
    uint32_t count = take(&w->in, 1) % (BATCH + 1);
    for (uint32_t i = 0; i < count; i++) {
        done[i].head = take(&w->in, 1);
        done[i].written = take_length(&w->in);
        if (done[i].head >= 0xf0)
            done[i].head = take(&w->in, 4);
        else if (done[i].head < w->config.size && done[i].written >= 0x80)
            done[i].written = w->room[done[i].head];
    }
    bool expected = legal(w, done, count);
    uint16_t before = w->used_idx;

    uint64_t position = take(&w->in, 1);
    int result = ring_push_at(w->ring, done, count, position);

    CHECK(expected == (result >= 0));
    if (result < 0 || count == 0)
        return;
    w->used_idx += count;
    w->position = position;
    for (uint32_t i = 0; i < count; i++)
        note_completed(w, done[i].head);
    CHECK(get16(w, w->config.used + 2) == w->used_idx);
    CHECK(result == interrupt_due(w, before));
    CHECK(ring_in_flight(w->ring) == w->in_flight);
    CHECK(ring_position(w->ring) == w->position);
}

static void enable_kicks(struct world *w)
{
    bool again = ring_enable_kicks(w->ring);
    uint16_t cursor = w->used_idx + w->in_flight;
    CHECK(again || !w->left);
    CHECK(again || get16(w, w->config.avail + 2) == cursor);
    if (!w->config.event_idx)
        CHECK(again || !(get16(w, w->config.used) & 1));
    else
        CHECK(again || get16(w, w->config.used + 4 + 8 * w->config.size) == cursor);
}

/* A ring takes over: at first, and from one that is gone. False if it refuses. */
static bool attach(struct world *w)
{
    struct ring_region regions[] = {{0, LOW_SIZE, w->low}, {HIGH_GPA, HIGH_SIZE, w->high}};
    enum ring_error error;
    w->ring = ring_new(&w->config, regions, 2, &error);
    CHECK((w->ring != NULL) == (error == RING_OK));
    if (!w->ring)
        return false;
    uint16_t used_idx = get16(w, w->config.used + 2);
    w->forged |= used_idx != w->used_idx;
    uint32_t in_flight = ring_in_flight(w->ring);
    uint16_t outstanding = get16(w, w->config.avail + 2) - used_idx;
    CHECK(in_flight <= w->config.size && in_flight <= (w->journal.region ? outstanding : 0));
    if (w->journal.region && !w->forged)
        CHECK(in_flight == w->in_flight && ring_position(w->ring) == w->position);
    memset(w->flying, 0, sizeof(w->flying));
    w->used_idx = used_idx;
    w->in_flight = w->left = in_flight;
    w->position = ring_position(w->ring);
    w->broken = false;
    return true;
}

/* What a journal that nobody forged may still be refused for: the driver took back what it had
 * made available. */
static bool restart(struct world *w)
{
    uint16_t outstanding = get16(w, w->config.avail + 2) - get16(w, w->config.used + 2);
    bool expected = w->journal.region && !w->forged && w->in_flight <= outstanding &&
                    get16(w, w->config.used + 2) == w->used_idx;
    ring_free(w->ring);
    bool attached = attach(w);
    CHECK(attached || !expected);
    return attached;
}

static bool operate(struct world *w)
{
    switch (take(&w->in, 1) % 12) {
    case 0:
    case 1:
        write_descriptor(w, w->config.desc, w->config.size);
        break;
    case 2:
        write_descriptor(w, TABLE, 128);
        break;
    case 3:
        offer(w);
        break;
    case 4:
        pop(w);
        break;
    case 5:
        push(w);
        break;
    case 6:
        enable_kicks(w);
        break;
    case 7:
        ring_disable_kicks(w->ring);
        break;
    case 8:
        put16(w, w->config.avail + 4 + 2 * w->config.size, take(&w->in, 2));
        break;
    case 9:
        poke(w);
        break;
    case 10:
        forge(w);
        break;
    case 11:
        return restart(w);
    }
    return true;
}

static void make_journal(struct world *w, uint32_t size, bool forged)
{
    w->journal = (struct ring_journal){calloc(1, 16 + 16 * size), calloc(1, 32), size};
    w->config.journal = &w->journal;
    w->config.position = w->position = take(&w->in, 1);
    w->forged = forged;
    for (uint32_t i = 0; forged && i < 16 + 16 * size; i++)
        ((uint8_t *)w->journal.region)[i] = take(&w->in, 1);
    for (uint32_t i = 0; forged && i < 32; i++)
        ((uint8_t *)w->journal.positions)[i] = take(&w->in, 1);
}

static void configure(struct world *w)
{
    uint8_t log_size = take(&w->in, 1) % 8, options = take(&w->in, 1);
    uint32_t size = 1u << log_size;
    w->config = (struct ring_config){
        .desc = 0,
        .avail = 16 * size,
        .used = (16 * size + 6 + 2 * size + 3) & ~3u,
        .size = size,
        .event_idx = options & OPTION_EVENT_IDX,
        .indirect = options & OPTION_INDIRECT,
    };
    if (options & OPTION_RAW_CONFIG) {
        w->config.desc = take_address(&w->in);
        w->config.avail = take_address(&w->in);
        w->config.used = take_address(&w->in);
        w->config.size = take_length(&w->in);
    }
    if (options & OPTION_START) {
        w->used_idx = take(&w->in, 2);
        put16(w, 16 * size + 2, w->used_idx);
        put16(w, ((16 * size + 6 + 2 * size + 3) & ~3u) + 2, w->used_idx);
    }
    if (options & OPTION_JOURNAL)
        make_journal(w, size, options & OPTION_FORGED);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
    static struct world w;
    memset(&w, 0, sizeof(w));
    w.in = (struct input){data, data + length};
    w.low = calloc(1, LOW_SIZE);
    w.high = calloc(1, HIGH_SIZE);
    configure(&w);
    bool attached = attach(&w);
    w.max_chain = w.config.size < RING_MAX_SEGMENTS ? w.config.size : RING_MAX_SEGMENTS;
    for (int i = 0; attached && i < MOST_OPERATIONS && w.in.at < w.in.end; i++)
        attached = operate(&w);
    ring_free(w.ring);
    free(w.journal.region);
    free(w.journal.positions);
    free(w.low);
    free(w.high);
    return 0;
}
