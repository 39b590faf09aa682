/*
 * Time.  Under KVM the paravirtual clock gives exact time, also across a
 * snapshot; elsewhere the TSC is calibrated against the PIT, and the date
 * comes from the CMOS clock.
 */
#include "probe.h"

enum {
    CPUID_HYPERVISOR = 0x40000000,
    CPUID_KVM_FEATURES = 0x40000001,
    KVM_FEATURE_CLOCKSOURCE2 = 1 << 3,
    MSR_KVM_WALL_CLOCK_NEW = 0x4b564d00,
    MSR_KVM_SYSTEM_TIME_NEW = 0x4b564d01,

    PIT_CHANNEL0 = 0x40,
    PIT_COMMAND = 0x43,
    PIT_HZ = 1193182,
    PIT_CALIBRATION = 2400,     /* ticks: 2 ms, good for 0.5 % */
    PIT_SPINS = 2000000,        /* then there is no PIT */

    CMOS_INDEX = 0x70,
    CMOS_DATA = 0x71,
    CMOS_UPDATING = 0x80,
    CMOS_BINARY = 0x04,
    CMOS_SPINS = 10000,
    /* Only when nothing better exists; delays then are off by up to 2. */
    TSC_KHZ_GUESS = 2500000,
};

struct pvclock {                /* Linux: struct pvclock_vcpu_time_info */
    uint32_t version, pad0;
    uint64_t tsc_timestamp, system_time;
    uint32_t tsc_to_system_mul;
    int8_t tsc_shift;
    uint8_t flags, pad[2];
};

struct pvclock_wall { uint32_t version, sec, nsec; };

static volatile struct pvclock pvclock __attribute__((aligned(64)));
static volatile struct pvclock_wall pvwall __attribute__((aligned(64)));
static bool have_pvclock;
static uint64_t tsc_khz, tsc_origin, pv_origin;
static uint64_t wall_origin_ms; /* Unix time at clock_ns() == 0; 0: unknown */
static uint64_t turn_ns;
static const char *source = "none";

static uint64_t rdtsc(void)
{
    uint32_t lo, hi;
    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (uint64_t)hi << 32 | lo;
}

static void wrmsr(uint32_t msr, uint64_t value)
{
    __asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)value),
                     "d"((uint32_t)(value >> 32)) : "memory");
}

struct cpuid { uint32_t a, b, c, d; };

static struct cpuid cpuid(uint32_t leaf)
{
    struct cpuid r;
    __asm__ volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d)
                     : "a"(leaf), "c"(0));
    return r;
}

static bool kvm_has_clock(void)
{
    struct cpuid id = cpuid(CPUID_HYPERVISOR);

    if (id.b != 0x4b4d564b || id.c != 0x564b4d56 || id.d != 0x4d) /* KVMKVMKVM */
        return false;
    return cpuid(CPUID_KVM_FEATURES).a & KVM_FEATURE_CLOCKSOURCE2;
}

/* The host makes `version` odd while it changes the rest. */
static uint64_t pvclock_ns(void)
{
    uint32_t version;
    uint64_t ns;

    do {
        uint64_t delta;
        int8_t shift;

        version = pvclock.version & ~1u;
        delta = rdtsc() - pvclock.tsc_timestamp;
        shift = pvclock.tsc_shift;
        delta = shift < 0 ? delta >> -shift : delta << shift;
        ns = pvclock.system_time +
             (uint64_t)((unsigned __int128)delta * pvclock.tsc_to_system_mul >> 32);
    } while (pvclock.version != version);
    return ns;
}

static bool pvclock_init(void)
{
    if (!kvm_has_clock())
        return false;
    wrmsr(MSR_KVM_SYSTEM_TIME_NEW, (uintptr_t)&pvclock | 1);
    if (pvclock.tsc_to_system_mul == 0)
        return false;
    pv_origin = pvclock_ns();
    wrmsr(MSR_KVM_WALL_CLOCK_NEW, (uintptr_t)&pvwall);
    if (pvwall.sec)
        wall_origin_ms = pvwall.sec * 1000ull + pvwall.nsec / NS_PER_MS +
                         pv_origin / NS_PER_MS;
    have_pvclock = true;
    source = "kvmclock";
    return true;
}

static uint16_t pit_read(void)
{
    outb(PIT_COMMAND, 0x00);    /* latch channel 0 */
    uint8_t lo = inb(PIT_CHANNEL0);
    return (uint16_t)(lo | inb(PIT_CHANNEL0) << 8);
}

static bool pit_calibrate(void)
{
    outb(PIT_COMMAND, 0x34);    /* channel 0, mode 2, counts down from 65536 */
    outb(PIT_CHANNEL0, 0);
    outb(PIT_CHANNEL0, 0);
    uint16_t first = pit_read();
    uint64_t begin = rdtsc();

    for (uint32_t i = 0; i < PIT_SPINS; i++) {
        uint16_t passed = (uint16_t)(first - pit_read());
        if (passed >= PIT_CALIBRATION && passed < 0x8000) {
            tsc_khz = (rdtsc() - begin) * PIT_HZ / passed / 1000;
            return tsc_khz != 0;
        }
        if (i == 1000 && passed == 0)
            return false;       /* stands still: no PIT */
    }
    return false;
}

static uint8_t cmos(uint8_t index)
{
    outb(CMOS_INDEX, index);
    return inb(CMOS_DATA);
}

/* Days since 1970-01-01 of a Gregorian date (Howard Hinnant's algorithm). */
static uint64_t days_from_civil(uint32_t year, uint32_t month, uint32_t day)
{
    if (month <= 2)
        year--;
    uint32_t era = year / 400, yoe = year % 400;
    uint32_t doy = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;
    uint32_t doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    return (uint64_t)era * 146097 + doe - 719468;
}

static void cmos_init(void)
{
    uint8_t raw[6];             /* second minute hour day month year */
    static const uint8_t index[6] = { 0, 2, 4, 7, 8, 9 };

    for (int i = 0; i < CMOS_SPINS && cmos(0x0a) & CMOS_UPDATING; i++)
        cpu_pause();
    bool binary = cmos(0x0b) & CMOS_BINARY;
    for (size_t i = 0; i < ARRAY_LEN(raw); i++) {
        uint8_t v = cmos(index[i]);
        raw[i] = binary ? v : (uint8_t)((v >> 4) * 10 + (v & 15));
    }
    if (raw[0] > 59 || raw[1] > 59 || raw[2] > 23 || raw[3] < 1 || raw[3] > 31 ||
        raw[4] < 1 || raw[4] > 12 || raw[5] > 99)
        return;                 /* no clock there */
    uint64_t days = days_from_civil(2000u + raw[5], raw[4], raw[3]);
    wall_origin_ms = (days * 86400 + raw[2] * 3600u + raw[1] * 60u + raw[0]) * 1000;
}

void clock_init(void)
{
    if (pvclock_init())
        return;
    if (pit_calibrate()) {
        source = "tsc";
    } else {
        source = "guess";
        tsc_khz = TSC_KHZ_GUESS;
    }
    tsc_origin = rdtsc();
    cmos_init();
}

uint64_t clock_ns(void)
{
    if (have_pvclock)
        return pvclock_ns() - pv_origin;
    uint64_t ticks = rdtsc() - tsc_origin;
    /* Whole milliseconds first, so that nothing overflows within centuries. */
    return ticks / tsc_khz * NS_PER_MS + ticks % tsc_khz * NS_PER_MS / tsc_khz;
}

uint64_t clock_turn(void)
{
    return turn_ns = clock_ns();
}

uint64_t clock_now(void)
{
    return turn_ns;
}

uint64_t clock_wall_ms(void)
{
    return wall_origin_ms ? wall_origin_ms + clock_ns() / NS_PER_MS : 0;
}

const char *clock_source(void)
{
    return source;
}

uint32_t clock_random(void)
{
    uint64_t x = rdtsc() ^ wall_origin_ms << 20;

    for (int i = 0; i < 6; i++) /* VMs started together differ by their MAC */
        x = x * 6364136223846793005ull + virtio_mac()[i] + 1442695040888963407ull;
    return (uint32_t)(x >> 32);
}
