/* The contract is in tap.h; the kernel's is in its Documentation/networking/tuntap.rst. */

#define _GNU_SOURCE
#include "tap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static bool name_it(struct ifreq *request, const char *name)
{
    size_t size = strlen(name);
    if (size >= sizeof(request->ifr_name))
        return false;
    memcpy(request->ifr_name, name, size + 1);
    return true;
}

static int failed(int fd)
{
    int error = errno;
    close(fd);
    return -error;
}

int tap_open(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    int header = sizeof(struct virtio_net_hdr_v1);
    if (!name_it(&request, name))
        return -ENAMETOOLONG;
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    /* Without offloads until a driver agrees to some, whoever had it before. */
    if (ioctl(fd, TUNSETIFF, &request) || ioctl(fd, TUNSETVNETHDRSZ, &header) ||
        ioctl(fd, TUNSETOFFLOAD, 0))
        return failed(fd);
    return fd;
}

int tap_up(const char *name, int mtu)
{
    struct ifreq request = {.ifr_mtu = mtu};
    if (!name_it(&request, name))
        return -ENAMETOOLONG;
    int any = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (any < 0)
        return -errno;
    if ((mtu && ioctl(any, SIOCSIFMTU, &request)) || ioctl(any, SIOCGIFFLAGS, &request))
        return failed(any);
    request.ifr_flags |= IFF_UP;
    if (ioctl(any, SIOCSIFFLAGS, &request))
        return failed(any);
    close(any);
    return 0;
}
