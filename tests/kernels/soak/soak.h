// What the soak guest does with each kind of device: it is told to start, given turns, and told
// to finish. A turn takes what was completed and checks it, gives new requests, and says whether
// there was anything to take.
#pragma once

#include "traffic.h"

enum { SECTOR = 512, SECTORS = 4096 };

extern uint64_t seed;

void start_disk(struct device *device, uint64_t features, bool interrupts);
bool disk_turn(void);
// No more but to read it all; true when that is done.
bool finish_disk(void);
void report_disk(void);
// The sequence numbers of what was last written, by sector; 0: zeros.
extern uint32_t sequences[SECTORS];

void start_entropy(struct device *device, uint64_t features, bool interrupts);
bool entropy_turn(void);
bool finish_entropy(void);
void report_entropy(void);

void start_console(struct device *device, uint64_t features, bool interrupts);
// Nothing is printed before the host has typed something.
bool console_turn(void);
// Whether the host has typed its last line: a full stop.
bool is_told_to_end(void);
// No more lines; true when all are out.
bool finish_console(void);
void report_console(void);
// Prints bytes as they are, behind the last line; in turns, until finish_console() is true again.
void print_raw(const void *bytes, uint32_t size);
