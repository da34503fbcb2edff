// Prints numbered lines and reads numbered lines: each is decided by its number and the seed, so
// both ends know every byte.
#include "soak.h"

enum { RECEIVEQ = 0, TRANSMITQ = 1 };
enum { LINES = 4, ROOMS = 16, ROOM = 48, MOST_LETTERS = 64, LINE = 8 + 1 + MOST_LETTERS + 1 };
enum { FROM_GUEST = 1, FROM_HOST = 2 }; // who says a line

static struct traffic input, output;

static char lines[LINES][LINE];
static char rooms[ROOMS][ROOM];

static uint32_t said, done, heard;
static char wanted[LINE];
static unsigned wanted_size, wanted_at;
static bool is_answering, is_ending, is_finishing;

// "0000002a lllllll\n": the seed decides how many letters, and which.
static unsigned compose(char *text, unsigned who, uint32_t number)
{
        uint64_t x = seed ^ (uint64_t)who << 32 ^ number;
        unsigned size = 0;
        for (int digit = 28; digit >= 0; digit -= 4)
                text[size++] = "0123456789abcdef"[number >> digit & 15];
        text[size++] = ' ';
        x = x * 6364136223846793005 + 1442695040888963407;
        unsigned letters = (x >> 33) % (MOST_LETTERS + 1);
        fill_bytes(text + size, letters, 'a' + (x >> 45) % 26);
        size += letters;
        text[size++] = '\n';
        return size;
}

static void make_room(char *room)
{
        give(&input, &(struct buffer){ room, ROOM, true }, 1, room);
}

void start_console(struct device *device, uint64_t features, bool interrupts)
{
        start(device, features, 2, interrupts);
        begin_traffic(&input, device, RECEIVEQ);
        begin_traffic(&output, device, TRANSMITQ);
        for (unsigned i = 0; i < ROOMS; i++)
                make_room(rooms[i]);
        wanted_size = compose(wanted, FROM_HOST, 0);
}

static void hear(const char *typed, uint32_t size)
{
        is_answering = true;
        while (size && !is_ending) {
                if (wanted_at == 0 && *typed == '.') {
                        is_ending = true;
                        return;
                }
                unsigned left = wanted_size - wanted_at, part = size < left ? size : left;
                if (!are_same(typed, wanted + wanted_at, part))
                        fail("line %u of the input differs, behind byte %u of it", heard, wanted_at);
                typed += part;
                size -= part;
                wanted_at += part;
                if (wanted_at == wanted_size) {
                        wanted_size = compose(wanted, FROM_HOST, ++heard);
                        wanted_at = 0;
                }
        }
}

static void say_line(void)
{
        char *text = lines[said % LINES];
        unsigned size = compose(text, FROM_GUEST, said++), half = chance() % size;
        const struct buffer whole = { text, size, false };
        const struct buffer halves[] = { { text, half, false }, { text + half, size - half, false } };
        if (half)
                give(&output, halves, 2, text);
        else
                give(&output, &whole, 1, text);
}

bool console_turn(void)
{
        uint32_t written;
        bool any = false;
        char *room;
        while ((room = take(&input, &written))) {
                if (written == 0 || written > ROOM)
                        fail("%u bytes of input", written);
                hear(room, written);
                make_room(room);
                any = true;
        }
        char *line;
        while ((line = take(&output, &written))) {
                // Else the text of one that is in flight would be overwritten.
                if (!is_finishing && line != lines[done++ % LINES])
                        fail("lines are done out of order");
                any = true;
        }
        if (is_answering && !is_finishing)
                for (unsigned i = output.in_flight; i < LINES; i++)
                        say_line();
        ring(&input);
        ring(&output);
        look_for_lost(&output);
        return any;
}

bool is_told_to_end(void)
{
        return is_ending;
}

bool finish_console(void)
{
        is_finishing = true;
        return is_idle(&output);
}

void report_console(void)
{
        say("soak: lines said %u heard %u", said, heard);
}

void print_raw(const void *bytes, uint32_t size)
{
        if (size)
                give(&output, &(struct buffer){ (void *)bytes, size, false }, 1, (void *)bytes);
}
