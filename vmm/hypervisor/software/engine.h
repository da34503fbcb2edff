/* What the software CPU needs in C: stops between translated blocks, and an x86 processor's way
 * into its handlers, which the Unicorn engine leaves out.
 *
 * Unicorn is not linked: Python opens its library and puts the functions that are called from here
 * into struct engine. Everything here runs on the vCPU's thread, inside uc_emu_start, but for
 * engine_stop. build.py hands the part between the two marks to cffi.
 */
#ifndef VIBE_ENGINE_H
#define VIBE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cdef begin */

/* Vectors of exceptions that are named here (Intel SDM, volume 3A, table 6-1). */
enum { VECTOR_NMI = 2, VECTOR_INVALID_OPCODE = 6 };

/* Guest RAM: size bytes at guest address gpa, which this process sees at host. */
struct engine_region {
    uint64_t gpa;
    uint64_t size;
    uint8_t *host;
    uint8_t *code; /* a bit for each page: whether code in it has been translated */
};

enum { ENGINE_MAX_REGIONS = 4, ENGINE_MAX_INVALID = 8 };

/* The beginning of what Unicorn says of a block that it has translated. */
struct engine_block {
    uint64_t pc;
    uint16_t instructions, size;
};

/* A segment register, and the processor, as Unicorn 2.1 lays them out in a saved context. */
struct engine_segment {
    uint32_t selector, pad;
    uint64_t base;
    uint32_t limit, flags; /* flags: the second word of a descriptor, without base and limit */
};

struct engine_x86 {
    uint64_t regs[16]; /* rax rcx rdx rbx rsp rbp rsi rdi r8 ... */
    uint64_t rip, rflags, cc_dst, cc_src, cc_src2;
    uint32_t cc_op;
    int32_t df;
    uint32_t hflags, hflags2;
    struct engine_segment segments[6]; /* es cs ss ds fs gs */
    struct engine_segment ldt, tr, gdt, idt;
    uint64_t cr[9];
};

/* What a model-specific register is read and written with. */
struct engine_msr {
    uint32_t index;
    uint64_t value;
};

struct engine;

/* A range without memory: the user data of the callbacks that take and give its values. */
struct engine_mmio {
    struct engine *engine;
    uint64_t base;
};

struct engine {
    /* Set by engine_stop, read at the start of every block. */
    uint32_t stop;
    /* Bits of RFLAGS of which one lets in what the guest has been keeping waiting: the run ends at
     * the start of the block at which it is set. 0: nothing waits. */
    uint32_t awaited;

    void *uc, *context;
    int (*emu_start)(void *uc, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
    int (*emu_stop)(void *uc);
    int (*reg_read)(void *uc, int reg, void *value);
    int (*reg_write)(void *uc, int reg, const void *value);
    int (*ctl)(void *uc, int control, ...);
    int (*context_save)(void *uc, void *context);
    int (*context_restore)(void *uc, void *context);
    int reg_rflags, reg_pc, reg_msr; /* Unicorn's numbers of them */
    int ctl_flush;           /* and of what forgets all translations */
    bool is_stale;           /* some translation is of code that is no more */
    bool has_begun;          /* this run has come to a block */

    /* The guest's page tables: engine_translate, as a processor of its architecture does it. */
    bool (*translate)(struct engine *engine, uint64_t va, uint64_t *gpa);

    /* Inside context. */
    struct engine_x86 *cpu;
    uint32_t *error_code;
    int32_t *is_software; /* the exception is an INT instruction's */
    int32_t *old_exception;

    struct engine_region regions[ENGINE_MAX_REGIONS];
    uint32_t region_count;

    /* Who answers for what is no memory, a page at a time. What is read may be wider than size. */
    void *vcpu;
    uint64_t (*read)(void *vcpu, uint64_t gpa, unsigned size);
    void (*write)(void *vcpu, uint64_t gpa, unsigned size, uint64_t value);
    /* What a read gives, from a guest address on; and how many bytes of the access are on the next
     * page, which is read when the engine gets there. */
    uint64_t answer, answered_at;
    unsigned answered, missing;
    bool has_second;
    uint64_t second;
    /* A write that is told again byte by byte: where it is, its value and size (0: there is none),
     * and the address of the instruction. */
    uint64_t retold_at, retold, retold_by;
    unsigned retold_size;

    /* The vector whose delivery was a third fault; -1 while there is none. */
    int32_t died_of;
    uint64_t exceptions[32], interrupts, syscalls;
    /* Where invalid instructions were, the first few places. */
    uint64_t invalid[ENGINE_MAX_INVALID];
    uint32_t invalid_count;
};

/* Leave the guest at the start of its next block. From any thread; never lost. */
void engine_stop(struct engine *engine);

/* At an exception that has been taken: leave the guest there, if it is to stop. */
void engine_leave_if_stopped(struct engine *engine);

/* Note that an instruction was invalid, once a place. */
void engine_note_invalid(struct engine *engine, uint64_t at);

/* Forget the stops so far, and what was waiting. */
void engine_arm(struct engine *engine);

/* Run the guest from where it stands, until a stop, HLT or an error, which is returned (0: none).
 * PAUSE ends a run of the engine, too, but is nothing to come back for. */
int engine_run(struct engine *engine);

/* Whether the last run ended at a stop, and not of itself. */
bool engine_was_stopped(const struct engine *engine);

/* Between two runs: whether the guest takes an interrupt at this instruction, or an NMI. If not, the
 * next run ends where it may. */
bool engine_takes(struct engine *engine, bool nmi);

/* Take interrupt `vector`; right after engine_takes has said yes. */
void engine_interrupt(struct engine *engine, uint8_t vector);

/* The guest physical address of virtual address `va`; false if it is not mapped. An x86 processor
 * is looked at as it was last saved. */
bool engine_translate(struct engine *engine, uint64_t va, uint64_t *gpa);
bool x86_translate(struct engine *engine, uint64_t va, uint64_t *gpa);

/* An entry of a table in RAM; false if there is none. */
bool engine_read_entry(const struct engine *engine, uint64_t gpa, uint64_t *entry);

/* The bytes at gpa up to the end of their region: *size of them. NULL if it is not RAM. */
uint8_t *engine_ram(const struct engine *engine, uint64_t gpa, uint64_t *size);

/* Somebody else has written length bytes at gpa: what was translated of them is stale. Whoever
 * calls it, before or after, does so on the vCPU's thread; engine_settle comes before the next
 * block. */
void engine_written(void *engine, uint64_t gpa, uint64_t length);

/* Forget what is stale; between two runs. */
void engine_settle(struct engine *engine);

/* What the engine's RDTSC counts on this host. */
uint64_t engine_ticks(void);

/* What wakes the vCPU: descriptors that another process signals, and a timer, watched by a thread of
 * its own that never waits for the interpreter. It notes which it was, stops the engine, and adds 1
 * to an eventfd, on which a halted vCPU sleeps. */
struct waker;
enum { WAKER_TIMER = 0, WAKER_MAX = 64 }; /* numbers of what is watched; 0 is the timer's */
struct waker *waker_new(struct engine *engine, int wake); /* NULL: errno says why */
void waker_free(struct waker *waker);                     /* ends the thread */
int waker_watch(struct waker *waker, int fd, unsigned number); /* every signal from now on; errno */
int waker_forget(struct waker *waker, int fd);
uint64_t waker_take(struct waker *waker);                 /* a bit for each that was signalled */
void waker_set_timer(struct waker *waker, uint64_t at);   /* ns of CLOCK_MONOTONIC; 0: never */

/* Callbacks for uc_hook_add, with an engine as user data, and for uc_mmio_map. */
void engine_on_block(void *uc, uint64_t address, uint32_t size, void *engine);
void engine_on_translation(void *uc, void *block, void *before, void *engine);
void engine_on_exception(void *uc, uint32_t vector, void *engine);
void engine_on_probe(void *uc, uint32_t vector, void *engine); /* saves the context, and stops */
bool engine_on_invalid(void *uc, void *engine);
void engine_on_syscall(void *uc, void *engine);
bool engine_on_read(void *uc, int access, uint64_t gpa, int size, int64_t value, void *engine);
bool engine_on_write(void *uc, int access, uint64_t gpa, int size, int64_t value, void *engine);
uint64_t engine_on_mmio_read(void *uc, uint64_t offset, unsigned size, void *mmio);
void engine_on_mmio_write(void *uc, uint64_t offset, unsigned size, uint64_t value, void *mmio);

/* cdef end */

#endif
