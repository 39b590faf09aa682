/*
 * Tries to reach others, for tests of what a guest may reach: one TCP SYN at a
 * time, the outcome on the console.  `open` and `closed` both mean that packets
 * got there and back.
 */
#include "probe.h"
#include "wire.h"

enum {
    PROTO_TCP = 6,
    TCP_HEADER = 20,
    SYN = 0x02,
    RST = 0x04,
    ACK = 0x10,
    FIRST_PORT = 40000,
    TRY_EVERY_MS = 150,
    TRIES = 4,              /* of each: to find the neighbour, to connect */
};

enum state { IDLE, RESOLVING, CONNECTING };

static enum state state;
static uint32_t current, tries, next_hop;
static uint64_t again_at;
static struct peer peer;

static void outcome(const char *what)
{
    say("reach: %I:%u %s", config.reach[current].ip, (uint32_t)config.reach[current].port, what);
    current++;
    state = IDLE;
}

static void send_segment(uint8_t flags, uint32_t seq)
{
    uint8_t *t = net_ip_payload();

    if (!t)
        return;
    memset(t, 0, TCP_HEADER);
    put16(t, (uint16_t)(FIRST_PORT + current));
    put16(t + 2, config.reach[current].port);
    put32(t + 4, seq);
    t[12] = TCP_HEADER / 4 << 4;
    t[13] = flags;
    put16(t + 14, 1024);
    put16(t + 16, net_transport_checksum(net_address(), peer.ip, PROTO_TCP, t, TCP_HEADER));
    net_ip_send(&peer, net_address(), PROTO_TCP, TCP_HEADER);
}

void reach_neighbour(uint32_t ip, const uint8_t *mac)
{
    if (state != RESOLVING || ip != next_hop)
        return;
    memcpy(peer.mac, mac, sizeof(peer.mac));
    state = CONNECTING;
    tries = 0;
    again_at = 0;
}

bool reach_input(const struct peer *from, const uint8_t *t, size_t len)
{
    if (state != CONNECTING || len < TCP_HEADER || from->ip != peer.ip ||
        get16(t) != config.reach[current].port || get16(t + 2) != FIRST_PORT + current)
        return false;
    if ((t[13] & (SYN | ACK)) == (SYN | ACK)) {
        send_segment(RST, get32(t + 8));
        outcome("open");
    } else if (t[13] & RST) {
        outcome("closed");
    }
    return true;
}

static void begin(const struct lease *l)
{
    peer.ip = config.reach[current].ip;
    bool near = (peer.ip & l->mask) == (l->ip & l->mask);
    next_hop = near ? peer.ip : l->router;
    state = RESOLVING;
    tries = 0;
    again_at = 0;
}

void reach_tick(uint64_t now)
{
    struct lease l;

    if (current == config.reach_count || !net_address() || !dhcp_bound(&l))
        return;
    if (state == IDLE)
        begin(&l);
    if (now < again_at)
        return;
    if (tries++ == TRIES) {
        outcome(state == RESOLVING ? "no neighbour" : "silent");
        return;
    }
    again_at = now + TRY_EVERY_MS * NS_PER_MS;
    if (state == RESOLVING)
        net_arp_ask(next_hop);
    else
        send_segment(SYN, 1);
}
