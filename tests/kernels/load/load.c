// The load guest: keeps so many requests of one kind in flight until the power button is pressed,
// and writes down when each was given and answered: on its tape, the disk of that size.
//
//     sector 0   struct header
//     sector 8   struct record, one for each request, in the order in which they were answered
#include "../soak/traffic.h"

// Patched by whoever loads the image; see README.md.
extern const volatile struct {
        char magic[4];
        uint32_t operation, wait, depth, size;
} parameters;

enum { READ = 0, WRITE = 1, TAKE = 2 }; // operation: of a disk, of a disk, of entropy
enum { REQUESTQ = 0 };
enum { IN = 0, OUT = 1 }; // of virtio-blk (virtio 1.2, section 5.2.6)

enum { SECTOR = 512, RECORDS_AT = 8, CHUNK = 256 << 10, MOST_DEPTH = QUEUE_SIZE };
enum { COM1 = 0x3F8, PM1_STATUS = 0x600, POWER_BUTTON = 1 << 8 };

// Marks that are sent at the begin and at the end; cycles between two of them, some 0.5 ms, and
// between two looks at the button, some 5 ms.
enum { MARKS = 8, BETWEEN = 1 << 20, LOOK = 1 << 24 };

static struct header {
        char magic[8];
        uint64_t records, dropped, failed;
        uint64_t marks[2 * MARKS];
        uint8_t rest[SECTOR - 32 - 16 * MARKS];
} header = { .magic = "VIBELOAD" };

struct record {
        uint64_t given, answered;
};

// 64 MiB of memory: what is behind the image, and too large for it.
static struct record *const records = (struct record *)0x1000000;
enum { MOST_RECORDS = 0x1000000 / sizeof(struct record) };
enum { TAPE_SECTORS = RECORDS_AT + 0x1000000 / SECTOR };
static uint8_t *const data = (uint8_t *)0x2000000;

static struct request {
        struct {
                uint32_t type, reserved;
                uint64_t sector;
        } header;
        uint8_t status;
        uint64_t given;
        void *data;
} requests[MOST_DEPTH];

static struct device subject, tape;
static struct traffic traffic;

// What traffic.c leaves to it: always indirect tables, as Linux does.
uint64_t chance(void)
{
        return 1;
}

static uint64_t dice(void)
{
        static uint64_t state = 1;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state >> 11;
}

static uint16_t in16(uint16_t port)
{
        uint16_t value;
        asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
        return value;
}

static void find_devices(void)
{
        unsigned id = parameters.operation == TAKE ? ENTROPY : BLOCK;
        for (unsigned slot = 0; slot < SLOTS; slot++) {
                struct device found;
                if (!probe(&found, slot))
                        continue;
                if (found.id == BLOCK && found.registers[CONFIG] == TAPE_SECTORS)
                        tape = found;
                else if (found.id == id)
                        subject = found;
        }
        if (!subject.registers || !tape.registers)
                fail("there is nothing to load, or no tape");
}

// Each mark is a byte, whose time both sides note: so the host can tell the guest's clock.
static void send_marks(uint64_t *marks)
{
        for (unsigned i = 0; i < MARKS; i++) {
                marks[i] = now();
                out8(COM1, '.');
                while (now() - marks[i] < BETWEEN)
                        asm volatile("pause");
        }
}

static bool is_pressed(void)
{
        static uint64_t looked;
        static bool pressed;
        if (!pressed && now() - looked >= LOOK) {
                looked = now();
                pressed = in16(PM1_STATUS) & POWER_BUTTON;
        }
        return pressed;
}

static void submit_request(struct request *request)
{
        const struct buffer middle = { request->data, parameters.size,
                                       parameters.operation != WRITE };
        request->given = now();
        if (parameters.operation == TAKE) {
                give(&traffic, &middle, 1, request);
                return;
        }
        uint32_t sectors = parameters.size / SECTOR;
        request->header.type = parameters.operation == WRITE ? OUT : IN;
        request->header.sector = dice() % (subject.registers[CONFIG] / sectors) * sectors;
        request->status = 0xFF;
        const struct buffer chain[] = {
                { &request->header, sizeof request->header, false },
                middle,
                { &request->status, 1, true },
        };
        give(&traffic, chain, 3, request);
}

static void note(const struct request *request)
{
        header.failed += request->status != 0;
        if (header.records == MOST_RECORDS)
                header.dropped++;
        else
                records[header.records++] = (struct record){ request->given, now() };
}

static void load(void)
{
        struct request *request;
        uint32_t written;
        for (unsigned i = 0; i < parameters.depth; i++) {
                requests[i].data = data + (uint64_t)i * parameters.size;
                submit_request(&requests[i]);
        }
        ring(&traffic);
        while (!is_idle(&traffic)) {
                bool any = false;
                while ((request = take(&traffic, &written))) {
                        note(request);
                        if (!is_pressed())
                                submit_request(request);
                        any = true;
                }
                ring(&traffic);
                if (any)
                        continue;
                if (parameters.wait)
                        sleep_until_interrupt();
                else
                        asm volatile("pause");
        }
}

static void write_tape(uint64_t sector, const void *bytes, uint32_t size)
{
        static struct {
                uint32_t type, reserved;
                uint64_t sector;
        } out;
        static volatile uint8_t status;
        out.type = OUT;
        out.sector = sector;
        status = 0xFF;
        const struct buffer chain[] = {
                { &out, sizeof out, false },
                { (void *)bytes, size, false },
                { (void *)&status, 1, true },
        };
        submit(&tape, REQUESTQ, chain, 3);
        complete(&tape, REQUESTQ);
        if (status != 0)
                fail("the tape says %u", status);
}

void main(void)
{
        if (!parameters.depth || parameters.depth > MOST_DEPTH || !parameters.size)
                fail("%u requests of %u bytes", parameters.depth, parameters.size);
        find_devices();
        start(&subject, EVENT_IDX | INDIRECT_DESC, 1, parameters.wait);
        start(&tape, EVENT_IDX, 1, true);
        begin_traffic(&traffic, &subject, REQUESTQ);
        start_ticking();
        send_marks(header.marks);
        load();
        send_marks(header.marks + MARKS);
        uint64_t size = header.records * sizeof *records;
        for (uint64_t at = 0; at < size; at += CHUNK)
                write_tape(RECORDS_AT + at / SECTOR, (uint8_t *)records + at, CHUNK);
        write_tape(0, &header, sizeof header);
        power_off();
}
