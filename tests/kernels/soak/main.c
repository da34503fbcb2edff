// The soak guest: loads a disk, entropy and a console at once, and believes none of them.
#include "soak.h"

// Patched by whoever loads the image; see README.md.
extern const volatile struct {
        char magic[4];
        uint32_t mode, wait, count;
} parameters;

enum { USE_EVENT_IDX = 1, USE_INDIRECT_DESC = 2, PATIENCE = 8 }; // mode; its bits from 8 on

uint64_t seed;
static uint64_t state;

uint64_t chance(void)
{
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state >> 11;
}

static struct device *find(unsigned id, struct device *device)
{
        for (unsigned slot = 0; slot < SLOTS; slot++)
                if (probe(device, slot) && device->id == id)
                        return device;
        fail("no device of kind %u", id);
}

static void say_time(const char *what)
{
        uint64_t time = now();
        say("soak: %s %x:%x", what, (unsigned)(time >> 32), (unsigned)time);
}

// Until something comes: from a device, or from the timer, so that what is lost is missed.
static void wait(bool interrupts)
{
        if (interrupts)
                sleep_until_interrupt();
        else
                asm volatile("pause");
}

// A turn of each, and sleep if there was nothing to do.
static void turn(bool interrupts)
{
        bool any = disk_turn();
        any |= entropy_turn();
        any |= console_turn();
        if (!any)
                wait(interrupts);
}

void main(void)
{
        static struct device disk, entropy, console;
        bool interrupts = parameters.wait;
        uint64_t features = (parameters.mode & USE_EVENT_IDX ? EVENT_IDX : 0) |
                            (parameters.mode & USE_INDIRECT_DESC ? INDIRECT_DESC : 0);
        seed = parameters.count;
        if (parameters.mode >> PATIENCE)
                patience = parameters.mode >> PATIENCE;
        state = seed * 6364136223846793005 + 1442695040888963407;
        start_disk(find(BLOCK, &disk), features, interrupts);
        start_entropy(find(ENTROPY, &entropy), features, interrupts);
        start_console(find(CONSOLE, &console), features, interrupts);
        if (interrupts)
                start_ticking();
        say("soak: slots disk %u entropy %u console %u", disk.slot, entropy.slot, console.slot);
        say_time("begun");
        while (!is_told_to_end())
                turn(interrupts);
        // All are told to finish, whichever is first.
        while (!(finish_disk() & finish_entropy() & finish_console()))
                turn(interrupts);
        print_raw(sequences, sizeof sequences);
        unsigned count = end_gaps(); // printing may take long, too
        print_raw(gaps, count * sizeof *gaps);
        while (!finish_console())
                turn(interrupts);
        say_time("ended");
        report_disk();
        report_entropy();
        report_console();
        say("soak: gaps %u", count);
        say("soak: done");
        power_off();
}
