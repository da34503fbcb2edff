/* An arm64 processor's way into its handlers at EL1, which the Unicorn engine leaves out. Interrupts
 * it takes itself: HCR_EL2.VI is the line. */
#ifndef VIBE_ARM64_H
#define VIBE_ARM64_H

#include "engine.h"

/* cdef begin */

/* What a system register is read and written with (uc_arm64_cp_reg). */
struct arm64_system_register {
    uint32_t crn, crm, op0, op1, op2;
    uint64_t value;
};

/* Unicorn's numbers of registers. */
struct arm64_numbers {
    int pc, sp, pstate, sp_el0, sp_el1, elr, esr, far, vbar, system;
};

/* What the guest asks the hypervisor: HVC, or an access to a system register that traps. */
enum { ARM64_CALL = 0, ARM64_TRAP = 1 };

struct arm64 {
    struct engine engine; /* first: callbacks of the engine get this, too */
    int (*reg_write_batch)(void *uc, const int *regs, void *const *values, int count);
    struct arm64_numbers reg;

    /* Inside the context: what the last exception was, the address that it was about, and the
     * exception level that it was for. */
    uint32_t *syndrome, *target;
    uint64_t *address;

    /* Answers what the guest asks; false: the register is not there. */
    bool (*ask)(uint32_t what, uint32_t syndrome, void *handle);
    void *handle;

    uint64_t calls, traps;
};

/* The callback for exceptions, with a struct arm64 as user data; and one that only saves the
 * context. */
void arm64_on_exception(void *uc, uint32_t number, void *arm64);

/* engine_translate of an arm64 processor: the tables of EL1 and EL0, whatever they allow. */
bool arm64_translate(struct engine *engine, uint64_t va, uint64_t *gpa);

/* Set the program counter, between runs or inside one. */
void arm64_set_pc(struct arm64 *arm64, uint64_t pc);

/* cdef end */

#endif
