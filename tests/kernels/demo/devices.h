// What the demo does with each kind of device.
#pragma once

#include "virtio.h"

// Writes, reads back and compares that many sectors of a disk, at most all it has.
void try_disk(struct device *device, unsigned number, unsigned sectors, bool interrupts);

// Reads sector 0 of a disk that many times, and tells the test port before and after.
void stream_from_disk(struct device *device, unsigned requests, bool interrupts);

// Reads functions from a disk, one a sector, that many times to the same place, and calls each.
void execute_disk(struct device *device, unsigned reads, bool interrupts);

// Takes entropy twice, and wants it to differ.
void try_entropy(struct device *device, unsigned number, bool interrupts);

// Says a line on a console.
void try_console(struct device *device, unsigned number, bool interrupts);

// Returns what is typed on a console, up to and with a 'q'.
void echo_console(struct device *device, bool interrupts);

// Reads the first eight bytes of a device's configuration as the specification says, that many
// times, and tells the test port how many reads were accepted, how many of them torn (their halves
// differ), and how often the value had changed.
void watch_config(struct device *device, unsigned reads);

// The port on which a test listens; elsewhere nobody does.
enum { TEST_PORT = 0xF4 };
