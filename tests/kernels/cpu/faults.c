// Faults in ring 0: of each kind its vector, error code, place, and CR2.
#include "cpu.h"

// In memory that the image does not use, of a guest with 64 MiB.
static const uintptr_t window = 0x3000000;
enum { NOT_THERE, READ_ONLY, FORBIDDEN };

static uintptr_t page(unsigned number)
{
        return window + number * PAGE_SIZE;
}

static void try_instructions(void)
{
        TRY("xor %%ecx, %%ecx; xor %%edx, %%edx; div %%ecx");
        tell("div by zero");
        TRY("mov $0x80000000, %%eax; cltd; mov $-1, %%ecx; idiv %%ecx");
        tell("idiv overflow");
        TRY("ud2");
        tell("ud2");
}

static void try_pages(void)
{
        volatile uint64_t *entries = split(window);
        entries[NOT_THERE] = 0;
        entries[READ_ONLY] = page(READ_ONLY) | P;
        forget_page(page(NOT_THERE));
        forget_page(page(READ_ONLY));
        TRY("mov (%0), %%eax", "r"(page(NOT_THERE)));
        tell("read of no page");
        TRY("movl $1, 8(%0)", "r"(page(NOT_THERE)));
        tell("write of no page");
        TRY("jmp *%0", "r"(page(NOT_THERE)));
        tell("jump to no page");
        TRY("mov (%0), %%eax", "r"(page(READ_ONLY)));
        tell("read of a read-only page");
        TRY("incl 0x123(%0)", "r"(page(READ_ONLY)));
        tell("write of a read-only page");
        // The last three bytes are the first of no page.
        TRY("movl $1, -1(%0)", "r"(window));
        tell("write across the border");
        // Bits 13 to 20 of an entry for 2 MiB are reserved on every processor.
        *directory_entry(window + LARGE_SIZE) |= 1 << 13;
        forget_page(window + LARGE_SIZE);
        TRY("mov (%0), %%eax", "r"(window + LARGE_SIZE));
        tell("reserved bit");
}

static void try_no_execute(void)
{
        enum { EFER = 0xC0000080, NXE = 1 << 11 };
        volatile uint64_t *entries = split(window);
        write_msr(EFER, read_msr(EFER) | NXE);
        entries[NOT_THERE] = 0;
        entries[FORBIDDEN] = page(FORBIDDEN) | P | W | 1ull << 63;
        forget_page(page(NOT_THERE));
        forget_page(page(FORBIDDEN));
        TRY("jmp *%0", "r"(page(FORBIDDEN)));
        tell("jump to a page of data");
        TRY("jmp *%0", "r"(page(NOT_THERE)));
        tell("jump to no page, with NXE");
}

static void try_protection(void)
{
        TRY("mov %w0, %%ds", "r"(0x1238));
        tell("selector out of the table");
        TRY("mov %w0, %%es", "r"(ABSENT_DATA));
        tell("segment not present");
        TRY("mov (%0), %%eax", "r"(1ull << 63));
        tell("address not canonical");
        TRY("mov %0, %%rbp; mov (%%rbp), %%eax", "r"(1ull << 63));
        tell("the same by the stack's segment");
}

void main(void);
void main(void)
{
        say("faults: begin");
        try_instructions();
        try_pages();
        try_no_execute();
        try_protection();
        say("faults: done");
}
