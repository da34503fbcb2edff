// Resets the machine through PSCI, twice, then powers off. Each time it prints how often it has
// booted, which it counts in memory, and the status of the device in slot 3; then it tells that
// device that there is a driver.

        .set    STATUS, 0x70            // of virtio-mmio, from the slot's base, 0xA03000
        .set    ACKNOWLEDGE_DRIVER, 3

        .globl  _start
_start: movz    x20, #0x9000, lsl #16   // the console
        movz    x21, #0x00A0, lsl #16   // the slot
        movk    x21, #0x3000
        movz    x22, #0x0100, lsl #16   // the count, at 16 MiB: nobody else's
        ldr     w23, [x22]
        add     w23, w23, #1
        str     w23, [x22]
        add     w0, w23, #'0'
        strb    w0, [x20]
        ldr     w0, [x21, #STATUS]
        add     w0, w0, #'0'
        strb    w0, [x20]
        mov     w0, #ACKNOWLEDGE_DRIVER
        str     w0, [x21, #STATUS]
        movz    x0, #0x8400, lsl #16
        add     x0, x0, #9              // SYSTEM_RESET
        cmp     w23, #3
        b.lo    1f
        sub     x0, x0, #1              // SYSTEM_OFF
1:      hvc     #0
stop:   wfi
        b       stop
