#include "engine.h"

#include <string.h>
#include <time.h>

/* Bits of struct engine_x86.hflags, in the engine's numbering. */
enum { HF_CPL = 3, HF_INHIBIT_IRQ = 1 << 3, HF_LMA = 1 << 14 };

/* RFLAGS (Intel SDM, volume 1, 3.4.3). */
enum { RF_ALWAYS = 1 << 1, RF_TF = 1 << 8, RF_IF = 1 << 9, RF_NT = 1 << 14, RF_RF = 1 << 16 };

enum { DOUBLE_FAULT = 8, NOT_PRESENT = 11, GENERAL_PROTECTION = 13, PAGE_FAULT = 14 };

enum { NO_ERROR = -1 };

enum { CS = 1, SS = 2, RSP = 4, RCX = 1, R11 = 11 };

/* MSRs of SYSCALL (Intel SDM, volume 4, table 2-2). */
enum { IA32_STAR = 0xC0000081, IA32_LSTAR = 0xC0000082, IA32_FMASK = 0xC0000084 };

/* Flat 64-bit code and flat data, accessed: the second words of their descriptors. */
enum { CODE64 = 0x00A09B00, DATA = 0x00C09300 };

/* A descriptor's second word without the parts of base and limit. */
#define DESCRIPTOR_FLAGS 0x00F0FF00u

enum { PAGE = 4096 };

/* Addresses in page-table entries: bits 51 to 12. */
#define ENTRY_ADDRESS 0x000FFFFFFFFFF000ull

static void mark_code(struct engine *engine, uint64_t va, uint64_t size);

static uint64_t rflags_of(struct engine *engine)
{
    uint64_t rflags = 0;
    engine->reg_read(engine->uc, engine->reg_rflags, &rflags);
    return rflags;
}

/* ---- stops --------------------------------------------------------------------------------- */

/* Unicorn can be left only at an access, after which it would be done again, or between two blocks:
 * here, or at an exception. So nobody but these callbacks calls uc_emu_stop. */
void engine_on_block(void *uc, uint64_t address, uint32_t size, void *user)
{
    struct engine *engine = user;
    if (!engine->has_begun) {
        /* The first of a run may have been translated for it, which nobody else tells. */
        engine->has_begun = true;
        engine->context_save(uc, engine->context);
        mark_code(engine, address, size);
    } else if (engine->awaited && rflags_of(engine) & engine->awaited) {
        /* Not at the first: a block in the shadow of STI takes nothing, and has to be passed. */
        engine_stop(engine);
    }
    engine_leave_if_stopped(engine);
}

void engine_stop(struct engine *engine) { __atomic_store_n(&engine->stop, 1, __ATOMIC_RELEASE); }

/* A handler that cannot be fetched is an exception again, for ever, and no block of it runs. */
void engine_leave_if_stopped(struct engine *engine)
{
    if (__atomic_load_n(&engine->stop, __ATOMIC_RELAXED))
        engine->emu_stop(engine->uc);
}

void engine_arm(struct engine *engine)
{
    engine->has_begun = false;
    engine->awaited = 0;
    __atomic_store_n(&engine->stop, 0, __ATOMIC_SEQ_CST);
}

bool engine_was_stopped(const struct engine *engine)
{
    return __atomic_load_n(&engine->stop, __ATOMIC_ACQUIRE);
}

/* ---- guest memory -------------------------------------------------------------------------- */

uint8_t *engine_ram(const struct engine *engine, uint64_t gpa, uint64_t *size)
{
    for (uint32_t i = 0; i < engine->region_count; i++) {
        const struct engine_region *region = &engine->regions[i];
        if (gpa >= region->gpa && gpa - region->gpa < region->size) {
            *size = region->size - (gpa - region->gpa);
            return region->host + (gpa - region->gpa);
        }
    }
    return NULL;
}

bool engine_read_entry(const struct engine *engine, uint64_t gpa, uint64_t *entry)
{
    uint64_t size;
    const uint8_t *host = engine_ram(engine, gpa, &size);
    if (!host || size < sizeof *entry)
        return false;
    memcpy(entry, host, sizeof *entry);
    return true;
}

/* The four-level walk of 64-bit mode (Intel SDM, volume 3A, 4.5); the identity without paging.
 * Accessed and dirty bits are left alone: what is looked at here the processor has used before. */
bool x86_translate(struct engine *engine, uint64_t va, uint64_t *gpa)
{
    const struct engine_x86 *cpu = engine->cpu;
    if (!(cpu->cr[0] >> 31 & 1)) {
        *gpa = va;
        return true;
    }
    if (!(cpu->hflags & HF_LMA))
        return false;
    uint64_t entry, table = cpu->cr[3] & ENTRY_ADDRESS;
    for (unsigned shift = 39;; shift -= 9) {
        if (!engine_read_entry(engine, table + (va >> shift & 511) * 8, &entry) || !(entry & 1))
            return false;
        if (shift == 12 || (shift < 39 && entry & 1 << 7)) {
            uint64_t within = (1ull << shift) - 1;
            *gpa = (entry & ENTRY_ADDRESS & ~within) | (va & within);
            return true;
        }
        table = entry & ENTRY_ADDRESS;
    }
}

bool engine_translate(struct engine *engine, uint64_t va, uint64_t *gpa)
{
    return engine->translate(engine, va, gpa);
}

/* ---- stale code ---------------------------------------------------------------------------- */

/* The byte and bit of the page at gpa. */
static uint8_t *code_of(const struct engine *engine, uint64_t gpa, uint8_t *bit)
{
    for (uint32_t i = 0; i < engine->region_count; i++) {
        const struct engine_region *region = &engine->regions[i];
        if (gpa >= region->gpa && gpa - region->gpa < region->size) {
            uint64_t page = (gpa - region->gpa) / PAGE;
            *bit = 1 << page % 8;
            return &region->code[page / 8];
        }
    }
    return NULL;
}

/* Note the pages of `size` bytes of code at `va`, from a saved copy of the processor. */
static void mark_code(struct engine *engine, uint64_t va, uint64_t size)
{
    uint64_t last = va + (size ? size - 1 : 0), gpa;
    uint8_t bit, *byte;
    for (uint64_t at = va;; at = (at & ~(uint64_t)(PAGE - 1)) + PAGE) {
        if (engine_translate(engine, at, &gpa) && (byte = code_of(engine, gpa, &bit)))
            *byte |= bit;
        if (at / PAGE >= last / PAGE)
            return;
    }
}

void engine_on_translation(void *uc, void *block, void *before, void *user)
{
    const struct engine_block *made = block;
    struct engine *engine = user;
    (void)before;
    engine->context_save(uc, engine->context);
    mark_code(engine, made->pc, made->size);
}

void engine_written(void *user, uint64_t gpa, uint64_t length)
{
    struct engine *engine = user;
    uint8_t bit, *byte;
    for (uint64_t at = gpa - gpa % PAGE; !engine->is_stale && at < gpa + length;
         at += PAGE)
        if ((byte = code_of(engine, at, &bit)) && *byte & bit)
            engine->is_stale = true;
}

/* All of it: Unicorn forgets a part only by the addresses that the guest has for it now. What
 * still runs is translated again when it does. */
void engine_settle(struct engine *engine)
{
    if (!engine->is_stale)
        return;
    engine->is_stale = false;
    engine->ctl(engine->uc, engine->ctl_flush);
    for (uint32_t i = 0; i < engine->region_count; i++)
        memset(engine->regions[i].code, 0, (engine->regions[i].size / PAGE + 7) / 8);
}

/* Copies between `buffer` and linear addresses; false, and perhaps a part of it, where one is not
 * mapped. What is written here is a stack or a processor's own structure, and not code. */
static bool copy(struct engine *engine, uint64_t va, void *buffer, size_t size, bool write)
{
    uint8_t *bytes = buffer;
    while (size) {
        uint64_t gpa, room;
        uint8_t *host;
        if (!engine_translate(engine, va, &gpa) || !(host = engine_ram(engine, gpa, &room)))
            return false;
        size_t part = 4096 - va % 4096;
        if (part > size)
            part = size;
        if (part > room)
            return false;
        if (write)
            memcpy(host, bytes, part);
        else
            memcpy(bytes, host, part);
        va += part;
        bytes += part;
        size -= part;
    }
    return true;
}

static bool read_linear(struct engine *engine, uint64_t va, void *to, size_t size)
{
    return copy(engine, va, to, size, false);
}

/* ---- exceptions and interrupts -------------------------------------------------------------- */

/* A gate of the interrupt table in 64-bit mode (Intel SDM, volume 3A, figure 6-8). */
struct gate {
    uint16_t offset_low, selector;
    uint8_t stack, type;
    uint16_t offset_middle;
    uint32_t offset_high, reserved;
};

enum { GATE_INTERRUPT = 0xE, GATE_TRAP = 0xF, GATE_PRESENT = 0x80 };

/* Put the changed copy of the processor back. Its flags are kept in parts there, so they go by
 * their own way, and last: a write of them alone keeps the rest. */
static void restore(struct engine *engine, uint64_t rflags)
{
    engine->context_restore(engine->uc, engine->context);
    engine->reg_write(engine->uc, engine->reg_rflags, &rflags);
}

static void load_code(struct engine_x86 *cpu, uint32_t selector, uint32_t flags)
{
    cpu->segments[CS] = (struct engine_segment){
        .selector = selector, .limit = 0xFFFFFFFF, .flags = flags,
    };
    cpu->hflags = (cpu->hflags & ~(HF_CPL | HF_INHIBIT_IRQ)) | (selector & 3);
}

/* The stack that a handler of privilege `level` begins on: from the task state segment, where the
 * gate names one or the privilege changes (Intel SDM, volume 3A, 6.14.5 and figure 7-11). */
static bool find_stack(struct engine *engine, unsigned ist, unsigned level, uint64_t *rsp)
{
    const struct engine_x86 *cpu = engine->cpu;
    if (ist)
        return read_linear(engine, cpu->tr.base + 36 + 8 * (ist - 1), rsp, sizeof *rsp);
    if (level < (cpu->hflags & HF_CPL))
        return read_linear(engine, cpu->tr.base + 4 + 8 * level, rsp, sizeof *rsp);
    *rsp = cpu->regs[RSP];
    return true;
}

/* Enter the handler of `vector`, from a saved copy of the processor. 0, or the vector of the fault
 * that comes of it. */
static unsigned enter(struct engine *engine, unsigned vector, int64_t error, bool software)
{
    struct engine_x86 *cpu = engine->cpu;
    struct gate gate;
    uint64_t descriptor, rsp, rflags = rflags_of(engine);
    unsigned cpl = cpu->hflags & HF_CPL;

    if (!(cpu->hflags & HF_LMA)) /* no tables but those of 64-bit mode are known here */
        return DOUBLE_FAULT;
    if (vector * sizeof gate + sizeof gate - 1 > cpu->idt.limit)
        return GENERAL_PROTECTION;
    if (!read_linear(engine, cpu->idt.base + vector * sizeof gate, &gate, sizeof gate))
        return PAGE_FAULT;
    unsigned kind = gate.type & 0x1F;
    if (kind != GATE_INTERRUPT && kind != GATE_TRAP)
        return GENERAL_PROTECTION;
    if (software && cpl > (unsigned)(gate.type >> 5 & 3))
        return GENERAL_PROTECTION;
    if (!(gate.type & GATE_PRESENT))
        return NOT_PRESENT;
    if ((gate.selector & ~7u) + 7 > cpu->gdt.limit)
        return GENERAL_PROTECTION;
    if (!read_linear(engine, cpu->gdt.base + (gate.selector & ~7u), &descriptor, 8))
        return PAGE_FAULT;
    unsigned level = descriptor >> 45 & 3;
    if (level > cpl)
        return GENERAL_PROTECTION;
    if (!find_stack(engine, gate.stack & 7, level, &rsp))
        return PAGE_FAULT;

    uint64_t frame[6] = { (uint64_t)error, cpu->rip, cpu->segments[CS].selector, rflags,
                          cpu->regs[RSP], cpu->segments[SS].selector };
    size_t size = error == NO_ERROR ? 40 : 48;
    rsp = (rsp & ~15ull) - size;
    if (!copy(engine, rsp, &frame[6 - size / 8], size, true))
        return PAGE_FAULT;

    load_code(cpu, (gate.selector & ~3u) | level, (uint32_t)(descriptor >> 32) & DESCRIPTOR_FLAGS);
    if (level < cpl) /* a null selector, of the new privilege */
        cpu->segments[SS] = (struct engine_segment){ .selector = level };
    cpu->regs[RSP] = rsp;
    cpu->rip = gate.offset_low | (uint64_t)gate.offset_middle << 16 |
               (uint64_t)gate.offset_high << 32;
    *engine->old_exception = -1; /* or the engine takes the next one for a double fault */
    rflags &= ~(uint64_t)(RF_TF | RF_NT | RF_RF | (kind == GATE_INTERRUPT ? RF_IF : 0));
    restore(engine, rflags);
    return 0;
}

/* Those of which a second makes a double fault (Intel SDM, volume 3A, tables 6-4 and 6-5). */
static bool is_contributory(unsigned vector)
{
    return vector == 0 || (vector >= 10 && vector <= GENERAL_PROTECTION);
}

/* How many bytes before rip the INT instruction of `vector` began. */
static unsigned length_of_int(struct engine *engine, unsigned vector)
{
    uint8_t code[2];
    bool has_operand = read_linear(engine, engine->cpu->rip - 2, code, 2) && code[0] == 0xCD &&
                       code[1] == vector;
    return has_operand ? 2 : 1;
}

/* Take `vector`, and the faults that come of it, to the third. (A page fault in a handler's tables
 * or stack is told without its address: no kernel that lives leaves those unmapped.) */
static void raise(struct engine *engine, unsigned vector, int64_t error, bool software)
{
    unsigned first = vector, fault;
    while ((fault = enter(engine, vector, error, software))) {
        if (vector == DOUBLE_FAULT) {
            engine->died_of = (int32_t)first;
            engine_stop(engine); /* nothing runs meanwhile: the stop comes before the next block */
            return;
        }
        if (software) /* which is not a fault, but now there is one at it */
            engine->cpu->rip -= length_of_int(engine, vector);
        bool is_second = fault == DOUBLE_FAULT || vector == PAGE_FAULT || is_contributory(vector);
        error = is_second ? 0 : fault == PAGE_FAULT ? 0 : vector * 8 + 2 + !software;
        vector = is_second ? DOUBLE_FAULT : fault;
        software = false;
    }
}

static bool has_error_code(unsigned vector)
{
    return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

void engine_on_exception(void *uc, uint32_t vector, void *user)
{
    struct engine *engine = user;
    engine->context_save(uc, engine->context);
    bool software = *engine->is_software;
    engine->exceptions[vector & 31]++;
    int64_t error = has_error_code(vector) && !software ? (int64_t)*engine->error_code : NO_ERROR;
    raise(engine, vector, error, software);
    engine_leave_if_stopped(engine);
}

void engine_note_invalid(struct engine *engine, uint64_t at)
{
    for (uint32_t i = 0; i < engine->invalid_count; i++)
        if (engine->invalid[i] == at)
            return;
    if (engine->invalid_count < ENGINE_MAX_INVALID)
        engine->invalid[engine->invalid_count++] = at;
}

bool engine_on_invalid(void *uc, void *user)
{
    struct engine *engine = user;
    engine->context_save(uc, engine->context);
    engine->exceptions[VECTOR_INVALID_OPCODE]++;
    engine_note_invalid(engine, engine->cpu->rip);
    raise(engine, VECTOR_INVALID_OPCODE, NO_ERROR, false);
    return true;
}

bool engine_takes(struct engine *engine, bool nmi)
{
    engine->context_save(engine->uc, engine->context);
    uint32_t wanted = nmi ? RF_ALWAYS : RF_IF;
    bool takes = !(engine->cpu->hflags & HF_INHIBIT_IRQ) && rflags_of(engine) & wanted;
    engine->awaited = takes ? 0 : wanted;
    return takes;
}

void engine_interrupt(struct engine *engine, uint8_t vector)
{
    engine->interrupts++;
    raise(engine, vector, NO_ERROR, false);
}

void engine_on_probe(void *uc, uint32_t vector, void *user)
{
    struct engine *engine = user;
    (void)vector;
    engine->context_save(uc, engine->context);
    engine->emu_stop(uc);
}

/* ---- running ------------------------------------------------------------------------------- */

/* Whether the instruction before rip is PAUSE, as far as its bytes tell. */
static bool has_paused(struct engine *engine)
{
    uint8_t code[2];
    engine->context_save(engine->uc, engine->context);
    return read_linear(engine, engine->cpu->rip - 2, code, 2) && code[0] == 0xF3 && code[1] == 0x90;
}

int engine_run(struct engine *engine)
{
    for (;;) {
        engine->context_save(engine->uc, engine->context);
        int error = engine->emu_start(engine->uc, engine->cpu->rip, 0, 0, 0);
        if (error || engine_was_stopped(engine) || !has_paused(engine))
            return error;
    }
}

/* ---- SYSCALL --------------------------------------------------------------------------------- */

static uint64_t read_msr(struct engine *engine, uint32_t index)
{
    struct engine_msr msr = { .index = index };
    engine->reg_read(engine->uc, engine->reg_msr, &msr);
    return msr.value;
}

/* Intel SDM, volume 2B, SYSCALL. The engine calls this with rip at the instruction, which has two
 * bytes, and goes on two bytes behind where it finds rip afterwards. */
void engine_on_syscall(void *uc, void *user)
{
    enum { LENGTH = 2 };
    struct engine *engine = user;
    struct engine_x86 *cpu = engine->cpu;
    uint64_t rflags = rflags_of(engine), star = read_msr(engine, IA32_STAR);
    engine->context_save(uc, engine->context);
    engine->syscalls++;
    cpu->regs[RCX] = cpu->rip + LENGTH;
    cpu->regs[R11] = rflags & ~(uint64_t)RF_RF;
    load_code(cpu, star >> 32 & 0xFFFC, CODE64);
    cpu->segments[SS] = (struct engine_segment){
        .selector = (star >> 32 & 0xFFFC) + 8, .limit = 0xFFFFFFFF, .flags = DATA,
    };
    cpu->rip = read_msr(engine, IA32_LSTAR) - LENGTH;
    restore(engine, rflags & ~read_msr(engine, IA32_FMASK));
}

/* ---- MMIO ------------------------------------------------------------------------------------ */

/* How many of `size` bytes at gpa are on its page. */
static unsigned on_page(uint64_t gpa, unsigned size)
{
    unsigned room = PAGE - gpa % PAGE;
    return size < room ? size : room;
}

static uint64_t low_bytes(uint64_t value, unsigned size)
{
    return size < 8 ? value & ((1ull << 8 * size) - 1) : value;
}

/* A read is told once, whole. */
bool engine_on_read(void *uc, int access, uint64_t gpa, int size, int64_t value, void *user)
{
    struct engine *engine = user;
    unsigned here = on_page(gpa, size);
    (void)uc;
    (void)access;
    (void)value;
    engine->answer = engine->read(engine->vcpu, gpa, here);
    engine->answered_at = gpa;
    engine->answered = here;
    engine->missing = size - here;
    engine->has_second = false;
    return true;
}

/* So is a write that is aligned. Another is told whole, and then again byte by byte: once the engine
 * has its second page, which may fault first. So it is done when the first byte comes. Those on a
 * page that is RAM do not come: whose a byte is, the instruction says. */
bool engine_on_write(void *uc, int access, uint64_t gpa, int size, int64_t value, void *user)
{
    struct engine *engine = user;
    uint64_t pc = 0;
    (void)access;
    if (size == 1 && engine->retold_size) {
        unsigned here = on_page(engine->retold_at, engine->retold_size);
        engine->reg_read(uc, engine->reg_pc, &pc);
        if (pc == engine->retold_by) {
            if (gpa == engine->retold_at)
                engine->write(engine->vcpu, gpa, here, low_bytes(engine->retold, here));
            else if (gpa % PAGE == 0)
                engine->write(engine->vcpu, gpa, engine->retold_size - here,
                              engine->retold >> 8 * here);
            return true;
        }
    }
    if (gpa % size == 0) {
        engine->retold_size = 0;
        engine->write(engine->vcpu, gpa, size, low_bytes(value, size));
    } else {
        engine->reg_read(uc, engine->reg_pc, &engine->retold_by);
        engine->retold_at = gpa;
        engine->retold_size = size;
        engine->retold = low_bytes(value, size);
    }
    return true;
}

static uint8_t byte_at(struct engine *engine, uint64_t gpa)
{
    if (gpa - engine->answered_at < engine->answered)
        return engine->answer >> 8 * (gpa - engine->answered_at);
    if (gpa % PAGE >= engine->missing || gpa / PAGE == engine->answered_at / PAGE)
        return 0; /* of a word that is wider than the access: the engine throws it away */
    if (!engine->has_second) {
        engine->second = engine->read(engine->vcpu, gpa - gpa % PAGE, engine->missing);
        engine->has_second = true;
    }
    return engine->second >> 8 * (gpa % PAGE);
}

/* An access was answered by engine_on_read before this one. The engine takes it in parts of at most
 * four bytes, and one that is not aligned as the aligned words around it. */
uint64_t engine_on_mmio_read(void *uc, uint64_t offset, unsigned size, void *user)
{
    const struct engine_mmio *mmio = user;
    uint64_t value = 0;
    (void)uc;
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)byte_at(mmio->engine, mmio->base + offset + i) << 8 * i;
    return value;
}

void engine_on_mmio_write(void *uc, uint64_t offset, unsigned size, uint64_t value, void *user)
{
    (void)uc;
    (void)offset;
    (void)size;
    (void)value;
    (void)user;
}

/* ---- time ------------------------------------------------------------------------------------ */

uint64_t engine_ticks(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
#endif
}
