// The demo guest: looks for virtio devices, tries each, says what it found, powers off.
#include "devices.h"

// Patched by whoever loads the image; see README.md.
extern const volatile struct {
        char magic[4];
        uint32_t mode, wait, count, boots;
} parameters;

// Of the times before a reset, too: not cleared.
extern uint32_t boots;

enum { DEMO = 0, STREAM = 1, WATCH_CONFIG = 2, ECHO = 3, EXECUTE = 4 }; // mode
enum { LOOK = 0, SLEEP = 1, OUTLAST = 2 };                              // wait

// Interrupts of a device that answers two requests which are a storm (arbitrary).
enum { STORM = 1000 };

static unsigned count_or(unsigned otherwise)
{
        return parameters.count ? parameters.count : otherwise;
}

static void try_everything(bool interrupts)
{
        // Each stays as it was set up until the machine ends: none may share memory with another.
        static struct device devices[SLOTS];
        unsigned found[ENTROPY + 1] = { 0 };
        say("demo: a guest of Vibe-VMM, waiting for devices by %s",
            interrupts ? "interrupt" : "looking");
        for (unsigned slot = 0; slot < SLOTS; slot++) {
                struct device *device = &devices[slot];
                if (!probe(device, slot))
                        continue;
                switch (device->id) {
                case BLOCK:
                        try_disk(device, found[BLOCK]++, count_or(64), interrupts);
                        break;
                case CONSOLE:
                        try_console(device, found[CONSOLE]++, interrupts);
                        break;
                case ENTROPY:
                        try_entropy(device, found[ENTROPY]++, interrupts);
                        if (parameters.wait == OUTLAST) {
                                outlast_storm(slot, STORM);
                                say("demo: slot %u stormed, its line is off", slot);
                        }
                        break;
                default:
                        say("demo: slot %u has a device of kind %u, left alone", slot,
                            device->id);
                }
        }
        say("demo: done");
}

// The first device of that kind, or, if the kind is 0, of any.
static struct device *first(unsigned id)
{
        static struct device device;
        for (unsigned slot = 0; slot < SLOTS; slot++)
                if (probe(&device, slot) && (id == 0 || device.id == id))
                        return &device;
        fail("no device of kind %u", id);
}

void main(void)
{
        bool interrupts = parameters.wait != LOOK;
        switch (parameters.mode) {
        case DEMO:
                try_everything(interrupts);
                break;
        case STREAM:
                stream_from_disk(first(BLOCK), count_or(1000), interrupts);
                break;
        case WATCH_CONFIG:
                watch_config(first(0), count_or(1000));
                break;
        case ECHO:
                echo_console(first(CONSOLE), interrupts);
                break;
        case EXECUTE:
                execute_disk(first(BLOCK), count_or(1000), interrupts);
                break;
        default:
                fail("mode %u is unknown", parameters.mode);
        }
        if (++boots < parameters.boots)
                reset();
        power_off();
}
