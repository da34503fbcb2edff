/* The file of lane.py without virtio: as many reads as writes of 4 KiB, one after the other. */
#include <stdint.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Nanoseconds for so many requests to buffers in turn; 0 if one failed. */
uint64_t bench_file(int file, uint8_t *buffers, uint32_t count, uint32_t blocks, uint32_t total)
{
    uint64_t random = 1, start = now_ns();
    for (uint32_t i = 0; i < total; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        uint8_t *buffer = buffers + i % count * 4096;
        off_t offset = (off_t)((random >> 33) % blocks) * 4096;
        if ((i % 2 ? pwrite(file, buffer, 4096, offset) : pread(file, buffer, 4096, offset)) != 4096)
            return 0;
    }
    return now_ns() - start;
}
