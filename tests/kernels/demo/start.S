// Where the demo guest begins: an entry, a parameter block that its user may patch, and the way
// from an interrupt into C. Entered in 64-bit mode, memory mapped to itself, at any address.

        .section .text.start, "ax"
        .globl  _start, parameters
_start: jmp     begin

// README.md says what the words mean.
        .balign 8
parameters:
        .ascii  "PARM"
        .long   0                       // mode
        .long   1                       // wait
        .long   0                       // count
        .long   0                       // boots

// A reset leaves memory as it was, so .bss is zero the first time only.
begin:  lea     bss_start(%rip), %rdi
        lea     bss_end(%rip), %rcx
        sub     %rdi, %rcx
        xor     %eax, %eax
        rep stosb
        lea     stack_end(%rip), %rsp
        call    main
stop:   hlt
        jmp     stop

// The entries of the interrupt table, 16 bytes each: 32 exceptions, a vector for each of the 15
// slots of devices, the spurious one, the timer's. Only exceptions push an error code, and not all
// of them: of what is found there no one is told but the number.
        .globl  interrupt_entries
        .balign 16
interrupt_entries:
        .set    number, 0
        .rept   32
        mov     $number, %edi
        jmp     exception
        .balign 16
        .set    number, number + 1
        .endr
        .set    number, 0
        .rept   15
        push    $number
        jmp     device_interrupt
        .balign 16
        .set    number, number + 1
        .endr
        iretq
        .balign 16
        push    $0
        jmp     tick

exception:
        cld
        and     $-16, %rsp
        call    report_exception

// Saves what C may change, with the number that was pushed before; the handler returns to the
// guest's one thread, which waits.
        .macro  handle handler
        push    %rax
        push    %rcx
        push    %rdx
        push    %rsi
        push    %rdi
        push    %r8
        push    %r9
        push    %r10
        push    %r11
        cld
        mov     72(%rsp), %edi
        call    \handler
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rdi
        pop     %rsi
        pop     %rdx
        pop     %rcx
        pop     %rax
        add     $8, %rsp
        iretq
        .endm

device_interrupt:
        handle  handle_device_interrupt
tick:   handle  handle_tick

        .bss
        .balign 16
        .skip   16384
stack_end:

// How often it has booted.
        .section .kept, "aw", @nobits
        .globl  boots
        .balign 4
boots:  .skip   4
