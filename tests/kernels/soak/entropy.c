// Takes entropy, several requests at a time: never the same twice, and nothing behind the buffer.
#include "soak.h"

enum { REQUESTQ = 0, REQUESTS = 8, MOST_BYTES = 256 };
static const uint64_t canary = 0x7972616e6163;

static struct request {
        uint64_t data[MOST_BYTES / 8 + 1];
        uint32_t size;
} requests[REQUESTS], *idle[REQUESTS];
static unsigned idle_count;
static uint64_t last;

static struct traffic traffic;
static bool is_finishing;

void start_entropy(struct device *device, uint64_t features, bool interrupts)
{
        start(device, features, 1, interrupts);
        begin_traffic(&traffic, device, REQUESTQ);
        for (unsigned i = 0; i < REQUESTS; i++)
                idle[idle_count++] = &requests[i];
}

static void finish(struct request *request, uint32_t written)
{
        if (written == 0 || written > request->size)
                fail("%u bytes of entropy instead of %u", written, request->size);
        if (request->data[request->size / 8] != canary)
                fail("%u bytes of entropy went beyond their buffer", request->size);
        // The chance of 2^-64 is none; of a byte or two there is one.
        if (written >= 8) {
                if (request->data[0] == last)
                        fail("the same entropy twice: %x", (unsigned)last);
                last = request->data[0];
        }
        idle[idle_count++] = request;
}

bool entropy_turn(void)
{
        struct request *request;
        uint32_t written;
        bool any = false;
        while ((request = take(&traffic, &written))) {
                finish(request, written);
                any = true;
        }
        while (idle_count && !is_finishing) {
                request = idle[--idle_count];
                uint64_t dice = chance();
                request->size = 8 * (1 + dice % (MOST_BYTES / 8));
                request->data[request->size / 8] = canary;
                uint32_t half = 1 + (dice >> 8) % (request->size - 1);
                const struct buffer chain[] = {
                        { request->data, half, true },
                        { (uint8_t *)request->data + half, request->size - half, true },
                };
                give(&traffic, chain, 2, request);
        }
        ring(&traffic);
        look_for_lost(&traffic);
        return any;
}

bool finish_entropy(void)
{
        is_finishing = true;
        return is_idle(&traffic);
}

void report_entropy(void)
{
        say("soak: entropy %u", (unsigned)traffic.completed);
}
