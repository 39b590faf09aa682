/*
 * Ethernet, ARP, IPv4 and ICMP echo.  Replies go to the MAC the request came
 * from, so the guest never needs to resolve an address itself.
 */
#include "probe.h"
#include "wire.h"

enum {
    ETH_HEADER = 14,
    ETH_TYPE_IPV4 = 0x0800,
    ETH_TYPE_ARP = 0x0806,
    ARP_LENGTH = 28,
    ARP_REQUEST = 1,
    ARP_REPLY = 2,
    IP_HEADER = 20,
    IP_FRAGMENT_MASK = 0x3fff,      /* more-fragments flag and offset */
    IP_DONT_FRAGMENT = 0x4000,
    IP_TTL = 64,
    PROTO_ICMP = 1,
    PROTO_TCP = 6,
    PROTO_UDP = 17,
    ICMP_HEADER = 8,
    ICMP_ECHO_REPLY = 0,
    ICMP_ECHO_REQUEST = 8,
    UDP_HEADER = 8,
    DHCP_CLIENT_PORT = 68,
};

static uint32_t address;
static uint8_t *pending;            /* frame being filled, after net_ip_payload */

void net_set_address(uint32_t ip)
{
    address = ip;
}

uint32_t net_address(void)
{
    return address;
}

/*
 * The Internet checksum does not care about byte order (RFC 1071), so it adds
 * native 64-bit words with end-around carry and swaps the result once.
 */
static uint64_t add_carry(uint64_t sum, uint64_t word)
{
    sum += word;
    return sum + (sum < word);
}

static uint64_t sum_bytes(uint64_t sum, const uint8_t *data, size_t len)
{
    uint64_t word;

    for (; len >= 8; data += 8, len -= 8) {
        __builtin_memcpy(&word, data, 8);
        sum = add_carry(sum, word);
    }
    word = 0;
    for (size_t i = 0; i < len; i++)
        word |= (uint64_t)data[i] << 8 * i;
    return add_carry(sum, word);
}

static uint16_t fold(uint64_t sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return __builtin_bswap16((uint16_t)~sum);
}

uint16_t net_transport_checksum(uint32_t from, uint32_t to, uint8_t protocol,
                                const uint8_t *data, size_t len)
{
    uint64_t pseudo = (uint64_t)__builtin_bswap32(from) + __builtin_bswap32(to) +
                      __builtin_bswap32((uint32_t)len | (uint32_t)protocol << 16);
    return fold(sum_bytes(pseudo, data, len));
}

static void put_ethernet(uint8_t *frame, const uint8_t *to, uint16_t type)
{
    memcpy(frame, to, 6);
    memcpy(frame + 6, virtio_mac(), 6);
    put16(frame + 12, type);
}

uint8_t *net_ip_payload(void)
{
    pending = virtio_tx_buffer();
    return pending ? pending + ETH_HEADER + IP_HEADER : NULL;
}

void net_ip_send(const struct peer *to, uint32_t source, uint8_t protocol, size_t len)
{
    static uint16_t identification;
    uint8_t *ip = pending + ETH_HEADER;

    if (!pending || len > IP_PAYLOAD_MAX)
        return;
    put_ethernet(pending, to->mac, ETH_TYPE_IPV4);
    ip[0] = 0x45;                   /* version 4, 5 words */
    ip[1] = 0;
    put16(ip + 2, (uint16_t)(IP_HEADER + len));
    put16(ip + 4, identification++);
    put16(ip + 6, IP_DONT_FRAGMENT);
    ip[8] = IP_TTL;
    ip[9] = protocol;
    put16(ip + 10, 0);
    put32(ip + 12, source);
    put32(ip + 16, to->ip);
    put16(ip + 10, fold(sum_bytes(0, ip, IP_HEADER)));
    virtio_tx(ETH_HEADER + IP_HEADER + len);
    pending = NULL;
}

void net_arp_ask(uint32_t ip)
{
    static const uint8_t everybody[6] = { 255, 255, 255, 255, 255, 255 };
    uint8_t *frame = virtio_tx_buffer();

    if (!frame)
        return;
    uint8_t *arp = frame + ETH_HEADER;
    put_ethernet(frame, everybody, ETH_TYPE_ARP);
    put16(arp, 1);
    put16(arp + 2, ETH_TYPE_IPV4);
    arp[4] = 6;
    arp[5] = 4;
    put16(arp + 6, ARP_REQUEST);
    memcpy(arp + 8, virtio_mac(), 6);
    put32(arp + 14, address);
    memset(arp + 18, 0, 6);
    put32(arp + 24, ip);
    virtio_tx(ETH_HEADER + ARP_LENGTH);
}

static void arp_input(const uint8_t *arp, size_t len)
{
    if (len < ARP_LENGTH || get16(arp) != 1 || get16(arp + 2) != ETH_TYPE_IPV4 ||
        arp[4] != 6 || arp[5] != 4)
        return;
    if (get16(arp + 6) == ARP_REPLY)
        reach_neighbour(get32(arp + 14), arp + 8);
    if (get16(arp + 6) != ARP_REQUEST)
        return;
    if (config.no_arp || !address || get32(arp + 24) != address)
        return;
    uint8_t *frame = virtio_tx_buffer();
    if (!frame)
        return;
    uint8_t *reply = frame + ETH_HEADER;
    put_ethernet(frame, arp + 8, ETH_TYPE_ARP);
    memcpy(reply, arp, 6);
    put16(reply + 6, ARP_REPLY);
    memcpy(reply + 8, virtio_mac(), 6);
    put32(reply + 14, address);
    memcpy(reply + 18, arp + 8, 10); /* the asker's MAC and IP */
    virtio_tx(ETH_HEADER + ARP_LENGTH);
}

static void icmp_input(const struct peer *from, const uint8_t *icmp, size_t len)
{
    if (len < ICMP_HEADER || len > IP_PAYLOAD_MAX || icmp[0] != ICMP_ECHO_REQUEST ||
        icmp[1] != 0 || fold(sum_bytes(0, icmp, len)) != 0)
        return;
    uint8_t *reply = net_ip_payload();
    if (!reply)
        return;
    memcpy(reply, icmp, len);
    reply[0] = ICMP_ECHO_REPLY;
    put16(reply + 2, 0);
    put16(reply + 2, fold(sum_bytes(0, reply, len)));
    net_ip_send(from, address, PROTO_ICMP, len);
}

static void udp_input(const struct peer *from, uint32_t to, const uint8_t *udp, size_t len)
{
    if (len < UDP_HEADER || get16(udp + 2) != DHCP_CLIENT_PORT)
        return;
    size_t udp_len = get16(udp + 4);
    if (udp_len < UDP_HEADER || udp_len > len)
        return;
    if (get16(udp + 6) != 0 &&
        net_transport_checksum(from->ip, to, PROTO_UDP, udp, udp_len) != 0)
        return;
    dhcp_input(udp + UDP_HEADER, udp_len - UDP_HEADER);
}

static void ip_input(const uint8_t *frame, const uint8_t *ip, size_t len)
{
    if (len < IP_HEADER || ip[0] >> 4 != 4)
        return;
    size_t header = (size_t)(ip[0] & 15) * 4;
    size_t total = get16(ip + 2);
    if (header < IP_HEADER || total < header || total > len)
        return;
    if (get16(ip + 6) & IP_FRAGMENT_MASK || fold(sum_bytes(0, ip, header)) != 0)
        return;

    struct peer from = { .ip = get32(ip + 12) };
    uint32_t to = get32(ip + 16);
    memcpy(from.mac, frame + 6, sizeof(from.mac));

    /* DHCP answers come before there is an address to compare with. */
    if (ip[9] == PROTO_UDP)
        udp_input(&from, to, ip + header, total - header);
    if (!address || to != address)
        return;
    if (ip[9] == PROTO_TCP && reach_input(&from, ip + header, total - header))
        return;
    if (ip[9] == PROTO_TCP)
        tcp_input(&from, to, ip + header, total - header);
    else if (ip[9] == PROTO_ICMP)
        icmp_input(&from, ip + header, total - header);
}

static void frame_input(const uint8_t *frame, size_t len)
{
    static const uint8_t broadcast[6] = { 255, 255, 255, 255, 255, 255 };

    if (len < ETH_HEADER)
        return;
    /* A bridge floods frames for others to us while it is still learning. */
    if (memcmp(frame, virtio_mac(), 6) != 0 && memcmp(frame, broadcast, 6) != 0)
        return;
    switch (get16(frame + 12)) {
    case ETH_TYPE_ARP: arp_input(frame + ETH_HEADER, len - ETH_HEADER); break;
    case ETH_TYPE_IPV4: ip_input(frame, frame + ETH_HEADER, len - ETH_HEADER); break;
    }
}

void net_poll(void)
{
    virtio_poll(frame_input);
}
