"""Builds ``vmm.hypervisor.kvm._kvm``: the KVM API as the host's own header declares it.

Structures are partial (``...;``) and numbers are left to the compiler, so that layouts and
ioctl numbers come from ``<linux/kvm.h>`` and are not copied here.
"""

from pathlib import Path

from cffi import FFI

ffi = FFI()

_NUMBERS = """
    KVM_API_VERSION
    KVM_GET_API_VERSION KVM_CREATE_VM KVM_CHECK_EXTENSION KVM_GET_VCPU_MMAP_SIZE
    KVM_GET_SUPPORTED_CPUID KVM_GET_MSR_INDEX_LIST
    KVM_CREATE_VCPU KVM_SET_USER_MEMORY_REGION KVM_SET_TSS_ADDR KVM_SET_IDENTITY_MAP_ADDR
    KVM_CREATE_IRQCHIP KVM_CREATE_PIT2 KVM_IRQ_LINE KVM_IRQFD KVM_IOEVENTFD
    KVM_RUN KVM_GET_REGS KVM_SET_REGS KVM_GET_SREGS KVM_SET_SREGS KVM_SET_CPUID2
    KVM_GET_MSRS KVM_SET_MSRS KVM_GET_LAPIC KVM_SET_LAPIC KVM_TRANSLATE

    KVM_CAP_USER_MEMORY KVM_CAP_DESTROY_MEMORY_REGION_WORKS KVM_CAP_EXT_CPUID
    KVM_CAP_SET_TSS_ADDR KVM_CAP_SET_IDENTITY_MAP_ADDR KVM_CAP_IMMEDIATE_EXIT
    KVM_CAP_IRQCHIP KVM_CAP_PIT2 KVM_CAP_TSC_DEADLINE_TIMER KVM_CAP_IOEVENTFD
    KVM_CAP_IOEVENTFD_ANY_LENGTH KVM_CAP_IRQFD KVM_CAP_IRQFD_RESAMPLE KVM_CAP_READONLY_MEM
    KVM_CAP_MAX_VCPUS

    KVM_EXIT_UNKNOWN KVM_EXIT_IO KVM_EXIT_HLT KVM_EXIT_MMIO KVM_EXIT_IRQ_WINDOW_OPEN
    KVM_EXIT_SHUTDOWN KVM_EXIT_FAIL_ENTRY KVM_EXIT_INTR KVM_EXIT_SET_TPR
    KVM_EXIT_INTERNAL_ERROR KVM_EXIT_SYSTEM_EVENT
    KVM_EXIT_IO_IN KVM_EXIT_IO_OUT
    KVM_SYSTEM_EVENT_SHUTDOWN KVM_SYSTEM_EVENT_RESET KVM_SYSTEM_EVENT_CRASH
    KVM_INTERNAL_ERROR_EMULATION KVM_INTERNAL_ERROR_SIMUL_EX KVM_INTERNAL_ERROR_DELIVERY_EV
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES

    KVM_MEM_READONLY KVM_PIT_SPEAKER_DUMMY KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    KVM_IOEVENTFD_FLAG_DATAMATCH KVM_IOEVENTFD_FLAG_PIO KVM_IOEVENTFD_FLAG_DEASSIGN
    KVM_IRQFD_FLAG_DEASSIGN KVM_IRQFD_FLAG_RESAMPLE
"""

# Some of them are enum constants and some are macros; this form takes both.
ffi.cdef("".join(f"static const unsigned long long {name};\n" for name in _NUMBERS.split()))

ffi.cdef("""
struct kvm_run {
    uint8_t immediate_exit;
    uint32_t exit_reason;
    union {
        struct {
            uint64_t hardware_entry_failure_reason;
            uint32_t cpu;
        } fail_entry;
        struct {
            uint8_t direction;
            uint8_t size;
            uint16_t port;
            uint32_t count;
            uint64_t data_offset;
        } io;
        struct {
            uint64_t phys_addr;
            uint8_t data[8];
            uint32_t len;
            uint8_t is_write;
        } mmio;
        struct {
            uint32_t suberror;
            uint32_t ndata;
            uint64_t data[16];
        } internal;
        struct {
            uint32_t type;
            uint32_t ndata;
            uint64_t data[16];
        } system_event;
    };
    ...;
};

struct kvm_regs {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags;
    ...;
};
struct kvm_segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint8_t type, present, dpl, db, s, l, g, avl, unusable;
    ...;
};
struct kvm_dtable { uint64_t base; uint16_t limit; ...; };
struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss, tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
    ...;
};
struct kvm_translation { uint64_t linear_address, physical_address; uint8_t valid; ...; };
struct kvm_lapic_state { char regs[...]; ...; };

struct kvm_userspace_memory_region {
    uint32_t slot, flags;
    uint64_t guest_phys_addr, memory_size, userspace_addr;
    ...;
};
struct kvm_ioeventfd { uint64_t datamatch, addr; uint32_t len; int32_t fd; uint32_t flags; ...; };
struct kvm_irqfd { uint32_t fd, gsi, flags, resamplefd; ...; };
struct kvm_irq_level { uint32_t irq, level; ...; };
struct kvm_pit_config { uint32_t flags; ...; };

struct kvm_cpuid_entry2 { uint32_t function, index, flags, eax, ebx, ecx, edx; ...; };
struct kvm_cpuid2 { uint32_t nent; struct kvm_cpuid_entry2 entries[]; ...; };
struct kvm_msr_entry { uint32_t index; uint64_t data; ...; };
struct kvm_msrs { uint32_t nmsrs; struct kvm_msr_entry entries[]; ...; };
struct kvm_msr_list { uint32_t nmsrs; uint32_t indices[]; ...; };

int kvm_call(int fd, unsigned long request, void *argument);
int kvm_call_number(int fd, unsigned long request, unsigned long argument);

struct vcpu {
    uint64_t address, value;
    uint32_t size;
    int fd;
    uint64_t run_returns;
    struct kvm_run *run;
    size_t run_size;
    ...;
};
enum { PORT_READ, PORT_WRITE, PORT_STRING, MMIO_READ, MMIO_WRITE, ... };
int vcpu_map(struct vcpu *vcpu);
void vcpu_unmap(struct vcpu *vcpu);
int vcpu_next_exit(struct vcpu *vcpu);

int kick_signal(void);
int kick_prepare(void);
void kick_thread(int process, int thread);
""")

ffi.set_source("vmm.hypervisor.kvm._kvm", (Path(__file__).parent / "kvm.c").read_text())
