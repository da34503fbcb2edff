// What a hostile driver does to a disk, through its ring and its registers: one function a mistake
// that virtual machines have been broken by, and what the disk made of it.
#include "attack.h"

enum { IN = 0, OUT = 1, GET_ID = 8 }; // of virtio-blk (virtio 1.2, section 5.2.6)
enum { SECTOR = 512, DATA = 4096 };
enum { SHORT = 200000000 }; // cycles in which whatever is answered is

static uint8_t *const data = (uint8_t *)0x2200000;
static const uint64_t end_of_ram = 64 << 20;

static struct {
        uint32_t type, reserved;
        uint64_t sector;
} header;
static volatile uint8_t status;
static struct virtq_desc table[2 * QUEUE_SIZE] __attribute__((aligned(16)));

static struct device *disk, *changing;
static struct virtqueue *queue;
static bool is_wrong;

static void describe(struct virtq_desc *desc, uint64_t address, uint32_t size, uint16_t flags,
                     uint16_t next)
{
        *desc = (struct virtq_desc){ address, size, flags, next };
}

// A request for that many bytes from one sector, as it should be, in the descriptors from first on.
static void describe_request_at(uint16_t first, uint32_t type, uint64_t sector, uint32_t size)
{
        struct virtq_desc *desc = &queue->desc[first];
        header.type = type;
        header.sector = sector;
        status = 0xFF;
        uint16_t write = type == OUT ? 0 : DESC_WRITE;
        describe(&desc[0], (uintptr_t)&header, sizeof header, DESC_NEXT, first + 1);
        describe(&desc[1], (uintptr_t)data, size, DESC_NEXT | write, first + 2);
        describe(&desc[2], (uintptr_t)&status, 1, DESC_WRITE, 0);
}

static void describe_request(uint32_t type, uint64_t sector, uint32_t size)
{
        describe_request_at(0, type, sector, size);
}

static void make_available(uint16_t count)
{
        compiler_barrier();
        queue->avail.idx += count;
        full_barrier();
        disk->registers[QUEUE_NOTIFY] = REQUESTQ;
}

static void start_disk(void)
{
        begin(disk, INDIRECT_DESC);
        queue = &disk->queues[REQUESTQ];
}

// Gives what lies in the ring, and says how that ended.
static enum ending go(const char *what)
{
        uint16_t idx = queue->used.idx;
        make_available(1);
        enum ending ending = await(disk, idx, SHORT);
        say("hazard: case=%s end=%s status=%u\n", what, endings[ending], status);
        return ending;
}

static bool reads(void)
{
        fill_bytes((char *)data, SECTOR, 0);
        describe_request(IN, 2, SECTOR);
        uint16_t idx = queue->used.idx;
        make_available(1);
        return await(disk, idx, 10ull * SHORT) == ANSWERED && status == 0 && data[0] == 0x5A &&
               data[SECTOR - 1] == 0x5A;
}

static void descriptor_loop(void)
{
        describe_request(IN, 2, SECTOR);
        queue->desc[2].flags |= DESC_NEXT;
        queue->desc[2].next = 1;
        go("loop");
}

static void bad_indirection(void)
{
        static const char cases[][12] = { "nested", "with-next", "odd-size", "outside",
                                          "too-large", "empty" };
        for (unsigned i = 0; i < 6; i++) {
                start_disk();
                describe_request(IN, 2, SECTOR);
                for (unsigned at = 0; at < 2 * QUEUE_SIZE; at++)
                        describe(&table[at], (uintptr_t)data, 1, DESC_NEXT | DESC_WRITE, at + 1);
                for (unsigned at = 0; at < 3; at++)
                        table[at] = queue->desc[at];
                uint32_t size = 3 * sizeof *table;
                describe(&queue->desc[0], (uintptr_t)table, size, DESC_INDIRECT, 0);
                if (i == 0)
                        describe(&table[1], (uintptr_t)table, 16, DESC_INDIRECT, 0);
                else if (i == 1)
                        queue->desc[0].flags |= DESC_NEXT;
                else if (i == 2)
                        queue->desc[0].len = size - 7;
                else if (i == 3)
                        queue->desc[0].addr = end_of_ram;
                else if (i == 4)
                        queue->desc[0].len = sizeof table;
                else
                        queue->desc[0].len = 0;
                if (i == 4)
                        table[2].flags |= DESC_NEXT, table[2].next = 3;
                go(cases[i]);
        }
}

static void index_jumps(void)
{
        describe_request(IN, 2, SECTOR);
        queue->avail.idx += QUEUE_SIZE;
        go("jump");
}

static void entry_out_of_range(void)
{
        describe_request(IN, 2, SECTOR);
        queue->avail.ring[0] = 1000;
        go("entry");
}

// Both the descriptor and the header change for as long as the disk may be reading them.
static void double_fetch(void)
{
        for (unsigned round = 0; round < 50; round++) {
                describe_request(IN, 2, SECTOR);
                uint16_t idx = queue->used.idx;
                make_available(1);
                volatile struct virtq_desc *desc = &queue->desc[1];
                for (unsigned flip = 0; flip < 2000 && queue->used.idx == idx; flip++) {
                        desc->addr = flip % 2 ? (uintptr_t)data : ~0ull - 64;
                        desc->len = flip % 2 ? SECTOR : 1u << 31;
                        *(volatile uint64_t *)&header.sector = flip % 2 ? 2 : ~0ull;
                }
                if (await(disk, idx, SHORT) != ANSWERED) {
                        start_disk();
                        break;
                }
        }
        say("hazard: case=flips end=answered status=%u\n", status);
}

static void addresses(void)
{
        static const struct {
                char name[12];
                uint64_t address;
                uint32_t size;
        } cases[] = {
                { "overflow", ~0ull - 8, DATA },
                { "end-of-ram", (64 << 20) - SECTOR, DATA },
                { "hole", 0x00A00000 - SECTOR, DATA },
                { "nowhere", 1ull << 40, SECTOR },
        };
        for (unsigned i = 0; i < 4; i++) {
                start_disk();
                describe_request(IN, 2, SECTOR);
                queue->desc[1].addr = cases[i].address;
                queue->desc[1].len = cases[i].size;
                go(cases[i].name);
        }
}

static void lengths(void)
{
        describe_request(IN, 2, 0xFFFFFFFF);
        go("read-4g");
        start_disk();
        describe_request(OUT, 2, 0xFFFFFE00);
        go("write-4g");
}

static void sectors(void)
{
        static const uint64_t cases[] = { ~0ull, ~0ull - 7, 1ull << 55, 63 };
        for (unsigned i = 0; i < 4; i++) {
                describe_request(IN, cases[i], DATA);
                if (go("sector") == ANSWERED && status == 0)
                        is_wrong = true;
        }
}

// Little of the guest's, named again and again: a gigabyte.
static void much_of_little(void)
{
        describe_request(IN, 0, SECTOR);
        table[0] = queue->desc[0];
        for (unsigned at = 1; at < QUEUE_SIZE - 1; at++)
                describe(&table[at], (uintptr_t)data, 16 << 20, DESC_NEXT | DESC_WRITE, at + 1);
        describe(&table[QUEUE_SIZE - 1], (uintptr_t)&status, 1, DESC_WRITE, 0);
        describe(&queue->desc[0], (uintptr_t)table, QUEUE_SIZE * sizeof *table, DESC_INDIRECT, 0);
        go("gigabyte");
}

static void selectors(void)
{
        volatile uint32_t *registers = disk->registers;
        static const uint32_t cases[] = { 1, 15, 1000, 0x80000000, 0xFFFFFFFF };
        for (unsigned i = 0; i < 5; i++) {
                registers[QUEUE_SEL] = cases[i];
                if (registers[QUEUE_NUM_MAX] != 0)
                        is_wrong = true;
                registers[QUEUE_NUM] = QUEUE_SIZE;
                registers[QUEUE_DESC] = (uintptr_t)canary;
                registers[QUEUE_READY] = 1;
                registers[DEVICE_FEATURES_SEL] = cases[i];
                if (cases[i] > 1 && registers[DEVICE_FEATURES] != 0)
                        is_wrong = true;
                registers[QUEUE_NOTIFY] = cases[i];
        }
        say("hazard: case=selectors end=%s status=0\n", is_wrong ? "wrong" : "refused");
}

// The used ring is to lie in the canary.
static void rings_moved(void)
{
        volatile uint32_t *registers = disk->registers;
        registers[QUEUE_SEL] = REQUESTQ;
        registers[QUEUE_NUM] = 2;
        registers[QUEUE_DEVICE] = (uintptr_t)canary;
        registers[QUEUE_DRIVER] = (uintptr_t)canary;
        registers[QUEUE_READY] = 1;
        describe_request(IN, 2, SECTOR);
        go("moved");
}

static void status_backwards(void)
{
        volatile uint32_t *registers = disk->registers;
        registers[DRIVER_FEATURES_SEL] = 0;
        registers[DRIVER_FEATURES] = 0xFFFFFFFF;
        registers[STATUS] = 1;
        registers[STATUS] = 0xFF;
        describe_request(IN, 2, SECTOR);
        go("backwards");
}

// Twenty requests, a reset, and from then on every byte is ours.
static void reset_in_flight(void)
{
        for (unsigned round = 0; round < 5; round++) {
                start_disk();
                for (unsigned i = 0; i < 20; i++) {
                        describe_request_at(3 * i, IN, 2, DATA);
                        queue->avail.ring[i] = 3 * i;
                }
                make_available(20);
                disk->registers[STATUS] = 0;
                fill_bytes((char *)data, DATA, 0x11);
                status = 0x11;
                uint16_t idx = queue->used.idx;
                for (unsigned i = 0; i < 50; i++)
                        ask_victim();
                const uint64_t *words = (uint64_t *)data;
                if (find_other_word(words, DATA / 8, 0x1111111111111111) != DATA / 8 ||
                    status != 0x11 || queue->used.idx != idx)
                        is_wrong = true;
        }
        say("hazard: case=late end=%s status=0\n", is_wrong ? "wrong" : "quiet");
}

static void misordered(void)
{
        describe_request(IN, 2, SECTOR);
        queue->desc[0].flags |= DESC_WRITE;
        queue->desc[1].flags &= ~DESC_WRITE;
        go("readable-after-writable");
        start_disk();
        describe_request(IN, 2, SECTOR);
        queue->desc[0].flags = 0;
        go("only-a-header");
        start_disk();
        describe_request(IN, 2, SECTOR);
        queue->desc[1].flags = DESC_WRITE;
        queue->desc[1].len = 1;
        go("only-a-status");
        start_disk();
        describe_request(OUT, 2, SECTOR);
        queue->desc[1].flags = 0;
        go("no-status");
}

static void empty_descriptors(void)
{
        describe_request(IN, 2, 0);
        go("no-data");
        start_disk();
        describe(&queue->desc[0], (uintptr_t)data, 0, 0, 0);
        go("zero");
        start_disk();
        describe_request(IN, 2, SECTOR);
        queue->desc[0].len = 3;
        go("short-header");
}

static void small_answers(void)
{
        describe_request(GET_ID, 0, 5);
        fill_bytes((char *)data, DATA, 0x11);
        go("id");
        volatile struct virtq_used *used = &queue->used;
        if (used->ring[0].len > 6 || data[5] != 0x11)
                is_wrong = true;
}

static void odd_accesses(void)
{
        volatile uint8_t *bytes = (volatile uint8_t *)disk->registers;
        uint32_t sum = 0;
        for (unsigned at = 0; at < 0x110; at++)
                sum += bytes[at];
        for (unsigned at = 1; at < 0x110; at += 4)
                sum += *(volatile uint16_t *)(bytes + at);
        sum += *(volatile uint32_t *)(bytes + 0xFFC) + *(volatile uint64_t *)(bytes + 0x100);
        for (unsigned at = 0; at < 0x1000; at += 61)
                if (at / 4 != STATUS)
                        bytes[at] = at;
        *(volatile uint16_t *)(bytes + 0x71) = 0;
        *(volatile uint32_t *)(bytes + 0xFFC) = ~0u;
        say("hazard: case=accesses end=%s status=0\n", sum ? "read" : "zero");
}

// Both halves of the configuration always are the same.
static void torn_configuration(void)
{
        begin(changing, 0);
        volatile uint32_t *registers = changing->registers;
        unsigned torn = 0, changes = 0;
        uint32_t last = 0;
        for (unsigned round = 0; round < 100; round++) {
                struct buffer chain[] = { { data, 16, true } };
                submit(changing, REQUESTQ, chain, 1);
                for (unsigned look = 0; look < 20; look++) {
                        uint32_t generation, low, high;
                        do {
                                generation = registers[CONFIG_GENERATION];
                                low = registers[CONFIG];
                                high = registers[CONFIG + 1];
                        } while (registers[CONFIG_GENERATION] != generation);
                        torn += low != high;
                        changes += low != last;
                        last = low;
                }
                complete(changing, REQUESTQ);
        }
        if (torn || !changes)
                is_wrong = true;
        say("hazard: case=torn end=%s status=0\n",
            torn ? "torn" : changes ? "whole" : "unchanged");
}

static void register_descriptors(void)
{
        static const uint64_t cases[] = { 0x00A01000, 0x00A01050, 0xFEC00000, 0xFEE00000,
                                          0x90000000 };
        for (unsigned i = 0; i < 5; i++) {
                start_disk();
                describe_request(IN, 2, SECTOR);
                queue->desc[1].addr = cases[i];
                go("registers");
        }
}

static void many_errors(void)
{
        for (unsigned i = 0; i < QUEUE_SIZE; i++) {
                describe(&queue->desc[i], ~0ull - 8, 4096, 0, 0);
                queue->avail.ring[i] = i;
        }
        unsigned answered = 0;
        for (unsigned round = 0; round < 40; round++) {
                make_available(QUEUE_SIZE);
                uint64_t begin = now();
                while (queue->used.idx != queue->avail.idx && now() - begin < 50ull * SHORT)
                        ask_victim();
                if (queue->used.idx != queue->avail.idx)
                        break;
                answered += QUEUE_SIZE;
        }
        say("hazard: case=errors end=%u status=0\n", answered);
}

// A raw disk that from now on looks like qcow2, whose backing file is the host's.
static void guessed_format(void)
{
        static const uint8_t magic[] = { 'Q', 'F', 'I', 0xFB, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 104,
                                         0, 0, 0, 11 };
        fill_bytes((char *)data, SECTOR, 0);
        for (unsigned i = 0; i < sizeof magic; i++)
                data[i] = magic[i];
        for (unsigned i = 0; i < 11; i++)
                data[104 + i] = "/etc/passwd"[i];
        describe_request(OUT, 0, SECTOR);
        go("qcow2");
        start_disk();
        fill_bytes((char *)data, SECTOR, 0);
        describe_request(IN, 0, SECTOR);
        if (go("raw") != ANSWERED || status != 0 || data[0] != 'Q' || data[104] != '/')
                is_wrong = true;
}

static void storm_of_kicks(void)
{
        for (unsigned i = 0; i < 20000; i++)
                disk->registers[QUEUE_NOTIFY] = REQUESTQ;
        if (queue->used.idx != 0)
                is_wrong = true;
        describe_request(IN, 2, SECTOR);
        go("storm");
}

static void try(const char *name, void (*attack)(void))
{
        start_disk();
        is_wrong = false;
        asked = 0;
        attack();
        unsigned answers = asked;
        start_disk();
        bool serves = reads();
        say("hazard: name=%s canary=%s victim=%u serves=%s wrong=%s\n", name,
            is_canary_intact() ? "intact" : "overwritten", answers, serves ? "yes" : "no",
            is_wrong ? "yes" : "no");
}

void try_hazards(struct device *a_disk, struct device *a_changing)
{
        disk = a_disk;
        changing = a_changing;
        try("descriptor-loop", descriptor_loop);
        try("bad-indirection", bad_indirection);
        try("index-jump", index_jumps);
        try("entry-out-of-range", entry_out_of_range);
        try("double-fetch", double_fetch);
        try("address-overflow", addresses);
        try("huge-length", lengths);
        try("sector-overflow", sectors);
        try("much-of-little", much_of_little);
        try("selector-out-of-range", selectors);
        try("rings-moved", rings_moved);
        try("status-backwards", status_backwards);
        try("reset-in-flight", reset_in_flight);
        try("misordered-chain", misordered);
        try("empty-descriptor", empty_descriptors);
        try("small-answer", small_answers);
        try("odd-access", odd_accesses);
        try("torn-configuration", torn_configuration);
        try("register-descriptor", register_descriptors);
        try("many-errors", many_errors);
        try("guessed-format", guessed_format);
        try("kick-storm", storm_of_kicks);
}
