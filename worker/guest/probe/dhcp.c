/* DHCP client (RFC 2131): DISCOVER, REQUEST, renewal; retransmits with backoff. */
#include "probe.h"
#include "wire.h"

enum {
    UDP_HEADER = 8,
    PROTO_UDP = 17,
    PORT_SERVER = 67,
    PORT_CLIENT = 68,
    OFF_XID = 4,
    OFF_CIADDR = 12,
    OFF_YIADDR = 16,
    OFF_CHADDR = 28,
    OFF_COOKIE = 236,
    OFF_OPTIONS = 240,
    COOKIE = 0x63825363,
    MESSAGE_SIZE = 300,         /* the least that old relays accept */
    OP_REQUEST = 1,
    OP_REPLY = 2,

    OPT_PAD = 0,
    OPT_MASK = 1,
    OPT_ROUTER = 3,
    OPT_REQUESTED_IP = 50,
    OPT_LEASE_TIME = 51,
    OPT_TYPE = 53,
    OPT_SERVER_ID = 54,
    OPT_PARAMETERS = 55,
    OPT_END = 255,

    DISCOVER = 1,
    OFFER = 2,
    REQUEST = 3,
    ACK = 5,
    NAK = 6,

    RETRY_FIRST_MS = 100,
    RETRY_MAX_MS = 1000,
    REQUEST_TRIES = 5,          /* then discover again */
    LEASE_DEFAULT_S = 3600,
};

enum state { IDLE, SELECTING, REQUESTING, BOUND, RENEWING, SILENT };

static enum state state;
static struct lease lease;
static uint32_t xid, retry_ms, tries;
static uint64_t next_send, renew_at, expires_at;

static uint8_t *put_option32(uint8_t *p, uint8_t code, uint32_t value)
{
    p[0] = code;
    p[1] = 4;
    put32(p + 2, value);
    return p + 6;
}

static void send(uint8_t type)
{
    static const struct peer everyone = { { 255, 255, 255, 255, 255, 255 }, 0xffffffff };
    uint32_t source = state == RENEWING ? lease.ip : 0;
    uint8_t *udp = net_ip_payload();

    if (!udp)
        return;
    uint8_t *m = udp + UDP_HEADER;
    memset(m, 0, MESSAGE_SIZE);
    m[0] = OP_REQUEST;
    m[1] = 1;                   /* Ethernet */
    m[2] = 6;
    put32(m + OFF_XID, xid);    /* flags stay 0: we can receive unicast */
    put32(m + OFF_CIADDR, source);
    memcpy(m + OFF_CHADDR, virtio_mac(), 6);
    put32(m + OFF_COOKIE, COOKIE);

    uint8_t *p = m + OFF_OPTIONS;
    *p++ = OPT_TYPE;
    *p++ = 1;
    *p++ = type;
    if (state == REQUESTING) {
        p = put_option32(p, OPT_REQUESTED_IP, lease.ip);
        p = put_option32(p, OPT_SERVER_ID, lease.server);
    }
    *p++ = OPT_PARAMETERS;
    *p++ = 2;
    *p++ = OPT_MASK;
    *p++ = OPT_ROUTER;
    *p++ = OPT_END;

    size_t len = UDP_HEADER + MESSAGE_SIZE;
    put16(udp, PORT_CLIENT);
    put16(udp + 2, PORT_SERVER);
    put16(udp + 4, (uint16_t)len);
    put16(udp + 6, 0);
    put16(udp + 6, net_transport_checksum(source, everyone.ip, PROTO_UDP, udp, len));
    net_ip_send(&everyone, source, PROTO_UDP, len);
}

static void enter(enum state to)
{
    state = to;
    retry_ms = RETRY_FIRST_MS;
    tries = 0;
    next_send = clock_now();
}

void dhcp_start(void)
{
    xid = clock_random();
    enter(SELECTING);
}

/* The options we act on; 0 where the server left one out. */
struct options { uint8_t type; uint32_t mask, router, server, seconds; };

static bool parse_options(const uint8_t *p, size_t len, struct options *out)
{
    for (size_t i = 0; i < len;) {
        uint8_t code = p[i++];
        if (code == OPT_PAD)
            continue;
        if (code == OPT_END)
            return true;
        if (i >= len)
            return false;
        size_t n = p[i++];
        if (n > len - i)
            return false;
        const uint8_t *value = p + i;
        i += n;
        if (code == OPT_TYPE && n == 1)
            out->type = value[0];
        if (n < 4)
            continue;
        switch (code) {
        case OPT_MASK: out->mask = get32(value); break;
        case OPT_ROUTER: out->router = get32(value); break;
        case OPT_SERVER_ID: out->server = get32(value); break;
        case OPT_LEASE_TIME: out->seconds = get32(value); break;
        }
    }
    return true;                /* END is missing in some servers' answers */
}

static void bind(uint32_t ip, const struct options *o)
{
    uint64_t now = clock_now();

    lease = (struct lease){ ip, o->mask, o->router, o->server,
                            o->seconds ? o->seconds : LEASE_DEFAULT_S };
    renew_at = now + lease.seconds * (NS_PER_S / 2);
    expires_at = now + lease.seconds * NS_PER_S;
    state = BOUND;
}

void dhcp_input(const uint8_t *m, size_t len)
{
    struct options o = { 0 };

    if (len < OFF_OPTIONS || m[0] != OP_REPLY || get32(m + OFF_XID) != xid ||
        memcmp(m + OFF_CHADDR, virtio_mac(), 6) != 0 || get32(m + OFF_COOKIE) != COOKIE ||
        !parse_options(m + OFF_OPTIONS, len - OFF_OPTIONS, &o))
        return;
    uint32_t ip = get32(m + OFF_YIADDR);

    if (state == SELECTING && o.type == OFFER && ip && o.server) {
        if (config.dhcp_silent_after_offer) {
            state = SILENT;
            return;
        }
        lease.ip = ip;
        lease.server = o.server;
        enter(REQUESTING);
        dhcp_tick(clock_now());
    } else if ((state == REQUESTING || state == RENEWING) && o.type == ACK && ip == lease.ip) {
        bind(ip, &o);
    } else if ((state == REQUESTING || state == RENEWING) && o.type == NAK) {
        lease.ip = 0;
        dhcp_start();
    }
}

static void retransmit(uint64_t now, uint8_t type)
{
    if (now < next_send)
        return;
    send(type);
    tries++;
    next_send = now + retry_ms * NS_PER_MS;
    retry_ms = MIN(retry_ms * 2, (uint32_t)RETRY_MAX_MS);
}

void dhcp_tick(uint64_t now)
{
    switch (state) {
    case SELECTING:
        retransmit(now, DISCOVER);
        break;
    case REQUESTING:
        if (tries >= REQUEST_TRIES && now >= next_send)
            dhcp_start();
        else
            retransmit(now, REQUEST);
        break;
    case BOUND:
        if (now >= renew_at)
            enter(RENEWING);
        break;
    case RENEWING:
        if (now >= expires_at) {
            lease.ip = 0;
            dhcp_start();
        } else {
            retransmit(now, REQUEST);
        }
        break;
    case IDLE:
    case SILENT:
        break;
    }
}

bool dhcp_bound(struct lease *out)
{
    if (state != BOUND && state != RENEWING)
        return false;
    *out = lease;
    return true;
}
