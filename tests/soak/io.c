// Load for a Linux guest, linked statically so that it runs from an initramfs.
//
//      io stalls DISK              reads 4 KiB, over and over; ends never
//      io verify DISK STOP OFFSET  from OFFSET on, a MiB: writes numbered, checksummed blocks
//                                  at random places and reads others back
//      io entropy DEVICE STOP      reads 64 bytes, never the same
//      io lines DEVICE STOP        writes numbered lines, and then "the end"
//      io clock                    prints the microseconds of CLOCK_MONOTONIC
//
// All but the first end when the file STOP is there, and print "done REQUESTS wrong WRONG errors
// ERRORS". For each request that took longer than 5 ms they print "stall MICROSECONDS until
// MICROSECONDS": how long, and when it was done, by CLOCK_MONOTONIC. Disks are opened with
// O_DIRECT: each request goes to the device.
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
static int file;
static const char *stop;
static unsigned long requests;
static unsigned wrong, errors;

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

// A request has taken from ``since`` until now.
static void done(int64_t since)
{
        int64_t now = microseconds();
        if (now - since > STALL)
                printf("stall %lld until %lld\n", (long long)(now - since), (long long)now);
        requests++;
}

static void read_place(off_t at)
{
        int64_t since = microseconds();
        errors += pread(file, block, BLOCK, at) != BLOCK;
        done(since);
}

static void write_place(off_t at)
{
        int64_t since = microseconds();
        errors += pwrite(file, block, BLOCK, at) != BLOCK;
        done(since);
}

// Reads a place, and looks whether what is there was written last.
static void check(unsigned place, uint64_t generation, uint64_t first)
{
        static uint64_t wanted[WORDS];
        fill(place, generation, first);
        memcpy(wanted, block, BLOCK);
        read_place(first + place * BLOCK);
        wrong += memcmp(block, wanted, BLOCK) != 0;
}

static int is_over(void)
{
        return access(stop, F_OK) == 0;
}

static _Noreturn void stalls(void)
{
        for (unsigned place = 0;; place = (place + 1) % BLOCKS)
                read_place((off_t)place * BLOCK);
}

static void verify(uint64_t offset)
{
        uint64_t generations[BLOCKS] = { 0 }, state = offset | 1;
        for (unsigned place = 0; place < BLOCKS; place++) {
                fill(place, generations[place] = 1, offset);
                write_place(offset + place * BLOCK);
        }
        while (!is_over()) {
                unsigned place = next(&state) % BLOCKS;
                if (next(&state) % 2) {
                        fill(place, ++generations[place], offset);
                        write_place(offset + place * BLOCK);
                } else {
                        check(place, generations[place], offset);
                }
        }
        for (unsigned place = 0; place < BLOCKS; place++)
                check(place, generations[place], offset);
}

static void entropy(void)
{
        unsigned char this[64], last[64] = { 0 };
        while (!is_over()) {
                int64_t since = microseconds();
                for (size_t got = 0; got < sizeof this;) {
                        ssize_t more = read(file, this + got, sizeof this - got);
                        if (more <= 0) {
                                errors++;
                                return;
                        }
                        got += more;
                }
                done(since);
                wrong += memcmp(this, last, sizeof this) == 0;
                memcpy(last, this, sizeof this);
        }
}

static void say(const char *line)
{
        int64_t since = microseconds();
        errors += write(file, line, strlen(line)) != (ssize_t)strlen(line);
        done(since);
}

static void lines(void)
{
        char line[80];
        while (!is_over()) {
                snprintf(line, sizeof line,
                         "line %lu of the guest, numbered and with nothing left out\n", requests);
                say(line);
        }
        unsigned long said = requests;
        say("the end\n");
        requests = said;
}

int main(int count, char **words)
{
        setvbuf(stdout, NULL, _IOLBF, 0);
        const char *what = count > 1 ? words[1] : "";
        if (count == 2 && strcmp(what, "clock") == 0)
                return printf("%lld\n", (long long)microseconds()) < 0;
        int flags = strcmp(what, "entropy") == 0 ? O_RDONLY
                  : strcmp(what, "lines") == 0   ? O_WRONLY | O_NOCTTY
                                                 : O_RDWR | O_DIRECT;
        file = count > 2 ? open(words[2], flags) : -1;
        if (file < 0) {
                perror("io");
                return 2;
        }
        stop = count > 3 ? words[3] : "";
        if (count == 3 && strcmp(what, "stalls") == 0)
                stalls();
        else if (count == 5 && strcmp(what, "verify") == 0)
                verify(strtoull(words[4], NULL, 0));
        else if (count == 4 && strcmp(what, "entropy") == 0)
                entropy();
        else if (count == 4 && strcmp(what, "lines") == 0)
                lines();
        else
                return 2;
        printf("done %lu wrong %u errors %u\n", requests, wrong, errors);
        return wrong || errors;
}
