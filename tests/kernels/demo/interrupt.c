// Interrupts: one table, one vector for all devices, one device at a time.
//
//     device ─ irqfd ─► IOAPIC pin ─► local APIC ─► vector 32 ─► handle_device_interrupt
//
// Names and numbers: Intel SDM, volume 3A, chapter 10 (local APIC); 82093AA data sheet (IOAPIC).
#include "pc.h"
#include "virtio.h"

enum {
        DEVICE_VECTOR = 32, // the first that is no exception's
        SPURIOUS_VECTOR = 33,
        VECTORS = 34,
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
enum { END_OF_INTERRUPT = 0xB0 / 4, SPURIOUS_INTERRUPT = 0xF0 / 4, APIC_ENABLE = 1 << 8 };

// Whose interrupt it is. Volatile, for the handler reads what the one thread writes.
static volatile uint32_t *volatile interrupting;

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

void take_interrupts_of(volatile uint32_t *registers, unsigned line)
{
        interrupting = registers;
        load_table();
        // The 8259s have nothing to say.
        out8(0x21, 0xFF);
        out8(0xA1, 0xFF);
        apic[SPURIOUS_INTERRUPT] = APIC_ENABLE | SPURIOUS_VECTOR;
        // To APIC 0; fixed, edge-triggered, active high, not masked.
        write_ioapic(0x10 + 2 * line + 1, 0);
        write_ioapic(0x10 + 2 * line, DEVICE_VECTOR);
}

void handle_device_interrupt(void)
{
        interrupting[INTERRUPT_ACK] = interrupting[INTERRUPT_STATUS];
        apic[END_OF_INTERRUPT] = 0;
}

void report_exception(unsigned number) __attribute__((noreturn));
void report_exception(unsigned number)
{
        fail("exception %u", number);
}
