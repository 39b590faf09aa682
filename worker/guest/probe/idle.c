/*
 * Interrupts, for one purpose: to sleep in HLT instead of burning a core.
 *
 * The work is always done by polling from the main loop; an interrupt only
 * ends a HLT.  The local APIC timer ticks as a safety net, so a lost device
 * interrupt costs one tick, not the machine.  HLT is used only after ticks
 * have been seen: where no timer works the guest polls, as it does at first.
 */
#include "probe.h"

enum {
    LAPIC = 0xfee00000u,
    LAPIC_ID = 0x20,
    LAPIC_SPURIOUS = 0xf0,
    LAPIC_LVT_TIMER = 0x320,
    LAPIC_LVT_LINT0 = 0x350,
    LAPIC_TIMER_INITIAL = 0x380,
    LAPIC_TIMER_DIVIDE = 0x3e0,
    LAPIC_ENABLE = 0x100,
    LVT_MASKED = 1 << 16,
    LVT_PERIODIC = 1 << 17,
    DIVIDE_BY_1 = 0xb,

    IOAPIC = 0xfec00000u,
    IOAPIC_SECOND = 0xfec10000u,        /* QEMU microvm,acpi=on: GSI 24 to 47 */
    IOAPIC_SELECT = 0x00,
    IOAPIC_WINDOW = 0x10,
    IOAPIC_REDIRECTION = 0x10,
    IOAPIC_PINS = 24,
    KEYBOARD_GSI = 1,

    VECTOR_TIMER = 0x20,
    VECTOR_DEVICE = 0x21,
    VECTOR_SPURIOUS = 0xff,
    EXCEPTIONS = 32,
    STUB_SIZE = 16,
    CODE64_SEL = 0x08,
    GATE_INTERRUPT = 0x8e,

    /* KVM and QEMU both count nanoseconds at divide-by-1. */
    TICK_FAST_NS = 1000000,     /* no device interrupt: bounds its latency */
    TICK_SLOW_NS = 50000000,    /* with one: the grain of all delays */
    TICKS_TRUSTED = 2,
};

struct gate {
    uint16_t offset_low, selector;
    uint8_t ist, type;
    uint16_t offset_middle;
    uint32_t offset_high, zero;
};

static struct gate idt[256] __attribute__((aligned(16)));
volatile uint32_t timer_ticks, device_irqs; /* counted in boot.S */

extern const char exception_stubs[], isr_timer[], isr_device[], isr_spurious[];
void exception_report(uint64_t vector, uint64_t word0, uint64_t word1);

void exception_report(uint64_t vector, uint64_t word0, uint64_t word1)
{
    say("probe: BUG: CPU exception %U, stack 0x%x 0x%x", vector, word0, word1);
    power_halt();
}

static void set_gate(uint8_t vector, const char *handler)
{
    uintptr_t at = (uintptr_t)handler;

    idt[vector] = (struct gate){
        .offset_low = (uint16_t)at,
        .selector = CODE64_SEL,
        .type = GATE_INTERRUPT,
        .offset_middle = (uint16_t)(at >> 16),
        .offset_high = (uint32_t)(at >> 32),
    };
}

static void set_tick(uint32_t ns)
{
    mmio_write(LAPIC + LAPIC_TIMER_INITIAL, ns);
}

static void ioapic_write(uintptr_t ioapic, uint32_t reg, uint32_t value)
{
    mmio_write(ioapic + IOAPIC_SELECT, reg);
    mmio_write(ioapic + IOAPIC_WINDOW, value);
}

void idle_route(uint32_t gsi)
{
    uintptr_t ioapic = gsi < IOAPIC_PINS ? IOAPIC : IOAPIC_SECOND;
    uint32_t reg = IOAPIC_REDIRECTION + 2 * (gsi % IOAPIC_PINS);

    if (gsi >= 2 * IOAPIC_PINS)
        return;
    ioapic_write(ioapic, reg + 1, mmio_read(LAPIC + LAPIC_ID));
    ioapic_write(ioapic, reg, VECTOR_DEVICE); /* fixed, physical, edge, active high */
}

void idle_init(void)
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) pointer = {
        sizeof(idt) - 1, (uintptr_t)idt
    };

    for (uint32_t i = 0; i < EXCEPTIONS; i++)
        set_gate((uint8_t)i, exception_stubs + i * STUB_SIZE);
    set_gate(VECTOR_TIMER, isr_timer);
    set_gate(VECTOR_DEVICE, isr_device);
    set_gate(VECTOR_SPURIOUS, isr_spurious);
    __asm__ volatile("lidt %0" : : "m"(pointer));

    outb(0x21, 0xff);           /* both 8259 fully masked: the APICs serve us */
    outb(0xa1, 0xff);
    mmio_write(LAPIC + LAPIC_SPURIOUS, LAPIC_ENABLE | VECTOR_SPURIOUS);
    mmio_write(LAPIC + LAPIC_LVT_LINT0, LVT_MASKED);
    mmio_write(LAPIC + LAPIC_TIMER_DIVIDE, DIVIDE_BY_1);
    mmio_write(LAPIC + LAPIC_LVT_TIMER, LVT_PERIODIC | VECTOR_TIMER);
    set_tick(TICK_FAST_NS);
    idle_route(KEYBOARD_GSI);
    __asm__ volatile("sti");
}

uint32_t idle_device_irqs(void)
{
    return device_irqs;
}

bool idle_halts(void)
{
    return timer_ticks >= TICKS_TRUSTED;
}

void idle_wait(bool (*has_work)(void))
{
    static bool slowed;

    if (!idle_halts()) {
        cpu_pause();
        return;
    }
    if (!slowed && device_irqs) { /* interrupts demonstrably arrive */
        slowed = true;
        set_tick(TICK_SLOW_NS);
    }
    /* STI takes effect after HLT began, so no wake-up falls in between. */
    __asm__ volatile("cli" : : : "memory");
    if (has_work())
        __asm__ volatile("sti" : : : "memory");
    else
        __asm__ volatile("sti; hlt" : : : "memory");
}
