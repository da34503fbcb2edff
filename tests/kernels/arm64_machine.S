// What an arm64 machine does for a kernel, a letter for each thing that worked: exceptions from EL1
// and EL0, the hypervisor's call, the timer and the GIC, the console's interrupt, and power-off.

        .set    SYSTEM_OFF, 0x84000008

        // x20 console, x21 GIC distributor, x22 GIC CPU interface, x25 interrupts so far.

        .macro  print letter
        mov     w0, #\letter
        strb    w0, [x20]
        .endm

        .globl  _start
_start: adr     x0, vectors
        msr     vbar_el1, x0
        movz    x20, #0x9000, lsl #16
        movz    x21, #0x9001, lsl #16
        movz    x22, #0x9002, lsl #16
        isb

        mrs     x0, CurrentEL           // 1
        lsr     x0, x0, #2
        add     w0, w0, #'0'
        strb    w0, [x20]
        fmov    d0, #1.0                // floating point does not trap
        svc     #7                      // S
        .inst   0                       // U
        smc     #0                      // U: there is no EL3
        msr     cptr_el2, xzr           // U: nor an EL2 to play with

        movz    x0, #0x8400, lsl #16    // PSCI_VERSION
        hvc     #0
        cmp     x0, #0x10, lsl #12
        b.ne    stop
        print   'V'

        mov     x0, sp                  // to EL0, and back by an SVC from there
        msr     sp_el0, x0
        msr     spsr_el1, xzr
        adr     x0, user
        msr     elr_el1, x0
        eret
user:   svc     #0                      // s
back:
        mov     w0, #1
        str     w0, [x21]
        str     w0, [x22]
        mov     w0, #0xF0
        str     w0, [x22, #4]
        mov     w0, #-1
        str     w0, [x21, #0x100]
        str     w0, [x21, #0x104]
        msr     daifclr, #2

        mov     x25, #0
        movz    w0, #0x0200, lsl #16    // an SGI to itself
        str     w0, [x21, #0xF00]
1:      cbz     x25, 1b                 // G

        mov     x26, #2000              // the timer, while asleep
        bl      timer
        bl      sleep                   // T
        mov     x26, #2000              // and in a loop without an exit
        bl      timer
3:      cbz     x25, 3b                 // T

        mov     x25, #0
        mov     w0, #8                  // MCR: OUT2
        strb    w0, [x20, #4]
        mov     w0, #1                  // IER: received data
        strb    w0, [x20, #1]
        print   '?'
        bl      sleep                   // what was typed
        print   '\n'
        ldr     w0, =SYSTEM_OFF
        hvc     #0
stop:   wfi
        b       stop

// Until there has been an interrupt. It is looked at with interrupts masked, which WFI does not
// mind, or one between the look and the WFI would be slept through.
sleep:  msr     daifset, #2
        cbnz    x25, 8f
        wfi
        msr     daifclr, #2
        isb
        b       sleep
8:      msr     daifclr, #2
        ret

timer:  mov     x25, #0
        msr     cntp_tval_el0, x26
        mov     x0, #1
        msr     cntp_ctl_el0, x0
        ret

// Letter by exception class; an undefined instruction is skipped.
sync:   mrs     x0, esr_el1
        lsr     x0, x0, #26
        cmp     x0, #0x15
        b.eq    5f
        print   'U'
        mrs     x0, elr_el1
        add     x0, x0, #4
        msr     elr_el1, x0
        eret
5:      print   'S'
        eret

lower:  print   's'
        mov     x0, #0x3C5              // EL1h, all masked
        msr     spsr_el1, x0
        adr     x0, back
        msr     elr_el1, x0
        eret

irq:    ldr     w10, [x22, #0xC]
        mov     x25, #1
        mov     w0, #'G'
        cbz     w10, 7f
        cmp     w10, #30
        b.ne    6f
        msr     cntp_ctl_el0, xzr
        mov     w0, #'T'
        b       7f
6:      ldrb    w0, [x20]
7:      strb    w0, [x20]
        str     w10, [x22, #0x10]
        eret

        .balign 2048
vectors:
        .org    vectors + 0x200
        b       sync
        .org    vectors + 0x280
        b       irq
        .org    vectors + 0x400
        b       lower
        .org    vectors + 0x800
