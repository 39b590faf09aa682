/* Start-up order and the main loop. */
#include "probe.h"

enum { KEYBOARD_EVERY_MS = 20, WHY_MAX = 256 };

void probe_main(enum boot_protocol protocol, uintptr_t info);

static void stop_with(const char *why)
{
    say("probe: %s, halting", why);
    power_halt();
}

static void init(enum boot_protocol protocol, uintptr_t info)
{
    char storage[WHY_MAX + 1];
    struct text why = { storage, 0, WHY_MAX };

    cmdline_init(protocol, info);
    bool good = config_parse(&why);
    serial_init(config.silent && good);
    clock_init();
    say("Stoker probe guest (bare metal, %s boot, clock %s)",
        protocol == BOOT_PVH ? "PVH" : "Linux 64-bit", clock_source());
    if (!good) {
        storage[why.len] = '\0';
        stop_with(storage);
    }
    if (config.trial)
        trial_run();
    idle_init();
    if (virtio_init())
        say("virtio-net at 0x%x, hwaddr %M", (uint64_t)virtio_base(), virtio_mac());
    else
        say("probe: no usable virtio-net device: this machine has no network");
    boot_start();
}

static void poll_keyboard(uint64_t now)
{
    static uint64_t next;

    if (now < next)
        return;
    next = now + KEYBOARD_EVERY_MS * NS_PER_MS;
    if (power_ctrl_alt_del()) {
        say("Received Ctrl-Alt-Del: stopping");
        say("reboot: Restarting system");
        power_reset();
    }
}

static bool has_work(void)
{
    return virtio_has_work() || boot_busy();
}

void probe_main(enum boot_protocol protocol, uintptr_t info)
{
    init(protocol, info);
    for (;;) {
        uint64_t now = clock_turn();
        net_poll();
        dhcp_tick(now);
        tcp_tick(now);
        reach_tick(now);
        boot_tick(now);
        poll_keyboard(now);
        idle_wait(has_work);
    }
}
