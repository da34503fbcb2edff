// Code that changes: its own, across a page, by another address, and by another mapping.
#include "cpu.h"

static const uintptr_t window = 0x3000000;

typedef uint32_t function(void);

// mov $value, %eax; ret
static void write_function(volatile uint8_t *place, uint32_t value)
{
        const uint8_t code[] = { 0xB8, value, value >> 8, value >> 16, value >> 24, 0xC3 };
        for (unsigned i = 0; i < sizeof code; i++)
                place[i] = code[i];
}

static uint32_t call(uintptr_t place)
{
        return ((function *)place)();
}

static void try_direct(void)
{
        uint32_t sum = 0;
        // The immediate operand of an instruction behind a jump; each round adds another one.
        for (uint32_t round = 1; round <= 5; round++)
                asm volatile("mov %1, 1f+1(%%rip); jmp 1f; 1: mov $0, %%eax; add %%eax, %0"
                             : "+r"(sum) : "r"(round * 100) : "rax", "memory", "cc");
        say("behind a jump: %u", sum);
        sum = 0;
        for (uint32_t round = 1; round <= 5; round++)
                asm volatile("mov %1, 1f+1(%%rip); 1: mov $0, %%eax; add %%eax, %0"
                             : "+r"(sum) : "r"(round * 100) : "rax", "memory", "cc");
        say("the very next instruction: %u", sum);
        sum = 0;
        // An INC becomes a DEC, by one bit, in a loop that has run for long.
        asm volatile("mov $1000, %%ecx\n"
                     "1: incl %0; dec %%ecx; jnz 1b\n"
                     "orb $8, 2f+1(%%rip); mov $300, %%ecx\n"
                     "2: inc %%eax; dec %%ecx; jnz 2b"
                     : "+r"(sum), "=&a"((uint32_t){ 0 }) : : "rcx", "memory", "cc");
        say("a loop: %u", sum);
}

static void try_functions(void)
{
        uint32_t sum = 0;
        for (uint32_t i = 1; i <= 1000; i++) {
                write_function((uint8_t *)window, i);
                sum += call(window);
        }
        say("a function rewritten 1000 times: %u", sum);

        // Its instruction begins in one page and ends in the next, and only the next is written.
        uintptr_t border = window + 2 * PAGE_SIZE;
        write_function((uint8_t *)border - 2, 0x01010101);
        uint32_t before = call(border - 2);
        *(volatile uint8_t *)border = 0x02;
        uint32_t after = call(border - 2);
        say("across a page, the end written: %x, %x", before, after);
        *(volatile uint8_t *)(border - 1) = 0x03;
        say("across a page, the start written: %x", call(border - 2));

        // A copy of a page of code over another, by one instruction.
        write_function((uint8_t *)window + 0x10, 7);
        before = call(window + PAGE_SIZE * 4 + 0x10 - PAGE_SIZE * 4);
        write_function((uint8_t *)window + PAGE_SIZE * 4 + 0x10, 8);
        uintptr_t source = window + PAGE_SIZE * 4, target = window;
        uint64_t count = PAGE_SIZE / 8;
        asm volatile("rep movsq" : "+S"(source), "+D"(target), "+c"(count) : : "memory");
        say("a page copied over it: %u, %u", before, call(window + 0x10));
}

static void try_mappings(void)
{
        enum { CODE = 8, ALIAS = 9, OTHER = 10 };
        volatile uint64_t *entries = split(window);
        uintptr_t code = window + CODE * PAGE_SIZE, alias = window + ALIAS * PAGE_SIZE;
        uintptr_t other = window + OTHER * PAGE_SIZE;
        entries[ALIAS] = code | P | W;
        forget_page(alias);
        write_function((uint8_t *)code, 1);
        uint32_t before = call(code);
        write_function((uint8_t *)alias, 2);
        say("written at another address: %u, %u", before, call(code));

        write_function((uint8_t *)other, 3);
        entries[CODE] = other | P | W;
        forget_page(code);
        say("another page mapped there: %u", call(code));
        entries[CODE] = code | P | W;
        forget_page(code);
        say("the first page again: %u", call(code));

        entries[CODE] = code | P;
        forget_page(code);
        TRY("movb $9, 1(%0)", "r"(code));
        tell("written while read-only");
        say("  and it gives %u", call(code));
}

void main(void);
void main(void)
{
        say("selfmod: begin");
        try_direct();
        try_functions();
        try_mappings();
        say("selfmod: done");
}
