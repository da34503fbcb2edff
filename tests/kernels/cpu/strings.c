// String instructions: with ports, and in memory.
#include "cpu.h"

enum { COM1 = 0x3F8, SCRATCH = 0x3FF, PM1_STATUS = 0x600, PM1_ENABLE = 0x602 };

static const uintptr_t window = 0x3000000;

static void try_out(void)
{
        // The NUL in front is where going backwards ends.
        static const char text[] = "rep outsb: as one\n", reversed[] = "\0\nsdrawkcab :bstuo per";
        const char *source = text;
        uint64_t count = sizeof text - 1;
        asm volatile("rep outsb" : "+S"(source), "+c"(count) : "d"(COM1) : "memory");
        say("  moved %u, left %u", (unsigned)(source - text), (unsigned)count);
        source = reversed + sizeof reversed - 2;
        count = sizeof reversed - 2;
        asm volatile("std; rep outsb; cld" : "+S"(source), "+c"(count) : "d"(COM1) : "memory");
        say("  at %s", source == reversed ? "the byte before" : "another byte");
        source = text;
        count = 0;
        asm volatile("rep outsb" : "+S"(source), "+c"(count) : "d"(COM1) : "memory");
        say("rep outsb of nothing: moved %u", (unsigned)(source - text));
        source = "once\n";
        for (int i = 0; i < 5; i++)
                asm volatile("outsb" : "+S"(source) : "d"(COM1) : "memory");
        source = text;
        count = sizeof text - 1;
        // Only the low halves count: what is above them is no part of address or count.
        count |= 5ull << 32;
        asm volatile("addr32 rep outsb" : "+S"(source), "+c"(count) : "d"(COM1) : "memory");
        say("  left %u", (unsigned)count);
}

static bool all(const uint8_t *bytes, unsigned count, uint8_t value)
{
        for (unsigned i = 0; i < count; i++)
                if (bytes[i] != value)
                        return false;
        return true;
}

static void try_in(void)
{
        // From the middle of one page into the next.
        uint8_t *memory = (uint8_t *)window + PAGE_SIZE - 100, *target = memory;
        uint64_t count = 300;
        out8(SCRATCH, 0x5A);
        asm volatile("rep insb" : "+D"(target), "+c"(count) : "d"(SCRATCH) : "memory");
        say("rep insb: moved %u, left %u, %s", (unsigned)(target - memory), (unsigned)count,
            all(memory, 300, 0x5A) && memory[300] == 0 ? "all right" : "wrong");

        uint16_t words[4] = { 0 };
        uint16_t *word = words;
        count = 3;
        out16(PM1_ENABLE, 0x0120);
        asm volatile("rep insw" : "+D"(word), "+c"(count) : "d"(PM1_ENABLE) : "memory");
        say("rep insw: %x %x %x %x", words[0], words[1], words[2], words[3]);
        uint32_t doubles[2] = { 0 };
        uint32_t *last = &doubles[1];
        asm volatile("std; insl; cld" : "+D"(last) : "d"(PM1_STATUS) : "memory");
        say("insl backwards: %x %x, %s", doubles[0], doubles[1],
            last == doubles ? "one down" : "elsewhere");

        volatile uint64_t *entries = split(window);
        entries[1] = 0;
        forget_page(window + PAGE_SIZE);
        for (int i = 0; i < 200; i++)
                memory[i - 100] = 0;
        TRY("mov %0, %%rdi; mov $64, %%ecx; mov $0x3FF, %%edx; rep insb; ud2",
            "r"(window + PAGE_SIZE - 16));
        tell("rep insb into no page");
        say("  before it %s", all(memory + 84, 16, 0x5A) ? "16 bytes" : "something else");
}

static void try_memory(void)
{
        static uint8_t bytes[64];
        uint8_t *source, *target;
        uint64_t count;
        bool equal;
        for (unsigned i = 0; i < sizeof bytes; i++)
                bytes[i] = i * 7;
        // Overlapping: the first byte goes everywhere.
        source = bytes, target = bytes + 1, count = 31;
        asm volatile("rep movsb" : "+S"(source), "+D"(target), "+c"(count) : : "memory");
        say("rep movsb, overlapping: %s", all(bytes, 32, 0) ? "all right" : "wrong");
        target = bytes, count = 4;
        asm volatile("rep stosq" : "+D"(target), "+c"(count) : "a"(0x1111111111111111) : "memory");
        say("rep stosq: %x %x", bytes[31], bytes[32]);
        source = bytes, target = bytes + 8, count = 40;
        asm volatile("repe cmpsb" : "+S"(source), "+D"(target), "+c"(count), "=@cce"(equal)
                     : : "memory");
        say("repe cmpsb: left %u, %s", (unsigned)count, equal ? "equal" : "different");
        target = bytes, count = 64;
        asm volatile("repne scasb" : "+D"(target), "+c"(count), "=@cce"(equal)
                     : "a"((uint8_t)(40 * 7)) : "memory");
        say("repne scasb: at %u, %s", (unsigned)(target - bytes) - 1, equal ? "found" : "not there");
}

void main(void);
void main(void)
{
        say("strings: begin");
        try_out();
        try_in();
        try_memory();
        say("strings: done");
}
