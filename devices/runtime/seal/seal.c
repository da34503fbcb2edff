#define _GNU_SOURCE
#include "seal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/prctl.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

int seal_adopt_orphans(int yes) { return prctl(PR_SET_CHILD_SUBREAPER, yes, 0, 0, 0) ? -errno : 0; }

int seal_death_with_parent(void) { return prctl(PR_SET_PDEATHSIG, SIGKILL) ? -errno : 0; }

int seal_no_new_privileges(void) { return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? -errno : 0; }

int seal_drop_capabilities(void) {
    /* The bounding set first: it takes CAP_SETPCAP. EINVAL is the first number behind the
     * kernel's last capability. */
    for (unsigned long capability = 0; !prctl(PR_CAPBSET_DROP, capability, 0, 0, 0); capability++)
        ;
    if (errno != EINVAL && errno != EPERM)
        return -errno;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
        return -errno;
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};
    return syscall(SYS_capset, &header, none) ? -errno : 0;
}

/* Another architecture's calls have other numbers. */
static int load(scmp_filter_ctx filter, int error) {
    if (!error)
        error = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (!error)
        error = seccomp_load(filter);
    seccomp_release(filter);
    return error;
}

int seal_forbid_processes(void) {
    const int calls[] = {SCMP_SYS(fork), SCMP_SYS(vfork), SCMP_SYS(execve), SCMP_SYS(execveat)};
    const uint32_t no = SCMP_ACT_ERRNO(EPERM);
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    if (!filter)
        return -ENOMEM;
    int error = 0;
    for (unsigned at = 0; !error && at < sizeof calls / sizeof *calls; at++)
        error = seccomp_rule_add(filter, no, calls[at], 0);
    if (!error)
        error = seccomp_rule_add(filter, no, SCMP_SYS(clone), 1,
                                 SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, 0));
    /* Its flags are in memory, where no filter sees them. libc then takes clone instead. */
    if (!error)
        error = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    return load(filter, error);
}

_Static_assert(SEAL_UNKNOWN == __NR_SCMP_ERROR, "libseccomp's own value");

int seal_resolve(const char *name) { return seccomp_syscall_resolve_name(name); }

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

static int signal_other_threads(void) {
    int sent = 0;
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks)
        return -errno;
    for (struct dirent *entry; (entry = readdir(tasks));) {
        pid_t thread = atoi(entry->d_name);
        if (thread > 0 && thread != gettid() &&
            !syscall(SYS_tgkill, getpid(), thread, SEAL_BORROWED))
            sent++;
    }
    closedir(tasks);
    return sent;
}

int seal_unblock_trap(unsigned count) {
    /* The code that returns from a handler is libc's own: taken from a signal it has set. */
    struct sigaction ours = {.sa_sigaction = unblock_trap, .sa_flags = SA_SIGINFO}, before;
    struct kernel_sigaction as_kernel, old;
    if (sigaction(SIGUSR2, &ours, &before))
        return -errno;
    long failed = syscall(SYS_rt_sigaction, SIGUSR2, NULL, &as_kernel, sizeof as_kernel.mask);
    sigaction(SIGUSR2, &before, NULL);
    as_kernel.flags |= SA_RESTART;
    if (failed || syscall(SYS_rt_sigaction, SEAL_BORROWED, &as_kernel, &old, sizeof old.mask))
        return -errno;

    atomic_store(&unblocked, 0);
    int sent = signal_other_threads();
    if (sent >= 0 && (unsigned)sent != count)
        sent = -ESRCH;
    /* A millisecond each; a thread that does not run for a second does not run. */
    for (int tries = 0; sent > 0 && atomic_load(&unblocked) < (unsigned)sent; tries++) {
        if (tries == 1000)
            sent = -ETIMEDOUT;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    syscall(SYS_rt_sigaction, SEAL_BORROWED, &old, NULL, sizeof old.mask);
    return sent < 0 ? sent : 0;
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

static void append_number(char **end, unsigned number) {
    char digits[12], *first = digits + sizeof digits - 1;
    *first = 0;
    do
        *--first = '0' + number % 10;
    while (number /= 10);
    append(end, first);
}

/* Names the call and dies. Safe in any thread at any moment: it uses its stack, the table
 * above, which does not change any more, and two system calls. */
static void trapped(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    char line[128], *end = line;
    unsigned call = info->si_syscall;
    append(&end, "E forbidden system call ");
    append(&end, call < NAMES && names[call][0] ? names[call] : "without a name");
    append(&end, " (");
    append_number(&end, call);
    append(&end, ")\n");
    ssize_t ignored = write(STDERR_FILENO, line, end - line);
    (void)ignored;
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

static int add_rules(scmp_filter_ctx filter, const int *calls, unsigned count) {
    const uint32_t yes = SCMP_ACT_ALLOW;
    int error = 0;
    for (unsigned at = 0; !error && at < count; at++)
        error = seccomp_rule_add(filter, yes, calls[at], 0);
    /* Memory, but nothing that can be executed. */
    if (!error)
        error = seccomp_rule_add(filter, yes, SCMP_SYS(mmap), 1,
                                 SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    if (!error)
        error = seccomp_rule_add(filter, yes, SCMP_SYS(mprotect), 1,
                                 SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
    /* pthread_create makes this call with all signals blocked, and so would die without a word;
     * that it fails is told by whoever wanted the thread. */
    if (!error)
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

int seal_filter(const int *calls, unsigned count) {
    fill_names();
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO};
    sigfillset(&action.sa_mask);
    if (sigaction(SIGSYS, &action, NULL))
        return -errno;
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_TRAP);
    if (!filter)
        return -ENOMEM;
    int error = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    /* Level 2 is a binary tree: a call costs a few comparisons, not one for each call that is
     * allowed before it. */
    if (!error)
        error = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    if (!error)
        error = add_rules(filter, calls, count);
    return load(filter, error);
}
