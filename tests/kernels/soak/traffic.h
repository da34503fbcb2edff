// A virtqueue with many chains in flight, which come back in any order, each once.
#pragma once

#include "../demo/virtio.h"

// Of one chain; two more than a disk's data may have.
enum { MOST_BUFFERS = 8 };

struct traffic {
        struct device *device;
        unsigned number;
        uint16_t avail, seen;   // chains given; completions taken
        unsigned free, in_flight;
        uint64_t completed;
        uint64_t since;         // time of the last completion, or of the first chain after idleness
        uint64_t looked;        // for lost ones
        uint16_t next[QUEUE_SIZE], first_free;
        struct {
                void *request;  // 0: not in flight
                uint64_t since;
                unsigned descriptors;
        } flights[QUEUE_SIZE]; // by their first descriptor
        struct virtq_desc tables[QUEUE_SIZE][MOST_BUFFERS] __attribute__((aligned(16)));
};

// Begins with a queue of a device that has been started.
void begin_traffic(struct traffic *traffic, struct device *device, unsigned number);

// Whether there is room for a chain of that many buffers.
bool has_room(const struct traffic *traffic, unsigned count);

// Gives a chain to the device once ring() is called; with an indirect table if the driver likes.
// The request is what take() returns.
void give(struct traffic *traffic, const struct buffer *chain, unsigned count, void *request);

// Shows the device what was given, and rings if it wants to hear of it.
void ring(struct traffic *traffic);

// A request that was completed, with what the device says it wrote; 0 if there is none, and then
// the next one interrupts.
void *take(struct traffic *traffic, uint32_t *written);

// Fails if a chain has been in flight for so many seconds that it must be lost.
extern uint64_t patience;
void look_for_lost(struct traffic *traffic);

// Whether nothing is expected of the queue.
static inline bool is_idle(const struct traffic *traffic)
{
        return traffic->in_flight == 0;
}

// The host's time, in cycles.
static inline uint64_t now(void)
{
        uint32_t low, high;
        asm volatile("rdtsc" : "=a"(low), "=d"(high));
        return (uint64_t)high << 32 | low;
}

// 53 bits that look like chance and are decided by the seed.
uint64_t chance(void);

// What looks at, or writes, many words is one instruction: where KVM is an emulator, each costs
// microseconds.
static inline void fill_words(uint64_t *words, unsigned long count, uint64_t value)
{
        asm volatile("rep stosq" : "+D"(words), "+c"(count) : "a"(value) : "memory");
}

// The first of them that is not value; count if all are.
static inline unsigned find_other_word(const uint64_t *words, unsigned long count, uint64_t value)
{
        const uint64_t *at = words;
        bool same;
        asm volatile("cmp %%rax, %%rax; repe scasq"
                     : "+D"(at), "+c"(count), "=@ccz"(same)
                     : "a"(value)
                     : "memory");
        return same ? at - words : at - words - 1;
}

static inline void fill_bytes(char *bytes, unsigned long count, char value)
{
        asm volatile("rep stosb" : "+D"(bytes), "+c"(count) : "a"(value) : "memory");
}

// Whether count bytes are the same.
static inline bool are_same(const char *these, const char *those, unsigned long count)
{
        bool same;
        asm volatile("cmp %%rax, %%rax; repe cmpsb"
                     : "+S"(these), "+D"(those), "+c"(count), "=@ccz"(same)
                     :
                     : "memory");
        return same;
}

// When nothing was completed for a while, though something was in flight.
struct gap {
        uint64_t slot, begin, end;
};
enum { MOST_GAPS = 4096 };
extern struct gap gaps[MOST_GAPS];

// No more are noted; how many there are.
unsigned end_gaps(void);
