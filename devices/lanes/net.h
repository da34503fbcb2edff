/* The lanes of a network interface: packets from the guest to a descriptor, and from there to it.
 *
 * Each read(2) or write(2) of the descriptor is a packet: of a tap, with the header of virtio
 * before it, or of a Unix socket, without. */
#ifndef VIBE_LANE_NET_H
#define VIBE_LANE_NET_H

#include "lane.h"

/* cdef begin */

/* struct virtio_net_hdr_v1 (virtio 1.2, section 5.1.6), and an Ethernet header: no packet is less. */
#define NET_HEADER 12
#define NET_LEAST 26

/* The header, an Ethernet header with a VLAN tag, and the largest packet of IP. */
#define NET_MOST 65565

/* All zero, then the first part is filled in; that may be done again while the lanes are at rest. */
struct net {
    int packets;       /* the descriptor, which does not block */
    bool has_headers;  /* it is a tap */
    bool merges;       /* a packet may take several of the driver's buffers: MRG_RXBUF */
    bool checksums;    /* one to the driver may lack its checksum: GUEST_CSUM, */
    uint32_t segments; /* its segmentation: GUEST_TSO4 and so on, a bit for each GSO_..., */
    bool congestion;   /* and that with ECN: GUEST_ECN */
    bool down;         /* the link */
    bool lost;         /* packets: a read has failed for good, of which the lane's SPENT tells once */

    uint64_t sent;
    uint64_t received;
    uint64_t refused; /* buffers that are none */
    uint64_t dropped; /* either way: the link is down, nobody takes it, the driver could not */

    uint32_t waiting; /* bytes of packet, which was received and has found no room yet; 0: none is */
    uint8_t packet[NET_MOST + 1]; /* aligned as its header is to be */
    bool has_waited;              /* it has, for buffers */
};

/* A lane_carry_out; net is a struct net. */
int64_t net_send(void *net, const struct ring_chain *chain, const struct iovec *segments);

/* A lane_turn; the lane's device is a struct net. */
int net_receive(struct lane *lane);

/* cdef end */

#endif
