// The machine around the demo guest: ports, memory barriers, words for the terminal.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline void out8(uint16_t port, uint8_t value)
{
        asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out16(uint16_t port, uint16_t value)
{
        asm volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out32(uint16_t port, uint32_t value)
{
        asm volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

// This processor keeps loads in order and stores in order; so must the compiler.
static inline void compiler_barrier(void)
{
        asm volatile("" : : : "memory");
}

// A store, then a load of something else: the one order that x86 itself does not keep. Not MFENCE,
// which KVM's instruction emulator lacks.
static inline void full_barrier(void)
{
        asm volatile("lock addl $0, (%%rsp)" : : : "memory", "cc");
}

// Prints on the serial port; knows %s, %u, %x.
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Says why, reports a panic, and does not return.
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

// Enters S5 and does not return.
void power_off(void) __attribute__((noreturn));

// Resets the machine and does not return.
void reset(void) __attribute__((noreturn));

// From now on takes the interrupts of the device in that slot, which come on that line: each is
// acknowledged at its registers (interrupt.c).
void take_interrupts_of(unsigned slot, volatile uint32_t *registers, unsigned line);

// Sleeps until so many of them have come, and switches that line off, as Linux does where nobody
// cares.
void outlast_storm(unsigned slot, unsigned interrupts);

// From now on interrupts a hundred times a second, if the local APIC's timer has 1 GHz.
void start_ticking(void);

// Sleeps until an interrupt has been taken. Interrupts are off before and after, so that none can
// come between looking for work and falling asleep.
static inline void sleep_until_interrupt(void)
{
        asm volatile("sti; hlt; cli" : : : "memory");
}
