/* What the fuzzed engines in C have in common: an input that is taken apart byte by byte, and a
 * hostile driver that it drives.
 *
 * Each region of guest memory is an allocation of its own, so that an access that leaves it is
 * seen by ASan. Missing bytes of the input read as zero.
 */
#ifndef VIBE_FUZZ_DRIVER_H
#define VIBE_FUZZ_DRIVER_H

#include "../../protocol/ring/ring.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOW_SIZE = 8192, HIGH_SIZE = 2048, MOST_OPERATIONS = 400 };
enum { MOST_HEADS = LOW_SIZE / 16 }; /* the descriptor table has to fit */
enum { OPTION_EVENT_IDX = 1, OPTION_INDIRECT = 2, OPTION_RAW_CONFIG = 4, OPTION_START = 8 };
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

struct driver {
    struct input in;
    uint8_t *low, *high;
    struct ring_config config;
    struct ring_region regions[2];
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

/* Plain loads and stores of whatever the ring was laid over. */

static uint8_t *guest(const struct driver *d, uint64_t gpa, uint64_t len)
{
    for (int i = 0; i < 2; i++) {
        const struct ring_region *region = &d->regions[i];
        if (gpa >= region->gpa && gpa - region->gpa < region->size &&
            len <= region->size - (gpa - region->gpa))
            return region->host + (gpa - region->gpa);
    }
    return NULL;
}

static uint16_t get16(const struct driver *d, uint64_t gpa)
{
    uint16_t value;
    memcpy(&value, guest(d, gpa, 2), 2);
    return value;
}

static void put16(struct driver *d, uint64_t gpa, uint16_t value)
{
    memcpy(guest(d, gpa, 2), &value, 2);
}

static void write_descriptor(struct driver *d, uint64_t table, uint32_t entries)
{
    uint64_t where = table + 16 * (take(&d->in, 1) % entries);
    uint64_t address = take_address(&d->in);
    uint32_t length = take_length(&d->in);
    uint8_t *to = guest(d, where, 16);
    if (to) {
        memcpy(to, &address, 8);
        memcpy(to + 8, &length, 4);
        put16(d, where + 12, take(&d->in, 1));
        put16(d, where + 14, take(&d->in, 1));
    }
}

static void publish(struct driver *d, uint16_t head)
{
    uint16_t idx = get16(d, d->config.avail + 2);
    put16(d, d->config.avail + 4 + 2 * (idx & (d->config.size - 1)), head);
    put16(d, d->config.avail + 2, idx + 1);
}

static void offer(struct driver *d)
{
    publish(d, take(&d->in, 1));
}

static void poke(struct driver *d)
{
    uint64_t where = take(&d->in, 2), value = take(&d->in, 8);
    memcpy(d->low + where % (LOW_SIZE - 8), &value, 8);
}

/* The rule of 2.7.7.2, entry by entry. The event is read afterwards: it may lie in the used ring of
 * a driver that overlaps the two. */
static inline bool interrupt_due(const struct driver *d, uint16_t before, uint16_t after)
{
    if (before == after)
        return false;
    if (!d->config.event_idx)
        return !(get16(d, d->config.avail) & 1);
    uint16_t event = get16(d, d->config.avail + 4 + 2 * d->config.size);
    for (uint16_t idx = before; idx != after; idx++)
        if (idx == event)
            return true;
    return false;
}

/* Memory, and a queue of 2^log_size entries in it, or wherever the input says. Returns where both
 * indices of the usual place begin. */
static uint16_t begin(struct driver *d, uint8_t log_size, uint8_t options)
{
    uint32_t size = 1u << log_size;
    d->low = calloc(1, LOW_SIZE);
    d->high = calloc(1, HIGH_SIZE);
    d->regions[0] = (struct ring_region){0, LOW_SIZE, d->low};
    d->regions[1] = (struct ring_region){HIGH_GPA, HIGH_SIZE, d->high};
    struct ring_config usual = {
        .desc = 0,
        .avail = 16 * size,
        .used = (16 * size + 6 + 2 * size + 3) & ~3u,
        .size = size,
        .event_idx = options & OPTION_EVENT_IDX,
        .indirect = options & OPTION_INDIRECT,
    };
    d->config = usual;
    if (options & OPTION_RAW_CONFIG) {
        d->config.desc = take_address(&d->in);
        d->config.avail = take_address(&d->in);
        d->config.used = take_address(&d->in);
        d->config.size = take_length(&d->in);
    }
    uint16_t start = options & OPTION_START ? take(&d->in, 2) : 0;
    put16(d, usual.avail + 2, start);
    put16(d, usual.used + 2, start);
    return start;
}

static void end(struct driver *d)
{
    free(d->low);
    free(d->high);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

#endif
