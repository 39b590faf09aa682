/*
 * A small TCP server: in-order data, a few connections, retransmission with
 * backoff.  No TIME_WAIT, congestion control or options beyond MSS: a
 * response is at most two segments on a local bridge.
 */
#include "probe.h"
#include "wire.h"

enum {
    PROTO_TCP = 6,
    TCP_HEADER = 20,
    FIN = 0x01,
    SYN = 0x02,
    RST = 0x04,
    PSH = 0x08,
    ACK = 0x10,
    OPT_END = 0,
    OPT_NOP = 1,
    OPT_MSS = 2,
    MSS_OURS = 1460,
    MSS_DEFAULT = 536,          /* RFC 9293: when the peer names none */
    MSS_MIN = 64,

    CONNECTIONS = 32,           /* the worker polls with one or two */
    RTO_FIRST_MS = 200,
    RETRIES = 6,                /* 200 ms doubling: gives up after 12.6 s */
    IDLE_MS = 60000,            /* keep-alive without a request */
};

enum conn_state { FREE, SYN_RECEIVED, OPEN };

struct tcp_conn {
    enum conn_state state;
    struct peer peer;
    uint16_t port;              /* the peer's */
    uint16_t mss;
    uint32_t rcv_nxt, snd_una, snd_nxt, window;
    bool peer_closed;           /* their FIN arrived */
    bool closing, fin_sent;     /* ours is due, or on its way */
    uint32_t tries, rto_ms;
    uint64_t resend_at, last_active;
    uint32_t rx_len, tx_len;    /* tx: not yet acknowledged, from snd_una */
    char rx[TCP_RX_MAX], tx[TCP_TX_MAX];
};

struct segment {
    uint16_t port;
    uint32_t seq, ack, window;
    uint8_t flags;
    uint16_t mss;
    const uint8_t *data;
    size_t len;
};

static struct tcp_conn conns[CONNECTIONS];
static size_t conns_used;       /* slots ever taken; the rest need not be looked at */
static uint16_t listen_port;    /* 0: closed */

void tcp_listen(uint16_t port)
{
    listen_port = port;
}

/* Sequence numbers wrap: a is before b. */
static bool before(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

static void send_raw(const struct peer *to, uint16_t from_port, uint16_t to_port,
                     uint32_t seq, uint32_t ack, uint8_t flags, uint16_t window,
                     const char *data, size_t len)
{
    size_t header = TCP_HEADER + (flags & SYN ? 4 : 0);
    uint8_t *t = net_ip_payload();

    if (!t || header + len > IP_PAYLOAD_MAX)
        return;
    put16(t, from_port);
    put16(t + 2, to_port);
    put32(t + 4, seq);
    put32(t + 8, ack);
    t[12] = (uint8_t)(header / 4 << 4);
    t[13] = flags;
    put16(t + 14, window);
    put32(t + 16, 0);           /* checksum, urgent pointer */
    if (flags & SYN) {
        t[20] = OPT_MSS;
        t[21] = 4;
        put16(t + 22, MSS_OURS);
    }
    if (len)
        memcpy(t + header, data, len);
    put16(t + 16, net_transport_checksum(net_address(), to->ip, PROTO_TCP, t, header + len));
    net_ip_send(to, net_address(), PROTO_TCP, header + len);
}

static void send_segment(struct tcp_conn *c, uint32_t seq, uint8_t flags,
                         const char *data, size_t len)
{
    send_raw(&c->peer, listen_port, c->port, seq, c->rcv_nxt, flags,
             (uint16_t)(TCP_RX_MAX - c->rx_len), data, len);
}

static void arm(struct tcp_conn *c)
{
    c->resend_at = clock_now() + c->rto_ms * NS_PER_MS;
}

static void acknowledged(struct tcp_conn *c)
{
    c->tries = 0;
    c->rto_ms = RTO_FIRST_MS;
    arm(c);
}

/* Sends what the peer's window allows, then our FIN when it is due. */
static void output(struct tcp_conn *c)
{
    uint32_t sent = c->snd_nxt - c->snd_una;

    if (c->state != OPEN || c->fin_sent)
        return;
    while (sent < c->tx_len && sent < c->window) {
        uint32_t n = MIN(MIN(c->tx_len - sent, c->window - sent), (uint32_t)c->mss);
        send_segment(c, c->snd_nxt, ACK | PSH, c->tx + sent, n);
        c->snd_nxt += n;
        sent += n;
        arm(c);
    }
    if (c->closing && sent == c->tx_len) {
        send_segment(c, c->snd_nxt, ACK | FIN, NULL, 0);
        c->snd_nxt++;
        c->fin_sent = true;
        arm(c);
    }
}

/* One response at a time: the next request waits until it is acknowledged. */
static void serve(struct tcp_conn *c)
{
    struct text out = { c->tx, 0, TCP_TX_MAX };
    bool close = false;

    if (c->state != OPEN || c->tx_len || c->closing)
        return;
    size_t used = http_serve(c->rx, c->rx_len, &out, &close);
    memmove(c->rx, c->rx + used, c->rx_len - used);
    c->rx_len -= (uint32_t)used;
    c->tx_len = (uint32_t)out.len;
    /* Their FIN with nothing left to answer ends the connection. */
    c->closing = close || (c->peer_closed && used == 0 && !config.hang);
    output(c);
}

static struct tcp_conn *find(const struct peer *from, uint16_t port)
{
    for (size_t i = 0; i < conns_used; i++)
        if (conns[i].state != FREE && conns[i].peer.ip == from->ip && conns[i].port == port)
            return &conns[i];
    return NULL;
}

/* When all are taken, the longest idle one gives way: a poller must get in. */
static struct tcp_conn *allocate(void)
{
    struct tcp_conn *oldest = &conns[0];

    for (size_t i = 0; i < conns_used; i++) {
        if (conns[i].state == FREE)
            return &conns[i];
        if (conns[i].last_active < oldest->last_active)
            oldest = &conns[i];
    }
    if (conns_used < CONNECTIONS)
        return &conns[conns_used++];
    send_segment(oldest, oldest->snd_nxt, RST | ACK, NULL, 0);
    return oldest;
}

static void accept(const struct peer *from, const struct segment *s)
{
    struct tcp_conn *c = allocate();
    uint32_t isn = clock_random();

    c->state = SYN_RECEIVED;
    c->peer = *from;
    c->port = s->port;
    c->mss = s->mss;
    c->rcv_nxt = s->seq + 1;
    c->snd_una = isn;
    c->snd_nxt = isn + 1;
    c->window = s->window;
    c->peer_closed = c->closing = c->fin_sent = false;
    c->rx_len = c->tx_len = 0;
    c->last_active = clock_now();
    acknowledged(c);
    send_segment(c, isn, SYN | ACK, NULL, 0);
}

static void refuse(const struct peer *from, uint16_t to_port, const struct segment *s)
{
    if (s->flags & RST)
        return;
    if (s->flags & ACK) {
        send_raw(from, to_port, s->port, s->ack, 0, RST, 0, NULL, 0);
        return;
    }
    uint32_t length = (uint32_t)s->len + (s->flags & SYN ? 1 : 0) + (s->flags & FIN ? 1 : 0);
    send_raw(from, to_port, s->port, 0, s->seq + length, RST | ACK, 0, NULL, 0);
}

/* False when the acknowledgement is none we could have earned. */
static bool take_ack(struct tcp_conn *c, const struct segment *s)
{
    if (before(c->snd_nxt, s->ack))
        return false;
    c->window = s->window;
    if (!before(c->snd_una, s->ack))
        return true;            /* old news */
    uint32_t n = s->ack - c->snd_una;
    if (c->state == SYN_RECEIVED) {
        c->state = OPEN;
        c->snd_una++;
        n--;
    }
    uint32_t data = MIN(n, c->tx_len);
    memmove(c->tx, c->tx + data, c->tx_len - data);
    c->tx_len -= data;
    c->snd_una += n;
    acknowledged(c);
    return true;
}

static void take_data(struct tcp_conn *c, const struct segment *s)
{
    /* Only what comes next in order and fits; the peer repeats the rest. */
    if (s->seq == c->rcv_nxt && !c->peer_closed) {
        size_t n = MIN(s->len, (size_t)(TCP_RX_MAX - c->rx_len));
        memcpy(c->rx + c->rx_len, s->data, n);
        c->rx_len += (uint32_t)n;
        c->rcv_nxt += (uint32_t)n;
        if (s->flags & FIN && n == s->len) {
            c->rcv_nxt++;
            c->peer_closed = true;
        }
    }
}

static void conn_input(struct tcp_conn *c, const struct segment *s)
{
    uint32_t answered = c->snd_nxt;

    c->last_active = clock_now();
    if (s->flags & RST) {
        if (s->seq == c->rcv_nxt)
            c->state = FREE;
        return;
    }
    if (s->flags & SYN) {       /* our SYN|ACK was lost, or a stale port is reused */
        if (c->state == SYN_RECEIVED && s->seq + 1 == c->rcv_nxt)
            send_segment(c, c->snd_una, SYN | ACK, NULL, 0);
        else
            send_segment(c, c->snd_nxt, ACK, NULL, 0);
        return;
    }
    if (!(s->flags & ACK) || !take_ack(c, s) || c->state != OPEN)
        return;
    take_data(c, s);
    if (c->fin_sent && c->snd_una == c->snd_nxt && c->peer_closed) {
        if (s->flags & FIN)
            send_segment(c, c->snd_nxt, ACK, NULL, 0);
        c->state = FREE;        /* no TIME_WAIT: a late FIN meets a reset */
        return;
    }
    serve(c);
    output(c);
    /* Acknowledge what no outgoing segment acknowledged already. */
    if ((s->len || s->flags & FIN) && c->snd_nxt == answered)
        send_segment(c, c->snd_nxt, ACK, NULL, 0);
}

static uint16_t parse_mss(const uint8_t *options, size_t len)
{
    for (size_t i = 0; i < len && options[i] != OPT_END;) {
        if (options[i] == OPT_NOP) {
            i++;
            continue;
        }
        if (len - i < 2 || options[i + 1] < 2 || options[i + 1] > len - i)
            break;
        if (options[i] == OPT_MSS && options[i + 1] == 4) {
            uint16_t mss = get16(options + i + 2);
            return MIN(mss < MSS_MIN ? (uint16_t)MSS_MIN : mss, (uint16_t)MSS_OURS);
        }
        i += options[i + 1];
    }
    return MSS_DEFAULT;
}

void tcp_input(const struct peer *from, uint32_t to, const uint8_t *t, size_t len)
{
    if (len < TCP_HEADER || net_transport_checksum(from->ip, to, PROTO_TCP, t, len) != 0)
        return;
    size_t header = (size_t)(t[12] >> 4) * 4;
    if (header < TCP_HEADER || header > len)
        return;
    struct segment s = {
        .port = get16(t),
        .seq = get32(t + 4),
        .ack = get32(t + 8),
        .flags = t[13],
        .window = get16(t + 14), /* no window scaling offered, so none is in use */
        .mss = parse_mss(t + TCP_HEADER, header - TCP_HEADER),
        .data = t + header,
        .len = len - header,
    };
    uint16_t to_port = get16(t + 2);

    if (!listen_port || to_port != listen_port) {
        refuse(from, to_port, &s);
        return;
    }
    struct tcp_conn *c = find(from, s.port);
    if (c)
        conn_input(c, &s);
    else if ((s.flags & (SYN | ACK | RST | FIN)) == SYN)
        accept(from, &s);
    else
        refuse(from, to_port, &s);
}

static void retransmit(struct tcp_conn *c)
{
    if (c->tries++ >= RETRIES) {
        c->state = FREE;
        return;
    }
    c->rto_ms *= 2;
    arm(c);
    if (c->state == SYN_RECEIVED) {
        send_segment(c, c->snd_una, SYN | ACK, NULL, 0);
        return;
    }
    c->snd_nxt = c->snd_una;
    c->fin_sent = false;
    if (c->window == 0)
        c->window = 1;          /* probes a closed window */
    output(c);
}

void tcp_tick(uint64_t now)
{
    for (size_t i = 0; i < conns_used; i++) {
        struct tcp_conn *c = &conns[i];

        if (c->state == FREE)
            continue;
        bool unacked = c->snd_una != c->snd_nxt || c->tx_len;
        if (unacked && now >= c->resend_at)
            retransmit(c);
        else if (now > c->last_active && now - c->last_active > IDLE_MS * NS_PER_MS)
            c->state = FREE;    /* the next segment meets a reset */
    }
}

void tcp_close_all(void)
{
    for (size_t i = 0; i < conns_used; i++) {
        if (conns[i].state != FREE)
            send_segment(&conns[i], conns[i].snd_nxt, RST | ACK, NULL, 0);
        conns[i].state = FREE;
    }
    listen_port = 0;
}

uint32_t tcp_open_connections(void)
{
    uint32_t n = 0;
    for (size_t i = 0; i < conns_used; i++)
        n += conns[i].state == OPEN;
    return n;
}
