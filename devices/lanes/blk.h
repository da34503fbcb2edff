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

    /* Of an overlay (devices/runtime/files/overlay.py), which is then image; all zero: there is none. */
    uint8_t *here; /* a bit a block of 4 KiB: it is in image, and else in base */
    uint64_t data; /* where in image the first block is */
    int base;

    /* A file that is to be open as long as the kernel is at work for us; 0: none. */
    int alive;
    bool may_flush;                /* here; may change at any time */
    struct blk_requests *requests; /* NULL: each is carried out before the next is looked at */

    uint64_t reads; /* carried out here */
    uint64_t writes;
    uint64_t flushes;
};

/* A lane_carry_out; disk is a struct blk_disk. */
int64_t blk_carry_out(void *disk, const struct ring_chain *chain, const struct iovec *segments);

/* Have the kernel carry out requests meanwhile, by an io_uring, of a disk that is filled in. 0, or
 * minus an errno. */
int blk_open_requests(struct blk_disk *disk);
void blk_close_requests(struct blk_disk *disk);

/* Of such a disk's lane. */
struct lane_keeper *blk_keeper(struct blk_disk *disk);

/* cdef end */

#endif
