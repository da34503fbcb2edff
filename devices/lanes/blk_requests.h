/* Requests of a disk, which may be many at a time: for blk.c and blk_requests.c only. */
#ifndef VIBE_LANE_BLK_REQUESTS_H
#define VIBE_LANE_BLK_REQUESTS_H

#include "blk.h"

/* A request that is in order; of READ and WRITE with its data, between header and status. */
struct blk_request {
    enum { READ, WRITE, FLUSH } what;
    uint8_t *status;
    uint64_t offset; /* in bytes, as is size */
    uint64_t size;
    int file;    /* where the data is */
    bool is_new; /* there is none of it yet: a write of blocks that are not here */
    uint32_t count;
    struct iovec pieces[RING_MAX_SEGMENTS];
};

/* It went well: say so, and count it. */
void blk_succeed(struct blk_disk *disk, const struct blk_request *request);

/* Keep it, to be given to the kernel with others: LANE_KEEP; or LANE_DECLINE, if it is longer than
 * any that is kept. */
int64_t blk_begin(struct blk_disk *disk, const struct blk_request *request,
                  const struct ring_chain *chain, const struct iovec *segments);

#endif
