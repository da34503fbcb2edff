#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

_Static_assert(JAIL_NEW_MOUNT == CLONE_NEWNS && JAIL_NEW_UTS == CLONE_NEWUTS &&
                   JAIL_NEW_IPC == CLONE_NEWIPC && JAIL_NEW_USER == CLONE_NEWUSER &&
                   JAIL_NEW_PID == CLONE_NEWPID && JAIL_NEW_NET == CLONE_NEWNET,
               "the kernel's own values");

int jail_unshare(int flags) { return unshare(flags) ? -errno : 0; }

/* A directory that every Linux has, and that no machine keeps its sockets below. */
#define ROOM "/proc"

int jail_empty_root(const char *const *channels, unsigned count) {
    const unsigned long nothing = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    /* First: what is mounted here is mounted nowhere else. */
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return -errno;
    char options[64], path[sizeof ROOM "/channel" + 10];
    snprintf(options, sizeof options, "mode=0755,size=4k,nr_inodes=%u", count + 1);
    if (mount("jail", ROOM, "tmpfs", nothing, options))
        return -errno;
    for (unsigned at = 0; at < count; at++) {
        snprintf(path, sizeof path, ROOM "/channel%u", at);
        int file = open(path, O_CREAT | O_EXCL | O_CLOEXEC, 0);
        if (file < 0 || close(file) || mount(channels[at], path, NULL, MS_BIND, NULL))
            return -errno;
    }
    if (mount(NULL, ROOM, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | nothing, NULL))
        return -errno;
    /* The new root goes where the old one was, the old one on top of it, and away
     * (pivot_root(2), "pivot_root(".", ".")"). */
    if (chdir(ROOM) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
        return -errno;
    return 0;
}
