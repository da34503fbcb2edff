#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/prctl.h>
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

/* Permitted, and effective, are those of `kept` that were; inheritable those of `passed_on`. */
static int set_capabilities(uint64_t kept, uint64_t passed_on) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];
    if (syscall(SYS_capget, &header, sets))
        return -errno;
    for (unsigned at = 0; at < _LINUX_CAPABILITY_U32S_3; at++, kept >>= 32, passed_on >>= 32) {
        sets[at].permitted &= (uint32_t)kept;
        sets[at].effective = sets[at].permitted;
        sets[at].inheritable = sets[at].permitted & (uint32_t)passed_on;
    }
    return syscall(SYS_capset, &header, sets) ? -errno : 0;
}

int jail_keep_capabilities(uint64_t kept) {
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
        return -errno;
    return set_capabilities(kept, 0);
}

int jail_save_capabilities(uint64_t kept) {
    if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
        return -errno;
    return set_capabilities(~UINT64_C(0), kept);
}

int jail_pass_on_capabilities(uint64_t kept) {
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
        return -errno;
    int result = set_capabilities(kept, kept);
    for (unsigned long capability = 0; !result && capability < 64; capability++)
        /* EPERM: it had not got it before. */
        if (kept >> capability & 1 &&
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) && errno != EPERM)
            result = -errno;
    return result;
}
