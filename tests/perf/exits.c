/* The bare loop that the Python vCPU loop is measured against: KVM_RUN, look at the reason, again. */
#include <errno.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

/* Takes `exits` exits of kind `reason` on a vCPU that makes no others. Nanoseconds, or -errno, or
   -reason - 1000 for an exit of another kind. */
int64_t take_exits(int vcpu, size_t run_size, uint32_t reason, int64_t exits)
{
    struct kvm_run *run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    struct timespec start, end;
    int64_t failed = 0;

    if (run == MAP_FAILED)
        return -errno;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int64_t taken = 0; taken < exits;) {
        if (ioctl(vcpu, KVM_RUN, 0) < 0) {
            if (errno == EINTR)
                continue;
            failed = -errno;
            break;
        }
        if (run->exit_reason != reason) {
            failed = -1000 - (int64_t)run->exit_reason;
            break;
        }
        taken++;
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    munmap(run, run_size);
    if (failed)
        return failed;
    return (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec;
}
