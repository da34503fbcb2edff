/* Taps: Ethernet interfaces of the host whose other end is a descriptor. */
#ifndef VIBE_TAP_H
#define VIBE_TAP_H

/* cdef begin */

/* A descriptor of tap `name`, which does not block, for packets with a header of virtio 1 each. It
 * is made if it is not there, and this process may do that. Or minus an errno. */
int tap_open(const char *name);

/* Have an interface that was made here run, with packets of up to mtu bytes if that is not 0. 0, or
 * minus an errno. */
int tap_up(const char *name, int mtu);

/* The ioctl that says what the packets read from a tap may lack; and what that may be. */
#define TUNSETOFFLOAD ...
#define TUN_F_CSUM ...
#define TUN_F_TSO4 ...
#define TUN_F_TSO6 ...
#define TUN_F_TSO_ECN ...

/* cdef end */

#endif
