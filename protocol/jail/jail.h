/* The calls that jail a process; __init__.py says when each is made, and why then.
 *
 * Each returns 0 or more, or minus an errno. build.py hands the part between the two marks to cffi.
 */
#ifndef VIBE_JAIL_H
#define VIBE_JAIL_H

#include <stdint.h>

/* cdef begin */

/* ── privileges.c ── */

/* Become (1), or be no more (0), the parent of descendants whose own parent ends. For the one
 * process that is not jailed: the launcher. */
int jail_adopt_orphans(int yes);

/* Die when the parent does. */
int jail_death_with_parent(void);

/* Never gain a privilege by executing something. */
int jail_no_new_privileges(void);

/* Empty the bounding set of this thread. It stays as it is where this thread has not the right to
 * change it; behind no-new-privileges it gives nothing. */
int jail_empty_bounding_set(void);

/* Leave this thread, also root's, no capability but those of `kept` that it has, a bit each. */
int jail_keep_capabilities(uint64_t kept);

/* Before the bounding set is emptied, and root becomes somebody else: let `kept` outlive that. */
int jail_save_capabilities(uint64_t kept);

/* Behind that: the same as jail_keep_capabilities, and what is executed has them, too. */
int jail_pass_on_capabilities(uint64_t kept);

/* Whether others of the same user may look into this process, and a core be written of it. */
int jail_dumpable(int yes);

/* ── namespaces.c ── */

/* <linux/sched.h>: CLONE_NEW… */
enum {
    JAIL_NEW_MOUNT = 0x00020000,
    JAIL_NEW_UTS = 0x04000000,
    JAIL_NEW_IPC = 0x08000000,
    JAIL_NEW_USER = 0x10000000,
    JAIL_NEW_PID = 0x20000000,
    JAIL_NEW_NET = 0x40000000,
};
int jail_unshare(int flags);

/* In a mount namespace of one's own: a root in which there is nothing but the sockets that are at
 * these paths now, as "/channel0" and so on. What was there before is reached by descriptors only. */
int jail_empty_root(const char *const *channels, unsigned count);

/* ── landlock.c ── */

/* The version of Landlock that this kernel has. */
int jail_landlock_version(void);

/* Forbid this thread, and those that it starts, every file and port that Landlock knows of, and,
 * with `alone`, abstract sockets of others and signals to them; but what `rules` allow, at a file
 * or below a directory. Rights that are no file's are dropped of one. */
enum {
    JAIL_READ = (1 << 2) | (1 << 3),
    JAIL_WRITE = (1 << 1) | (1 << 15), /* also by ioctl */
    JAIL_REMOVE_DIRECTORY = 1 << 4,
    JAIL_REMOVE_FILE = 1 << 5,
    JAIL_MAKE_SOCKET = 1 << 9,
};
struct jail_rule {
    int at; /* a descriptor */
    uint32_t rights;
};
int jail_landlock(const struct jail_rule *rules, unsigned count, int alone);

/* ── filter.c ── */

/* The number of a system call; JAIL_UNKNOWN for no name of one, less when it is another
 * architecture's. */
enum { JAIL_UNKNOWN = -1 };
int jail_resolve(const char *name);

/* Let these other threads of the process take SIGSYS; returns when they do. It takes a signal
 * that none of them blocks. */
enum { JAIL_BORROWED = 32 };
int jail_unblock_trap(const int *threads, unsigned count);

/* Allow these calls and no others, in all threads, for ever. What a forbidden one leads to:
 * its name and place on stderr and death of SIGSYS; EPERM; or EPERM, and name and place on stderr,
 * a few a second. The start of a thread just fails. A handler that SIGSYS has had is called after
 * the line is written. One that maps `files` may share memory with whoever gives it a file; one
 * with `urings` may enter these, by their descriptors. */
enum { JAIL_KILL, JAIL_ERRNO, JAIL_LOG };
struct jail_allowed {
    const int *calls;
    unsigned call_count;
    const unsigned long *ioctls; /* their request numbers: ioctl(2) with those, and no others */
    unsigned ioctl_count;
    const int *urings;
    unsigned uring_count;
    int files;
};
int jail_filter(const struct jail_allowed *allowed, int on_violation);

/* For whoever needs too many calls for a list of those that he may make. From now on these, what
 * starts a process, and a socket that is not one of the Unix domain lead to death as by JAIL_KILL.
 * In this thread and those that it starts; nobody takes over SIGSYS any more: EPERM. */
int jail_deny(const int *calls, unsigned count);

/* The same for whoever makes a list later: EPERM, and SIGSYS is as it was. Nor may it outlive its
 * parent any more, once it dies with that. A process that it started would: the death signal is not
 * inherited. Threads may be started; they have the same filter. */
int jail_deny_early(const int *calls, unsigned count);

/* cdef end */

#endif
