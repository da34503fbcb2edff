/* Requests of a disk that the kernel carries out meanwhile; the contract is in blk_requests.h.
 *
 * What ends well is answered here. All else is declined as if it had not been begun: so a request
 * is kept with its chain as it was popped. */

#include "blk_requests.h"
#include "uring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* As many as our queue has entries; a driver that has made a larger one waits for its turn. */
enum { MOST = 128, MOST_SEGMENTS = 128 };

struct kept {
    struct ring_chain chain;
    struct iovec segments[MOST_SEGMENTS];
    struct blk_request request;
    struct kept *next; /* of those that are free */
};

struct blk_requests {
    struct lane_keeper keeper;
    struct uring uring;
    struct kept *free;
    struct kept all[MOST];
};

static bool submit(void *device, uint32_t wait)
{
    struct uring *uring = &((struct blk_disk *)device)->requests->uring;
    return (!uring->prepared && !wait) || uring_submit(uring, wait);
}

static bool take(void *device, struct lane_kept *ended)
{
    struct blk_disk *disk = device;
    struct blk_requests *requests = disk->requests;
    uint64_t which;
    int32_t result;
    if (!uring_take(&requests->uring, &which, &result))
        return false;
    struct kept *one = &requests->all[which];
    *ended = (struct lane_kept){&one->chain, one->segments, LANE_DECLINE};
    if (result >= 0 && (uint64_t)result == one->request.size) {
        blk_succeed(disk, &one->request);
        ended->written = one->chain.writable_size;
    }
    one->next = requests->free;
    requests->free = one;
    requests->keeper.kept--;
    return true;
}

int blk_open_requests(struct blk_disk *disk)
{
    struct blk_requests *requests = calloc(1, sizeof(*requests));
    if (!requests)
        return -ENOMEM;
    int files[] = {disk->image, disk->alive};
    int error = uring_open(&requests->uring, MOST, files, disk->alive ? 2 : 1, disk->readonly);
    if (error) {
        free(requests);
        return error;
    }
    for (struct kept *one = requests->all; one < requests->all + MOST; one++) {
        one->next = requests->free;
        requests->free = one;
    }
    requests->keeper = (struct lane_keeper){
        .ended = requests->uring.fd, .most = MOST, .submit = submit, .take = take};
    disk->requests = requests;
    return 0;
}

void blk_close_requests(struct blk_disk *disk)
{
    uring_close(&disk->requests->uring);
    free(disk->requests);
    disk->requests = NULL;
}

struct lane_keeper *blk_keeper(struct blk_disk *disk)
{
    return &disk->requests->keeper;
}

/* Fill in what asks for it. */
static void prepare(struct io_uring_sqe *sqe, const struct blk_request *request, int write_flags)
{
    static const uint8_t alone[] = {IORING_OP_READ, IORING_OP_WRITE, IORING_OP_FSYNC};
    static const uint8_t listed[] = {IORING_OP_READV, IORING_OP_WRITEV};
    sqe->fd = 0; /* the first of the ring's files: the image */
    if (request->what == FLUSH) {
        sqe->opcode = alone[FLUSH];
        sqe->fsync_flags = IORING_FSYNC_DATASYNC;
        return;
    }
    const struct iovec *first = request->pieces;
    bool is_alone = request->count == 1;
    sqe->opcode = (is_alone ? alone : listed)[request->what];
    sqe->addr = (uint64_t)(uintptr_t)(is_alone ? first->iov_base : first);
    sqe->len = is_alone ? first->iov_len : request->count;
    sqe->off = request->offset;
    sqe->rw_flags = request->what == WRITE ? write_flags : 0;
}

int64_t blk_begin(struct blk_disk *disk, const struct blk_request *request,
                  const struct ring_chain *chain, const struct iovec *segments)
{
    struct blk_requests *requests = disk->requests;
    uint32_t count = chain->readable + chain->writable;
    struct kept *one = requests->free;
    if (count > MOST_SEGMENTS || !one)
        return LANE_DECLINE;
    requests->free = one->next;
    requests->keeper.kept++;
    one->chain = *chain;
    one->chain.first = 0;
    memcpy(one->segments, segments, count * sizeof(*segments));
    /* Of its pieces, which are the last, only those that there are. */
    size_t size = offsetof(struct blk_request, pieces) + request->count * sizeof(*segments);
    memcpy(&one->request, request, size);
    struct io_uring_sqe *sqe = uring_prepare(&requests->uring);
    prepare(sqe, &one->request, __atomic_load_n(&disk->write_flags, __ATOMIC_RELAXED));
    sqe->user_data = one - requests->all;
    return LANE_KEEP;
}
