// Hello on the MMIO console. Entered in 64-bit mode, with 0x9000_0000 mapped, at any address.

        .set    CONSOLE, 0x90000000     // a byte stored here is printed
        .set    PM1A_CONTROL, 0x604     // ACPI's PM1a control register
        .set    POWER_OFF, 0x3400       // SLP_EN (bit 13), SLP_TYP 5 (bits 10 to 12) for S5

        .globl  _start
_start: lea     message(%rip), %rsi
        mov     $CONSOLE, %edi          // zero-extended: a positive 64-bit address
next:   mov     (%rsi), %al
        test    %al, %al
        jz      done
        mov     %al, (%rdi)
        inc     %rsi
        jmp     next
done:   mov     $PM1A_CONTROL, %edx
        mov     $POWER_OFF, %eax
        out     %ax, (%dx)
stop:   hlt
        jmp     stop

message:
        .asciz  "Hello World\n"
