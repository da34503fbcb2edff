/* The lane of a disk (virtio 1.2, section 5.2.6); the contract is in blk.h.
 *
 * A request that is declined may have been begun: Python carries it out from its start, and comes
 * to the same error, or to its end. */

#define _GNU_SOURCE /* pwritev2 */

#include "blk.h"

#include <string.h>

enum { BLK_IN = 0, BLK_OUT = 1 };
enum { BLK_OK = 0 };
enum { SECTOR = 512 };

struct header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

/* The data of a request, between its header and its status. */
struct data {
    uint64_t size;
    uint32_t count;
    struct iovec pieces[RING_MAX_SEGMENTS];
};

static bool add(struct data *data, uint8_t *base, size_t size, uint32_t alignment)
{
    if (size == 0)
        return true;
    if (((uintptr_t)base | size) & (alignment - 1))
        return false;
    data->pieces[data->count++] = (struct iovec){base, size};
    data->size += size;
    return true;
}

/* Segments without the first skipped bytes of the first and the last left bytes of the last, which
 * have so many. */
static bool gather(struct data *data, const struct iovec *segments, uint32_t count, size_t skipped,
                   size_t left, uint32_t alignment)
{
    data->size = data->count = 0;
    for (uint32_t i = 0; i < count; i++) {
        size_t from = i == 0 ? skipped : 0, end = i == count - 1 ? left : 0;
        if (from + end > segments[i].iov_len)
            return false;
        uint8_t *base = (uint8_t *)segments[i].iov_base + from;
        if (!add(data, base, segments[i].iov_len - from - end, alignment))
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

static bool read_all(struct blk_disk *disk, const struct data *data, uint64_t sector)
{
    return preadv(disk->image, data->pieces, data->count, sector * SECTOR) == (ssize_t)data->size;
}

static bool write_all(struct blk_disk *disk, const struct data *data, uint64_t sector)
{
    int flags = __atomic_load_n(&disk->write_flags, __ATOMIC_RELAXED);
    return pwritev2(disk->image, data->pieces, data->count, sector * SECTOR, flags) ==
           (ssize_t)data->size;
}

int64_t blk_carry_out(void *device, const struct ring_chain *chain, const struct iovec *segments)
{
    struct blk_disk *disk = device;
    struct header header;
    if (!chain->readable || segments[0].iov_len < sizeof(header) || !chain->writable)
        return LANE_DECLINE;
    /* The one copy: the guest may write there all the time. */
    memcpy(&header, segments[0].iov_base, sizeof(header));
    __atomic_signal_fence(__ATOMIC_SEQ_CST);

    const struct iovec *answer = segments + chain->readable;
    const struct iovec *last = answer + chain->writable - 1;
    bool reads = header.type == BLK_IN;
    struct data data;
    if (reads) {
        if (!gather(&data, answer, chain->writable, 0, 1, disk->alignment))
            return LANE_DECLINE;
    } else if (header.type != BLK_OUT || disk->readonly || chain->writable_size != 1 ||
               !gather(&data, segments, chain->readable, sizeof(header), 0, disk->alignment)) {
        return LANE_DECLINE;
    }
    if (!in_bounds(disk, header.sector, data.size))
        return LANE_DECLINE;
    PASS(LANE_HANDLE);
    if (!(reads ? read_all : write_all)(disk, &data, header.sector))
        return LANE_DECLINE;
    *(reads ? &disk->reads : &disk->writes) += 1;
    ((uint8_t *)last->iov_base)[last->iov_len - 1] = BLK_OK;
    PASS(LANE_COMPLETE);
    return chain->writable_size;
}
