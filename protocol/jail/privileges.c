#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/prctl.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int jail_adopt_orphans(int yes) { return prctl(PR_SET_CHILD_SUBREAPER, yes, 0, 0, 0) ? -errno : 0; }

int jail_death_with_parent(void) { return prctl(PR_SET_PDEATHSIG, SIGKILL) ? -errno : 0; }

int jail_no_new_privileges(void) { return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? -errno : 0; }

int jail_dumpable(int yes) { return prctl(PR_SET_DUMPABLE, yes, 0, 0, 0) ? -errno : 0; }

int jail_empty_bounding_set(void) {
    /* EINVAL is the first number behind the kernel's last capability. */
    for (unsigned long capability = 0; !prctl(PR_CAPBSET_DROP, capability, 0, 0, 0); capability++)
        ;
    return errno == EINVAL || errno == EPERM ? 0 : -errno;
}

int jail_keep_capabilities(uint64_t kept) {
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
        return -errno;
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
    if (syscall(SYS_capget, &header, sets))
        return -errno;
    for (unsigned at = 0; at < _LINUX_CAPABILITY_U32S_3; at++, kept >>= 32) {
        sets[at].permitted &= (uint32_t)kept;
        sets[at].effective = sets[at].permitted;
        sets[at].inheritable = 0;
    }
    return syscall(SYS_capset, &header, sets) ? -errno : 0;
}

int jail_load(void *filter, int error) {
    /* Another architecture's calls have other numbers. */
    if (!error)
        error = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    if (!error)
        error = seccomp_load(filter);
    seccomp_release(filter);
    return error;
}

int jail_forbid_processes(void) {
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
    return jail_load(filter, error);
}
