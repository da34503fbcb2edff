/* The lane of a disk (virtio 1.2, section 5.2.6); the contract is in blk.h.
 *
 * A request that is declined may have been begun: Python carries it out from its start, and comes
 * to the same error, or to its end. */

#define _GNU_SOURCE /* pwritev2 */

#include "blk_requests.h"

#include <string.h>
#include <unistd.h>

enum { BLK_IN = 0, BLK_OUT = 1, BLK_FLUSH = 4 };
enum { BLK_OK = 0 };
enum { SECTOR = 512 };

struct header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

static bool add(struct blk_request *request, uint8_t *base, size_t size, uint32_t alignment)
{
    if (size == 0)
        return true;
    if (((uintptr_t)base | size) & (alignment - 1))
        return false;
    request->pieces[request->count++] = (struct iovec){base, size};
    request->size += size;
    return true;
}

/* Segments without the first skipped bytes of the first and the last left bytes of the last, which
 * have so many. */
static bool gather(struct blk_request *request, const struct iovec *segments, uint32_t count,
                   size_t skipped, size_t left, uint32_t alignment)
{
    for (uint32_t i = 0; i < count; i++) {
        size_t from = i == 0 ? skipped : 0, end = i == count - 1 ? left : 0;
        if (from + end > segments[i].iov_len)
            return false;
        uint8_t *base = (uint8_t *)segments[i].iov_base + from;
        if (!add(request, base, segments[i].iov_len - from - end, alignment))
            return false;
    }
    return true;
}

/* No sum is formed, so none can overflow. */
static bool in_bounds(const struct blk_disk *disk, uint64_t sector, uint64_t size)
{
    return size % SECTOR == 0 && size <= disk->most && sector <= disk->sectors &&
           size / SECTOR <= disk->sectors - sector;
}

/* What a chain asks for; false where that is not for us. */
static bool understand(const struct blk_disk *disk, const struct ring_chain *chain,
                       const struct iovec *segments, struct blk_request *request)
{
    struct header header;
    if (!chain->readable || segments[0].iov_len < sizeof(header) || !chain->writable)
        return false;
    /* The one copy: the guest may write there all the time. */
    memcpy(&header, segments[0].iov_base, sizeof(header));
    __atomic_signal_fence(__ATOMIC_SEQ_CST);

    const struct iovec *answer = segments + chain->readable;
    const struct iovec *last = answer + chain->writable - 1;
    request->status = (uint8_t *)last->iov_base + last->iov_len - 1;
    request->size = request->count = 0;
    switch (header.type) {
    case BLK_IN:
        request->what = READ;
        if (!gather(request, answer, chain->writable, 0, 1, disk->alignment))
            return false;
        break;
    case BLK_OUT:
        request->what = WRITE;
        if (disk->readonly || chain->writable_size != 1 ||
            !gather(request, segments, chain->readable, sizeof(header), 0, disk->alignment))
            return false;
        break;
    case BLK_FLUSH:
        request->what = FLUSH;
        return chain->writable_size == 1 &&
               __atomic_load_n(&disk->may_flush, __ATOMIC_RELAXED);
    default:
        return false;
    }
    request->offset = header.sector * SECTOR;
    return in_bounds(disk, header.sector, request->size);
}

/* Overlays. */

enum { BLOCK = 4096 };

static bool is_here(const struct blk_disk *disk, uint64_t block)
{
    return disk->here[block / 8] >> block % 8 & 1;
}

/* Where the data of a request is: in one file, or it is not for us; nor is it if a block would have
 * to be copied, or a write that makes blocks be here has to be durable. */
static bool find(const struct blk_disk *disk, struct blk_request *request, int flags)
{
    request->file = disk->image;
    request->is_new = false;
    if (!disk->here)
        return true;
    if (!request->size)
        return false;
    uint64_t block = request->offset / BLOCK, last = (request->offset + request->size - 1) / BLOCK;
    bool here = is_here(disk, block);
    while (block < last)
        if (is_here(disk, ++block) != here)
            return false;
    if (!here && request->what == WRITE) {
        if ((request->offset | request->size) % BLOCK || flags)
            return false;
        request->is_new = true;
    }
    if (here || request->is_new)
        request->offset += disk->data;
    else
        request->file = disk->base;
    return true;
}

/* Behind the data: whoever finds the bit finds that. */
static void mark(struct blk_disk *disk, const struct blk_request *request)
{
    uint64_t first = (request->offset - disk->data) / BLOCK, count = request->size / BLOCK;
    for (uint64_t block = first; block < first + count; block++)
        disk->here[block / 8] |= 1 << block % 8;
}

/* At once. A buffer in one piece, as most are, spares the kernel the list. */
static bool carry_out(const struct blk_request *request, int flags)
{
    const struct iovec *first = request->pieces;
    uint32_t count = request->count;
    off_t offset = request->offset;
    ssize_t done;
    if (request->what == READ)
        done = count == 1 ? pread(request->file, first->iov_base, first->iov_len, offset)
                          : preadv(request->file, first, count, offset);
    else
        done = count == 1 && !flags ? pwrite(request->file, first->iov_base, first->iov_len, offset)
                                    : pwritev2(request->file, first, count, offset, flags);
    return done == (ssize_t)request->size;
}

void blk_succeed(struct blk_disk *disk, const struct blk_request *request)
{
    uint64_t *counters[] = {&disk->reads, &disk->writes, &disk->flushes};
    *counters[request->what] += 1;
    *request->status = BLK_OK;
    PASS(LANE_COMPLETE);
}

int64_t blk_carry_out(void *device, const struct ring_chain *chain, const struct iovec *segments)
{
    struct blk_disk *disk = device;
    struct blk_request request;
    if (!understand(disk, chain, segments, &request))
        return LANE_DECLINE;
    int flags = __atomic_load_n(&disk->write_flags, __ATOMIC_RELAXED);
    if (!find(disk, &request, flags))
        return LANE_DECLINE;
    PASS(LANE_HANDLE);
    if (disk->requests)
        return blk_begin(disk, &request, chain, segments);
    if (!carry_out(&request, flags))
        return LANE_DECLINE;
    if (request.is_new)
        mark(disk, &request);
    blk_succeed(disk, &request);
    return chain->writable_size;
}
