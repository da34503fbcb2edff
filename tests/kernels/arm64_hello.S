// Hello on the MMIO console: the smallest arm64 guest. Loaded and entered at 0x10000 with the MMU
// off, but position-independent: no literal pool holds an address of its own.

        .set    CONSOLE, 0x90000000     // a byte stored here is printed
        .set    SYSTEM_OFF, 0x84000008  // PSCI's call (Arm DEN 0022, 5.1.9), made by HVC

        .globl  _start
_start: adr     x0, message
        movz    x1, #(CONSOLE >> 16), lsl #16
next:   ldrb    w2, [x0], #1
        cbz     w2, done
        strb    w2, [x1]
        b       next
done:   movz    w0, #(SYSTEM_OFF & 0xFFFF)
        movk    w0, #(SYSTEM_OFF >> 16), lsl #16
        hvc     #0
stop:   wfi
        b       stop

message:
        .asciz  "Hello World\n"
