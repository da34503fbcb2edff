// Writes, reads, zeroes and flushes, many at a time, never two at the same sector. What is written
// tells where it belongs and when it was written; what is read must be what was written last.
#include "soak.h"

enum { REQUESTQ = 0 };
enum { IN = 0, OUT = 1, FLUSH = 4, WRITE_ZEROES = 13 };
static const uint64_t flush = 1ull << 9, write_zeroes = 1ull << 14;

enum { WORDS = SECTOR / 8, MOST_SECTORS = 4, REQUESTS = 24, MOST_PIECES = 3 };

static struct request {
        struct {
                uint32_t type, reserved;
                uint64_t sector;
        } header;
        struct {
                uint64_t sector;
                uint32_t count, flags;
        } range;
        // As direct I/O has to have it, where it is given in one piece.
        uint64_t data[MOST_SECTORS][WORDS] __attribute__((aligned(SECTOR)));
        uint32_t sector, count, sequence;
        uint8_t status;
} requests[REQUESTS], *idle[REQUESTS];
static unsigned idle_count;

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
        for (unsigned i = 0; i < REQUESTS; i++)
                idle[idle_count++] = &requests[i];
}

// Who and where; when; what both and the seed decide, again and again; a sum of the three. A sector
// that was zeroed, or never written, is all zero.
static void compose(uint64_t words[4], uint32_t sector, uint32_t sequence)
{
        uint64_t x = seed ^ (uint64_t)sector << 32 ^ sequence;
        x = x * 6364136223846793005 + 1442695040888963407;
        words[0] = sequence ? 0x6b616f73ull << 32 | sector : 0;
        words[1] = sequence;
        words[2] = sequence ? x ^ x >> 29 : 0;
        words[3] = words[0] ^ words[1] ^ words[2];
}

static void fill(uint64_t *data, uint32_t sector, uint32_t sequence)
{
        uint64_t words[4];
        compose(words, sector, sequence);
        data[0] = words[0];
        data[1] = words[1];
        fill_words(data + 2, WORDS - 3, words[2]);
        data[WORDS - 1] = words[3];
}

static void check(const uint64_t *data, uint32_t sector)
{
        uint64_t words[4];
        compose(words, sector, sequences[sector]);
        unsigned other = 2 + find_other_word(data + 2, WORDS - 3, words[2]);
        if (data[0] != words[0] || data[1] != words[1] || other != WORDS - 1 ||
            data[WORDS - 1] != words[3])
                fail("sector %u, written last by write %u, differs: it has write %u of sector %u, "
                     "right up to word %u", sector, sequences[sector], (unsigned)data[1],
                     (unsigned)data[0], other);
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
        idle[idle_count++] = request;
}

// In a few pieces, which need not be those of sectors.
static unsigned cut(struct request *request, struct buffer *pieces)
{
        uint8_t *at = (uint8_t *)request->data;
        uint32_t left = request->count * SECTOR, dice = chance();
        unsigned count = 0, wanted = 1 + dice % MOST_PIECES;
        while (left) {
                uint32_t size = count + 1 == wanted ? left : 1 + (dice >> 8 * (count + 1)) % left;
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

// False if it would come near another one.
static bool submit_any(struct request *request)
{
        uint64_t dice = chance();
        unsigned percent = dice % 100;
        request->count = 1 + (dice >> 8) % MOST_SECTORS;
        request->sector = (dice >> 12) % (sectors - request->count + 1);
        if (percent < 2 && disk->features & flush) {
                request->count = 0;
                submit_request(request, FLUSH);
                return true;
        }
        if (is_any_taken(request))
                return false;
        bool zero = percent < 6 && disk->features & write_zeroes;
        submit_request(request, zero ? WRITE_ZEROES : percent < 55 ? OUT : IN);
        return true;
}

// False if there is nothing more to read, or it is still being written.
static bool read_next(struct request *request)
{
        request->sector = read_back;
        request->count = sectors - read_back < MOST_SECTORS ? sectors - read_back : MOST_SECTORS;
        if (request->count == 0 || is_any_taken(request))
                return false;
        read_back += request->count;
        submit_request(request, IN);
        return true;
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
        while (idle_count && has_room(&traffic, MOST_PIECES + 2)) {
                request = idle[idle_count - 1];
                if (!(is_finishing ? read_next(request) : submit_any(request)))
                        break;
                idle_count--;
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
