#include "attack.h"

// Patched by whoever loads the image; see README.md.
extern const volatile struct {
        char magic[4];
        uint32_t patience;  // for the chain of one device, in cycles of 2^30
        uint32_t secret[3]; // of the canary
} parameters;

enum { PAGE = 4096, ANSWER = PAGE };

uint8_t *const canary = (uint8_t *)0x2000000; // 64 MiB of memory: behind all else
static uint8_t *const answer = (uint8_t *)0x2100000;

static struct device victim, changing, disk, attackers[SLOTS];
unsigned asked;

// Byte by byte: so there is no second page that looks like it, neither here nor in the image.
static uint8_t canary_byte(unsigned i)
{
        static const char name[] = "VIBE-CANARY-", end[] = "PAGE";
        if (i < 12)
                return name[i];
        if (i < 16)
                return end[i - 12];
        return i < 28 ? ((const volatile uint8_t *)parameters.secret)[i - 16] : 0xCA;
}

bool is_canary_intact(void)
{
        bool intact = true;
        for (unsigned i = 0; i < PAGE; i++) {
                intact &= *(volatile uint8_t *)&canary[i] == canary_byte(i);
                canary[i] = canary_byte(i);
        }
        return intact;
}

void ask_victim(void)
{
        static uint64_t entropy[2];
        struct buffer chain[] = { { entropy, sizeof entropy, true } };
        submit(&victim, REQUESTQ, chain, 1);
        if (complete(&victim, REQUESTQ) != sizeof entropy)
                fail("the victim gives other than was asked");
        asked++;
}

const char endings[][12] = { "answered", "reset", "none" };

enum ending await(struct device *device, uint16_t idx, uint64_t cycles)
{
        uint64_t begin = now();
        do {
                ask_victim();
                if (device->queues[REQUESTQ].used.idx != idx)
                        return ANSWERED;
                if (device->registers[STATUS] & NEEDS_RESET)
                        return RESET_WANTED;
        } while (now() - begin < cycles);
        return NO_ANSWER;
}

void begin(struct device *device, uint64_t features)
{
        device->registers[STATUS] = 0;
        fill_bytes((char *)device->queues, sizeof device->queues, 0);
        start(device, features, 1, false);
}

// Whether a completion is what no device may write: the ring, then its element, is read once.
static const char *lie(struct device *device, uint16_t idx, uint32_t most)
{
        volatile struct virtq_used *used = &device->queues[REQUESTQ].used;
        if (used->idx != (uint16_t)(idx + 1))
                return "index";
        if (used->ring[idx % QUEUE_SIZE].id != 0)
                return "element";
        return used->ring[idx % QUEUE_SIZE].len > most ? "length" : "no";
}

// Whether a buffer that was given back changes, while the victim is asked for that many cycles.
static bool is_written_late(uint64_t cycles)
{
        uint64_t begin = now();
        static uint8_t before[ANSWER];
        for (unsigned i = 0; i < ANSWER; i++)
                before[i] = answer[i];
        do {
                ask_victim();
                if (!are_same((char *)before, (char *)answer, ANSWER))
                        return true;
        } while (now() - begin < cycles);
        return false;
}

static void suffer(struct device *attacker)
{
        fill_bytes((char *)answer, ANSWER, 0);
        begin(attacker, 0);
        attacker->registers[CONFIG] = 1;
        struct buffer chain[] = { { canary + PAGE, 16, false }, { answer, ANSWER, true } };
        uint16_t idx = attacker->queues[REQUESTQ].used.idx;
        asked = 0;
        submit(attacker, REQUESTQ, chain, 2);
        enum ending ending = await(attacker, idx, (uint64_t)parameters.patience << 30);
        const char *lied = ending == ANSWERED ? lie(attacker, idx, ANSWER) : "no";
        unsigned served = asked;
        // Whoever has written much is watched for long.
        bool much = ending == ANSWERED && attacker->queues[REQUESTQ].used.ring[idx % QUEUE_SIZE].len >= 16;
        bool late = is_written_late(much ? 1ull << 30 : 1 << 24);
        say("attack: slot=%u end=%s lie=%s canary=%s late=%s victim=%u\n", attacker->slot,
            endings[ending], lied, is_canary_intact() ? "intact" : "overwritten",
            late ? "changed" : "still", served);
}

void main(void)
{
        unsigned count = 0;
        for (unsigned slot = 0; slot < SLOTS; slot++) {
                struct device found;
                if (!probe(&found, slot))
                        continue;
                if (found.id == ENTROPY)
                        victim = found;
                else if (found.id == BLOCK)
                        disk = found;
                else if (found.id == NULL_DEVICE)
                        attackers[count++] = found;
        }
        if (!victim.registers)
                fail("there is no victim");
        is_canary_intact(); // from here on
        begin(&victim, 0);
        ask_victim();
        if (disk.registers && count) {
                changing = attackers[0];
                try_hazards(&disk, &changing);
        } else {
                for (unsigned i = 0; i < count; i++)
                        suffer(&attackers[i]);
        }
        ask_victim();
        say("attack: over\n");
        power_off();
}
