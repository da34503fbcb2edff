// From ring 3 to ring 0 by exception, interrupt and SYSCALL, and back; stacks of the interrupt
// stack table; double faults.
#include "cpu.h"

static const uintptr_t window = 0x3000000; // page 0 is not there, page 1 is the kernel's
enum { BACK = 0x32, CLOSED = 0x33 };       // vectors: ring 3 may call the first, not the second

uint64_t enter_user(void (*code)(void), void *stack);
void leave_user(uint64_t value) __attribute__((noreturn));
extern const char syscall_entry[];
extern volatile uint64_t syscall_rcx, syscall_r11, syscall_flags;
extern volatile uint32_t syscall_cs, syscall_ss;

static void come_back(void)
{
        leave_user(0);
}

// Defines a function for ring 3 that tries an instruction.
#define USER_TRY(name, ...)                                                                     \
        static void name(void)                                                                  \
        {                                                                                       \
                TRY(__VA_ARGS__);                                                               \
                asm volatile("int $0x32");                                                      \
        }

USER_TRY(do_breakpoint, "int3")
USER_TRY(do_interrupt, "int $0x33")
USER_TRY(do_invalid, "ud2")
USER_TRY(do_halt, "hlt")
USER_TRY(do_cli, "cli")
USER_TRY(do_out, "out %%al, $0x80")
USER_TRY(do_cr0, "mov %%cr0, %%rax")
USER_TRY(do_segment, "mov %w0, %%ds", "r"(KERNEL_DATA))
USER_TRY(do_absent, "mov (%0), %%eax", "r"(window))
USER_TRY(do_read, "mov (%0), %%eax", "r"(window + PAGE_SIZE))
USER_TRY(do_write, "movl $0, (%0)", "r"(window + PAGE_SIZE))

static void in_user(const char *what, void (*code)(void))
{
        enter_user(code, stacks[USER + 1]);
        tell(what);
}

static void try_user(void)
{
        set_gate(BREAKPOINT, true, 3, 0);
        in_user("int3 that ring 3 may", do_breakpoint);
        set_gate(BREAKPOINT, true, 0, 0);
        in_user("int3 that it may not", do_breakpoint);
        in_user("int 0x33 that it may not", do_interrupt);
        in_user("ud2", do_invalid);
        in_user("hlt", do_halt);
        in_user("cli", do_cli);
        in_user("out", do_out);
        in_user("mov from cr0", do_cr0);
        in_user("the kernel's segment", do_segment);
        in_user("read of no page", do_absent);
        in_user("read of the kernel's page", do_read);
        in_user("write of the kernel's page", do_write);
}

static void try_stacks(void)
{
        set_gate(INVALID_OPCODE, true, 0, IST1);
        in_user("ud2 on ist1", do_invalid);
        TRY("ud2");
        tell("ud2 on ist1");
        set_gate(INVALID_OPCODE, true, 0, 0);

        set_gate(DOUBLE_FAULT, true, 0, IST2);
        set_gate(PAGE, false, 0, 0);
        in_user("page fault without its gate", do_absent);
        TRY("mov (%0), %%eax", "r"(window));
        tell("page fault without its gate");
        set_gate(PAGE, true, 0, 0);
}

static volatile uint64_t flags_after, distance;

enum { CARRY = 1 << 0, DIRECTION = 1 << 10, SHOWN = CARRY | DIRECTION };

static void do_syscall(void)
{
        uint64_t flags, at;
        asm volatile("stc; std; lea 1f(%%rip), %%rdx; syscall\n"
                     "1: pushfq; pop %0; cld; sub %%rdx, %%rcx"
                     : "=&r"(flags), "=&c"(at) : : "rax", "rdx", "r11", "memory", "cc");
        flags_after = flags;
        distance = at;
        asm volatile("int $0x32");
}

static void try_syscall(void)
{
        enum { EFER = 0xC0000080, STAR = 0xC0000081, LSTAR = 0xC0000082, FMASK = 0xC0000084 };
        write_msr(EFER, read_msr(EFER) | 1);
        // SYSRET adds 16 to its selector for CS, 8 for SS.
        write_msr(STAR, (uint64_t)(USER_CODE - 16) << 48 | (uint64_t)KERNEL_CODE << 32);
        write_msr(LSTAR, (uintptr_t)syscall_entry);
        write_msr(FMASK, DIRECTION);
        enter_user(do_syscall, stacks[USER + 1]);
        say("syscall: cs %x ss %x flags %x, r11 %x", syscall_cs, syscall_ss,
            (unsigned)syscall_flags & DIRECTION, (unsigned)syscall_r11 & SHOWN);
        say("sysret: +%u flags %x", (unsigned)distance, (unsigned)flags_after & SHOWN);
}

void main(void);
void main(void)
{
        say("rings: begin");
        open_to_user();
        volatile uint64_t *entries = split(window);
        entries[0] = 0;
        forget_page(window);
        set_gate(BACK, true, 3, 0);
        on_interrupt(BACK, come_back);
        try_user();
        try_stacks();
        try_syscall();
        say("rings: done");
}
