// Asks the first device of kind 65535 (no driver of anybody's binds to that) the same thing for ever,
// and says each answer that is another than the last. Powers off after the answer "bye".
#include "demo/virtio.h"

static char question[] = "hello", answer[64], last[64];

// Whether the answer is other than the last, which it is from now on.
static bool is_new(void)
{
        bool differs = false;
        for (unsigned i = 0; i < sizeof answer; i++) {
                differs |= answer[i] != last[i];
                last[i] = answer[i];
        }
        return differs;
}

void main(void)
{
        static struct device device;
        unsigned slot = 0, asked = 0;
        while (slot < SLOTS && !(probe(&device, slot) && device.id == 0xFFFF))
                slot++;
        if (slot == SLOTS)
                fail("there is no device to ask");
        start(&device, 0, 1, true);
        do {
                struct buffer chain[] = { { question, sizeof question - 1, false },
                                          { answer, sizeof answer - 1, true } };
                submit(&device, 0, chain, 2);
                uint32_t count = complete(&device, 0);
                if (count >= sizeof answer)
                        fail("an answer of %u bytes", count);
                for (unsigned i = count; i < sizeof answer; i++)
                        answer[i] = 0;
                asked++;
                if (is_new())
                        say("guest: %s", answer);
        } while (answer[0] != 'b' || answer[1] != 'y' || answer[2] != 'e');
        say("guest: %u questions, as many answers", asked);
        power_off();
}
