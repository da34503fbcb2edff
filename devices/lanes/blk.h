/* The lane of a disk: reads and writes that are as they should be, and nothing else. */
#ifndef VIBE_LANE_BLK_H
#define VIBE_LANE_BLK_H

#include "lane.h"

/* cdef begin */

/* What a disk may be asked for. All zero, then filled in. */
struct blk_disk {
    int image;
    bool readonly;
    int write_flags;    /* of pwritev2(2); may change at any time */
    uint32_t alignment; /* of buffers and their sizes, a power of two; 1: any will do */
    uint64_t sectors;   /* of 512 bytes */
    uint64_t most;      /* bytes of one request */

    uint64_t reads; /* carried out here */
    uint64_t writes;
};

/* A lane_carry_out; disk is a struct blk_disk. */
int64_t blk_carry_out(void *disk, const struct ring_chain *chain, const struct iovec *segments);

/* cdef end */

#endif
