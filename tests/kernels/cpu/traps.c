// Traps and software interrupts in ring 0, and the gates that they do not get through.
#include "cpu.h"

void main(void);
void main(void)
{
        say("traps: begin");
        TRY("int3");
        tell("int3");
        TRY("int $0x30");
        tell("int 0x30");
        set_gate(0x31, false, 0, 0);
        TRY("int $0x31");
        tell("gate not present");
        TRY("int $0x80");
        tell("gate out of the table");
        // The trap comes behind the instruction after the one that sets TF; delivery clears it.
        TRY("pushfq; orl $0x100, (%%rsp); popfq; nop");
        tell("single step");
        say("traps: done");
}
