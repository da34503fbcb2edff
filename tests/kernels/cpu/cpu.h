// The processor as its guests see it: descriptor tables, page tables, exceptions caught.
#pragma once

#include "../demo/pc.h"

enum { KERNEL_CODE = 0x10, KERNEL_DATA = 0x18, USER_DATA = 0x2B, USER_CODE = 0x33, TASK = 0x38 };
enum { ABSENT_DATA = 0x48 }; // a data segment that is marked as not present

enum {
        DIVIDE = 0, DEBUG = 1, BREAKPOINT = 3, INVALID_OPCODE = 6, DOUBLE_FAULT = 8,
        SEGMENT_NOT_PRESENT = 11, STACK = 12, PROTECTION = 13, PAGE = 14,
        VECTORS = 64,
};

// Stacks besides the one that main() runs on; a task state segment names them by these numbers.
enum { RSP0 = 0, IST1 = 1, IST2 = 2, USER = 3, STACKS = 4, STACK_SIZE = 4096 };
extern char stacks[STACKS][STACK_SIZE];

// What an interrupt leaves on its stack.
struct frame {
        uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
        uint64_t vector, error;
        uint64_t rip, cs, rflags, rsp, ss;
};

// The last exception that TRY() caught. Handlers write it, so it is volatile.
extern volatile struct caught {
        uint64_t vector, error, cr2, rip, cs, ss;
        const char *stack; // whose the handler ran on
} caught;
enum { NOTHING = ~0 };

// Where the instruction of TRY() is, and where to go on after an exception.
extern uint64_t try_begin, try_end;

// Runs an instruction; what it raises is in `caught`, with NOTHING as the vector if it does not.
// Operands follow as in asm(); RAX, RCX, RDX,
// RDI and RBP are taken.
#define TRY(instruction, ...)                                                                   \
        do {                                                                                    \
                caught.vector = NOTHING;                                                        \
                asm volatile("lea 7771f(%%rip), %%rax\n\t"                                      \
                             "mov %%rax, try_begin(%%rip)\n\t"                                  \
                             "lea 7772f(%%rip), %%rax\n\t"                                      \
                             "mov %%rax, try_end(%%rip)\n"                                      \
                             "7771:\n\t" instruction "\n"                                       \
                             "7772:"                                                            \
                             : : __VA_ARGS__                                                    \
                             : "rax", "rcx", "rdx", "rdi", "rbp", "memory", "cc");              \
        } while (0)

// Prints what was caught: vector, error code, distance of RIP, stack; of a page fault CR2.
void tell(const char *what);

// Takes the interrupts of a vector from now on, instead of catching them.
void on_interrupt(unsigned vector, void (*handler)(void));

// Changes a gate of the interrupt table.
void set_gate(unsigned vector, bool present, unsigned privilege, unsigned stack_table);

// Page table entries (Intel SDM, volume 3A, table 4-20).
enum { P = 1 << 0, W = 1 << 1, U = 1 << 2, LARGE = 1 << 7 };

// The 4 KiB pages of the 2 MiB at that address, mapped to themselves for the kernel: their
// entries, which the caller changes. The pages of the image itself stay large.
enum { PAGE_SIZE = 4096, LARGE_SIZE = 1 << 21 };
volatile uint64_t *split(uintptr_t address);
void forget_page(uintptr_t address); // INVLPG

// The entry of the 2 MiB at that address, itself.
volatile uint64_t *directory_entry(uintptr_t address);

// Lets ring 3 use the 2 MiB that the image lies in.
void open_to_user(void);

static inline uint64_t read_msr(uint32_t number)
{
        uint32_t low, high;
        asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
        return (uint64_t)high << 32 | low;
}

static inline void write_msr(uint32_t number, uint64_t value)
{
        asm volatile("wrmsr" : : "c"(number), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

// Takes what interrupts are pending: far longer than one instruction, for interpreters look for
// them only now and then.
static inline void let_interrupts_through(void)
{
        unsigned count = 20000;
        asm volatile("sti; 1: pause; dec %0; jnz 1b; cli" : "+r"(count) : : "memory", "cc");
}
