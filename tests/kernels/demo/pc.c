// The serial port, and the ways to end.
#include "pc.h"

#include <stdarg.h>

enum {
        COM1 = 0x3F8,
        PVPANIC = 0x505,
        PVPANIC_PANICKED = 1 << 0,
        PM1A_CONTROL = 0x604,
        SLP_EN = 1 << 13,
        S5 = 5 << 10, // SLP_TYP of \_S5
        ACPI_RESET = 0x608,
        ACPI_RESET_VALUE = 1,
};

// Each character is sent without a look at the line status: in this machine the transmitter is
// always empty.
static void put(char c)
{
        out8(COM1, c);
}

static void put_text(const char *text)
{
        while (*text)
                put(*text++);
}

static void put_number(unsigned long value, unsigned base)
{
        char digits[20];
        int count = 0;
        do {
                digits[count++] = "0123456789abcdef"[value % base];
                value /= base;
        } while (value);
        while (count)
                put(digits[--count]);
}

static void put_formatted(const char *format, va_list values)
{
        for (; *format; format++) {
                if (*format != '%') {
                        put(*format);
                        continue;
                }
                switch (*++format) {
                case 's':
                        put_text(va_arg(values, const char *));
                        break;
                case 'u':
                        put_number(va_arg(values, unsigned), 10);
                        break;
                case 'x':
                        put_number(va_arg(values, unsigned), 16);
                        break;
                }
        }
}

void say(const char *format, ...)
{
        va_list values;
        va_start(values, format);
        put_formatted(format, values);
        va_end(values);
        put('\n');
}

static void stop(void) __attribute__((noreturn));
static void stop(void)
{
        for (;;)
                asm volatile("cli; hlt");
}

void fail(const char *format, ...)
{
        va_list values;
        va_start(values, format);
        put_text("demo: FAILED: ");
        put_formatted(format, values);
        va_end(values);
        put('\n');
        out8(PVPANIC, PVPANIC_PANICKED);
        stop();
}

void reset(void)
{
        out8(ACPI_RESET, ACPI_RESET_VALUE);
        stop();
}

void power_off(void)
{
        out16(PM1A_CONTROL, SLP_EN | S5);
        stop();
}
