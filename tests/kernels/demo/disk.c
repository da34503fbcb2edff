// virtio-blk (virtio 1.2, section 5.2).
#include "devices.h"

enum { MOST_QUEUES = 2 };
enum { IN = 0, OUT = 1, FLUSH = 4 };
static const uint64_t read_only = 1ull << 5, flush = 1ull << 9, mq = 1ull << 12;

enum { SECTOR = 512, WORDS = SECTOR / 8 };

static struct {
        uint32_t type, reserved;
        uint64_t sector;
} header;
static uint64_t data[WORDS] __attribute__((aligned(SECTOR))); // as direct I/O has to have it
static uint8_t status;

// One request, in each of the queues by turns; the data goes to buffer or from it, as the type says.
static void request(struct device *device, uint32_t type, uint64_t sector, void *buffer)
{
        static unsigned turn;
        unsigned queue = turn++ % device->queue_count;
        const struct buffer chain[] = {
                { &header, sizeof header, false },
                { buffer, SECTOR, type == IN },
                { &status, 1, true },
        };
        const struct buffer bare[] = { chain[0], chain[2] };
        header.type = type;
        header.sector = sector;
        status = 0xFF;
        if (type == FLUSH)
                submit(device, queue, bare, 2);
        else
                submit(device, queue, chain, 3);
        uint32_t written = complete(device, queue);
        if (status != 0)
                fail("disk request %u at sector %u ended with status %u", type, (unsigned)sector,
                     status);
        if (written != (type == IN ? SECTOR + 1 : 1))
                fail("disk request %u says %u bytes were written", type, written);
}

// Different in every word of every sector.
static uint64_t pattern(uint64_t sector, unsigned word)
{
        return (sector << 32 | word) ^ 0x5669626556ff4d4d;
}

static unsigned capacity(struct device *device)
{
        volatile uint32_t *config = &device->registers[CONFIG];
        return config[1] ? ~0u : config[0];
}

void try_disk(struct device *device, unsigned number, unsigned sectors, bool interrupts)
{
        start(device, read_only | flush | mq | EVENT_IDX, MOST_QUEUES, interrupts);
        if (sectors > capacity(device))
                sectors = capacity(device);
        if (device->features & read_only) {
                for (unsigned sector = 0; sector < sectors; sector++)
                        request(device, IN, sector, data);
                say("demo: blk%u is read-only; read %u sectors", number, sectors);
                return;
        }
        for (unsigned sector = 0; sector < sectors; sector++) {
                for (unsigned word = 0; word < WORDS; word++)
                        data[word] = pattern(sector, word);
                request(device, OUT, sector, data);
        }
        if (device->features & flush)
                request(device, FLUSH, 0, data);
        for (unsigned sector = 0; sector < sectors; sector++) {
                for (unsigned word = 0; word < WORDS; word++)
                        data[word] = 0;
                request(device, IN, sector, data);
                for (unsigned word = 0; word < WORDS; word++)
                        if (data[word] != pattern(sector, word))
                                fail("blk%u: sector %u differs at word %u", number, sector, word);
        }
        say("demo: blk%u wrote %u sectors, read them back, verified", number, sectors);
}

void stream_from_disk(struct device *device, unsigned requests, bool interrupts)
{
        start(device, mq | EVENT_IDX, MOST_QUEUES, interrupts);
        out32(TEST_PORT, requests);
        for (unsigned i = 0; i < requests; i++)
                request(device, IN, 0, data);
        out32(TEST_PORT, requests);
}

// A page of its own: what the guest itself writes beside code, any processor notices.
static unsigned char code[4096] __attribute__((aligned(4096)));

void execute_disk(struct device *device, unsigned reads, bool interrupts)
{
        start(device, mq | EVENT_IDX, MOST_QUEUES, interrupts);
        uint32_t (*function)(void) = (uint32_t(*)(void))code;
        for (unsigned i = 0; i < reads; i++) {
                request(device, IN, i % capacity(device), code);
                // mov $number, %eax: the number is behind the opcode.
                uint32_t number = *(volatile uint32_t *)(code + 1);
                uint32_t got = function();
                if (got != number)
                        fail("read %u brought code that gives %u, and it gave %u", i, number, got);
        }
        say("demo: ran %u pages of code from the disk", reads);
}
