/* What the modules of the probe guest offer to each other. */
#ifndef PROBE_H
#define PROBE_H

#include "lib.h"

/* ---- serial.c: the console ---- */
void serial_init(bool silent);
/* One line, CR LF appended; formats as text_format. */
void say(const char *format, ...);

/* ---- cmdline.c: kernel command line ---- */
enum boot_protocol { BOOT_LINUX64 = 0, BOOT_PVH = 1 };
void cmdline_init(enum boot_protocol protocol, uintptr_t info);

struct param {
    const char *key, *value; /* not terminated: use the lengths */
    size_t key_len, value_len;
    bool has_value;
};
/* Walks the parameters in order; NULL begins, and ends. */
const struct param *cmdline_next(const struct param *last);
/* Last one wins, as in Linux. */
const struct param *cmdline_find(const char *key);
bool param_is(const struct param *p, const char *key);

/* ---- faults.c: configuration from probe.* and stoker.* ---- */
#define NAME_MAX_LEN  64  /* one unit name */
#define UNITS_MAX     16
#define BODY_MAX_LEN  512
#define REACH_MAX     8

#define NEVER         UINT32_MAX /* as a number of milliseconds */

/* The README says what each does. */
struct config {
    char vm_id[NAME_MAX_LEN + 1]; /* empty: leave vmId out */
    char units[UNITS_MAX][NAME_MAX_LEN + 1];
    uint32_t unit_count;
    struct { uint32_t ip; uint16_t port; } reach[REACH_MAX];
    uint32_t reach_count;

    bool no_dhcp, dhcp_silent_after_offer, no_arp;
    bool agent_down, hang, no_id, wrong_id, silent, trial;
    bool panic, panic_exit, emergency;
    uint32_t status;         /* HTTP status of /health */
    bool has_body;
    char body[BODY_MAX_LEN + 1];
    char unit_failed[NAME_MAX_LEN + 1];
    uint32_t agent_delay_ms, slow_boot_ms, console_flood_kib;
    uint32_t crash_ms, exit_ms;     /* after start */
    uint32_t oom_ms, die_after_ms;  /* after the agent listens */
};
extern struct config config;

/* Fills `config`.  Returns false and describes the first mistake in `why`. */
bool config_parse(struct text *why);

/* ---- clock.c ---- */
void clock_init(void);
uint64_t clock_ns(void);               /* since clock_init, monotonic */
uint64_t clock_turn(void);             /* a new turn of the main loop: reads the clock */
uint64_t clock_now(void);              /* time at the last clock_turn(), for free */
uint64_t clock_wall_ms(void);          /* Unix time, 0: unknown */
const char *clock_source(void);
uint32_t clock_random(void);           /* unpredictable enough for ids, not for secrets */

/* ---- idle.c: interrupts, exceptions, HLT ---- */
#define IRQ_UNKNOWN UINT32_MAX
void idle_init(void);
/* Routes a device's GSI to this CPU; without one, idling uses a faster tick. */
void idle_route(uint32_t gsi);
uint32_t idle_device_irqs(void);       /* how often that device interrupted */
/* Sleeps until an interrupt unless has_work() says otherwise. */
void idle_wait(bool (*has_work)(void));
bool idle_halts(void);

/* ---- power.c: how the machine ends ---- */
__attribute__((noreturn)) void power_reset(void);
__attribute__((noreturn)) void power_halt(void);
__attribute__((noreturn)) void triple_fault(void);
/* True once Ctrl+Alt+Del came through the keyboard controller. */
bool power_ctrl_alt_del(void);

/* ---- virtio.c: polled virtio-net over MMIO ---- */
#define FRAME_MAX 1514
bool virtio_init(void);
const uint8_t *virtio_mac(void);
uintptr_t virtio_base(void);
/* Calls on_frame for each received frame. */
void virtio_poll(void (*on_frame)(const uint8_t *frame, size_t len));
bool virtio_has_work(void);
/* Memory for the next outgoing frame (FRAME_MAX bytes); NULL when the ring is full. */
uint8_t *virtio_tx_buffer(void);
void virtio_tx(size_t len);
struct virtio_counters { uint32_t rx_frames, tx_frames, rx_dropped, tx_dropped; };
extern struct virtio_counters virtio_counters;

/* ---- net.c: Ethernet, ARP, IPv4, ICMP ---- */
struct peer {
    uint8_t mac[6];
    uint32_t ip;
};
void net_poll(void);
void net_set_address(uint32_t ip);     /* 0: none */
uint32_t net_address(void);

/*
 * Sending: reserve room, fill the payload, then send.  `frame` is NULL when
 * the transmit ring is full, which counts as a lost packet.
 */
#define IP_PAYLOAD_MAX (FRAME_MAX - 34)
uint8_t *net_ip_payload(void);
void net_ip_send(const struct peer *to, uint32_t source, uint8_t protocol, size_t len);
/* Asks who has an address; reach_neighbour() hears of it. */
void net_arp_ask(uint32_t ip);
/* Checksum over the pseudo header and the segment, 0 when a received one is right. */
uint16_t net_transport_checksum(uint32_t from, uint32_t to, uint8_t protocol,
                                const uint8_t *data, size_t len);

/* ---- dhcp.c ---- */
struct lease { uint32_t ip, mask, router, server, seconds; };
void dhcp_start(void);
void dhcp_tick(uint64_t now);
void dhcp_input(const uint8_t *message, size_t len);
bool dhcp_bound(struct lease *out);

/* ---- tcp.c ---- */
#define TCP_RX_MAX 2048 /* longest request head */
#define TCP_TX_MAX 2048 /* longest response */
struct tcp_conn;
void tcp_listen(uint16_t port);
void tcp_close_all(void);              /* as a killed process: resets and a closed port */
void tcp_input(const struct peer *from, uint32_t to, const uint8_t *segment, size_t len);
void tcp_tick(uint64_t now);
uint32_t tcp_open_connections(void);

/* ---- reach.c: what can this guest reach? ---- */
void reach_tick(uint64_t now);
void reach_neighbour(uint32_t ip, const uint8_t *mac);
/* True when the segment is an answer to us. */
bool reach_input(const struct peer *from, const uint8_t *segment, size_t len);

/* ---- http.c: the agent ---- */
/*
 * Looks for one complete request in `in`; writes the response and returns how
 * many bytes it consumed, 0 to wait for more.  `close` asks to end the connection.
 */
size_t http_serve(const char *in, size_t len, struct text *out, bool *close);

/* ---- trial.c: how fast does this host run guest code? ---- */
__attribute__((noreturn)) void trial_run(void);

/* ---- boot.c: what a booting Linux with systemd would show ---- */
void boot_start(void);
void boot_tick(uint64_t now);
bool boot_busy(void);                  /* has more to do at once */

#endif
