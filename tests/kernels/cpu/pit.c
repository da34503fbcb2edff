// The 8254's channel 0, and the pair of 8259s through which it interrupts.
#include "cpu.h"

enum { PIC1 = 0x20, PIC1_DATA = 0x21, PIC2 = 0xA0, PIC2_DATA = 0xA1 };
enum { COUNTER0 = 0x40, CONTROL = 0x43 };
enum { BASE1 = 32, BASE2 = 40, TIMER = BASE1 + 0 };
enum { END_OF_INTERRUPT = 0x20 };

static volatile unsigned ticks;

static void tick(void)
{
        ticks++;
        out8(PIC1, END_OF_INTERRUPT);
}

static uint8_t in8(uint16_t port)
{
        uint8_t value;
        asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
        return value;
}

static void set_up_controllers(void)
{
        // Four words of initialisation (8259A data sheet): edges and a cascade on line 2, then
        // the bases, the cascade, and the 8086's manner.
        out8(PIC1, 0x11);
        out8(PIC2, 0x11);
        out8(PIC1_DATA, BASE1);
        out8(PIC2_DATA, BASE2);
        out8(PIC1_DATA, 1 << 2);
        out8(PIC2_DATA, 2);
        out8(PIC1_DATA, 1);
        out8(PIC2_DATA, 1);
        out8(PIC1_DATA, 0xFE); // all masked but line 0
        out8(PIC2_DATA, 0xFF);
        say("masks: %x %x", in8(PIC1_DATA), in8(PIC2_DATA));
        // Where there is a local APIC, its LINT0 takes them in (SDM, volume 3A, 10.5.1: ExtINT).
        *(volatile uint32_t *)0xFEE000F0 = 1 << 8 | 0xFF;
        *(volatile uint32_t *)0xFEE00350 = 7 << 8;
}

static void start(uint8_t mode, uint16_t count)
{
        out8(CONTROL, 3 << 4 | mode << 1); // counter 0, low byte and then high byte
        out8(COUNTER0, count);
        out8(COUNTER0, count >> 8);
}

static void wait_for(unsigned wanted)
{
        while (ticks < wanted)
                sleep_until_interrupt();
}

void main(void);
void main(void)
{
        say("pit: begin");
        on_interrupt(TIMER, tick);
        set_up_controllers();

        start(2, 1193); // 1.193182 MHz: each millisecond
        wait_for(20);
        say("rate generator: 20 interrupts");

        // One of the old kind may be pending still; of the new kind none comes for 55 ms.
        start(0, 0xFFFF);
        let_interrupts_through();
        ticks = 0;
        start(0, 1193);
        wait_for(1);
        // No second one.
        let_interrupts_through();
        say("terminal count: %u interrupt", ticks);

        // Masked, it stays in the request register until it is let through.
        out8(PIC1_DATA, 0xFF);
        start(0, 1193);
        do
                out8(CONTROL, 0xE2); // read back: the status of counter 0, its output in bit 7
        while (!(in8(COUNTER0) & 0x80));
        let_interrupts_through();
        unsigned before = ticks;
        out8(PIC1, 0x0A); // read the request register
        say("masked: %u, request %x", before, in8(PIC1) & 1);
        out8(PIC1_DATA, 0xFE);
        wait_for(2);
        say("let through: %u", ticks);
        say("pit: done");
}
