// The MMIO console by every kind of access: each means the one register at its offset.
#include "cpu.h"

static const uintptr_t console = 0x90000000;
enum { DIVISOR = 0, DIVISOR_HIGH = 1, LINE_CONTROL = 3, MODEM_CONTROL = 4, LINE_STATUS = 5 };
enum { SCRATCH = 7 };
enum { DIVISOR_ACCESS = 1 << 7, EIGHT_BITS = 3 };

static void put(unsigned offset, uint8_t value)
{
        *(volatile uint8_t *)(console + offset) = value;
}

static uint8_t get(unsigned offset)
{
        return *(volatile uint8_t *)(console + offset);
}

static void try_stores(void)
{
        asm volatile("movb $'a', (%0); movw $'b', (%0); movl $'c', (%0); movq $'d', (%0)"
                     : : "r"(console) : "memory");
        asm volatile("movl $0x41424365, (%0); mov %1, (%0); mov %b2, (%0); mov %h2, (%0)"
                     : : "r"(console), "r"(0x4142434445464766), "Q"(0x6867) : "memory");
        const char *text = "ijk\n";
        uintptr_t target = console;
        asm volatile("movsb; dec %1; movsb; dec %1; movsb; dec %1; movsb"
                     : "+S"(text), "+D"(target) : : "memory");
        // The address of each byte is one more: the line control gets the last, and ends as it was.
        static const uint8_t one_each[] = { 'l', 0, 0, EIGHT_BITS };
        text = (const char *)one_each;
        target = console;
        uint64_t count = sizeof one_each;
        asm volatile("rep movsb" : "+S"(text), "+D"(target), "+c"(count) : : "memory");
        put(0, '\n');
        say("rep movsb to registers: line control %x", get(LINE_CONTROL));
}

#define LOAD(instruction)                                                                       \
        ({                                                                                      \
                uint64_t value = 0x7777777777777777;                                            \
                asm volatile(instruction : "+a"(value) : "r"(console) : "memory");              \
                value;                                                                          \
        })

static void tell_value(const char *what, uint64_t value)
{
        say("%s: %x %x", what, (unsigned)(value >> 32), (unsigned)value);
}

static void try_loads(void)
{
        put(SCRATCH, 0x96);
        tell_value("mov to 8 bits", LOAD("mov 7(%1), %%al"));
        tell_value("mov to high 8 bits", LOAD("mov 7(%1), %%ah"));
        tell_value("movzx to 32 bits", LOAD("movzbl 7(%1), %%eax"));
        tell_value("movsx to 64 bits", LOAD("movsbq 7(%1), %%rax"));
        put(MODEM_CONTROL, 0x0B);
        tell_value("mov to 32 bits", LOAD("mov 4(%1), %%eax"));
        put(DIVISOR, 0xA5);
        tell_value("mov to 16 bits", LOAD("mov (%1), %%ax"));
        tell_value("mov to 64 bits", LOAD("mov (%1), %%rax"));
        tell_value("movsx of 16 bits", LOAD("movswq (%1), %%rax"));
        put(DIVISOR_HIGH, 0x3C);
        tell_value("16 bits, not aligned", LOAD("mov 1(%1), %%ax"));
        tell_value("32 bits, not aligned", LOAD("mov 1(%1), %%eax"));
        tell_value("no register there", LOAD("mov 8(%1), %%rax"));
        uint64_t value;
        asm volatile("push (%1); pop %0" : "=r"(value) : "r"(console) : "memory");
        tell_value("push", value);
        asm volatile("push $0x42; pop (%0)" : : "r"(console) : "memory");
        say("pop: %x", get(DIVISOR));
}

#define STORE(instruction, offset, value)                                                       \
        do {                                                                                    \
                asm volatile(instruction : : "r"(console + offset), "d"(value) : "memory");     \
                say("%s at %u: %x %x %x", instruction, offset, get(DIVISOR), get(DIVISOR_HIGH), \
                    get(SCRATCH));                                                              \
        } while (0)

static void try_stores_that_are_not_aligned(void)
{
        STORE("movw %w1, (%0)", 1, 0x1211);
        STORE("movl %k1, (%0)", 1, 0x24232221);
        STORE("movq %1, (%0)", 1, 0x3837363534333231);
        STORE("movw %w1, (%0)", 7, 0x4241);
        STORE("movl %k1, (%0)", 7, 0x54535251);
        // On two pages, which makes two accesses of it; nobody answers on the second.
        STORE("movl %k1, (%0)", 0xFFF, 0x64636261);
        STORE("movq %1, (%0)", 0xFFA, 0x7877767574737271);
        tell_value("32 bits on two pages", LOAD("mov 0xFFE(%1), %%eax"));
}

// The instruction on the divisor, 0xC3, with 0x5A in RAX: what both are after it.
#define MODIFY(instruction)                                                                     \
        do {                                                                                    \
                uint64_t rax = 0x5A;                                                            \
                put(DIVISOR, 0xC3);                                                             \
                asm volatile(instruction : "+a"(rax) : "r"(console), "d"(0x0Full)               \
                             : "memory", "cc");                                                 \
                say("%s: %x, rax %x", instruction, get(DIVISOR), (unsigned)rax);                \
        } while (0)

static void try_read_modify_write(void)
{
        MODIFY("addb $1, (%1)");
        MODIFY("addw $2, (%1)");
        MODIFY("addl $3, (%1)");
        MODIFY("addq $4, (%1)");
        MODIFY("orb %b2, (%1)");
        MODIFY("andl %k2, (%1)");
        MODIFY("xorq %2, (%1)");
        MODIFY("subb $0xC4, (%1)");
        MODIFY("incb (%1)");
        MODIFY("decl (%1)");
        MODIFY("notb (%1)");
        MODIFY("negb (%1)");
        MODIFY("shlb $2, (%1)");
        MODIFY("rorb $1, (%1)");
        MODIFY("btsl $0, (%1)");
        MODIFY("btrl $1, (%1)");
        MODIFY("lock orb $1, (%1)");
        MODIFY("lock incl (%1)");
        MODIFY("xchg %%al, (%1)");
        MODIFY("mov %2, %%rax; xchg %%eax, (%1)");
        MODIFY("xadd %%al, (%1)");
        MODIFY("lock cmpxchg %b2, (%1)");
        MODIFY("mov $0xC3, %%eax; lock cmpxchg %b2, (%1)");
        MODIFY("add (%1), %%eax");
        MODIFY("cmpb $0xC3, (%1); sete %%al");
        MODIFY("testb $0x02, (%1); setnz %%al");
        MODIFY("imul $3, (%1), %%eax");
}

void main(void);
void main(void)
{
        say("mmio: begin");
        try_stores();
        put(LINE_CONTROL, DIVISOR_ACCESS | EIGHT_BITS);
        try_loads();
        try_stores_that_are_not_aligned();
        try_read_modify_write();
        put(LINE_CONTROL, EIGHT_BITS);
        say("line status %x", get(LINE_STATUS));
        say("mmio: done");
}
