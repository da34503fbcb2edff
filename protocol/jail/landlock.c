#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* <linux/landlock.h>, here because the header is as old as the distribution, and the kernel is
 * not. Rights by the version that brought them (kernel documentation: userspace-api/landlock). */
struct attributes {
    uint64_t files, ports, scopes;
};
struct __attribute__((packed)) path_beneath {
    uint64_t allowed;
    int32_t parent;
};
enum { VERSION = 1, PATH_BENEATH = 1 };
/* Of a file that is no directory: to execute, write, read, truncate it, and ioctl. */
enum { OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15 };

static const struct attributes KNOWN[] = {
    {(1 << 13) - 1, 0, 0}, /* 1: files */
    {(1 << 14) - 1, 0, 0}, /* 2: to link and rename across directories */
    {(1 << 15) - 1, 0, 0}, /* 3: to truncate */
    {(1 << 15) - 1, 3, 0}, /* 4: to bind and connect TCP ports */
    {(1 << 16) - 1, 3, 0}, /* 5: ioctl on devices */
    {(1 << 16) - 1, 3, 3}, /* 6: abstract sockets of, and signals to, who is not restricted so */
};
enum { NEWEST = sizeof KNOWN / sizeof *KNOWN };

int jail_landlock_version(void) {
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, VERSION);
    return version < 0 ? -errno : version;
}

static int allow(int rules, const struct jail_rule *rule, uint64_t known) {
    struct stat found;
    if (fstat(rule->at, &found))
        return -errno;
    struct path_beneath beneath = {rule->rights & known, rule->at};
    if (!S_ISDIR(found.st_mode))
        beneath.allowed &= OF_FILES;
    return syscall(SYS_landlock_add_rule, rules, PATH_BENEATH, &beneath, 0) ? -errno : 0;
}

int jail_landlock(const struct jail_rule *allowed, unsigned count, int alone) {
    int version = jail_landlock_version();
    if (version <= 0)
        return version ? version : -ENOSYS;
    struct attributes all = KNOWN[(version < NEWEST ? version : NEWEST) - 1];
    if (!alone)
        all.scopes = 0;
    /* A kernel refuses bytes behind the structure that it knows, unless they are zero. */
    int rules = syscall(SYS_landlock_create_ruleset, &all, sizeof all, 0);
    if (rules < 0)
        return -errno;
    int error = 0;
    for (unsigned at = 0; !error && at < count; at++)
        error = allow(rules, &allowed[at], all.files);
    if (!error && syscall(SYS_landlock_restrict_self, rules, 0))
        error = -errno;
    close(rules);
    return error;
}
