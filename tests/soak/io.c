// Disk load for a Linux guest, linked statically so that it runs from an initramfs.
//
//      io stalls DEVICE            reads 4 KiB, over and over; prints "stall MICROSECONDS" for
//                                  each read that took longer than 5 ms; ends never
//      io verify DEVICE OFFSET STOP  from OFFSET on, a MiB: writes numbered, checksummed blocks
//                                  at random places and reads others back, until the file STOP
//                                  is there; prints "verified REQUESTS wrong WRONG errors ERRORS"
//
// All of it with O_DIRECT: each request goes to the device.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, BLOCKS = 256, WORDS = BLOCK / 8 };
static const int64_t STALL = 5000; // arbitrary: some hundred times what a read takes

static uint64_t block[WORDS] __attribute__((aligned(BLOCK)));

static int64_t microseconds(void)
{
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * 1000000ll + now.tv_nsec / 1000;
}

// xorshift64: Marsaglia, "Xorshift RNGs", 2003.
static uint64_t next(uint64_t *state)
{
        *state ^= *state << 13;
        *state ^= *state >> 7;
        return *state ^= *state << 17;
}

// Every word of a block tells where it belongs, and which write of that place it is of.
static void fill(unsigned place, uint64_t generation, uint64_t first)
{
        uint64_t state = (first + place) << 24 ^ generation ^ 0x9e3779b97f4a7c15;
        for (unsigned word = 0; word < WORDS; word++)
                block[word] = next(&state);
}

// Reads a place; whether what is there is other than was written last.
static int differs(int file, unsigned place, uint64_t generation, uint64_t first, unsigned *errors)
{
        static uint64_t wanted[WORDS];
        fill(place, generation, first);
        memcpy(wanted, block, BLOCK);
        *errors += pread(file, block, BLOCK, (off_t)(first + place * BLOCK)) != BLOCK;
        return memcmp(block, wanted, BLOCK) != 0;
}

static _Noreturn void stalls(int file)
{
        int64_t before = microseconds();
        for (unsigned place = 0;; place = (place + 1) % BLOCKS) {
                if (pread(file, block, BLOCK, (off_t)place * BLOCK) != BLOCK)
                        printf("error\n");
                int64_t now = microseconds();
                if (now - before > STALL)
                        printf("stall %lld\n", (long long)(now - before));
                before = now;
        }
}

static int verify(int file, uint64_t offset, const char *stop)
{
        uint64_t generations[BLOCKS] = { 0 }, requests = 0, state = offset | 1;
        unsigned wrong = 0, errors = 0;
        for (unsigned place = 0; place < BLOCKS; place++) {
                fill(place, generations[place] = 1, offset);
                errors += pwrite(file, block, BLOCK, offset + place * BLOCK) != BLOCK;
        }
        while (access(stop, F_OK) != 0) {
                unsigned place = next(&state) % BLOCKS;
                if (next(&state) % 2) {
                        fill(place, ++generations[place], offset);
                        errors += pwrite(file, block, BLOCK, offset + place * BLOCK) != BLOCK;
                } else {
                        wrong += differs(file, place, generations[place], offset, &errors);
                }
                requests++;
        }
        for (unsigned place = 0; place < BLOCKS; place++)
                wrong += differs(file, place, generations[place], offset, &errors);
        printf("verified %llu wrong %u errors %u\n", (unsigned long long)requests, wrong, errors);
        return wrong || errors;
}

int main(int count, char **words)
{
        setvbuf(stdout, NULL, _IOLBF, 0);
        int file = count > 2 ? open(words[2], O_RDWR | O_DIRECT) : -1;
        if (file < 0) {
                perror("io");
                return 2;
        }
        if (count == 3 && strcmp(words[1], "stalls") == 0)
                stalls(file);
        if (count == 5 && strcmp(words[1], "verify") == 0)
                return verify(file, strtoull(words[3], NULL, 0), words[4]);
        return 2;
}
