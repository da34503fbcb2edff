// Tables for the processor (Intel SDM, volume 3A, chapters 3 to 7), and exceptions caught.
#include "cpu.h"

struct gate {
        uint16_t offset_low, selector;
        uint8_t stack_table, type;
        uint16_t offset_middle;
        uint32_t offset_high, reserved;
};

enum { INTERRUPT_GATE = 0x0E, PRESENT = 0x80, PRIVILEGE_SHIFT = 5 };
enum { SINGLE_STEP = 1 << 8 }; // RFLAGS.TF

static struct gate gates[VECTORS];
static void (*handlers[VECTORS])(void);

// The task state segment of 64-bit mode; RSP0 and IST1 to 7 are all of it that is used.
static struct __attribute__((packed)) {
        uint32_t reserved;
        uint64_t rsp[3], reserved2, ist[7], reserved3;
        uint16_t reserved4, io_map;
} task;

static uint64_t descriptors[10];

struct __attribute__((packed)) pointer {
        uint16_t limit;
        const void *base;
};

volatile struct caught caught;
uint64_t try_begin, try_end;

extern const char entries[];

static void fill_descriptors(void)
{
        uint64_t base = (uintptr_t)&task, limit = sizeof task - 1;
        descriptors[KERNEL_CODE / 8] = 0x00AF9B000000FFFF;
        descriptors[KERNEL_DATA / 8] = 0x00CF93000000FFFF;
        descriptors[USER_DATA / 8] = 0x00CFF3000000FFFF;
        descriptors[USER_CODE / 8] = 0x00AFFB000000FFFF;
        descriptors[TASK / 8] = limit | (base & 0xFFFFFF) << 16 | 0x89ull << 40 | base >> 24 << 56;
        descriptors[TASK / 8 + 1] = base >> 32;
        descriptors[ABSENT_DATA / 8] = 0x00CF13000000FFFF;
        task.rsp[0] = (uintptr_t)stacks[RSP0 + 1];
        task.ist[0] = (uintptr_t)stacks[IST1 + 1];
        task.ist[1] = (uintptr_t)stacks[IST2 + 1];
        task.io_map = sizeof task; // no map: every port is forbidden to ring 3
}

void set_gate(unsigned vector, bool present, unsigned privilege, unsigned stack_table)
{
        uint64_t entry = (uint64_t)entries + 16 * vector;
        gates[vector] = (struct gate){
                .offset_low = entry,
                .offset_middle = entry >> 16,
                .offset_high = entry >> 32,
                .selector = KERNEL_CODE,
                .stack_table = stack_table,
                .type = INTERRUPT_GATE | privilege << PRIVILEGE_SHIFT | (present ? PRESENT : 0),
        };
}

void set_up_tables(void);
void set_up_tables(void)
{
        fill_descriptors();
        for (unsigned vector = 0; vector < VECTORS; vector++)
                set_gate(vector, true, 0, 0);
        struct pointer global = { sizeof descriptors - 1, descriptors };
        struct pointer interrupts = { sizeof gates - 1, gates };
        asm volatile("lgdt %0" : : "m"(global));
        asm volatile("lidt %0" : : "m"(interrupts));
        // CS and SS have these selectors already, of a table that says the same.
        asm volatile("ltr %w0" : : "r"(TASK));
}

void on_interrupt(unsigned vector, void (*handler)(void))
{
        handlers[vector] = handler;
}

static const char *stack_of(uintptr_t address)
{
        switch ((address - (uintptr_t)stacks) / STACK_SIZE) {
        case RSP0: return "rsp0";
        case IST1: return "ist1";
        case IST2: return "ist2";
        default: return "same";
        }
}

void handle(struct frame *frame);
void handle(struct frame *frame)
{
        if (handlers[frame->vector]) {
                handlers[frame->vector]();
                return;
        }
        uint64_t cr2;
        asm volatile("mov %%cr2, %0" : "=r"(cr2));
        caught.vector = frame->vector;
        caught.error = frame->error;
        caught.cr2 = cr2;
        caught.rip = frame->rip;
        caught.cs = frame->cs;
        caught.ss = frame->ss;
        caught.stack = stack_of((uintptr_t)frame);
        frame->rip = try_end;
        frame->rflags &= ~(uint64_t)SINGLE_STEP;
}

void tell(const char *what)
{
        if (caught.vector == (uint64_t)NOTHING) {
                say("%s: nothing", what);
                return;
        }
        uint64_t distance = caught.rip - try_begin;
        say("%s: vector %u error %x ring %u stack %s", what, (unsigned)caught.vector,
            (unsigned)caught.error, (unsigned)caught.cs & 3, caught.stack);
        // The place where a double fault happened is not defined; elsewhere than in the
        // instruction is where it jumped to.
        if (caught.vector != DOUBLE_FAULT && distance < 16)
                say("  at +%u", (unsigned)distance);
        else if (caught.vector != DOUBLE_FAULT)
                say("  at %x", (unsigned)caught.rip);
        if (caught.vector == PAGE)
                say("  cr2 %x", (unsigned)caught.cr2);
}

// The levels above the directory let ring 3 pass: each entry below them decides for itself.
static uint64_t *next_level(uint64_t entry)
{
        return (uint64_t *)(uintptr_t)(entry & 0xFFFFFFFFFF000);
}

volatile uint64_t *directory_entry(uintptr_t address)
{
        uint64_t cr3;
        asm volatile("mov %%cr3, %0" : "=r"(cr3));
        uint64_t *fourth = &next_level(cr3)[address >> 39 & 511];
        *fourth |= U;
        uint64_t *third = &next_level(*fourth)[address >> 30 & 511];
        *third |= U;
        return &next_level(*third)[address >> 21 & 511];
}

volatile uint64_t *split(uintptr_t address)
{
        static uint64_t table[512] __attribute__((aligned(PAGE_SIZE)));
        for (unsigned i = 0; i < 512; i++)
                table[i] = (address + i * PAGE_SIZE) | P | W;
        *directory_entry(address) = (uintptr_t)table | P | W | U;
        forget_page(address);
        return table;
}

void open_to_user(void)
{
        *directory_entry((uintptr_t)stacks) |= U;
        // CR3 again: nothing of the old entries is kept.
        uint64_t cr3;
        asm volatile("mov %%cr3, %0; mov %0, %%cr3" : "=r"(cr3) : : "memory");
}

void forget_page(uintptr_t address)
{
        asm volatile("invlpg (%0)" : : "r"(address) : "memory");
}
