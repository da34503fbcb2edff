/* The calls that jail a device process; __init__.py says when each is made, and why then.
 *
 * Each returns 0, or minus an errno. build.py hands the part between the two marks to cffi.
 */
#ifndef VIBE_SEAL_H
#define VIBE_SEAL_H

/* cdef begin */

/* Become (1), or be no more (0), the parent of descendants whose own parent ends. For the one
 * process that is not jailed: the launcher. */
int seal_adopt_orphans(int yes);

/* Die when the parent does. */
int seal_death_with_parent(void);

/* Never gain a privilege by executing something. */
int seal_no_new_privileges(void);

/* Empty every capability set of this thread, also root's. The bounding set stays as it is where
 * this thread has not the right to change it; behind no-new-privileges it gives nothing. */
int seal_drop_capabilities(void);

/* From now on nothing starts a process or another program: EPERM. Such a process would outlive
 * the parent, with all that it holds, for the death signal is not inherited. Threads may be
 * started; they have the same filter. */
int seal_forbid_processes(void);

/* The number of a system call; SEAL_UNKNOWN for no name of one, less when it is another
 * architecture's. */
enum { SEAL_UNKNOWN = -1 };
int seal_resolve(const char *name);

/* Let every other thread of the process take SIGSYS; returns when they do. count is how many
 * there must be. It takes a signal that none of them blocks. */
enum { SEAL_BORROWED = 32 };
int seal_unblock_trap(unsigned count);

/* Allow these calls and no others, in all threads, for ever. A forbidden call is named on
 * stderr, and the process dies of SIGSYS; only the start of a thread just fails. */
int seal_filter(const int *calls, unsigned count);

/* cdef end */

#endif
