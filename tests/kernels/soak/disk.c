// Writes, reads, zeroes and flushes, many at a time, never two at the same sector. What is written
// tells where it belongs and when it was written; what is read must be what was written last.
#include "soak.h"

enum { REQUESTQ = 0 };
enum { IN = 0, OUT = 1, FLUSH = 4, WRITE_ZEROES = 13 };
static const uint64_t flush = 1ull << 9, write_zeroes = 1ull << 14;

enum { WORDS = SECTOR / 8, MOST_SECTORS = 8, REQUESTS = 24, MOST_SEGMENTS = MOST_BUFFERS - 2 };

static struct request {
        struct {
                uint32_t type, reserved;
                uint64_t sector;
        } header;
        struct {
                uint64_t sector;
                uint32_t count, flags;
        } range;
        uint64_t data[MOST_SECTORS][WORDS];
        uint32_t sector, count, sequence;
        uint8_t status;
        bool is_busy;
} requests[REQUESTS];

static struct traffic traffic;
static struct device *disk;
static unsigned sectors, counts[WRITE_ZEROES + 1];
static uint32_t last_sequence;
uint32_t sequences[SECTORS];
static bool is_taken[SECTORS]; // by a request that is in flight

static bool is_finishing;
static unsigned read_back;

void start_disk(struct device *device, uint64_t features, bool interrupts)
{
        disk = device;
        start(device, features | flush | write_zeroes, 1, interrupts);
        sectors = device->registers[CONFIG] < SECTORS ? device->registers[CONFIG] : SECTORS;
        begin_traffic(&traffic, device, REQUESTQ);
}

// Word by word: who and where, when, then what both and the seed decide, then a sum of all that.
static void fill(uint64_t *data, uint32_t sector, uint32_t sequence)
{
        uint64_t x = seed ^ (uint64_t)sector << 32 ^ sequence, sum = 0;
        for (unsigned word = 0; word < WORDS - 1; word++) {
                x = x * 6364136223846793005 + 1442695040888963407;
                uint64_t value = word == 0 ? 0x6b616f73ull << 32 | sector
                                 : word == 1 ? sequence
                                             : x ^ x >> 29;
                data[word] = sequence ? value : 0;
                sum = (sum << 1 | sum >> 63) ^ data[word];
        }
        data[WORDS - 1] = sum;
}

static void check(const uint64_t *data, uint32_t sector)
{
        uint64_t wanted[WORDS];
        fill(wanted, sector, sequences[sector]);
        for (unsigned word = 0; word < WORDS; word++)
                if (data[word] != wanted[word])
                        fail("sector %u, written last by write %u, differs at word %u: write %u of "
                             "sector %u", sector, sequences[sector], word, (unsigned)data[1],
                             (unsigned)data[0]);
}

static void finish(struct request *request, uint32_t written)
{
        uint32_t type = request->header.type;
        uint32_t size = type == IN ? request->count * SECTOR : 0;
        if (request->status != 0 || written != size + 1)
                fail("disk request %u at sector %u ended with status %u, %u bytes", type,
                     request->sector, request->status, written);
        for (unsigned i = 0; i < request->count; i++) {
                uint32_t sector = request->sector + i;
                if (type == IN)
                        check(request->data[i], sector);
                else
                        sequences[sector] = type == OUT ? request->sequence : 0;
                is_taken[sector] = false;
        }
        counts[type]++;
        request->is_busy = false;
}

// In pieces of any sizes, which need not be those of sectors.
static unsigned cut(struct request *request, struct buffer *pieces)
{
        uint8_t *at = (uint8_t *)request->data;
        uint32_t left = request->count * SECTOR;
        unsigned count = 0;
        while (left) {
                uint32_t size = count + 1 == MOST_SEGMENTS ? left : 1 + chance() % left;
                pieces[count++] = (struct buffer){ at, size, request->header.type == IN };
                at += size;
                left -= size;
        }
        return count;
}

static void submit_request(struct request *request, uint32_t type)
{
        struct buffer chain[MOST_BUFFERS] = { { &request->header, sizeof request->header, false } };
        unsigned count = 1;
        request->header.type = type;
        request->header.sector = type == WRITE_ZEROES ? 0 : request->sector;
        request->status = 0xFF;
        request->is_busy = true;
        if (type == OUT) {
                request->sequence = ++last_sequence;
                for (unsigned i = 0; i < request->count; i++)
                        fill(request->data[i], request->sector + i, request->sequence);
        } else if (type == WRITE_ZEROES) {
                request->range.sector = request->sector;
                request->range.count = request->count;
                request->range.flags = chance() % 2; // unmap
                chain[count++] = (struct buffer){ &request->range, sizeof request->range, false };
        }
        if (type == IN || type == OUT)
                count += cut(request, chain + 1);
        chain[count++] = (struct buffer){ &request->status, 1, true };
        for (unsigned i = 0; i < request->count; i++)
                is_taken[request->sector + i] = true;
        give(&traffic, chain, count, request);
}

static bool is_any_taken(const struct request *request)
{
        for (unsigned i = 0; i < request->count; i++)
                if (is_taken[request->sector + i])
                        return true;
        return false;
}

static void submit_any(struct request *request)
{
        unsigned dice = chance() % 100;
        request->count = 1 + chance() % MOST_SECTORS;
        request->sector = chance() % (sectors - request->count + 1);
        if (dice < 2 && disk->features & flush) {
                request->count = 0;
                submit_request(request, FLUSH);
        } else if (!is_any_taken(request)) {
                bool zero = dice < 6 && disk->features & write_zeroes;
                submit_request(request, zero ? WRITE_ZEROES : dice < 55 ? OUT : IN);
        }
}

static void read_next(struct request *request)
{
        request->sector = read_back;
        request->count = sectors - read_back < MOST_SECTORS ? sectors - read_back : MOST_SECTORS;
        if (is_any_taken(request))
                return; // the last writes are under way
        read_back += request->count;
        submit_request(request, IN);
}

bool disk_turn(void)
{
        struct request *request;
        uint32_t written;
        bool any = false;
        while ((request = take(&traffic, &written))) {
                finish(request, written);
                any = true;
        }
        for (unsigned i = 0; i < REQUESTS; i++) {
                if (requests[i].is_busy || !has_room(&traffic, MOST_BUFFERS))
                        continue;
                if (!is_finishing)
                        submit_any(&requests[i]);
                else if (read_back < sectors)
                        read_next(&requests[i]);
        }
        ring(&traffic);
        look_for_lost(&traffic);
        return any;
}

bool finish_disk(void)
{
        is_finishing = true;
        return read_back == sectors && is_idle(&traffic);
}

void report_disk(void)
{
        say("soak: disk reads %u writes %u zeroes %u flushes %u", counts[IN], counts[OUT],
            counts[WRITE_ZEROES], counts[FLUSH]);
}
