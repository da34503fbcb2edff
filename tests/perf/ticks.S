// A guest that works while its timer ticks, for tests.perf.software: an ELF file that any VMM with
// PVH starts, in 32-bit mode. It begins at a tick, so that there are some, and says on the serial
// port where each kind of work begins, and the last ends. As under an operating system it executes
// nothing of its data, which therefore begins at 2 MiB (software.py links it so).

        .set    COM1, 0x3F8
        .set    PIC1, 0x20
        .set    PIC2, 0xA0
        .set    BASE, 32                // the vector of line 0
        .set    DIVISOR, 1193182 / 250  // ticks a second as in Debian's kernels (CONFIG_HZ)
        .set    APIC, 0xFEE00000

        // Xen, include/public/elfnote.h: XEN_ELFNOTE_PHYS32_ENTRY
        .section .note.Xen, "a", @note
        .long   4, 4, 18
        .asciz  "Xen"
        .long   pvh

        .text
        .code32
        .globl  pvh
pvh:    mov     $0x83, %eax             // the first 4 GiB, each address at itself, 2 MiB a page
        mov     $directories, %edi
        xor     %ebx, %ebx
next:   mov     %eax, (%edi)
        mov     %ebx, 4(%edi)
        mov     $1 << 31, %ebx          // not to be executed: all but the first
        add     $8, %edi
        add     $1 << 21, %eax
        jnc     next
        mov     $pml4, %eax
        mov     %eax, %cr3
        mov     $1 << 5, %eax           // PAE
        mov     %eax, %cr4
        mov     $0xC0000080, %ecx       // EFER
        rdmsr
        or      $1 << 8 | 1 << 11, %eax // LME, NXE
        wrmsr
        mov     %cr0, %eax
        or      $1 << 31, %eax          // PG
        mov     %eax, %cr0
        lgdt    gdt_register
        ljmp    $8, $long

        .macro  write port, values:vararg
        .irp    value, \values
        mov     $\value, %al
        out     %al, $\port
        .endr
        .endm

        .macro  say letter
        mov     $COM1, %edx
        mov     $\letter, %al
        out     %al, %dx
        .endm

        .code64
long:   mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %ss
        mov     $stack_end, %esp
        mov     $tick, %eax
        mov     %ax, gate
        shr     $16, %eax
        mov     %ax, gate + 6
        lidt    idt_register
        write   PIC1, 0x11              // four words of initialisation (8259A data sheet)
        write   PIC1 + 1, BASE, 1 << 2, 1, 0xFE
        write   PIC2, 0x11
        write   PIC2 + 1, BASE + 8, 2, 1, 0xFF
        mov     $APIC, %ebx
        movl    $0x1FF, 0xF0(%rbx)      // on, and LINT0 takes in what the 8259s say
        movl    $7 << 8, 0x350(%rbx)
        write   0x43, 0x34              // counter 0 of the 8254, again and again
        write   0x40, DIVISOR & 0xFF, DIVISOR >> 8
        sti
wait:   cmpl    $0, ticks
        je      wait

        say     '{'                     // registers: 4 instructions
        mov     $100000000, %ecx
1:      add     %rcx, %rax
        xor     %rax, %rbx
        dec     %ecx
        jnz     1b

        say     '|'                     // memory: 5
        mov     $40000000, %ecx
1:      mov     word, %rax
        add     %rcx, %rax
        mov     %rax, word
        dec     %ecx
        jnz     1b

        say     '}'                     // calls: 4
        mov     $25000000, %ecx
1:      call    nothing
        dec     %ecx
        jnz     1b

        say     '~'
        cli
stop:   hlt
        jmp     stop

nothing:
        ret

tick:   push    %rax
        incl    ticks
        write   PIC1, 0x20              // end of interrupt
        pop     %rax
        iretq

        .data
        .balign 4096
pml4:   .quad   pdpt + 3
        .balign 4096
pdpt:   .quad   directories + 3, directories + 0x1003, directories + 0x2003, directories + 0x3003
        .balign 4096
idt:    .fill   BASE * 16
gate:   .word   0, 8, 0x8E00, 0         // 64-bit interrupt gate, present
        .quad   0
idt_register:
        .word   . - idt - 1
        .quad   idt
gdt:    .quad   0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF
gdt_register:
        .word   . - gdt - 1
        .quad   gdt
        .balign 8
word:   .quad   0
ticks:  .long   0

        .bss
        .balign 4096
directories:
        .skip   4 * 4096
        .skip   4096
stack_end:
