// Hello on the serial port: the smallest x86-64 guest. Entered in 64-bit mode, at any address.

        .set    COM1, 0x3F8             // transmit holding register
        .set    PM1A_CONTROL, 0x604     // ACPI's PM1a control register
        .set    POWER_OFF, 0x3400       // SLP_EN (bit 13), SLP_TYP 5 (bits 10 to 12) for S5

        .globl  _start
_start: lea     message(%rip), %rsi
        mov     $COM1, %edx
next:   mov     (%rsi), %al
        test    %al, %al
        jz      done
        out     %al, (%dx)
        inc     %rsi
        jmp     next
done:   mov     $PM1A_CONTROL, %edx
        mov     $POWER_OFF, %eax
        out     %ax, (%dx)
stop:   hlt
        jmp     stop

message:
        .asciz  "Hello World\n"
