#include "arm64.h"

/* Numbers of exceptions in the engine (QEMU, target/arm/cpu.h). */
enum { EXCP_PREFETCH_ABORT = 3, EXCP_DATA_ABORT = 4, EXCP_HVC = 11, EXCP_SMC = 13 };

/* Exception classes (Arm ARM, ESR_ELx.EC), and ESR_ELx.IL. */
enum { EC_UNKNOWN = 0, EC_SYSTEM_REGISTER = 0x18, EC_SHIFT = 26, ESR_IL = 1 << 25 };

/* PSTATE: exception level and stack pointer, 32-bit code (of which no registers are known here),
 * masks, and PAN (SPSR_ELx). */
enum { SP_ELX = 1 << 0, EL_SHIFT = 2, AARCH32 = 1 << 4, EL1H_ALL_MASKED = 0x3C5, PAN = 1 << 22 };

/* Offsets in the vector table, of a synchronous exception (Arm ARM, "Exception vectors"). */
enum { FROM_SP_EL0 = 0x000, FROM_SP_ELX = 0x200, FROM_EL0 = 0x400 };

enum { LENGTH = 4 };

/* SCTLR_EL1.M: the MMU is on. Bit 55 of an address says which half it is of (Arm ARM, D8.2). */
enum { MMU_ON = 1 << 0, UPPER_HALF = 55 };

/* TCR_EL1: T0SZ and TG0 at these bits, T1SZ and TG1 at others; the granules have other codes. */
enum { T0SZ = 0, TG0 = 14, T1SZ = 16, TG1 = 30, SIZE_MASK = 63, GRANULE_MASK = 3 };
static const uint8_t lower_granules[] = { 12, 16, 14, 0 }, upper_granules[] = { 0, 14, 12, 16 };

/* A descriptor: it is valid; a table, or at the last level a page (Arm ARM, D8.3). Addresses have
 * 48 bits. */
enum { VALID = 1 << 0, TABLE = 1 << 1 };
#define ADDRESS 0x0000FFFFFFFFF000ull
#define TABLE_BASE 0x0000FFFFFFFFFFFEull

static uint64_t get(struct arm64 *arm64, int reg)
{
    uint64_t value = 0;
    arm64->engine.reg_read(arm64->engine.uc, reg, &value);
    return value;
}

static void set(struct arm64 *arm64, int reg, uint64_t value)
{
    arm64->engine.reg_write(arm64->engine.uc, reg, &value);
}

static uint64_t get_system(struct arm64 *arm64, unsigned crn, unsigned op2)
{
    /* Of op0 3, op1 0 and CRm 0, as all are that are read here. */
    struct arm64_system_register reg = { crn, 0, 3, 0, op2, 0 };
    arm64->engine.reg_read(arm64->engine.uc, arm64->reg.system, &reg);
    return reg.value;
}

static void set_system(struct arm64 *arm64, unsigned op0, unsigned op1, unsigned crn, unsigned crm,
                       unsigned op2, uint64_t value)
{
    struct arm64_system_register reg = { crn, crm, op0, op1, op2, value };
    arm64->engine.reg_write(arm64->engine.uc, arm64->reg.system, &reg);
}

/* Arm ARM, D8.2: as many levels as the addresses have bits for, and the first table has what the
 * others leave. The registers are the processor's own, now. */
bool arm64_translate(struct engine *engine, uint64_t va, uint64_t *gpa)
{
    struct arm64 *arm64 = (struct arm64 *)engine;
    if (!(get_system(arm64, 1, 0) & MMU_ON)) { /* SCTLR_EL1 */
        *gpa = va;
        return true;
    }
    bool upper = va >> UPPER_HALF & 1;
    uint64_t tcr = get_system(arm64, 2, 2);            /* TCR_EL1 */
    uint64_t table = get_system(arm64, 2, upper);      /* TTBR0_EL1, TTBR1_EL1 */
    unsigned bits = 64 - (tcr >> (upper ? T1SZ : T0SZ) & SIZE_MASK);
    unsigned granule = upper ? upper_granules[tcr >> TG1 & GRANULE_MASK]
                             : lower_granules[tcr >> TG0 & GRANULE_MASK];
    if (!granule || bits <= granule || bits > 48)
        return false;
    unsigned stride = granule - 3; /* descriptors have eight bytes */
    unsigned shift = granule + (bits - granule - 1) / stride * stride;
    uint64_t index = (va & ((1ull << bits) - 1)) >> shift;
    for (table &= TABLE_BASE;; shift -= stride, index = va >> shift & ((1ull << stride) - 1)) {
        uint64_t entry;
        if (!engine_read_entry(engine, table + index * 8, &entry) || !(entry & VALID))
            return false;
        if (shift == granule || !(entry & TABLE)) {
            uint64_t within = (1ull << shift) - 1;
            *gpa = (entry & ADDRESS & ~within) | (va & within);
            return shift != granule || entry & TABLE;
        }
        table = entry & ADDRESS & ~((1ull << granule) - 1);
    }
}

/* Written by itself, the program counter would no longer be kept exact for the rest of the run. */
void arm64_set_pc(struct arm64 *arm64, uint64_t pc)
{
    void *values[] = { &pc };
    arm64->reg_write_batch(arm64->engine.uc, &arm64->reg.pc, values, 1);
}

/* Take a synchronous exception to EL1 (Arm ARM, AArch64.TakeException). */
static void enter(struct arm64 *arm64, uint64_t pc, uint32_t syndrome, const uint64_t *address)
{
    uint32_t pstate = (uint32_t)get(arm64, arm64->reg.pstate);
    unsigned level = pstate >> EL_SHIFT & 3;
    uint64_t vector = level == 0 ? FROM_EL0 : pstate & SP_ELX ? FROM_SP_ELX : FROM_SP_EL0;

    set_system(arm64, 3, 0, 4, 0, 0, pstate); /* SPSR_EL1 */
    set(arm64, arm64->reg.elr, pc);
    set(arm64, arm64->reg.esr, syndrome);
    if (address)
        set(arm64, arm64->reg.far, *address);
    if (level == 0 || !(pstate & SP_ELX)) {
        set(arm64, arm64->reg.sp_el0, get(arm64, arm64->reg.sp));
        set(arm64, arm64->reg.sp, get(arm64, arm64->reg.sp_el1));
    }
    set(arm64, arm64->reg.pstate, EL1H_ALL_MASKED | (pstate & PAN));
    /* Any write of a system register makes the engine look at the new PSTATE; this one, of
     * ACTLR_EL1, does nothing else. */
    set_system(arm64, 3, 0, 1, 0, 1, 0);
    arm64_set_pc(arm64, get(arm64, arm64->reg.vbar) + vector);
}

static void undefined(struct arm64 *arm64, uint64_t pc)
{
    enter(arm64, pc, (uint32_t)EC_UNKNOWN << EC_SHIFT | ESR_IL, NULL);
}

void arm64_on_exception(void *uc, uint32_t number, void *user)
{
    struct arm64 *arm64 = user;
    uint64_t pc = get(arm64, arm64->reg.pc);
    arm64->engine.context_save(uc, arm64->engine.context);
    uint32_t syndrome = *arm64->syndrome;
    arm64->engine.exceptions[number & 31]++;

    /* Of HVC, SMC and SVC the program counter is behind the instruction, of all else at it. */
    if (number == EXCP_HVC) {
        arm64->calls++;
        arm64->ask(ARM64_CALL, syndrome, arm64->handle);
    } else if (number == EXCP_SMC) {
        undefined(arm64, pc - LENGTH); /* there is no EL3 to call */
    } else if (*arm64->target == 2 && syndrome >> EC_SHIFT == EC_SYSTEM_REGISTER) {
        arm64->traps++;
        if (arm64->ask(ARM64_TRAP, syndrome, arm64->handle))
            arm64_set_pc(arm64, pc + LENGTH);
        else
            undefined(arm64, pc);
    } else if (*arm64->target == 1 && !(get(arm64, arm64->reg.pstate) & AARCH32)) {
        if (syndrome >> EC_SHIFT == EC_UNKNOWN)
            engine_note_invalid(&arm64->engine, pc);
        bool has_address = number == EXCP_PREFETCH_ABORT || number == EXCP_DATA_ABORT;
        enter(arm64, pc, syndrome, has_address ? arm64->address : NULL);
    } else {
        arm64->engine.died_of = (int32_t)number;
        engine_stop(&arm64->engine);
    }
    engine_leave_if_stopped(&arm64->engine);
}
