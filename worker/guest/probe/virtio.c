/*
 * virtio-net over MMIO, both register layouts: version 2 (Firecracker) and the
 * legacy version 1 (QEMU's default).  Split rings, no offloads, polled.
 */
#include "probe.h"

enum {
    REG_MAGIC = 0x000,
    REG_VERSION = 0x004,
    REG_DEVICE_ID = 0x008,
    REG_DEVICE_FEATURES = 0x010,
    REG_DEVICE_FEATURES_SEL = 0x014,
    REG_DRIVER_FEATURES = 0x020,
    REG_DRIVER_FEATURES_SEL = 0x024,
    REG_GUEST_PAGE_SIZE = 0x028,    /* legacy */
    REG_QUEUE_SEL = 0x030,
    REG_QUEUE_NUM_MAX = 0x034,
    REG_QUEUE_NUM = 0x038,
    REG_QUEUE_ALIGN = 0x03c,        /* legacy */
    REG_QUEUE_PFN = 0x040,          /* legacy */
    REG_QUEUE_READY = 0x044,
    REG_QUEUE_NOTIFY = 0x050,
    REG_INTERRUPT_STATUS = 0x060,
    REG_INTERRUPT_ACK = 0x064,
    REG_STATUS = 0x070,
    REG_QUEUE_DESC = 0x080,
    REG_QUEUE_DRIVER = 0x090,
    REG_QUEUE_DEVICE = 0x0a0,
    REG_CONFIG = 0x100,

    MAGIC = 0x74726976,
    DEVICE_NET = 1,
    FEATURE_MAC = 1 << 5,
    FEATURE_VERSION_1_HIGH = 1 << 0, /* bit 32 */
    STATUS_ACKNOWLEDGE = 1,
    STATUS_DRIVER = 2,
    STATUS_DRIVER_OK = 4,
    STATUS_FEATURES_OK = 8,
    DESC_WRITE = 2,
    AVAIL_NO_INTERRUPT = 1,

    QUEUE_RX = 0,
    QUEUE_TX = 1,
    /* 64 x 2 KiB: Firecracker wants >= 64 KiB of receive buffers on offer. */
    QUEUE_SIZE = 64,
    BUFFER_SIZE = 2048,
    PAGE = 4096,
    HEADER_LEGACY = 10,             /* struct virtio_net_hdr */
    HEADER_MODERN = 12,             /* with num_buffers */
};

struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct avail { uint16_t flags, idx, ring[QUEUE_SIZE]; };
struct used_elem { uint32_t id, len; };
struct used { uint16_t flags, idx; struct used_elem ring[QUEUE_SIZE]; };

/* Legacy devices take one page number and expect exactly this layout. */
struct ring {
    struct desc desc[QUEUE_SIZE];
    struct avail avail;
    struct used used __attribute__((aligned(PAGE)));
} __attribute__((aligned(PAGE)));

static volatile struct ring rings[2];
static uint8_t buffers[2][QUEUE_SIZE][BUFFER_SIZE] __attribute__((aligned(16)));
static uint16_t used_seen[2];
static uint16_t tx_next;            /* next avail slot; buffers are used in turn */

static uintptr_t base;
static bool legacy;
static uint32_t header_len;
static uint8_t mac[6];
static uint32_t irqs_seen;
struct virtio_counters virtio_counters;

static void barrier(void)
{
    __asm__ volatile("mfence" : : : "memory");
}

static bool is_net(uintptr_t at)
{
    return mmio_read(at + REG_MAGIC) == MAGIC &&
           mmio_read(at + REG_DEVICE_ID) == DEVICE_NET;
}

static uint64_t parse_hex(const char **s, const char *end)
{
    uint64_t value = 0;

    for (; *s < end; (*s)++) {
        char c = **s;
        if (c >= '0' && c <= '9')
            value = value << 4 | (uint64_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            value = value << 4 | (uint64_t)((c | 32) - 'a' + 10);
        else
            break;
    }
    return value;
}

/* virtio_mmio.device=<size>@0x<base>:<irq>[:<id>] */
static bool find_on_cmdline(uint32_t *gsi)
{
    for (const struct param *p = cmdline_next(NULL); p; p = cmdline_next(p)) {
        if (!param_is(p, "virtio_mmio.device"))
            continue;
        const char *s = p->value, *end = p->value + p->value_len;
        while (s < end && *s != '@')
            s++;
        if (end - s < 4 || s[1] != '0' || s[2] != 'x')
            continue;
        s += 3;
        uint64_t at = parse_hex(&s, end);
        if (at == 0 || at > UINT32_MAX - PAGE || !is_net(at))
            continue;
        base = at;
        if (s < end && *s == ':') {
            const char *irq = ++s;
            while (s < end && *s != ':')
                s++;
            parse_u32(irq, (size_t)(s - irq), gsi);
        }
        return true;
    }
    return false;
}

/*
 * Where VMMs put these devices when they do not tell.  A wrong interrupt does
 * no harm: none arrives, and idling keeps its fast tick.
 */
static bool find_by_probing(uint32_t *gsi)
{
    static const struct { uintptr_t first, stride, count; uint32_t first_gsi; } places[] = {
        { 0xd0000000, 0x1000, 16, 5 },          /* Firecracker up to 1.12 */
        { 0xc0000000, 0x1000, 16, IRQ_UNKNOWN },/* Firecracker since 1.13 */
        { 0xfeb00000, 0x200, 24, 24 },          /* QEMU microvm,acpi=on */
    };

    for (size_t i = 0; i < ARRAY_LEN(places); i++) {
        for (uintptr_t n = 0; n < places[i].count; n++) {
            uintptr_t at = places[i].first + n * places[i].stride;
            if (is_net(at)) {
                base = at;
                if (places[i].first_gsi != IRQ_UNKNOWN)
                    *gsi = places[i].first_gsi + (uint32_t)n;
                return true;
            }
        }
    }
    return false;
}

static void set_status(uint32_t bits)
{
    mmio_write(base + REG_STATUS, bits);
}

static bool negotiate(void)
{
    uint32_t status = STATUS_ACKNOWLEDGE | STATUS_DRIVER;

    set_status(0);
    set_status(STATUS_ACKNOWLEDGE);
    set_status(status);
    mmio_write(base + REG_DEVICE_FEATURES_SEL, 0);
    uint32_t offered = mmio_read(base + REG_DEVICE_FEATURES);
    mmio_write(base + REG_DRIVER_FEATURES_SEL, 0);
    mmio_write(base + REG_DRIVER_FEATURES, offered & FEATURE_MAC);
    if (legacy) {
        mmio_write(base + REG_GUEST_PAGE_SIZE, PAGE);
        return true;
    }
    mmio_write(base + REG_DRIVER_FEATURES_SEL, 1);
    mmio_write(base + REG_DRIVER_FEATURES, FEATURE_VERSION_1_HIGH);
    set_status(status | STATUS_FEATURES_OK);
    return mmio_read(base + REG_STATUS) & STATUS_FEATURES_OK;
}

static void set_queue_address(uint32_t reg, volatile const void *p)
{
    uintptr_t at = (uintptr_t)p;
    mmio_write(base + reg, (uint32_t)at);
    mmio_write(base + reg + 4, (uint32_t)(at >> 32));
}

static bool setup_queue(uint32_t index)
{
    volatile struct ring *r = &rings[index];

    mmio_write(base + REG_QUEUE_SEL, index);
    if (mmio_read(base + REG_QUEUE_NUM_MAX) < QUEUE_SIZE)
        return false;
    mmio_write(base + REG_QUEUE_NUM, QUEUE_SIZE);
    if (legacy) {
        mmio_write(base + REG_QUEUE_ALIGN, PAGE);
        mmio_write(base + REG_QUEUE_PFN, (uint32_t)((uintptr_t)r / PAGE));
        return true;
    }
    set_queue_address(REG_QUEUE_DESC, r->desc);
    set_queue_address(REG_QUEUE_DRIVER, &r->avail);
    set_queue_address(REG_QUEUE_DEVICE, &r->used);
    mmio_write(base + REG_QUEUE_READY, 1);
    return true;
}

static void fill_rings(void)
{
    for (uint16_t i = 0; i < QUEUE_SIZE; i++) {
        volatile struct desc *d = &rings[QUEUE_RX].desc[i];
        d->addr = (uintptr_t)buffers[QUEUE_RX][i];
        d->len = BUFFER_SIZE;
        d->flags = DESC_WRITE;
        rings[QUEUE_RX].avail.ring[i] = i;
    }
    rings[QUEUE_TX].avail.flags = AVAIL_NO_INTERRUPT;
    barrier();
    rings[QUEUE_RX].avail.idx = QUEUE_SIZE;
}

bool virtio_init(void)
{
    uint32_t gsi = IRQ_UNKNOWN;

    if (!find_on_cmdline(&gsi) && !find_by_probing(&gsi))
        return false;
    legacy = mmio_read(base + REG_VERSION) == 1;
    header_len = legacy ? HEADER_LEGACY : HEADER_MODERN;
    if (!negotiate())
        return false;
    fill_rings();
    if (!setup_queue(QUEUE_RX) || !setup_queue(QUEUE_TX))
        return false;
    for (uint32_t i = 0; i < sizeof(mac); i++)
        mac[i] = *(volatile uint8_t *)(base + REG_CONFIG + i);
    set_status(STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK |
               (legacy ? 0 : STATUS_FEATURES_OK));
    idle_route(gsi);
    mmio_write(base + REG_QUEUE_NOTIFY, QUEUE_RX);
    return true;
}

const uint8_t *virtio_mac(void)
{
    return mac;
}

uintptr_t virtio_base(void)
{
    return base;
}

bool virtio_has_work(void)
{
    return rings[QUEUE_RX].used.idx != used_seen[QUEUE_RX] ||
           idle_device_irqs() != irqs_seen;
}

/* QEMU's line stays raised until acknowledged, and then no new edge comes. */
static void acknowledge(void)
{
    uint32_t irqs = idle_device_irqs();

    if (irqs == irqs_seen)
        return;
    irqs_seen = irqs;
    uint32_t status = mmio_read(base + REG_INTERRUPT_STATUS);
    if (status)
        mmio_write(base + REG_INTERRUPT_ACK, status);
}

void virtio_poll(void (*on_frame)(const uint8_t *frame, size_t len))
{
    volatile struct ring *r = &rings[QUEUE_RX];
    uint16_t taken = 0;

    if (!base)
        return;
    acknowledge();
    while (used_seen[QUEUE_RX] != r->used.idx && taken < QUEUE_SIZE) {
        barrier();
        struct used_elem e;
        e.id = r->used.ring[used_seen[QUEUE_RX] % QUEUE_SIZE].id;
        e.len = r->used.ring[used_seen[QUEUE_RX] % QUEUE_SIZE].len;
        used_seen[QUEUE_RX]++;
        taken++;
        if (e.id >= QUEUE_SIZE) {       /* not ours: the device misbehaves */
            virtio_counters.rx_dropped++;
            continue;
        }
        if (e.len > header_len && e.len <= BUFFER_SIZE) {
            virtio_counters.rx_frames++;
            on_frame(buffers[QUEUE_RX][e.id] + header_len, e.len - header_len);
        } else {
            virtio_counters.rx_dropped++;
        }
        r->avail.ring[r->avail.idx % QUEUE_SIZE] = (uint16_t)e.id;
        barrier();
        r->avail.idx++;
    }
    if (taken)
        mmio_write(base + REG_QUEUE_NOTIFY, QUEUE_RX);
}

uint8_t *virtio_tx_buffer(void)
{
    uint16_t in_flight = (uint16_t)(tx_next - rings[QUEUE_TX].used.idx);

    if (!base || in_flight >= QUEUE_SIZE) {
        virtio_counters.tx_dropped++;
        return NULL;
    }
    return buffers[QUEUE_TX][tx_next % QUEUE_SIZE] + header_len;
}

/* Descriptor i always sits in slot i; the device consumes them in order. */
void virtio_tx(size_t len)
{
    volatile struct ring *r = &rings[QUEUE_TX];
    uint16_t slot = tx_next % QUEUE_SIZE;

    if (len > FRAME_MAX)
        return;
    memset(buffers[QUEUE_TX][slot], 0, header_len);
    r->desc[slot].addr = (uintptr_t)buffers[QUEUE_TX][slot];
    r->desc[slot].len = header_len + (uint32_t)len;
    r->avail.ring[slot] = slot;
    barrier();
    r->avail.idx = ++tx_next;
    barrier();
    mmio_write(base + REG_QUEUE_NOTIFY, QUEUE_TX);
    virtio_counters.tx_frames++;
}
