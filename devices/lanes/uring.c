/* An io_uring; the contract is in uring.h. */

#include "uring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static int enter(const struct uring *uring, uint32_t submit, uint32_t wait)
{
    long flags = wait ? IORING_ENTER_GETEVENTS : 0;
    return (int)syscall(SYS_io_uring_enter, (long)uring->fd, submit, wait, flags, NULL, 0);
}

static int set_up(const struct uring *uring, unsigned operation, const void *argument,
                  unsigned count)
{
    return syscall(SYS_io_uring_register, uring->fd, operation, argument, count) < 0 ? -errno : 0;
}

/* Nothing but these operations, on registered files. */
static int restrict_to(const struct uring *uring, bool readonly)
{
    static const uint8_t operations[] = {IORING_OP_READ, IORING_OP_READV, IORING_OP_FSYNC,
                                         IORING_OP_WRITE, IORING_OP_WRITEV};
    uint32_t count = readonly ? 3 : 5;
    struct io_uring_restriction rules[6];
    memset(rules, 0, sizeof(rules));
    for (uint32_t i = 0; i < count; i++) {
        rules[i].opcode = IORING_RESTRICTION_SQE_OP;
        rules[i].sqe_op = operations[i];
    }
    rules[count].opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
    rules[count].sqe_flags = IOSQE_FIXED_FILE;
    return set_up(uring, IORING_REGISTER_RESTRICTIONS, rules, count + 1);
}

static int map(struct uring *uring, const struct io_uring_params *made)
{
    size_t sq = made->sq_off.array + made->sq_entries * sizeof(uint32_t);
    size_t cq = made->cq_off.cqes + made->cq_entries * sizeof(struct io_uring_cqe);
    int access = PROT_READ | PROT_WRITE, how = MAP_SHARED | MAP_POPULATE;
    uring->rings_size = sq > cq ? sq : cq;
    uint8_t *rings = mmap(NULL, uring->rings_size, access, how, uring->fd, IORING_OFF_SQ_RING);
    if (rings == MAP_FAILED)
        return -errno;
    uring->rings = rings;
    void *sqes = mmap(NULL, made->sq_entries * sizeof(struct io_uring_sqe), access, how, uring->fd,
                      IORING_OFF_SQES);
    if (sqes == MAP_FAILED)
        return -errno;
    uring->sqes = sqes;
    uring->entries = made->sq_entries;
    uring->sq_tail = (uint32_t *)(rings + made->sq_off.tail);
    uring->sq_mask = *(uint32_t *)(rings + made->sq_off.ring_mask);
    uring->cq_head = (uint32_t *)(rings + made->cq_off.head);
    uring->cq_tail = (uint32_t *)(rings + made->cq_off.tail);
    uring->cq_mask = *(uint32_t *)(rings + made->cq_off.ring_mask);
    uring->cqes = (struct io_uring_cqe *)(rings + made->cq_off.cqes);
    /* Requests are where their turn is. */
    for (uint32_t i = 0; i < made->sq_entries; i++)
        ((uint32_t *)(rings + made->sq_off.array))[i] = i;
    return 0;
}

int uring_open(struct uring *uring, uint32_t entries, const int *files, uint32_t count,
               bool readonly)
{
    struct io_uring_params made = {.flags = IORING_SETUP_R_DISABLED};
    memset(uring, 0, sizeof(*uring));
    uring->fd = (int)syscall(SYS_io_uring_setup, entries, &made);
    if (uring->fd < 0)
        return -errno;
    /* One mapping for both rings, and memory of requests that is ours again once they are submitted:
     * Linux 5.5; restrictions are of 5.10. */
    uint32_t wanted = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_NODROP;
    int error = (made.features & wanted) == wanted ? map(uring, &made) : -ENOSYS;
    if (!error)
        error = set_up(uring, IORING_REGISTER_FILES, files, count);
    if (!error)
        error = restrict_to(uring, readonly);
    if (!error)
        error = set_up(uring, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
    if (error)
        uring_close(uring);
    return error;
}

void uring_close(struct uring *uring)
{
    if (uring->rings)
        munmap(uring->rings, uring->rings_size);
    if (uring->sqes)
        munmap(uring->sqes, uring->entries * sizeof(*uring->sqes));
    close(uring->fd);
}

struct io_uring_sqe *uring_prepare(struct uring *uring)
{
    struct io_uring_sqe *sqe = &uring->sqes[(*uring->sq_tail + uring->prepared) & uring->sq_mask];
    memset(sqe, 0, sizeof(*sqe));
    sqe->flags = IOSQE_FIXED_FILE;
    uring->prepared++;
    return sqe;
}

bool uring_submit(struct uring *uring, uint32_t wait)
{
    for (;;) {
        uint32_t prepared = uring->prepared;
        /* Release: the kernel sees requests before the tail that announces them. */
        __atomic_store_n(uring->sq_tail, *uring->sq_tail + prepared, __ATOMIC_RELEASE);
        int taken = enter(uring, prepared, wait);
        uint32_t left = taken < 0 ? prepared : prepared - (uint32_t)taken;
        /* What it has not taken is prepared as before. */
        __atomic_store_n(uring->sq_tail, *uring->sq_tail - left, __ATOMIC_RELEASE);
        uring->prepared = left;
        if (taken < 0 ? errno != EINTR : !left || !taken)
            return taken >= 0 && !left;
    }
}

bool uring_take(struct uring *uring, uint64_t *user_data, int32_t *result)
{
    uint32_t head = *uring->cq_head;
    if (head == __atomic_load_n(uring->cq_tail, __ATOMIC_ACQUIRE))
        return false;
    const struct io_uring_cqe *cqe = &uring->cqes[head & uring->cq_mask];
    *user_data = cqe->user_data;
    *result = cqe->res;
    __atomic_store_n(uring->cq_head, head + 1, __ATOMIC_RELEASE);
    return true;
}
