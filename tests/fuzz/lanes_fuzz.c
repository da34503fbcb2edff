/* Coverage-guided fuzzing of the lanes: a hostile driver's queue, served in C, turn by turn, as a
 * disk (of one file, of an overlay, by an io_uring) or as either queue of a network interface.
 *
 * What a lane pops and completes passes by here (ld --wrap), so that a model knows which chains it
 * has, and what they may be written to. Beside the sanitizers, which see every access that leaves an
 * allocation, every disagreement aborts:
 *
 * - a chain is completed once, with no more bytes than it has room for (the engine refuses all else,
 *   and then lane_publish aborts), and in the order of popping, but for requests that the kernel has
 *   meanwhile, and for buffers that are none;
 * - one is declined when all before it are completed, and none behind it;
 * - of guest memory, only the used ring changes, and what is completed, as far as that was written; of
 *   a disk, which may have begun what then fails, all that its chains may be written to;
 * - a disk's file does not grow, its overlay's head stays as it was, as does all that is read only;
 *   only whole blocks are marked as being there;
 * - a lane that goes to sleep has left nothing, and has asked for a kick; what it counts is true.
 *
 * The driver strikes between turns and, if the options say so, behind each pop. The clock is ours,
 * and the kernel ends at once what it has begun: the same input does the same.
 *
 * Input: bytes for log2 of the size, the options, the kind of lane and its features, then
 * operations, each an opcode and its operands. lanes_seeds.py has some.
 */
#define _GNU_SOURCE /* memfd_create, RWF_DSYNC */

#include "../../devices/lanes/blk.h"
#include "../../devices/lanes/net.h"
#include "driver.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { DISK, OVERLAY, URING, SEND, RECEIVE, KINDS };
enum { OPTION_BUSY = 16 };
enum { MOST_LOG_SIZE = 8, SIZE = 1 << MOST_LOG_SIZE, HEADERS = LOW_SIZE - 1024 };
enum { SECTOR = 512, SECTORS = 20 /* two blocks of an overlay, and a half */, DATA = 8192 };

struct memory {
    _Alignas(8) uint8_t low[LOW_SIZE], high[HIGH_SIZE];
};

struct flight {
    bool flying, is_none; /* a buffer that no packet may go into */
    uint32_t count;
    struct iovec writable[SIZE]; /* as a chain has no more segments than its queue has entries */
};

static struct world {
    struct driver driver;
    int kind;
    bool busy;
    struct lane *lane; /* allocations of their own, as guest memory is; of net and disk, one */
    struct net *net;
    struct blk_disk *disk;
    uint32_t in_flight;
    uint16_t order[SIZE]; /* of those in flight, as they were popped */
    struct memory before, may; /* may: 255 where a byte may change in this turn, or 0 */
    uint64_t completed, written, interrupts, handled; /* handled by us, in Python's place */
    uint64_t taken; /* packets that were sent */
    long looks;     /* at the clock */
} w;
static struct flight flights[SIZE];
static bool (*submit)(void *, uint32_t); /* the keeper's */
static int image, base;
static int ends[2]; /* of what packets come and go by: the lane's, and ours */

int __real_ring_pop(struct ring *, struct ring_chain *, uint32_t, struct iovec *, uint32_t);
int __real_ring_push(struct ring *, const struct ring_completion *, uint32_t);

/* What the model knows. */

static void permit(const uint8_t *start, size_t size)
{
    const uint8_t *low = w.driver.low;
    bool is_low = start >= low && start < low + LOW_SIZE;
    memset(is_low ? w.may.low + (start - low) : w.may.high + (start - w.driver.high), 0xff, size);
}

static void permit_first(const struct flight *flight, size_t left)
{
    for (uint32_t i = 0; i < flight->count && left; i++) {
        size_t size = flight->writable[i].iov_len < left ? flight->writable[i].iov_len : left;
        permit(flight->writable[i].iov_base, size);
        left -= size;
    }
}

static void note_popped(const struct ring_chain *chain, const struct iovec *segments)
{
    struct flight *flight = &flights[chain->head];
    CHECK(!flight->flying);
    flight->flying = true;
    flight->is_none = chain->error || chain->readable || chain->writable_size < NET_HEADER;
    flight->count = chain->writable;
    memcpy(flight->writable, segments + chain->first + chain->readable,
           flight->count * sizeof(*segments));
    if (w.disk)
        permit_first(flight, SIZE_MAX);
    w.order[w.in_flight++] = chain->head;
}

static void note_completed(const struct ring_completion *done)
{
    bool refused = w.kind == RECEIVE && !done->written;
    uint32_t place = 0;
    while (place < w.in_flight && w.order[place] != done->head)
        place++;
    CHECK(place < w.in_flight);
    CHECK(place == 0 || w.kind == URING || refused);
    CHECK(w.kind != RECEIVE || flights[done->head].is_none == refused);
    flights[done->head].flying = false;
    permit_first(&flights[done->head], done->written);
    w.in_flight--;
    memmove(&w.order[place], &w.order[place + 1], (w.in_flight - place) * sizeof(*w.order));
}

/* Ten microseconds pass between two looks at it. */
int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    (void)clock;
    w.looks++;
    *now = (struct timespec){0, 10000 * w.looks};
    return 0;
}

/* What the driver writes in the middle of a turn, it writes behind the model's back. */
static void strike(void)
{
    uint16_t where = take(&w.driver.in, 2) % (LOW_SIZE - 8);
    uint64_t value = take(&w.driver.in, 8);
    memcpy(w.driver.low + where, &value, 8);
    memcpy(w.before.low + where, &value, 8);
}

int __wrap_ring_pop(struct ring *ring, struct ring_chain *chains, uint32_t limit,
                    struct iovec *segments, uint32_t capacity)
{
    int popped = __real_ring_pop(ring, chains, limit, segments, capacity);
    for (int i = 0; i < popped; i++)
        note_popped(&chains[i], segments);
    if (w.busy && w.driver.in.at < w.driver.in.end)
        strike();
    return popped;
}

int __wrap_ring_push(struct ring *ring, const struct ring_completion *done, uint32_t count)
{
    int result = __real_ring_push(ring, done, count);
    for (uint32_t i = 0; i < count && result >= 0; i++) {
        note_completed(&done[i]);
        w.written += done[i].written;
    }
    w.completed += count;
    w.interrupts += result == 1;
    return result;
}

static void begin_turn(void)
{
    const struct ring_config *config = &w.driver.config;
    memcpy(w.before.low, w.driver.low, LOW_SIZE);
    memcpy(w.before.high, w.driver.high, HIGH_SIZE);
    memset(&w.may, 0, sizeof(w.may));
    permit(w.driver.low + config->used, 6 + 8 * config->size);
    for (uint32_t i = 0; i < w.in_flight && w.disk; i++)
        permit_first(&flights[w.order[i]], SIZE_MAX);
}

/* Of multiples of eight bytes; eight at a time, and not instrumented, for it is most of the work. */
__attribute__((no_sanitize("address", "undefined", "coverage"))) static bool
has_changed(const void *now, const void *before, const void *may, size_t size)
{
    const uint64_t *a = now, *b = before, *but = may;
    uint64_t changed = 0;
    for (size_t i = 0; i < size / 8; i++)
        changed |= (a[i] ^ b[i]) & ~but[i];
    return changed;
}

static void end_turn(void)
{
    CHECK(!has_changed(w.driver.low, w.before.low, w.may.low, LOW_SIZE));
    CHECK(!has_changed(w.driver.high, w.before.high, w.may.high, HIGH_SIZE));
    CHECK(w.lane->done_count == 0 && ring_in_flight(w.lane->ring) == w.in_flight);
    CHECK(w.lane->counters.chains + w.handled == w.completed);
    CHECK(w.lane->counters.bytes_written == w.written);
    CHECK(w.lane->counters.interrupts == w.interrupts);
}

/* Asleep, it would not be woken for what waits. */
static void check_sleeps(void)
{
    const struct ring_config *config = &w.driver.config;
    bool is_full = w.lane->keeper && w.lane->keeper->kept; /* or looks at those that end */
    if (is_full || (w.kind == RECEIVE && !w.net->waiting))
        return;
    CHECK(!ring_is_waiting(w.lane->ring));
    CHECK(config->event_idx ? get16(&w.driver, config->used + 4 + 8 * config->size) ==
                                  (uint16_t)(ring_used_idx(w.lane->ring) + w.in_flight)
                            : !(get16(&w.driver, config->used) & 1));
}

/* In Python's place. */
static void handle_declined(void)
{
    const struct ring_chain *chain = w.lane->declined.chain;
    uint16_t head = chain->head;
    CHECK(w.kind == URING ? flights[head].flying : w.in_flight && w.order[0] == head);
    CHECK(!memcmp(w.lane->declined.segments + chain->first + chain->readable,
                  flights[head].writable, flights[head].count * sizeof(struct iovec)));
    int wanted = ring_push(w.lane->ring, &(struct ring_completion){head, 0}, 1);
    CHECK(wanted >= 0);
    w.interrupts -= wanted;
    w.handled++;
}

static bool serve(void)
{
    begin_turn();
    int why = lane_serve(w.lane);
    end_turn();
    CHECK(why >= -RING_HEAD_IN_FLIGHT && why <= LANE_WAITS);
    if (why == LANE_DECLINED)
        handle_declined();
    if (why == LANE_IDLE)
        check_sleeps();
    return why >= 0;
}

static void attach(void)
{
    enum ring_error error;
    w.lane->ring = ring_new(&w.driver.config, w.driver.regions, 2, &error);
    CHECK(w.lane->ring);
    for (uint32_t head = 0; head < SIZE; head++)
        flights[head].flying = false;
    w.in_flight = 0;
    w.lane->next = w.lane->count = 0;
}

static void detach(void)
{
    begin_turn();
    while (lane_finish(w.lane) == LANE_DECLINED)
        handle_declined();
    end_turn();
    CHECK(!w.lane->keeper || !w.lane->keeper->kept);
    ring_free(w.lane->ring);
}

/* The driver, and who sends packets to it. */

static void ask_disk(void)
{
    uint32_t size = w.driver.config.size, index = take(&w.driver.in, 1) % size;
    uint64_t header[2] = {take(&w.driver.in, 1) % 5, (int8_t)take(&w.driver.in, 1)};
    uint64_t data = take_address(&w.driver.in);
    uint32_t length = 256 * (take(&w.driver.in, 1) % 33);
    struct { uint64_t address; uint32_t length; uint16_t flags, next; } chain[] = {
        {HEADERS + 16 * (index % 64), sizeof(header), 1, (index + 1) % size},
        {data, length, header[0] ? 1 : 3, (index + 2) % size},
        {HIGH_GPA + index, 1, 2, 0},
    };
    memcpy(w.driver.low + chain[0].address, header, sizeof(header));
    for (uint32_t i = 0; i < 3; i++)
        memcpy(w.driver.low + 16 * ((index + i) % size), &chain[i], 16);
}

/* Of one size, and each 32 bytes behind the one before, as far as a quarter of the memory. */
static void lend_buffers(void)
{
    uint32_t index = take(&w.driver.in, 1), count = take(&w.driver.in, 1);
    uint64_t address = take_address(&w.driver.in), rest = take_length(&w.driver.in);
    rest |= (take(&w.driver.in, 1) & 7) << 32;
    for (; count--; index++) {
        uint32_t head = index & (w.driver.config.size - 1);
        uint64_t descriptor[2] = {address + 32 * (head % (LOW_SIZE / 4 / 32)), rest};
        memcpy(w.driver.low + 16 * head, descriptor, sizeof(descriptor));
        publish(&w.driver, head);
    }
}

static void send_packet(void)
{
    static uint8_t packet[NET_MOST + 2];
    static const uint32_t sizes[] = {0, 13, 14, 25, 26, 60, 1514, 65553, NET_MOST, NET_MOST + 1};
    uint8_t choice = take(&w.driver.in, 1);
    uint32_t size = choice < 10 ? sizes[choice] : choice < 20 ? take(&w.driver.in, 2) : choice;
    memset(packet, 0xee, size);
    packet[0] = take(&w.driver.in, 1); /* of a header: flags, and the kind of segmentation */
    packet[1] = take(&w.driver.in, 1);
    (void)!send(ends[1], packet, size, MSG_DONTWAIT);
}

static uint64_t receive_packets(void)
{
    uint64_t count = 0;
    uint8_t byte;
    while (recv(ends[1], &byte, 1, MSG_DONTWAIT) >= 0)
        count++;
    return count;
}

/* Birth and death. */

static int file_of(off_t size)
{
    int file = memfd_create("lanes", 0);
    CHECK(file >= 0 && !ftruncate(file, size));
    return file;
}

static off_t image_size(void)
{
    return (w.kind == OVERLAY ? DATA : 0) + SECTORS * SECTOR;
}

/* And it ends before the lane looks. */
static bool submit_and_wait(void *disk, uint32_t wait)
{
    return submit(disk, wait > w.lane->keeper->kept ? wait : w.lane->keeper->kept);
}

static void open_disk(uint8_t features)
{
    static struct blk_requests *requests; /* io_urings are dear */
    static bool opened;
    CHECK(!ftruncate(image, 0) && !ftruncate(image, image_size()));
    w.disk = calloc(1, sizeof(*w.disk));
    w.disk->image = image;
    w.disk->base = base;
    w.disk->sectors = SECTORS;
    if (w.kind == URING && !opened && blk_open_requests(w.disk) == 0) {
        requests = w.disk->requests;
        submit = blk_keeper(w.disk)->submit;
        blk_keeper(w.disk)->submit = submit_and_wait;
    }
    opened |= w.kind == URING;
    w.disk->requests = w.kind == URING ? requests : NULL;
    w.disk->readonly = features & 1;
    w.disk->may_flush = features & 2;
    w.disk->write_flags = features & 4 ? RWF_DSYNC : 0;
    w.disk->alignment = features & 8 ? 16 : 1;
    w.disk->most = features & 16 ? SECTOR : LOW_SIZE;
    w.lane->device = w.disk;
    w.lane->carry_out = blk_carry_out;
    w.lane->keeper = w.disk->requests ? blk_keeper(w.disk) : NULL;
    if (w.kind == URING && !w.lane->keeper)
        w.kind = DISK; /* this host has none */
    if (w.kind == OVERLAY) {
        w.disk->data = DATA;
        w.disk->here = malloc(1);
        *w.disk->here = features >> 5;
    }
}

static void check_disk(uint8_t features)
{
    static const uint8_t zero[DATA + SECTORS * SECTOR];
    uint8_t bytes[sizeof(zero)];
    struct stat status;
    CHECK(!fstat(image, &status) && status.st_size == image_size());
    size_t same = w.disk->readonly ? image_size() : w.kind == OVERLAY ? DATA : 0;
    CHECK(pread(image, bytes, same, 0) == (ssize_t)same && !memcmp(bytes, zero, same));
    CHECK(!fstat(base, &status) && status.st_size == SECTORS * SECTOR);
    CHECK(pread(base, bytes, SECTORS * SECTOR, 0) == SECTORS * SECTOR);
    CHECK(!memcmp(bytes, zero, SECTORS * SECTOR));
    if (w.kind == OVERLAY)
        CHECK((*w.disk->here | 3) == (features >> 5 | 3));
    free(w.disk->here);
}

static void open_net(uint8_t features)
{
    uint8_t byte;
    while (recv(ends[0], &byte, 1, MSG_DONTWAIT) >= 0)
        ;
    receive_packets();
    w.net = calloc(1, sizeof(*w.net));
    w.net->packets = ends[0];
    w.net->has_headers = features & 1;
    w.net->merges = features & 2;
    w.net->checksums = features & 4;
    w.net->segments = features & 8 ? 1 << 1 | 1 << 4 : 0;
    w.net->congestion = features & 16;
    w.lane->device = w.net;
    w.lane->source = ends[0];
    w.lane->carry_out = w.kind == SEND ? net_send : NULL;
    w.lane->serve = w.kind == RECEIVE ? net_receive : NULL;
}

static bool operate(void)
{
    struct driver *driver = &w.driver;
    switch (take(&driver->in, 1) % 12) {
    case 0:
        write_descriptor(driver, driver->config.desc, driver->config.size);
        break;
    case 1:
        write_descriptor(driver, TABLE, 128);
        break;
    case 2:
    case 3:
        offer(driver);
        break;
    case 4:
    case 5:
        return serve();
    case 6:
        w.disk ? ask_disk() : lend_buffers();
        break;
    case 7:
        send_packet();
        break;
    case 8:
        w.lane->requests = take_length(&driver->in);
        w.lane->bytes = take(&driver->in, 2);
        break;
    case 9:
        w.lane->ends = take(&driver->in, 1) & 1;
        w.lane->declines = take(&driver->in, 1) & 1;
        if (w.net)
            w.net->down = take(&driver->in, 1) & 1;
        break;
    case 10:
        poke(driver);
        break;
    case 11:
        w.taken += w.kind == SEND ? receive_packets() : 0;
        detach();
        attach();
        break;
    }
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
    memset(&w, 0, sizeof(w));
    w.driver.in = (struct input){data, data + length};
    uint8_t log_size = take(&w.driver.in, 1) % (MOST_LOG_SIZE + 1);
    uint8_t options = take(&w.driver.in, 1);
    w.kind = take(&w.driver.in, 1) % KINDS;
    uint8_t features = take(&w.driver.in, 1);
    w.busy = options & OPTION_BUSY;
    w.lane = malloc(sizeof(*w.lane));
    *w.lane = (struct lane){.kick = -1, .call = -1, .source = -1, .turn_ns = 400000,
                            .requests = INT32_MAX, .bytes = INT32_MAX};
    if (!base) {
        base = file_of(SECTORS * SECTOR);
        image = file_of(0);
        CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, ends));
        CHECK(!setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &(int){1}, sizeof(int))); /* the least */
    }
    begin(&w.driver, log_size, options & ~OPTION_RAW_CONFIG);
    w.kind < SEND ? open_disk(features) : open_net(features);
    attach();
    for (int i = 0; i < MOST_OPERATIONS && w.driver.in.at < w.driver.in.end; i++)
        if (!operate())
            break;
    detach();
    if (w.disk)
        check_disk(features);
    CHECK(w.kind != SEND || w.taken + receive_packets() == w.net->sent);
    free(w.lane);
    free(w.net);
    free(w.disk);
    end(&w.driver);
    return 0;
}
