/* Coverage-guided fuzzing of the mediator: a hostile driver on one side, a hostile device on the
 * other. Beside it runs a model, which knows only what both can see, and every disagreement aborts:
 *
 * - what is lent lies in guest memory, in chains that share no descriptor;
 * - a chain waits only while the device has others, and no kick is lost;
 * - the hook is told of the writable buffers of the chains that come back, of all of them, of
 *   nothing else, and before the guest can see that they are used;
 * - a chain that the driver made available is completed once at most, with as many bytes as the
 *   device said, which are no more than it was lent;
 * - a device that breaks its ring publishes nothing by it, and is told so from then on;
 * - with an arena, what is lent lies there, in extents of its own; what may be read is what the
 *   guest had; as many bytes as the device said come back, in order, into what it was to write, and
 *   no other byte of guest memory changes.
 *
 * The device strikes between calls and, from the hook, in the middle of one.
 *
 * Input: a byte for log2 of the size, a byte of options, then operations, each an opcode and its
 * operands; with an arena, behind the options, a byte for its size. mediator_seeds.py has some.
 */
#include "../../vmm/mediation/arena.h"
#include "../../vmm/mediation/mediator.h"
#include "driver.h"

#include <linux/virtio_ring.h>

enum { OPTION_LARGER = 16, OPTION_MISPLACED = 32, OPTION_BUSY = 64, OPTION_ARENA = 128 };
enum { MOST_GUEST = 16, MOST_SHADOW = 32, MOST_RANGES = MOST_GUEST * MOST_SHADOW };
static const uint64_t SHADOW_GPA = 0x80000000;

struct range {
    uint64_t gpa, length;
};

/* What a chain is in guest memory, without its empty buffers, as far as it is followed. */
struct origin {
    bool known, malformed;
    uint32_t count, readable;
    struct range segments[MOST_GUEST];
};

/* A chain that the device has, by its head in the shadow ring; count 0 if it has none there. */
struct loan {
    struct origin origin;
    uint32_t count, readable; /* descriptors */
    uint16_t descriptors[MOST_GUEST];
    struct range buffers[MOST_GUEST];
    uint64_t room; /* writable bytes */
    uint16_t guest_head;
    bool answered;
};

/* A copy of what the device wrote, for it may change in the middle of a call. */
struct answer {
    uint16_t idx;
    struct vring_used_elem ring[MOST_SHADOW];
};

struct world {
    struct driver driver;
    struct mediator *mediator;
    bool followed; /* not so if the driver may have laid its ring over itself, or a buffer over it */
    bool overlaid; /* it has, in this call */
    bool busy;     /* the device strikes from the hook */
    uint64_t arena; /* an address */
    uint32_t arena_size;

    /* The guest's ring: what was popped and not used, by head, and the chain that waits. */
    uint16_t used_idx;
    uint32_t in_flight;
    int flying[MOST_GUEST];
    uint16_t waiting;
    struct origin waiting_origin;
    bool guest_broken;

    struct ring_config shadow;
    uint8_t *memory;
    uint32_t bytes;
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    uint16_t avail_idx, taken; /* as far as either was followed */
    uint32_t lent;
    struct loan loans[MOST_SHADOW];
    bool owned[MOST_SHADOW]; /* descriptors of chains that the device has */
    enum mediator_error broken;

    /* What the hook has yet to be told in this call. */
    struct range expected[MOST_RANGES];
    uint32_t expecting;
    bool unsure; /* a chain comes back of which it is not known where it leads to */

    /* What guest memory has to be behind this call, but for the used ring. */
    uint8_t low[LOW_SIZE], high[HIGH_SIZE];
};

static uint16_t guest_used_idx(const struct world *w)
{
    return get16(&w->driver, w->driver.config.used + 2);
}

/* The device's side. */

static void strike(struct world *w)
{
    uint32_t where = take(&w->driver.in, 2) % w->bytes;
    w->memory[where] = take(&w->driver.in, 1);
}

static void answer(struct world *w, uint32_t id, uint32_t length)
{
    w->used->ring[w->used->idx++ & (w->shadow.size - 1)] = (struct vring_used_elem){id, length};
}

static void answer_honestly(struct world *w)
{
    uint8_t skip = take(&w->driver.in, 1);
    uint32_t length = take_length(&w->driver.in);
    for (uint32_t i = 0; i < w->shadow.size; i++) {
        uint32_t head = (skip + i) % w->shadow.size;
        struct loan *loan = &w->loans[head];
        if (loan->count && !loan->answered) {
            loan->answered = true;
            answer(w, head, length < loan->room ? length : (uint32_t)loan->room);
            return;
        }
    }
}

static void answer_anything(struct world *w)
{
    uint32_t id = take_length(&w->driver.in);
    answer(w, id, take_length(&w->driver.in));
}

/* The model. */

static void hook(void *context, uint64_t gpa, uint64_t length)
{
    struct world *w = context;
    uint32_t i = 0;
    CHECK(length && guest(&w->driver, gpa, length));
    if (w->unsure)
        return;
    while (i < w->expecting &&
           (w->expected[i].gpa != gpa || w->expected[i].length != length))
        i++;
    CHECK(i < w->expecting);
    w->expected[i] = w->expected[--w->expecting];
    CHECK(!w->followed || guest_used_idx(w) == w->used_idx);
    if (w->busy)
        strike(w);
}

static bool overlap(uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length)
{
    return a < b + b_length && b < a + a_length;
}

static uint32_t used_bytes(const struct world *w)
{
    return 6 + 8 * w->driver.config.size;
}

/* Whether the mediator may have written there behind the model's back: to the used ring. */
static bool in_used(const struct world *w, struct range range)
{
    return overlap(range.gpa, range.length, w->driver.config.used, used_bytes(w));
}

/* The chain as it is now, which is as it was popped in this call; of a malformed one, where it
 * ends. What ring.c refuses in it is not judged here. */
static struct origin walk(const struct world *w, uint16_t head)
{
    struct origin found = {.known = true};
    struct range table = {w->driver.config.desc, 16 * w->driver.config.size};
    uint64_t index = head;
    for (uint32_t steps = 0; steps <= MOST_GUEST; steps++) {
        struct vring_desc desc;
        struct range entry = {table.gpa + 16 * index, sizeof(desc)};
        const uint8_t *host = guest(&w->driver, entry.gpa, entry.length);
        if (index >= table.length / 16 || !host)
            break;
        found.known = found.known && !in_used(w, entry);
        memcpy(&desc, host, sizeof(desc));
        if (desc.flags & VRING_DESC_F_INDIRECT) {
            table = (struct range){desc.addr, desc.len};
            index = 0;
            continue;
        }
        if (desc.len && found.count == MOST_GUEST)
            break;
        if (desc.len)
            found.segments[found.count++] = (struct range){desc.addr, desc.len};
        if (desc.len && !(desc.flags & VRING_DESC_F_WRITE))
            found.readable = found.count;
        if (!(desc.flags & VRING_DESC_F_NEXT))
            return found;
        index = desc.next;
    }
    found.malformed = true;
    return found;
}

/* What of guest memory is written through this loan, of so many bytes: told of, and copied. Without
 * an arena the device has done that, and each buffer is told of whole. */
static void expect_back(struct world *w, const struct loan *loan, uint64_t written)
{
    if (!w->arena_size) {
        for (uint32_t i = loan->readable; i < loan->count; i++)
            w->expected[w->expecting++] = loan->buffers[i];
        return;
    }
    if (!written)
        return;
    w->unsure |= !loan->origin.known;
    const uint8_t *from = w->memory + (loan->buffers[loan->readable].gpa - SHADOW_GPA);
    for (uint32_t i = loan->origin.readable; i < loan->origin.count && written; i++) {
        struct range range = loan->origin.segments[i];
        range.length = range.length < written ? range.length : written;
        w->expected[w->expecting++] = range;
        uint8_t *to = range.gpa < LOW_SIZE ? w->low + range.gpa : w->high + (range.gpa - HIGH_GPA);
        memcpy(to, from, range.length);
        from += range.length;
        written -= range.length;
    }
}

/* Before each call. */
static void note_memory(struct world *w)
{
    w->unsure = w->overlaid = false;
    memcpy(w->low, w->driver.low, LOW_SIZE);
    memcpy(w->high, w->driver.high, HIGH_SIZE);
}

/* Behind each: bytes that a busy device changes meanwhile are any, where they belong. */
static void check_memory(struct world *w, const struct range *written, uint32_t count)
{
    if (!w->followed)
        return;
    for (uint32_t i = 0; w->busy && i < count; i++) {
        uint64_t gpa = written[i].gpa;
        uint8_t *to = gpa < LOW_SIZE ? w->low + gpa : w->high + (gpa - HIGH_GPA);
        memcpy(to, guest(&w->driver, gpa, written[i].length), written[i].length);
    }
    uint64_t used = w->driver.config.used;
    memcpy(w->low + used, w->driver.low + used, used_bytes(w));
    CHECK(!memcmp(w->low, w->driver.low, LOW_SIZE));
    CHECK(!memcmp(w->high, w->driver.high, HIGH_SIZE));
}

/* What a descriptor of the shadow ring is: the guest's own buffer, or an extent of the arena that
 * no other chain has. */
static struct range lent_buffer(const struct world *w, const struct vring_desc *desc)
{
    if (!w->arena_size) {
        CHECK(desc->len == 0 || guest(&w->driver, desc->addr, desc->len));
        return (struct range){desc->addr, desc->len};
    }
    CHECK(desc->addr >= w->arena && desc->addr - w->arena <= w->arena_size &&
          desc->len <= w->arena_size - (desc->addr - w->arena));
    for (uint32_t head = 0; head < w->shadow.size; head++)
        for (uint32_t i = 0; i < w->loans[head].count; i++) {
            struct range other = w->loans[head].buffers[i];
            CHECK(!desc->len || !other.length ||
                  !overlap(desc->addr, desc->len, other.gpa, other.length));
        }
    return (struct range){desc->addr, desc->len};
}

/* In the arena is what the guest had, all that it lent, and no more. */
static void check_copies(struct world *w, const struct loan *loan)
{
    const struct origin *origin = &loan->origin;
    if (!w->followed || !origin->known) {
        w->overlaid = true;
        return;
    }
    CHECK(!origin->malformed);
    uint64_t readable = 0, writable = 0;
    for (uint32_t i = 0; i < origin->count; i++) {
        struct range segment = origin->segments[i];
        const uint8_t *copy = w->memory + (loan->buffers[0].gpa - SHADOW_GPA) + readable;
        if (i >= origin->readable) {
            writable += segment.length;
            uint64_t ring = w->driver.config.avail;
            uint64_t bytes = w->driver.config.used + used_bytes(w) - ring;
            w->overlaid |= overlap(segment.gpa, segment.length, ring, bytes);
        } else {
            readable += segment.length;
            CHECK(readable <= loan->buffers[0].length);
            const uint8_t *from = guest(&w->driver, segment.gpa, segment.length);
            CHECK(in_used(w, segment) || !memcmp(copy, from, segment.length));
        }
    }
    CHECK(writable == loan->room);
    CHECK(readable == (loan->readable ? loan->buffers[0].length : 0));
}

/* A chain has appeared in the shadow ring: walked as a device does that believes nothing. */
static void note_lent(struct world *w, uint16_t head, uint16_t guest_head,
                      const struct origin *origin)
{
    CHECK(head < w->shadow.size && !w->loans[head].count);
    struct loan *loan = &w->loans[head];
    *loan = (struct loan){.origin = *origin, .guest_head = guest_head};
    uint64_t bytes = 0;
    uint16_t index = head;
    for (bool more = true; more;) {
        CHECK(index < w->shadow.size && !w->owned[index]);
        CHECK(loan->count < w->driver.config.size);
        struct vring_desc desc = w->desc[index];
        bool writable = desc.flags & VRING_DESC_F_WRITE;
        CHECK(!(desc.flags & ~(VRING_DESC_F_NEXT | VRING_DESC_F_WRITE)));
        CHECK(writable || loan->readable == loan->count);
        w->owned[index] = true;
        loan->descriptors[loan->count] = index;
        loan->buffers[loan->count++] = lent_buffer(w, &desc);
        loan->readable += !writable;
        loan->room += writable ? desc.len : 0;
        bytes += desc.len;
        more = desc.flags & VRING_DESC_F_NEXT;
        index = desc.next;
    }
    CHECK(bytes <= UINT32_MAX);
    if (w->arena_size)
        check_copies(w, loan);
    w->lent++;
}

static void note_returned(struct world *w, struct loan *loan)
{
    for (uint32_t i = 0; i < loan->count; i++)
        w->owned[loan->descriptors[i]] = false;
    loan->count = 0;
    w->lent--;
}

static struct vring_used_elem guest_used(const struct world *w, uint16_t at)
{
    struct vring_used_elem elem;
    uint64_t offset = 4 + sizeof(elem) * (at & (w->driver.config.size - 1));
    memcpy(&elem, guest(&w->driver, w->driver.config.used + offset, sizeof(elem)), sizeof(elem));
    return elem;
}

static void note_used(struct world *w, const struct vring_used_elem *elem)
{
    CHECK(elem->id < w->driver.config.size);
    w->flying[elem->id]--;
}

/* What a call moved from the guest's ring to the shadow's. Of what was popped, in order, some was
 * refused, which is in the used ring from `at` on; the rest is lent, but for one that waits. */
static void follow(struct world *w, uint16_t popped_from, uint16_t at, bool ring_device)
{
    uint16_t size = w->driver.config.size, used_end = w->followed ? guest_used_idx(w) : at;
    uint32_t in_flight = mediator_in_flight(w->mediator);
    uint16_t popped_to = used_end + in_flight;
    uint16_t lent_to = ring_device ? w->avail->idx : w->avail_idx;
    bool had_waiting = w->in_flight > w->lent;
    CHECK((lent_to != w->avail_idx) == ring_device);
    CHECK((uint16_t)(lent_to - w->avail_idx) <= w->shadow.size);
    for (uint16_t i = popped_from; w->followed && i != popped_to; i++) {
        uint16_t head = get16(&w->driver, w->driver.config.avail + 4 + 2 * (i & (size - 1)));
        CHECK(head < size);
        w->flying[head]++;
    }
    for (uint16_t i = popped_from - had_waiting; w->followed && i != popped_to; i++) {
        uint16_t head = get16(&w->driver, w->driver.config.avail + 4 + 2 * (i & (size - 1)));
        struct origin origin = had_waiting ? w->waiting_origin : walk(w, head);
        if (had_waiting) /* whose entry in the avail ring is the driver's again */
            head = w->waiting;
        had_waiting = false;
        struct vring_used_elem next = at == used_end ? (struct vring_used_elem){UINT32_MAX, 0}
                                                     : guest_used(w, at);
        if (next.id == head) {
            CHECK(next.len == 0);
            note_used(w, &next);
            at++;
        } else if (w->avail_idx != lent_to) {
            uint16_t entry = w->avail_idx++ & (w->shadow.size - 1);
            note_lent(w, w->avail->ring[entry], head, &origin);
        } else {
            CHECK((uint16_t)(i + 1) == popped_to);
            w->waiting = head;
            w->waiting_origin = origin;
        }
    }
    for (; !w->followed && w->avail_idx != lent_to; w->avail_idx++)
        note_lent(w, w->avail->ring[w->avail_idx & (w->shadow.size - 1)], 0, &(struct origin){0});
    CHECK(w->avail_idx == lent_to && at == used_end);
    for (uint32_t head = 0; w->followed && head < size; head++)
        CHECK(w->flying[head] == 0 || w->flying[head] == 1);
    w->used_idx = used_end;
    w->in_flight = in_flight;
    CHECK(in_flight == w->lent || (in_flight == w->lent + 1 && w->lent > 0));
    w->followed = w->followed && !w->overlaid;
}

/* Nobody rings for what has been made available and was not popped, unless a chain waits. */
static void check_no_kick_is_lost(const struct world *w)
{
    uint16_t next = w->used_idx + w->in_flight;
    if (!w->followed || w->guest_broken || w->in_flight > w->lent)
        return;
    CHECK(get16(&w->driver, w->driver.config.avail + 2) == next);
    if (w->driver.config.event_idx)
        CHECK(get16(&w->driver, w->driver.config.used + 4 + 8 * w->driver.config.size) == next);
    else
        CHECK(!(get16(&w->driver, w->driver.config.used) & 1));
}

static void check_outcome(struct world *w, const struct mediator_outcome *outcome, uint16_t before)
{
    CHECK(outcome->device == w->broken && outcome->guest <= RING_NO_MEMORY);
    w->guest_broken |= outcome->guest != RING_OK;
    if (w->broken) {
        CHECK(!outcome->ring_device && !outcome->interrupt_guest);
        CHECK(!w->followed || guest_used_idx(w) == before);
    } else if (w->followed) {
        CHECK(outcome->interrupt_guest == interrupt_due(&w->driver, before, guest_used_idx(w)));
    }
    CHECK(w->expecting == 0 || w->unsure);
    w->expecting = 0;
    /* Whoever makes a head available before it is used can have more used than the ring holds. */
    if ((uint16_t)(guest_used_idx(w) - before) > w->driver.config.size)
        w->followed = false;
}

static void kick(struct world *w)
{
    uint16_t before = w->used_idx;
    note_memory(w);
    struct mediator_outcome outcome = mediator_kick(w->mediator);
    check_memory(w, NULL, 0);
    check_outcome(w, &outcome, before);
    if (w->broken)
        return;
    follow(w, before + w->in_flight, before, outcome.ring_device);
    check_no_kick_is_lost(w);
}

/* How many chains an answer gives back, each in *done; or how it breaks the ring. */
static uint32_t judge(struct world *w, const struct answer *given, struct loan **done)
{
    uint16_t count = given->idx - w->taken;
    bool seen[MOST_SHADOW] = {false};
    if (count > w->lent)
        w->broken = MEDIATOR_USED_JUMP;
    for (uint16_t i = 0; i < count && !w->broken; i++) {
        struct vring_used_elem elem = given->ring[(w->taken + i) & (w->shadow.size - 1)];
        if (elem.id >= w->shadow.size)
            w->broken = MEDIATOR_ID_OUT_OF_RANGE;
        else if (!w->loans[elem.id].count || seen[elem.id])
            w->broken = MEDIATOR_ID_NOT_IN_FLIGHT;
        else if (elem.len > w->loans[elem.id].room)
            w->broken = MEDIATOR_TOO_MUCH_WRITTEN;
        else
            seen[elem.id] = (done[i] = &w->loans[elem.id]);
    }
    return w->broken ? 0 : count;
}

static void complete(struct world *w)
{
    struct answer given = {.idx = w->used->idx};
    memcpy(given.ring, w->used->ring, w->shadow.size * sizeof(*given.ring));
    struct loan *done[MOST_SHADOW];
    uint32_t count = w->broken ? 0 : judge(w, &given, done);
    note_memory(w);
    for (uint32_t i = 0; i < count; i++)
        expect_back(w, done[i], given.ring[(w->taken + i) & (w->shadow.size - 1)].len);
    struct range written[MOST_RANGES];
    uint32_t ranges = w->expecting;
    memcpy(written, w->expected, ranges * sizeof(*written));
    uint16_t before = w->used_idx, popped_from = before + w->in_flight;
    struct mediator_outcome outcome = mediator_complete(w->mediator);
    check_memory(w, written, ranges);
    check_outcome(w, &outcome, before);
    if (w->broken)
        return;
    bool waited = w->in_flight > w->lent;
    for (uint32_t i = 0; i < count; i++) {
        struct vring_used_elem wanted = given.ring[w->taken++ & (w->shadow.size - 1)];
        if (w->followed) {
            struct vring_used_elem elem = guest_used(w, before + i);
            CHECK(elem.id == done[i]->guest_head && elem.len == wanted.len);
            note_used(w, &elem);
        }
        note_returned(w, done[i]);
    }
    w->in_flight -= count;
    follow(w, popped_from, before + count, outcome.ring_device);
    if (count && waited)
        check_no_kick_is_lost(w);
}

/* Birth and death. */

static void make(struct world *w)
{
    struct mediator_config config = {
        .guest = w->driver.config,
        .shadow = w->shadow,
        .shadow_memory = {SHADOW_GPA, w->bytes, w->memory},
        .arena = w->arena,
        .arena_size = w->arena_size,
        .hook = hook,
        .context = w,
    };
    struct mediator_outcome outcome;
    w->mediator = mediator_new(&config, w->driver.regions, 2, &outcome);
    CHECK(w->mediator || outcome.guest || outcome.device == MEDIATOR_SHADOW_MISPLACED);
    if (!w->mediator)
        return;
    memset(w->loans, 0, sizeof(w->loans));
    memset(w->owned, 0, sizeof(w->owned));
    memset(w->flying, 0, sizeof(w->flying));
    w->used_idx = guest_used_idx(w);
    w->in_flight = w->lent = w->avail_idx = w->taken = 0;
    w->guest_broken = false;
    w->broken = MEDIATOR_OK;
}

static void dispose(struct world *w)
{
    for (uint32_t head = 0; w->mediator && head < w->shadow.size; head++)
        if (w->loans[head].count)
            expect_back(w, &w->loans[head], 0);
    bool busy = w->busy;
    w->busy = false;
    note_memory(w);
    mediator_free(w->mediator);
    check_memory(w, NULL, 0);
    CHECK(w->expecting == 0);
    w->busy = busy;
}

static void operate(struct world *w)
{
    struct driver *driver = &w->driver;
    uint8_t operation = take(&driver->in, 1) % 12;
    switch (operation) {
    case 0:
    case 1:
        write_descriptor(driver, driver->config.desc, driver->config.size);
        break;
    case 2:
        write_descriptor(driver, TABLE, 128);
        break;
    case 3:
        offer(driver);
        break;
    case 4:
        kick(w);
        break;
    case 5:
        complete(w);
        break;
    case 6:
        answer_honestly(w);
        break;
    case 7:
        answer_anything(w);
        break;
    case 8:
        strike(w);
        break;
    case 9:
        put16(driver, driver->config.avail + 4 + 2 * driver->config.size, take(&driver->in, 2));
        break;
    case 10:
        poke(driver);
        /* The engine is right about its own index; ring_fuzz.c has what it does about a wrong one. */
        if (w->followed)
            put16(driver, driver->config.used + 2, w->used_idx);
        break;
    case 11:
        dispose(w);
        make(w);
        break;
    }
}

static void lay_shadow(struct world *w, uint32_t size, uint8_t options)
{
    uint32_t avail = 16 * size, used = (avail + 6 + 2 * size + 3) & ~3u;
    w->bytes = used + 6 + 8 * size;
    if (options & OPTION_ARENA) {
        uint32_t arena = (w->bytes + ARENA_ALIGNMENT - 1) & ~(ARENA_ALIGNMENT - 1u);
        w->arena = SHADOW_GPA + arena;
        w->arena_size = ARENA_ALIGNMENT << take(&w->driver.in, 1) % 9;
        w->bytes = arena + w->arena_size;
    }
    if (posix_memalign((void **)&w->memory, ARENA_ALIGNMENT, w->bytes))
        abort();
    memset(w->memory, 0, w->bytes);
    w->shadow.desc = SHADOW_GPA;
    w->shadow.avail = SHADOW_GPA + avail;
    w->shadow.used = SHADOW_GPA + used;
    w->shadow.size = size;
    if (options & OPTION_MISPLACED) {
        w->shadow.desc += (int8_t)take(&w->driver.in, 1);
        w->shadow.avail += (int16_t)take(&w->driver.in, 2);
        w->shadow.used += take(&w->driver.in, 8);
        w->shadow.size = take_length(&w->driver.in);
    }
    w->desc = (struct vring_desc *)w->memory;
    w->avail = (struct vring_avail *)(w->memory + avail);
    w->used = (struct vring_used *)(w->memory + used);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
    static struct world w;
    memset(&w, 0, sizeof(w));
    w.driver.in = (struct input){data, data + length};
    uint8_t log_size = take(&w.driver.in, 1) % 5, options = take(&w.driver.in, 1);
    begin(&w.driver, log_size, options);
    lay_shadow(&w, (options & OPTION_LARGER ? 2u : 1u) << log_size, options);
    w.followed = !(options & OPTION_RAW_CONFIG);
    w.busy = options & OPTION_BUSY;
    make(&w);
    /* A misplaced one is the VMM's mistake; it may lie over itself. */
    bool usable = w.mediator && !(options & OPTION_MISPLACED);
    for (int i = 0; usable && i < MOST_OPERATIONS && w.driver.in.at < w.driver.in.end; i++) {
        operate(&w);
        usable = w.mediator;
    }
    if (w.mediator)
        dispose(&w);
    free(w.memory);
    end(&w.driver);
    return 0;
}
