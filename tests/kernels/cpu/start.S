// Where the processor's guests begin, and the ways into their handlers and out again. Entered in
// 64-bit mode, memory mapped to itself, at any address below 2 MiB.

        .section .text.start, "ax"
        .globl  _start
_start: lea     stack_end(%rip), %rsp
        call    set_up_tables
        call    main
        call    power_off

// The entries of the interrupt table, 16 bytes each. Every frame gets an error code, 0 where the
// processor pushes none, and the vector; then the registers, as struct frame in cpu.h has them.
        .text
        .globl  entries
        .balign 16
entries:
        .set    number, 0
        .rept   64                      // VECTORS in cpu.h
        // 8, 10 to 14 and 17 (Intel SDM, volume 3A, table 6-1); the 32-bit mask names them.
        .if     number > 31 || ((0x27D00 >> number) & 1) == 0
        push    $0
        .endif
        push    $number
        jmp     common
        .balign 16
        .set    number, number + 1
        .endr

common: push    %rax
        push    %rcx
        push    %rdx
        push    %rbx
        push    %rbp
        push    %rsi
        push    %rdi
        push    %r8
        push    %r9
        push    %r10
        push    %r11
        push    %r12
        push    %r13
        push    %r14
        push    %r15
        cld
        mov     %rsp, %rdi
        // The processor aligned the stack to 16, and 22 words are on it since.
        call    handle
        pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rdi
        pop     %rsi
        pop     %rbp
        pop     %rbx
        pop     %rdx
        pop     %rcx
        pop     %rax
        add     $16, %rsp
        iretq

// uint64_t enter_user(void *code, void *stack): runs code in ring 3 until it leaves by
// leave_user(), whose argument it returns.
        .globl  enter_user
enter_user:
        push    %rbx
        push    %rbp
        push    %r12
        push    %r13
        push    %r14
        push    %r15
        mov     %rsp, kernel_stack(%rip)
        push    $0x2B                   // USER_DATA in cpu.h
        push    %rsi
        push    $0x2                    // RFLAGS: the bit that is always set
        push    $0x33                   // USER_CODE
        push    %rdi
        iretq

        .globl  leave_user
leave_user:
        mov     kernel_stack(%rip), %rsp
        mov     %rdi, %rax
        pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %rbp
        pop     %rbx
        ret

// Where SYSCALL arrives: returns what it found of RCX and R11, and the stack's selector.
        .globl  syscall_entry
syscall_entry:
        mov     %rcx, syscall_rcx(%rip)
        mov     %r11, syscall_r11(%rip)
        mov     %cs, %eax
        mov     %eax, syscall_cs(%rip)
        mov     %ss, %eax
        mov     %eax, syscall_ss(%rip)
        pushfq
        pop     syscall_flags(%rip)
        sysretq

        .bss
        .balign 16
        .globl  stacks, syscall_rcx, syscall_r11, syscall_flags, syscall_cs, syscall_ss
        .skip   16384
stack_end:
stacks: .skip   4 * 4096                // STACKS of STACK_SIZE in cpu.h
kernel_stack:   .skip 8
syscall_rcx:    .skip 8
syscall_r11:    .skip 8
syscall_flags:  .skip 8
syscall_cs:     .skip 4
syscall_ss:     .skip 4
