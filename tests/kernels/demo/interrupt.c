// Interrupts: one table, a vector for each virtio slot, and one for the timer.
//
//     device ─ irqfd ─► IOAPIC pin ─► local APIC ─► vector 32 + slot ─► handle_device_interrupt
//
// Names and numbers: Intel SDM, volume 3A, chapter 10 (local APIC); 82093AA data sheet (IOAPIC).
#include "pc.h"
#include "virtio.h"

enum {
        DEVICE_VECTOR = 32, // the first that is no exception's; and one for each slot
        SPURIOUS_VECTOR = DEVICE_VECTOR + SLOTS,
        TIMER_VECTOR,
        VECTORS,
};

struct gate {
        uint16_t offset_low, selector;
        uint8_t stack_table, type;
        uint16_t offset_middle;
        uint32_t offset_high, reserved;
};

enum { PRESENT_INTERRUPT_GATE = 0x8E };

static struct gate table[VECTORS];

static volatile uint32_t *const ioapic = (uint32_t *)0xFEC00000; // words 0: select, 4: window
static volatile uint32_t *const apic = (uint32_t *)0xFEE00000;
enum {
        END_OF_INTERRUPT = 0xB0 / 4, SPURIOUS_INTERRUPT = 0xF0 / 4, TIMER = 0x320 / 4,
        INITIAL_COUNT = 0x380 / 4, DIVIDE = 0x3E0 / 4,
};
enum { MASKED = 1 << 16 }; // of an IOAPIC's entry
enum { APIC_ENABLE = 1 << 8, PERIODIC = 1 << 17, BY_1 = 0xB };

// The registers of each slot's device, if it interrupts. Volatile, for the handler reads what the
// one thread writes.
static volatile uint32_t *volatile interrupting[SLOTS];
static unsigned wired[SLOTS];          // its line
static volatile unsigned came[SLOTS]; // interrupts

extern const char interrupt_entries[];

static void load_table(void)
{
        uint16_t code;
        asm("mov %%cs, %0" : "=r"(code));
        for (unsigned vector = 0; vector < VECTORS; vector++) {
                uint64_t entry = (uint64_t)interrupt_entries + 16 * vector;
                table[vector] = (struct gate){
                        .offset_low = entry,
                        .offset_middle = entry >> 16,
                        .offset_high = entry >> 32,
                        .selector = code,
                        .type = PRESENT_INTERRUPT_GATE,
                };
        }
        struct __attribute__((packed)) {
                uint16_t limit;
                const void *base;
        } descriptor = { sizeof table - 1, table };
        asm volatile("lidt %0" : : "m"(descriptor));
}

static void write_ioapic(unsigned index, uint32_t value)
{
        ioapic[0] = index;
        ioapic[4] = value;
}

static void take_interrupts(void)
{
        load_table();
        // The 8259s have nothing to say.
        out8(0x21, 0xFF);
        out8(0xA1, 0xFF);
        apic[SPURIOUS_INTERRUPT] = APIC_ENABLE | SPURIOUS_VECTOR;
}

void take_interrupts_of(unsigned slot, volatile uint32_t *registers, unsigned line)
{
        interrupting[slot] = registers;
        wired[slot] = line;
        take_interrupts();
        // To APIC 0; fixed, edge-triggered, active high, not masked.
        write_ioapic(0x10 + 2 * line + 1, 0);
        write_ioapic(0x10 + 2 * line, DEVICE_VECTOR + slot);
}

void outlast_storm(unsigned slot, unsigned interrupts)
{
        while (came[slot] < interrupts)
                sleep_until_interrupt();
        write_ioapic(0x10 + 2 * wired[slot], MASKED | (DEVICE_VECTOR + slot));
}

void start_ticking(void)
{
        take_interrupts();
        apic[DIVIDE] = BY_1;
        apic[TIMER] = PERIODIC | TIMER_VECTOR;
        apic[INITIAL_COUNT] = 10000000;
}

void handle_device_interrupt(unsigned slot)
{
        came[slot]++;
        interrupting[slot][INTERRUPT_ACK] = interrupting[slot][INTERRUPT_STATUS];
        apic[END_OF_INTERRUPT] = 0;
}

void handle_tick(void)
{
        apic[END_OF_INTERRUPT] = 0;
}

void report_exception(unsigned number) __attribute__((noreturn));
void report_exception(unsigned number)
{
        fail("exception %u", number);
}
