/* The C beside the KVM API: calls by errno, one vCPU's exits, and the signal of a kick. */
#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Each call returns what ioctl returns, or the negative errno. */
static int kvm_call(int fd, unsigned long request, void *argument)
{
    int result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

static int kvm_call_number(int fd, unsigned long request, unsigned long argument)
{
    int result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

/* A vCPU's loop, from Python's side: one access of the guest at a time, in the same few words
   whatever made it, so that an exit costs Python one call and three loads. */
struct vcpu {
    uint64_t address, value; /* port or guest physical address; what is written, or the answer */
    uint32_t size;           /* bytes */
    int fd;
    uint64_t run_returns;
    struct kvm_run *run;
    size_t run_size;
    void *answer;            /* where the kernel expects the answer to a read, or NULL */
};

/* Above all of KVM's exit reasons, which are returned as they are. */
enum { PORT_READ = 1 << 16, PORT_WRITE, PORT_STRING, MMIO_READ, MMIO_WRITE };

/* Maps the communication page. 0, or the errno. */
static int vcpu_map(struct vcpu *vcpu)
{
    void *page = mmap(NULL, vcpu->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (page == MAP_FAILED)
        return errno;
    vcpu->run = page;
    return 0;
}

static void vcpu_unmap(struct vcpu *vcpu)
{
    munmap(vcpu->run, vcpu->run_size);
    vcpu->run = NULL;
}

/* Takes an access apart: data lies at `data`, `size` bytes (at most 8) of it. */
static int vcpu_access(struct vcpu *vcpu, uint64_t address, uint32_t size, void *data, int write)
{
    vcpu->address = address;
    vcpu->size = size;
    vcpu->value = 0;
    if (write)
        memcpy(&vcpu->value, data, size);
    else
        vcpu->answer = data;
    return write;
}

/* Hands over the answer to a read, runs the guest until it needs user space, and says why it
   came: one of the five above, another KVM_EXIT reason, or a negative errno. The caller is the
   only one that runs this vCPU, and keeps it mapped. */
static int vcpu_next_exit(struct vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    int result;

    if (vcpu->answer) {
        memcpy(vcpu->answer, &vcpu->value, vcpu->size);
        vcpu->answer = NULL;
    }
    result = ioctl(vcpu->fd, KVM_RUN, 0);
    vcpu->run_returns++;
    if (result < 0)
        return -errno;
    if (run->exit_reason == KVM_EXIT_MMIO)
        return MMIO_READ + vcpu_access(vcpu, run->mmio.phys_addr, run->mmio.len,
                                       run->mmio.data, run->mmio.is_write);
    if (run->exit_reason == KVM_EXIT_IO && run->io.count == 1)
        return PORT_READ + vcpu_access(vcpu, run->io.port, run->io.size,
                                       (char *)run + run->io.data_offset,
                                       run->io.direction == KVM_EXIT_IO_OUT);
    return run->exit_reason == KVM_EXIT_IO ? PORT_STRING : (int)run->exit_reason;
}

/* The first real-time signal that the C library leaves free: no default user, and Python's own
   handlers and wake-up descriptor never see it, because the handler below is set in C. */
static int kick_signal(void)
{
    return SIGRTMIN;
}

static void do_nothing(int signal)
{
    (void)signal;
}

/* Makes the signal interrupt KVM_RUN on the calling thread, and harmless to all else: with
   SA_RESTART other system calls go on. Idempotent. 0, or the errno. */
static int kick_prepare(void)
{
    struct sigaction action = {.sa_handler = do_nothing, .sa_flags = SA_RESTART};
    sigset_t set;

    sigemptyset(&action.sa_mask);
    if (sigaction(SIGRTMIN, &action, NULL) < 0)
        return errno;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    return pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

/* tgkill and not pthread_kill: a thread that has just ended is an error here, not undefined. */
static void kick_thread(int process, int thread)
{
    syscall(SYS_tgkill, process, thread, SIGRTMIN);
}
