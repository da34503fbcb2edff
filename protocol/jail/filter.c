#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <limits.h>
#include <link.h>
#include <linux/io_uring.h>
#include <linux/prctl.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

_Static_assert(JAIL_UNKNOWN == __NR_SCMP_ERROR, "libseccomp's own value");

int jail_resolve(const char *name) { return seccomp_syscall_resolve_name(name); }

/* ── SIGSYS in threads that are not ours ─────────────────────────────────────────────────
 *
 * libzmq blocks every signal in its threads, and a blocked SIGSYS kills without a word. No
 * thread can change the mask of another; but a signal handler can change the one that its
 * thread goes back to, and glibc keeps its two own signals out of every mask that it fills.
 * So each of those threads gets the first of them, once, before the filter is there. glibc
 * uses it for pthread_cancel alone, which nobody here calls, and its sigaction refuses it:
 * hence the bare call.
 */
struct kernel_sigaction { /* <asm/signal.h>, which cannot be included beside <signal.h> */
    void (*handler)(int, siginfo_t *, void *);
    unsigned long flags;
    void (*restorer)(void);
    unsigned long mask;
};

static atomic_uint unblocked;

static void unblock_trap(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    sigdelset(&((ucontext_t *)context)->uc_sigmask, SIGSYS);
    atomic_fetch_add(&unblocked, 1);
}

int jail_unblock_trap(const int *threads, unsigned count) {
    /* The code that returns from a handler is libc's own: taken from a signal it has set. */
    struct sigaction ours = {.sa_sigaction = unblock_trap, .sa_flags = SA_SIGINFO}, before;
    struct kernel_sigaction as_kernel, old;
    if (sigaction(SIGUSR2, &ours, &before))
        return -errno;
    long failed = syscall(SYS_rt_sigaction, SIGUSR2, NULL, &as_kernel, sizeof as_kernel.mask);
    sigaction(SIGUSR2, &before, NULL);
    as_kernel.flags |= SA_RESTART;
    if (failed || syscall(SYS_rt_sigaction, JAIL_BORROWED, &as_kernel, &old, sizeof old.mask))
        return -errno;

    atomic_store(&unblocked, 0);
    int error = 0;
    for (unsigned at = 0; !error && at < count; at++)
        if (syscall(SYS_tgkill, getpid(), threads[at], JAIL_BORROWED))
            error = -errno;
    /* A millisecond each; a thread that does not run for ten seconds does not run (arbitrary). */
    for (int tries = 0; !error && atomic_load(&unblocked) < count; tries++) {
        if (tries == 10000)
            error = -ETIMEDOUT;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    syscall(SYS_rt_sigaction, JAIL_BORROWED, &old, NULL, sizeof old.mask);
    return error;
}

/* ── The filter ──────────────────────────────────────────────────────────────────────── */

/* Names by number, looked up beforehand: the handler may allocate nothing. 512 is above the
 * last call of every Linux so far (468 in 6.16), 32 above the longest name. */
enum { NAMES = 512, NAME_SIZE = 32 };
static char names[NAMES][NAME_SIZE];

static void append(char **end, const char *text) {
    while (*text)
        *(*end)++ = *text++;
}

static void append_number(char **end, uintptr_t number, unsigned base) {
    char digits[24], *first = digits + sizeof digits - 1;
    *first = 0;
    do
        *--first = "0123456789abcdef"[number % base];
    while (number /= base);
    append(end, first);
}

/* Where executable memory is, and of what, noted beforehand: there is no new one behind a device's
 * filter. It has some 60 libraries loaded; what does not fit, and what the VMM loads later, is told
 * by its address. */
enum { PLACES = 256, PLACE_SIZE = 40 };
static struct place {
    uintptr_t begin, end, base;
    char name[PLACE_SIZE];
} places[PLACES];
static unsigned place_count;

static int note_places(struct dl_phdr_info *object, size_t size, void *nothing) {
    (void)size, (void)nothing;
    const char *slash = strrchr(object->dlpi_name, '/');
    const char *name = slash ? slash + 1 : *object->dlpi_name ? object->dlpi_name : "python";
    for (int at = 0; at < object->dlpi_phnum && place_count < PLACES; at++) {
        const ElfW(Phdr) *part = object->dlpi_phdr + at;
        if (part->p_type != PT_LOAD || !(part->p_flags & PF_X))
            continue;
        struct place *place = &places[place_count++];
        place->base = object->dlpi_addr;
        place->begin = object->dlpi_addr + part->p_vaddr;
        place->end = place->begin + part->p_memsz;
        strncpy(place->name, name, PLACE_SIZE - 1);
    }
    return 0;
}

static void append_place(char **end, uintptr_t address) {
    for (unsigned at = 0; at < place_count; at++)
        if (address >= places[at].begin && address < places[at].end) {
            append(end, places[at].name);
            append(end, "+");
            address -= places[at].base;
            break;
        }
    append(end, "0x");
    append_number(end, address, 16);
}

/* Lines a second that a device is told for its mistakes, where it lives on (arbitrary). */
enum { LINES_A_SECOND = 5 };

/* Whether one more line may be written now. Two threads at once may get one too many. */
static bool may_tell(void) {
    static _Atomic time_t second;
    static atomic_uint lines;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    if (atomic_exchange(&second, now.tv_sec) != now.tv_sec)
        atomic_store(&lines, 0);
    return atomic_fetch_add(&lines, 1) < LINES_A_SECOND;
}

static int mode;
static void (*dump_stack)(int);

/* The system call's result, for the thread to find when it goes on. */
static void answer(ucontext_t *context, long result) {
#if defined(__x86_64__)
    context->uc_mcontext.gregs[REG_RAX] = result;
#elif defined(__aarch64__)
    context->uc_mcontext.regs[0] = result;
#else
#error "which register holds a system call's result?"
#endif
}

/* Names the call and its place, and dies, or goes on. Safe in any thread at any moment: it uses
 * its stack, the tables above, which do not change any more, and three system calls. So is what
 * dumps the stack, Python's own faulthandler. */
static void trapped(int number, siginfo_t *info, void *context) {
    int before = errno;
    if (mode == JAIL_KILL || may_tell()) {
        char line[192], *end = line;
        unsigned call = info->si_syscall;
        append(&end, mode == JAIL_KILL ? "E " : "W ");
        append(&end, "forbidden system call ");
        append(&end, call < NAMES && names[call][0] ? names[call] : "without a name");
        append(&end, " (");
        append_number(&end, call, 10);
        append(&end, ") at ");
        append_place(&end, (uintptr_t)info->si_call_addr);
        append(&end, "\n");
        ssize_t ignored = write(STDERR_FILENO, line, end - line);
        (void)ignored;
        if (dump_stack)
            dump_stack(number);
    }
    if (mode == JAIL_LOG) {
        answer(context, -EPERM);
        errno = before;
        return;
    }
    /* SIGSYS is blocked in its own handler, and a trap that cannot be delivered kills the
     * process with it. No filter of ours ever allows this call. */
    syscall(SYS_reboot, 0, 0, 0, 0);
    _exit(128 + SIGSYS);
}

static void fill_names(void) {
    for (int call = 0; call < NAMES; call++) {
        char *name = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, call);
        if (name)
            strncpy(names[call], name, NAME_SIZE - 1);
        free(name);
    }
}

/* Memory, but nothing that can be executed, nor any that RLIMIT_DATA does not count: what is shared,
 * a file's, or taken for a stack (MAP_GROWSDOWN). Those were mapped before; but `files` are mapped
 * later, shared, and beside each other (protocol.mapping), and so at addresses of one's own. */
static int add_mmap(scmp_filter_ctx filter, bool files) {
    const uint32_t yes = SCMP_ACT_ALLOW;
    const scmp_datum_t flags = MAP_PRIVATE | MAP_ANONYMOUS, whims = MAP_NORESERVE | MAP_STACK;
    const struct scmp_arg_cmp data = SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0);
    const struct scmp_arg_cmp fresh = SCMP_A3(SCMP_CMP_MASKED_EQ, ~whims, flags);
    const struct scmp_arg_cmp shared =
        SCMP_A3(SCMP_CMP_MASKED_EQ, MAP_TYPE | MAP_ANONYMOUS, MAP_SHARED);
    if (files) {
        int error = seccomp_rule_add(filter, yes, SCMP_SYS(mmap), 2, data, fresh);
        return error ? error : seccomp_rule_add(filter, yes, SCMP_SYS(mmap), 2, data, shared);
    }
    int error = seccomp_rule_add(filter, yes, SCMP_SYS(mmap), 3, SCMP_A0(SCMP_CMP_EQ, 0), data,
                                 fresh);
    /* Where, the kernel says: far from each other, pages cost three times their size in page
     * tables, which no limit counts. libc asks for that, and can do without. (Where EPERM is what
     * becomes of every call, libseccomp takes no rule that says so.) */
    if (!error && mode != JAIL_ERRNO)
        error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOMEM), SCMP_SYS(mmap), 1,
                                 SCMP_A0(SCMP_CMP_NE, 0));
    return error;
}

static int add_rules(scmp_filter_ctx filter, const struct jail_allowed *allowed) {
    const uint32_t yes = SCMP_ACT_ALLOW;
    int error = 0;
    for (unsigned at = 0; !error && at < allowed->call_count; at++)
        error = seccomp_rule_add(filter, yes, allowed->calls[at], 0);
    /* The kernel looks at half of the number; one whose other half is not 0 is refused. */
    for (unsigned at = 0; !error && at < allowed->ioctl_count; at++)
        error = seccomp_rule_add(filter, yes, SCMP_SYS(ioctl), 1,
                                 SCMP_A1(SCMP_CMP_EQ, allowed->ioctls[at]));
    if (!error)
        error = add_mmap(filter, allowed->files);
    /* No limit counts what a stack becomes by mremap. libc can do without that, too. */
    if (!error)
        error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOMEM), SCMP_SYS(mremap), 0);
    if (!error)
        error = seccomp_rule_add(filter, yes, SCMP_SYS(mprotect), 1,
                                 SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    /* pthread_create makes this call with all signals blocked, and so would die without a word;
     * that it fails is told by whoever wanted the thread. */
    if (!error && mode != JAIL_ERRNO)
        error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(clone3), 0);
    /* abort() signals its own thread; nobody else is to be signalled. */
    if (!error)
        error = seccomp_rule_add(filter, yes, SCMP_SYS(tgkill), 1,
                                 SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)getpid()));
    /* To whom a socket is connected, and to no address of one's own choice. */
    if (!error)
        error = seccomp_rule_add(filter, yes, SCMP_SYS(sendto), 1, SCMP_A4(SCMP_CMP_EQ, 0));
    return error;
}

/* Submit, and wait; of no ring but these, and of none by a number that is no descriptor. */
static int add_urings(scmp_filter_ctx filter, const int *urings, unsigned count) {
    const uint32_t other_flags = ~IORING_ENTER_GETEVENTS;
    int error = 0;
    for (unsigned at = 0; !error && at < count; at++)
        error = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(io_uring_enter), 2,
                                 SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)urings[at]),
                                 SCMP_A3(SCMP_CMP_MASKED_EQ, other_flags, 0));
    return error;
}

static int set_trap(int on_violation) {
    fill_names();
    dl_iterate_phdr(note_places, NULL);
    mode = on_violation;
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO}, before;
    sigfillset(&action.sa_mask);
    if (sigaction(SIGSYS, &action, &before))
        return -errno;
    if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
        dump_stack = before.sa_handler;
    return 0;
}

/* Load `filter`, which was made with this `error` so far, and release it. */
static int load(scmp_filter_ctx filter, int error) {
    /* Another architecture's calls have other numbers. */
    if (!error)
        error = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (!error)
        error = seccomp_load(filter);
    seccomp_release(filter);
    return error;
}

int jail_filter(const struct jail_allowed *allowed, int on_violation) {
    int error = set_trap(on_violation);
    if (error)
        return error;
    /* A filter that answers by itself costs no signal; one that is to be told of is a trap. */
    scmp_filter_ctx filter =
        seccomp_init(mode == JAIL_ERRNO ? SCMP_ACT_ERRNO(EPERM) : SCMP_ACT_TRAP);
    if (!filter)
        return -ENOMEM;
    error = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    /* Level 2 is a binary tree: a call costs a few comparisons, not one for each call that is
     * allowed before it. */
    if (!error)
        error = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    if (!error)
        error = add_rules(filter, allowed);
    if (!error)
        error = add_urings(filter, allowed->urings, allowed->uring_count);
    return load(filter, error);
}

/* `calls`, what starts a process or program, and sockets but those of Unix are answered with `no`. */
static int add_denied(scmp_filter_ctx filter, uint32_t no, const int *calls, unsigned count) {
    const int always[] = {SCMP_SYS(fork), SCMP_SYS(vfork), SCMP_SYS(execve), SCMP_SYS(execveat)};
    int error = 0;
    for (unsigned at = 0; !error && at < sizeof always / sizeof *always; at++)
        error = seccomp_rule_add(filter, no, always[at], 0);
    for (unsigned at = 0; !error && at < count; at++)
        error = seccomp_rule_add(filter, no, calls[at], 0);
    if (!error)
        error = seccomp_rule_add(filter, no, SCMP_SYS(clone), 1,
                                 SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, 0));
    /* Its flags are in memory, where no filter sees them. libc then takes clone instead. */
    if (!error)
        error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    if (!error)
        error = seccomp_rule_add(filter, no, SCMP_SYS(socket), 1, SCMP_A0(SCMP_CMP_NE, AF_UNIX));
    return error;
}

int jail_deny(const int *calls, unsigned count) {
    int error = set_trap(JAIL_KILL);
    if (error)
        return error;
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    if (!filter)
        return -ENOMEM;
    error = add_denied(filter, SCMP_ACT_TRAP, calls, count);
    /* What trapped() dies of. */
    if (!error)
        error = seccomp_rule_add(filter, SCMP_ACT_TRAP, SCMP_SYS(reboot), 0);
    /* Whoever has taken the process over would answer the trap himself. */
    if (!error)
        error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(rt_sigaction), 1,
                                 SCMP_A0(SCMP_CMP_EQ, SIGSYS));
    return load(filter, error);
}

int jail_deny_early(const int *calls, unsigned count) {
    const uint32_t no = SCMP_ACT_ERRNO(EPERM);
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    if (!filter)
        return -ENOMEM;
    int error = add_denied(filter, no, calls, count);
    /* To outlive its parent. The kernel looks at 32 bits of the first argument. */
    if (!error)
        error = seccomp_rule_add(filter, no, SCMP_SYS(prctl), 2,
                                 SCMP_A0(SCMP_CMP_MASKED_EQ, UINT_MAX, PR_SET_PDEATHSIG),
                                 SCMP_A1(SCMP_CMP_NE, SIGKILL));
    return load(filter, error);
}
