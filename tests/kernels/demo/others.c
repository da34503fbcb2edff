// virtio-rng and virtio-console (virtio 1.2, sections 5.4 and 5.3), and configuration space (2.5).
#include "devices.h"

void try_entropy(struct device *device, unsigned number, bool interrupts)
{
        static uint64_t fills[2][4];
        start(device, EVENT_IDX, 1, interrupts);
        for (int i = 0; i < 2; i++) {
                submit(device, 0, &(struct buffer){ fills[i], sizeof fills[i], true }, 1);
                if (complete(device, 0) != sizeof fills[i])
                        fail("rng%u gave less than was asked", number);
        }
        for (int word = 0; word < 4; word++)
                if (fills[0][word] == fills[1][word])
                        fail("rng%u said the same twice", number);
        say("demo: rng%u gave 2 times 32 bytes, which differ", number);
}

enum { RECEIVEQ = 0, TRANSMITQ = 1 };

void try_console(struct device *device, unsigned number, bool interrupts)
{
        static char line[] = "Hello from the demo guest, over virtio-console\r\n";
        start(device, EVENT_IDX, 2, interrupts);
        submit(device, TRANSMITQ, &(struct buffer){ line, sizeof line - 1, false }, 1);
        complete(device, TRANSMITQ);
        say("demo: console%u took %u bytes", number, (unsigned)sizeof line - 1);
}

void echo_console(struct device *device, bool interrupts)
{
        static char typed[64];
        uint32_t count;
        start(device, EVENT_IDX, 2, interrupts);
        do {
                submit(device, RECEIVEQ, &(struct buffer){ typed, sizeof typed, true }, 1);
                count = complete(device, RECEIVEQ);
                if (count == 0 || count > sizeof typed)
                        fail("the console received %u bytes", count);
                submit(device, TRANSMITQ, &(struct buffer){ typed, count, false }, 1);
                complete(device, TRANSMITQ);
        } while (typed[count - 1] != 'q');
}

void watch_config(struct device *device, unsigned reads)
{
        volatile uint32_t *registers = device->registers;
        unsigned torn = 0, changes = 0;
        uint32_t before = registers[CONFIG];
        for (unsigned i = 0; i < reads; i++) {
                uint32_t generation, low, high;
                do {
                        generation = registers[CONFIG_GENERATION];
                        low = registers[CONFIG];
                        high = registers[CONFIG + 1];
                } while (registers[CONFIG_GENERATION] != generation);
                torn += low != high;
                changes += low != before;
                before = low;
        }
        out32(TEST_PORT, reads);
        out32(TEST_PORT, torn);
        out32(TEST_PORT, changes);
}
