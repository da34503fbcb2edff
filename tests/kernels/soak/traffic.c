#include "traffic.h"

// Some 0.1 s and 1 s, on a processor of 2 to 3 GHz.
static const uint64_t often = 1ull << 28, second = 2500000000;
// What a gap must be longer than to be kept: some 0.5 ms at first.
static uint64_t noteworthy = 1ull << 20;
uint64_t patience = 30;

struct gap gaps[MOST_GAPS];
static unsigned gap_count;

void begin_traffic(struct traffic *traffic, struct device *device, unsigned number)
{
        traffic->device = device;
        traffic->number = number;
        traffic->free = QUEUE_SIZE;
        for (unsigned i = 0; i < QUEUE_SIZE; i++)
                traffic->next[i] = i + 1;
}

static struct virtqueue *queue_of(struct traffic *traffic)
{
        return &traffic->device->queues[traffic->number];
}

bool has_room(const struct traffic *traffic, unsigned count)
{
        return traffic->free >= count;
}

static uint16_t allocate(struct traffic *traffic)
{
        uint16_t descriptor = traffic->first_free;
        traffic->first_free = traffic->next[descriptor];
        traffic->free--;
        return descriptor;
}

static void describe(struct virtq_desc *descriptor, const struct buffer *buffer)
{
        descriptor->addr = (uintptr_t)buffer->address;
        descriptor->len = buffer->size;
        descriptor->flags = buffer->device_writes ? DESC_WRITE : 0;
}

static uint16_t describe_indirectly(struct traffic *traffic, const struct buffer *chain,
                                    unsigned count)
{
        uint16_t head = allocate(traffic);
        struct virtq_desc *table = traffic->tables[head];
        for (unsigned i = 0; i < count; i++) {
                describe(&table[i], &chain[i]);
                if (i + 1 < count) {
                        table[i].flags |= DESC_NEXT;
                        table[i].next = i + 1;
                }
        }
        queue_of(traffic)->desc[head] = (struct virtq_desc){
                .addr = (uintptr_t)table,
                .len = count * sizeof *table,
                .flags = DESC_INDIRECT,
        };
        return head;
}

static uint16_t describe_directly(struct traffic *traffic, const struct buffer *chain,
                                  unsigned count)
{
        struct virtq_desc *descriptors = queue_of(traffic)->desc;
        uint16_t head = allocate(traffic), at = head;
        for (unsigned i = 0;; i++) {
                describe(&descriptors[at], &chain[i]);
                if (i + 1 == count)
                        return head;
                uint16_t next = allocate(traffic);
                descriptors[at].flags |= DESC_NEXT;
                descriptors[at].next = next;
                traffic->next[at] = next;
                at = next;
        }
}

void give(struct traffic *traffic, const struct buffer *chain, unsigned count, void *request)
{
        bool indirect = traffic->device->features & INDIRECT_DESC && chance() % 2;
        uint16_t head = indirect ? describe_indirectly(traffic, chain, count)
                                 : describe_directly(traffic, chain, count);
        traffic->flights[head].request = request;
        traffic->flights[head].since = now();
        traffic->flights[head].descriptors = indirect ? 1 : count;
        if (traffic->in_flight++ == 0)
                traffic->since = now();
        queue_of(traffic)->avail.ring[traffic->avail++ % QUEUE_SIZE] = head;
}

void ring(struct traffic *traffic)
{
        struct virtqueue *queue = queue_of(traffic);
        uint16_t before = queue->avail.idx, idx = traffic->avail;
        if (idx == before)
                return;
        compiler_barrier();
        queue->avail.idx = idx;
        full_barrier();
        // Whether avail.idx has moved past the event (section 2.7.10).
        bool wanted = !(queue->used.flags & 1);
        if (traffic->device->features & EVENT_IDX)
                wanted = (uint16_t)(idx - queue->used.avail_event - 1) < (uint16_t)(idx - before);
        if (wanted)
                traffic->device->registers[QUEUE_NOTIFY] = traffic->number;
}

static bool is_noteworthy(const struct gap *gap)
{
        return gap->end - gap->begin > noteworthy;
}

// The longest are kept: if there are too many, a gap must be twice as long from now on.
static void note_gap(struct gap gap)
{
        while (is_noteworthy(&gap) && gap_count == MOST_GAPS) {
                noteworthy *= 2;
                gap_count = 0;
                for (unsigned i = 0; i < MOST_GAPS; i++)
                        if (is_noteworthy(&gaps[i]))
                                gaps[gap_count++] = gaps[i];
        }
        if (is_noteworthy(&gap))
                gaps[gap_count++] = gap;
}

unsigned end_gaps(void)
{
        noteworthy = -1;
        return gap_count;
}

static void note_completion(struct traffic *traffic)
{
        uint64_t then = traffic->since;
        traffic->since = now();
        note_gap((struct gap){ traffic->device->slot, then, traffic->since });
        traffic->completed++;
        traffic->in_flight--;
}

void *take(struct traffic *traffic, uint32_t *written)
{
        struct virtqueue *queue = queue_of(traffic);
        unsigned slot = traffic->device->slot, number = traffic->number;
        if (queue->used.idx == traffic->seen) {
                // Whoever looks all the time wants no interrupt, as start() has said.
                if (traffic->device->interrupts)
                        queue->avail.used_event = traffic->seen;
                full_barrier();
                if (queue->used.idx == traffic->seen)
                        return 0;
        }
        if ((uint16_t)(queue->used.idx - traffic->seen) > traffic->in_flight)
                fail("slot %u: queue %u completes more than is in flight", slot, number);
        compiler_barrier();
        uint32_t head = queue->used.ring[traffic->seen++ % QUEUE_SIZE].id;
        *written = queue->used.ring[(uint16_t)(traffic->seen - 1) % QUEUE_SIZE].len;
        if (head >= QUEUE_SIZE || !traffic->flights[head].request)
                fail("slot %u: queue %u completes chain %u, which is not in flight", slot, number,
                     head);
        void *request = traffic->flights[head].request;
        traffic->flights[head].request = 0;
        uint16_t last = head;
        for (unsigned i = 1; i < traffic->flights[head].descriptors; i++)
                last = traffic->next[last];
        traffic->next[last] = traffic->first_free;
        traffic->first_free = head;
        traffic->free += traffic->flights[head].descriptors;
        note_completion(traffic);
        return request;
}

void look_for_lost(struct traffic *traffic)
{
        if (now() - traffic->looked < often)
                return;
        traffic->looked = now();
        for (unsigned head = 0; head < QUEUE_SIZE; head++)
                if (traffic->flights[head].request && now() - traffic->flights[head].since > patience * second)
                        fail("slot %u: queue %u has lost chain %u", traffic->device->slot,
                             traffic->number, head);
}
