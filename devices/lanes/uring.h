/* An io_uring for one lane, by the kernel's own interface (io_uring_setup(2), io_uring_register(2),
 * io_uring_enter(2)).
 *
 * It is made before the seal, and from then on it can do one thing: read, write and sync the files
 * that it was made with. The kernel holds it to that (IORING_REGISTER_RESTRICTIONS), for seccomp
 * does not see what is asked of a ring: no other operation, no file that is not one of these, no
 * further registration. */
#ifndef VIBE_LANE_URING_H
#define VIBE_LANE_URING_H

#include <linux/io_uring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct uring {
    int fd; /* readable while something has ended that was not taken */
    uint32_t entries;
    uint32_t *sq_tail, *cq_head, *cq_tail; /* shared with the kernel */
    uint32_t sq_mask, cq_mask;
    uint32_t prepared; /* and not submitted */
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    void *rings; /* the mapping that all of them are in, but for sqes */
    size_t rings_size;
};

/* One for so many requests at a time, to these files, which are numbered from 0 and only read where
 * they are readonly. 0, or minus an errno, and there is none. */
int uring_open(struct uring *uring, uint32_t entries, const int *files, uint32_t count,
               bool readonly);
void uring_close(struct uring *uring);

/* The next request to be filled in, all zero but for what says that its fd is the number of a file.
 * The caller has counted: there is room for one. */
struct io_uring_sqe *uring_prepare(struct uring *uring);

/* Give the kernel what was prepared, and wait until so many have ended. False if it does not take
 * them now: they stay prepared. */
bool uring_submit(struct uring *uring, uint32_t wait);

/* One that has ended: what it was told to be known by, and its result. False if there is none. */
bool uring_take(struct uring *uring, uint64_t *user_data, int32_t *result);

#endif
