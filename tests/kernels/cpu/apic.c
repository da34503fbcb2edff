// The local APIC: its timer, interrupts to itself, priorities (Intel SDM, volume 3A, chapter 10).
#include "cpu.h"

static volatile uint32_t *const apic = (uint32_t *)0xFEE00000;
enum {
        TASK_PRIORITY = 0x80 / 4, END = 0xB0 / 4, SPURIOUS = 0xF0 / 4, REQUESTS = 0x200 / 4,
        COMMAND = 0x300 / 4, TIMER = 0x320 / 4, INITIAL = 0x380 / 4, CURRENT = 0x390 / 4,
        DIVIDER = 0x3E0 / 4,
};
enum { ENABLE = 1 << 8, MASKED = 1 << 16, PERIODIC = 1 << 17, TO_SELF = 1 << 18 };
enum { TICK = 48, LOW = 33, HIGH = 50 }; // vectors, of the priority classes 3, 2 and 3

static volatile unsigned ticks, order;

static void tick(void)
{
        ticks++;
        apic[END] = 0;
}

static void low(void)
{
        order = order * 10 + 1;
        apic[END] = 0;
}

static void high(void)
{
        order = order * 10 + 2;
        apic[END] = 0;
}

static void wait_for(unsigned wanted)
{
        while (ticks < wanted)
                sleep_until_interrupt();
}

static void try_timer(void)
{
        enum { COUNT = 200000 }; // arbitrary; a fraction of a millisecond on most machines
        apic[DIVIDER] = 0xB; // by 1
        apic[TIMER] = TICK | PERIODIC;
        apic[INITIAL] = COUNT;
        wait_for(20);
        apic[INITIAL] = 0;
        let_interrupts_through();
        say("periodic: 20 interrupts");

        apic[TIMER] = TICK;
        ticks = 0;
        apic[INITIAL] = COUNT;
        wait_for(1);
        let_interrupts_through();
        say("one-shot: %u interrupt, count %u", ticks, apic[CURRENT]);

        apic[TIMER] = TICK | MASKED;
        apic[INITIAL] = COUNT;
        while (apic[CURRENT] != 0)
                let_interrupts_through();
        say("masked: %u interrupt", ticks);
}

static void try_priorities(void)
{
        on_interrupt(LOW, low);
        on_interrupt(HIGH, high);
        apic[COMMAND] = TO_SELF | LOW;
        apic[COMMAND] = TO_SELF | HIGH;
        say("requested: %x %x", apic[REQUESTS + 4], apic[REQUESTS]);
        let_interrupts_through();
        say("the higher before the lower: %u", order);

        order = 0;
        apic[TASK_PRIORITY] = 0x20;
        apic[COMMAND] = TO_SELF | LOW;
        apic[COMMAND] = TO_SELF | HIGH;
        let_interrupts_through();
        say("with task priority 2: %u", order);
        uint64_t priority;
        asm volatile("mov %%cr8, %0" : "=r"(priority));
        asm volatile("mov %0, %%cr8" : : "r"(0ull));
        let_interrupts_through();
        say("without, from %u: %u", (unsigned)priority, order);
}

void main(void);
void main(void)
{
        say("apic: begin");
        // The 8259s have nothing to say.
        out8(0x21, 0xFF);
        out8(0xA1, 0xFF);
        apic[SPURIOUS] = ENABLE | 0xFF;
        on_interrupt(TICK, tick);
        try_priorities();
        try_timer();
        say("apic: done");
}
