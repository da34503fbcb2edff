#include "virtio.h"

static const uintptr_t window = 0x00A00000;

// The interrupt lines of the slots, in order: what a PC's own devices leave.
static const uint8_t lines[SLOTS] = { 5, 6, 7, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23 };

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 }; // section 2.1

static const uint64_t version_1 = 1ull << 32; // section 6

bool probe(struct device *device, unsigned slot)
{
        volatile uint32_t *registers = (uint32_t *)(window + slot * SLOT_SIZE);
        if (registers[MAGIC_VALUE] != 0x74726976) // "virt"
                return false;
        if (registers[VERSION] != 2)
                fail("slot %u has version %u", slot, registers[VERSION]);
        *device = (struct device){ .registers = registers, .slot = slot };
        device->id = registers[DEVICE_ID];
        return device->id != 0;
}

static uint64_t read_features(volatile uint32_t *registers)
{
        registers[DEVICE_FEATURES_SEL] = 1;
        uint64_t high = registers[DEVICE_FEATURES];
        registers[DEVICE_FEATURES_SEL] = 0;
        return high << 32 | registers[DEVICE_FEATURES];
}

static void write_features(volatile uint32_t *registers, uint64_t features)
{
        registers[DRIVER_FEATURES_SEL] = 0;
        registers[DRIVER_FEATURES] = features;
        registers[DRIVER_FEATURES_SEL] = 1;
        registers[DRIVER_FEATURES] = features >> 32;
}

static void write_address(volatile uint32_t *low, volatile void *address)
{
        low[0] = (uintptr_t)address;
        low[1] = (uintptr_t)address >> 32;
}

static bool has_queue(struct device *device, unsigned number)
{
        device->registers[QUEUE_SEL] = number;
        return device->registers[QUEUE_NUM_MAX] != 0;
}

static void set_up_queue(struct device *device, unsigned number)
{
        volatile uint32_t *registers = device->registers;
        struct virtqueue *queue = &device->queues[number];
        registers[QUEUE_SEL] = number;
        if (registers[QUEUE_READY] != 0)
                fail("slot %u: queue %u is ready before it is set up", device->slot, number);
        if (registers[QUEUE_NUM_MAX] < QUEUE_SIZE)
                fail("slot %u: queue %u is too small", device->slot, number);
        registers[QUEUE_NUM] = QUEUE_SIZE;
        write_address(&registers[QUEUE_DESC], queue->desc);
        write_address(&registers[QUEUE_DRIVER], &queue->avail);
        write_address(&registers[QUEUE_DEVICE], &queue->used);
        // Whoever looks at the queue wants no interrupt: the flag says so, or, with EVENT_IDX, an
        // event so far ahead that it never comes.
        if (!device->interrupts) {
                queue->avail.flags = 1;
                queue->avail.used_event = -1;
        }
        registers[QUEUE_READY] = 1;
}

void start(struct device *device, uint64_t wanted, unsigned queues, bool interrupts)
{
        volatile uint32_t *registers = device->registers;
        device->interrupts = interrupts;
        if (interrupts)
                take_interrupts_of(device->slot, registers, lines[device->slot]);

        registers[STATUS] = 0;
        while (registers[STATUS] != 0)
                asm volatile("pause");
        registers[STATUS] = ACKNOWLEDGE;
        registers[STATUS] = ACKNOWLEDGE | DRIVER;

        uint64_t offered = read_features(registers);
        if (!(offered & version_1))
                fail("slot %u offers no VERSION_1", device->slot);
        device->features = offered & (wanted | version_1);
        write_features(registers, device->features);
        registers[STATUS] = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        if (!(registers[STATUS] & FEATURES_OK))
                fail("slot %u refuses the features it offered", device->slot);

        device->queue_count = 0;
        while (device->queue_count < queues && has_queue(device, device->queue_count))
                set_up_queue(device, device->queue_count++);
        if (device->queue_count == 0)
                fail("slot %u has no queue", device->slot);
        registers[STATUS] = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
}

// Whether the device has asked to hear that avail.idx moved on to idx, by one (section 2.7.10).
static bool wants_kick(struct device *device, struct virtqueue *queue, uint16_t idx)
{
        if (device->features & EVENT_IDX)
                return queue->used.avail_event == (uint16_t)(idx - 1);
        return !(queue->used.flags & 1);
}

void submit(struct device *device, unsigned number, const struct buffer *chain, unsigned count)
{
        struct virtqueue *queue = &device->queues[number];
        for (unsigned i = 0; i < count; i++) {
                struct virtq_desc *desc = &queue->desc[i];
                desc->addr = (uintptr_t)chain[i].address;
                desc->len = chain[i].size;
                desc->next = i + 1;
                desc->flags = (chain[i].device_writes ? DESC_WRITE : 0) |
                              (i + 1 < count ? DESC_NEXT : 0);
        }
        // The chain always begins at descriptor 0, which every entry of the ring names already.
        uint16_t idx = queue->avail.idx + 1;
        if (device->interrupts)
                queue->avail.used_event = idx - 1;
        compiler_barrier();
        queue->avail.idx = idx;
        full_barrier();
        if (wants_kick(device, queue, idx))
                device->registers[QUEUE_NOTIFY] = number;
}

uint32_t complete(struct device *device, unsigned number)
{
        struct virtqueue *queue = &device->queues[number];
        uint16_t idx = queue->avail.idx;
        while (queue->used.idx != idx) {
                if (device->interrupts)
                        sleep_until_interrupt();
                else
                        asm volatile("pause");
        }
        compiler_barrier();
        uint16_t last = idx - 1; // 16 bits wide: idx wraps around
        if (queue->used.ring[last % QUEUE_SIZE].id != 0)
                fail("slot %u: queue %u completes a chain it never had", device->slot, number);
        return queue->used.ring[last % QUEUE_SIZE].len;
}
