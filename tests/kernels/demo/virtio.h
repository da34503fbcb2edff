// A driver for virtio-mmio devices, version 2 (virtio 1.2, sections 2.7, 3.1 and 4.2).
#pragma once

#include "pc.h"

// Register names and offsets of section 4.2.2, as indices of 32-bit words.
enum {
        MAGIC_VALUE = 0x000 / 4,
        VERSION = 0x004 / 4,
        DEVICE_ID = 0x008 / 4,
        DEVICE_FEATURES = 0x010 / 4,
        DEVICE_FEATURES_SEL = 0x014 / 4,
        DRIVER_FEATURES = 0x020 / 4,
        DRIVER_FEATURES_SEL = 0x024 / 4,
        QUEUE_SEL = 0x030 / 4,
        QUEUE_NUM_MAX = 0x034 / 4,
        QUEUE_NUM = 0x038 / 4,
        QUEUE_READY = 0x044 / 4,
        QUEUE_NOTIFY = 0x050 / 4,
        INTERRUPT_STATUS = 0x060 / 4,
        INTERRUPT_ACK = 0x064 / 4,
        STATUS = 0x070 / 4,
        QUEUE_DESC = 0x080 / 4,   // 64 bits, and so the next two
        QUEUE_DRIVER = 0x090 / 4,
        QUEUE_DEVICE = 0x0a0 / 4,
        CONFIG_GENERATION = 0x0fc / 4,
        CONFIG = 0x100 / 4,
};

enum { NETWORK = 1, BLOCK = 2, CONSOLE = 3, ENTROPY = 4 }; // DeviceID, section 5

// The window of the machine: an empty slot reads as ones.
enum { SLOTS = 15, SLOT_SIZE = 0x1000 };

// The ring features that the driver knows (section 6).
static const uint64_t INDIRECT_DESC = 1ull << 28, EVENT_IDX = 1ull << 29;

// One virtqueue: as submit() and complete() below use it, with at most one chain in it at a time.
enum { QUEUE_SIZE = 64 };

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 }; // section 2.7.5

struct virtq_desc {
        uint64_t addr;
        uint32_t len;
        uint16_t flags, next;
};

struct virtq_avail {
        uint16_t flags, idx, ring[QUEUE_SIZE], used_event;
};

struct virtq_used {
        uint16_t flags, idx;
        struct {
                uint32_t id, len;
        } ring[QUEUE_SIZE];
        uint16_t avail_event;
};

struct virtqueue {
        struct virtq_desc desc[QUEUE_SIZE] __attribute__((aligned(16)));
        volatile struct virtq_avail avail __attribute__((aligned(4)));
        volatile struct virtq_used used __attribute__((aligned(4)));
};

struct device {
        volatile uint32_t *registers;
        unsigned slot, id;
        uint64_t features; // negotiated
        bool interrupts;   // wait by sleeping, not by looking
        unsigned queue_count;
        struct virtqueue queues[2];
};

// A part of a chain: memory that the device reads, or writes.
struct buffer {
        void *address;
        uint32_t size;
        bool device_writes;
};

// Finds what is in a slot; false if nothing is.
bool probe(struct device *device, unsigned slot);

// Resets the device, negotiates those of the wanted features that it offers (with VERSION_1), sets up
// that many queues, or all if it has fewer, and lets it run.
void start(struct device *device, uint64_t wanted, unsigned queues, bool interrupts);

// Gives a chain to the device, and rings if it wants to hear of it.
void submit(struct device *device, unsigned queue, const struct buffer *chain, unsigned count);

// Waits for that chain; the number of bytes that the device wrote.
uint32_t complete(struct device *device, unsigned queue);
