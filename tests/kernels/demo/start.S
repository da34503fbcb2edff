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

// The entries of the interrupt table, 16 bytes each: 32 exceptions, then the devices' vector, then
// the spurious one. Only exceptions push an error code, and not all of them: of what is found
// there no one is told but the number.
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
        jmp     device_interrupt
        .balign 16
        iretq

exception:
        cld
        and     $-16, %rsp
        call    report_exception

// Saves what C may change; the handler returns to the guest's one thread, which waits.
device_interrupt:
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
        call    handle_device_interrupt
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rdi
        pop     %rsi
        pop     %rdx
        pop     %rcx
        pop     %rax
        iretq

        .bss
        .balign 16
        .skip   16384
stack_end:

// How often it has booted.
        .section .kept, "aw", @nobits
        .globl  boots
        .balign 4
boots:  .skip   4
