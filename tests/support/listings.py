"""The smallest guests, as listings for tests.support.bare.assembled.

They are flat 64-bit code, entered at 1 MiB; most print a byte so that a test sees how far
they have come, and all but the one that panics power off.
"""

POWER_OFF = """
    66 ba 04 06  # mov dx, 0x604     PM1_CNT
    66 b8 00 34  # mov ax, 0x3400    sleep type 5, sleep enable
    66 ef        # out dx, ax
    eb fe        # jmp .
"""
PANIC = """
    66 ba 05 05  # mov dx, 0x505
    b0 01        # mov al, 1
    ee           # out dx, al
    eb fe        # jmp .
"""
# A prompt, then what is typed, up to a "q".
ECHO = (
    """
    66 ba f8 03  # mov dx, 0x3f8
    b0 3e        # mov al, '>'
    ee           # out dx, al        <-----+
    b2 fd        # mov dl, 0xfd            |
    ec           # in al, dx         <--+  |
    a8 01        # test al, 1           |  |   received data?
    74 fb        # jz ------------------+  |
    b2 f8        # mov dl, 0xf8            |
    ec           # in al, dx               |
    3c 71        # cmp al, 'q'             |
    75 f1        # jne --------------------+
"""
    + POWER_OFF
)
UNTIL_THE_POWER_BUTTON = (
    """
    66 ba f8 03  # mov dx, 0x3f8
    b0 3e        # mov al, '>'
    ee           # out dx, al
    66 ba 00 06  # mov dx, 0x600     PM1_STS
    66 ed        # in ax, dx         <--+
    f6 c4 01     # test ah, 1           |  PWRBTN_STS
    74 f9        # jz ------------------+
"""
    + POWER_OFF
)
# The other processors start at 0x8000, at the far end of a stack that nobody uses, and count
# themselves at 0x8ff0. The trampoline is behind POWER_OFF, and is copied with what follows it.
WAKE_SEVEN = (
    """
    48 8d 35 45 00 00 00           # lea rsi, [rip + 0x45]
    bf 00 80 00 00                 # mov edi, 0x8000
    b9 40 00 00 00                 # mov ecx, 64
    f3 a4                          # rep movsb
    bf 00 00 e0 fe                 # mov edi, 0xfee00000
    c7 87 f0 00 00 00 ff 01 00 00  # mov dword [rdi + 0xf0], 0x1ff      local APIC on
    c7 87 00 03 00 00 00 45 0c 00  # mov dword [rdi + 0x300], 0xc4500   INIT to all others
    c7 87 00 03 00 00 08 46 0c 00  # mov dword [rdi + 0x300], 0xc4608   SIPI: begin at 0x8000
    80 3c 25 f0 8f 00 00 07        # cmp byte [0x8ff0], 7   <--+
    75 f6                          # jne ----------------------+
"""
    + POWER_OFF
    # Real mode.
    + """
    66 b8 01 00 00 00  # mov eax, 1
    0f a2              # cpuid
    66 c1 eb 18        # shr ebx, 24         APIC id
    88 d8              # mov al, bl
    04 30              # add al, '0'
    ba f8 03           # mov dx, 0x3f8
    ee                 # out dx, al
    f0 fe 06 f0 8f     # lock inc byte [0x8ff0]
    f4                 # hlt
    eb fd              # jmp back to hlt
"""
)
# Starts the device in slot 3, and breaks its queue: 0x7fff buffers in a ring of 8. Then waits for
# DEVICE_NEEDS_RESET in Status and for GSI 10 in the request register of the second 8259 (what
# port 0xa0 reads until somebody wants another), and prints InterruptStatus.
BREAK_THE_RING = (
    """
    bf 00 30 a0 00                 # mov edi, 0xa03000
    c7 47 70 03 00 00 00           # mov dword [rdi + 0x70], 3         ACKNOWLEDGE, DRIVER
    c7 47 24 01 00 00 00           # mov dword [rdi + 0x24], 1         features 32 to 63:
    c7 47 20 01 00 00 00           # mov dword [rdi + 0x20], 1         VERSION_1
    c7 47 70 0b 00 00 00           # mov dword [rdi + 0x70], 0xb       FEATURES_OK
    c7 47 38 08 00 00 00           # mov dword [rdi + 0x38], 8         QueueSize
    c7 87 80 00 00 00 00 00 20 00  # mov dword [rdi + 0x80], 0x200000  QueueDescLow
    c7 87 90 00 00 00 00 10 20 00  # mov dword [rdi + 0x90], 0x201000  QueueDriverLow
    c7 87 a0 00 00 00 00 20 20 00  # mov dword [rdi + 0xa0], 0x202000  QueueDeviceLow
    c7 47 44 01 00 00 00           # mov dword [rdi + 0x44], 1         QueueReady
    c7 47 70 0f 00 00 00           # mov dword [rdi + 0x70], 0xf       DRIVER_OK
    66 c7 04 25 02 10 20 00 ff 7f  # mov word [0x201002], 0x7fff       avail.idx
    c7 47 50 00 00 00 00           # mov dword [rdi + 0x50], 0         QueueNotify
    f6 47 70 40                    # test byte [rdi + 0x70], 0x40      <--+
    74 fa                          # jz ----------------------------------+
    66 ba f8 03                    # mov dx, 0x3f8
    b0 52                          # mov al, 'R'
    ee                             # out dx, al
    e4 a0                          # in al, 0xa0     <--+
    a8 04                          # test al, 1 << 2    |
    74 fa                          # jz ----------------+
    8a 47 60                       # mov al, [rdi + 0x60]              InterruptStatus
    04 30                          # add al, '0'
    ee                             # out dx, al
"""
    + POWER_OFF
)
