/* Coverage-guided fuzzing of the ring engine: bytes become a queue, and what a hostile driver
 * and a careless device do to it. Beside the engine runs a model of what it has promised, and
 * every disagreement aborts.
 *
 * Two targets: `chain`, where nothing is noted, and `journal`, built with FUZZ_JOURNAL=1. A journal
 * may be anything. As long as it is what the engine itself wrote, a ring that takes over has to
 * resubmit just what was in flight, in order.
 *
 * Input: a byte for log2 of the size, a byte of options, then operations, each an opcode and
 * its operands. ring_seeds.py has some.
 */
#include "driver.h"

enum { BATCH = 16 };
enum { OPTION_FORGED = 32 }; /* 16 is not used */

struct world {
    struct driver driver;
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

/* Values near the interesting ones, anywhere in the journal. */
static void forge(struct world *w)
{
    if (!w->journal.region)
        return;
    uint32_t region = 16 + 16 * w->journal.size, where = take(&w->driver.in, 2) % (region + 32);
    uint8_t *to = where < region ? (uint8_t *)w->journal.region + where
                                 : (uint8_t *)w->journal.positions + (where - region);
    *to = take(&w->driver.in, 1);
    w->forged = true;
}

/* The device's side, checked against the model. */

static void check_chain(struct world *w, const struct ring_chain *chain,
                        const struct iovec *segments)
{
    CHECK(chain->head < w->driver.config.size && !w->flying[chain->head]);
    CHECK(chain->error <= RING_CHAIN_INDIRECT_OUTSIDE_RAM);
    uint32_t count = chain->readable + chain->writable;
    CHECK(count <= w->max_chain && (!chain->error || count == 0));
    uint64_t sizes[2] = {0, 0};
    for (uint32_t i = 0; i < count; i++) {
        const struct iovec *segment = &segments[chain->first + i];
        volatile uint8_t *bytes = segment->iov_base;
        uint8_t *low = w->driver.low, *high = w->driver.high, *start = segment->iov_base;
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
    uint32_t limit = take(&w->driver.in, 1) % (BATCH + 1);
    memcpy(before, w->driver.low, LOW_SIZE);
    memcpy(before + LOW_SIZE, w->driver.high, HIGH_SIZE);
    uint16_t waiting = get16(&w->driver, w->driver.config.avail + 2) - (uint16_t)(w->used_idx + w->in_flight);

    int popped = ring_pop(w->ring, chains, limit, segments, RING_MAX_SEGMENTS + BATCH);

    CHECK(!memcmp(before, w->driver.low, LOW_SIZE) && !memcmp(before + LOW_SIZE, w->driver.high, HIGH_SIZE));
    CHECK(popped <= (int)limit && popped <= (int)(w->left + waiting));
    CHECK(popped >= -RING_HEAD_IN_FLIGHT && (popped > -RING_AVAIL_JUMP || popped < 0));
    CHECK(!w->broken || popped < 0);
    CHECK(popped != 0 || limit == 0 || w->left + waiting == 0);
    CHECK(waiting <= w->driver.config.size || popped < 0);
    w->broken |= popped < 0;
    for (int i = 0; i < popped; i++) {
        check_chain(w, &chains[i], segments);
        w->flying[chains[i].head] = 1;
        w->room[chains[i].head] = chains[i].writable_size;
        note_popped(w, chains[i].head);
    }
    CHECK(ring_in_flight(w->ring) == w->in_flight && w->in_flight <= w->driver.config.size);
}

static bool legal(struct world *w, const struct ring_completion *done, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t head = done[i].head;
        if (head >= w->driver.config.size || !w->flying[head] || done[i].written > w->room[head])
            return false;
        for (uint32_t j = 0; j < i; j++)
            if (done[j].head == head)
                return false;
    }
    return true;
}

static void push(struct world *w)
{
    struct ring_completion done[BATCH];
    uint32_t count = take(&w->driver.in, 1) % (BATCH + 1);
    for (uint32_t i = 0; i < count; i++) {
        done[i].head = take(&w->driver.in, 1);
        done[i].written = take_length(&w->driver.in);
        if (done[i].head >= 0xf0)
            done[i].head = take(&w->driver.in, 4);
        else if (done[i].head < w->driver.config.size && done[i].written >= 0x80)
            done[i].written = w->room[done[i].head];
    }
    bool expected = legal(w, done, count);
    uint16_t before = w->used_idx;

    uint64_t position = take(&w->driver.in, 1);
    int result = ring_push_at(w->ring, done, count, position);

    CHECK(expected == (result >= 0));
    if (result < 0 || count == 0)
        return;
    w->used_idx += count;
    w->position = position;
    for (uint32_t i = 0; i < count; i++)
        note_completed(w, done[i].head);
    CHECK(get16(&w->driver, w->driver.config.used + 2) == w->used_idx);
    CHECK(result == interrupt_due(&w->driver, before, w->used_idx));
    CHECK(ring_in_flight(w->ring) == w->in_flight);
    CHECK(ring_position(w->ring) == w->position);
}

static void enable_kicks(struct world *w)
{
    bool again = ring_enable_kicks(w->ring);
    uint16_t cursor = w->used_idx + w->in_flight;
    CHECK(again || !w->left);
    CHECK(again || get16(&w->driver, w->driver.config.avail + 2) == cursor);
    if (!w->driver.config.event_idx)
        CHECK(again || !(get16(&w->driver, w->driver.config.used) & 1));
    else
        CHECK(again || get16(&w->driver, w->driver.config.used + 4 + 8 * w->driver.config.size) == cursor);
}

/* A ring takes over: at first, and from one that is gone. False if it refuses. */
static bool attach(struct world *w)
{
    enum ring_error error;
    w->ring = ring_new(&w->driver.config, w->driver.regions, 2, &error);
    CHECK((w->ring != NULL) == (error == RING_OK));
    if (!w->ring)
        return false;
    uint16_t used_idx = get16(&w->driver, w->driver.config.used + 2);
    w->forged |= used_idx != w->used_idx;
    uint32_t in_flight = ring_in_flight(w->ring);
    uint16_t outstanding = get16(&w->driver, w->driver.config.avail + 2) - used_idx;
    CHECK(in_flight <= w->driver.config.size && in_flight <= (w->journal.region ? outstanding : 0));
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
    uint16_t outstanding = get16(&w->driver, w->driver.config.avail + 2) - get16(&w->driver, w->driver.config.used + 2);
    bool expected = w->journal.region && !w->forged && w->in_flight <= outstanding &&
                    get16(&w->driver, w->driver.config.used + 2) == w->used_idx;
    ring_free(w->ring);
    bool attached = attach(w);
    CHECK(attached || !expected);
    return attached;
}

static bool operate(struct world *w)
{
    switch (take(&w->driver.in, 1) % 12) {
    case 0:
    case 1:
        write_descriptor(&w->driver, w->driver.config.desc, w->driver.config.size);
        break;
    case 2:
        write_descriptor(&w->driver, TABLE, 128);
        break;
    case 3:
        offer(&w->driver);
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
        put16(&w->driver, w->driver.config.avail + 4 + 2 * w->driver.config.size, take(&w->driver.in, 2));
        break;
    case 9:
        poke(&w->driver);
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
    w->driver.config.journal = &w->journal;
    w->driver.config.position = w->position = take(&w->driver.in, 1);
    w->forged = forged;
    for (uint32_t i = 0; forged && i < 16 + 16 * size; i++)
        ((uint8_t *)w->journal.region)[i] = take(&w->driver.in, 1);
    for (uint32_t i = 0; forged && i < 32; i++)
        ((uint8_t *)w->journal.positions)[i] = take(&w->driver.in, 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
    static struct world w;
    memset(&w, 0, sizeof(w));
    w.driver.in = (struct input){data, data + length};
    uint8_t log_size = take(&w.driver.in, 1) % 8, options = take(&w.driver.in, 1);
    w.used_idx = begin(&w.driver, log_size, options);
    if (FUZZ_JOURNAL)
        make_journal(&w, 1u << log_size, options & OPTION_FORGED);
    bool attached = attach(&w);
    uint32_t size = w.driver.config.size;
    w.max_chain = size < RING_MAX_SEGMENTS ? size : RING_MAX_SEGMENTS;
    for (int i = 0; attached && i < MOST_OPERATIONS && w.driver.in.at < w.driver.in.end; i++)
        attached = operate(&w);
    ring_free(w.ring);
    free(w.journal.region);
    free(w.journal.positions);
    end(&w.driver);
    return 0;
}
