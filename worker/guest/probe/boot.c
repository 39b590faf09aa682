/*
 * The course of a boot, as a Linux guest with systemd shows it on its console:
 * early kernel, network, units, agent - and the faults that happen on the way.
 */
#include "probe.h"

#define NETWORK_UNIT "Network Configuration"
#define AGENT_UNIT   "VM Browser OAuth Agent"

enum {
    AGENT_PORT = 8080,
    SLOW_LINES = 8,             /* printed over a slow boot */
    PANIC_EXIT_MS = 1000,       /* like panic=1 */
    FLOOD_LINE = 64,
};

enum phase { EARLY, NETWORK, AGENT, RUNNING, FAILED };

static enum phase phase;
static bool static_ip, failed_shown;
static uint64_t phase_since, next_line;
static uint32_t slow_lines, flood_lines;

static bool after(uint64_t now, uint64_t since, uint32_t ms)
{
    return ms != NEVER && now >= since && now - since >= ms * NS_PER_MS;
}

static void enter(enum phase to, uint64_t now)
{
    phase = to;
    phase_since = now;
}

/* True unless this is the unit that is to fail. */
static bool start_unit(const char *name)
{
    if (config.unit_failed[0] && streq(config.unit_failed, name)) {
        say("[FAILED] Failed to start %s.", name);
        say("See 'systemctl status' for details.");
        failed_shown = true;
        return false;
    }
    say("[  OK  ] Started %s.", name);
    return true;
}

/* ip=<client>:<server>:<gw>:<mask>:..., Linux's IP_PNP. */
static bool parse_ip_param(uint32_t fields[4])
{
    const struct param *p = cmdline_find("ip");
    size_t start = 0;

    memset(fields, 0, 4 * sizeof(fields[0]));
    if (!p)
        return false;
    for (size_t i = 0, n = 0; i <= p->value_len && n < 4; i++) {
        if (i < p->value_len && p->value[i] != ':')
            continue;
        if (i > start && !parse_ipv4(p->value + start, i - start, &fields[n]))
            return false;       /* ip=dhcp, ip=off: no static address */
        start = i + 1;
        n++;
    }
    return fields[0] != 0;
}

static void configure_static(void)
{
    uint32_t f[4];

    if (!parse_ip_param(f))
        return;
    static_ip = true;
    net_set_address(f[0]);
    say("IP-Config: Complete:");
    say("     device=eth0, hwaddr=%M, ipaddr=%I, mask=%I, gw=%I", virtio_mac(), f[0], f[3], f[2]);
    say("     host=%I, domain=, nis-domain=(none)", f[0]);
    uint32_t server = f[1] ? f[1] : 0xffffffff;
    say("     bootserver=%I, rootserver=%I, rootpath=", server, server);
}

/* One line each turn: a noisy guest boots and answers all the same. */
static void flood_console(void)
{
    char filler[FLOOD_LINE - 1];

    memset(filler, 'x', sizeof(filler) - 1);
    filler[sizeof(filler) - 1] = '\0';
    say("%s", filler);          /* 62 characters and CR LF */
    flood_lines--;
}

bool boot_busy(void)
{
    return flood_lines > 0;
}

static void panic(void)
{
    say("VFS: Cannot open root device \"\" or unknown-block(0,0): error -6");
    say("Please append a correct \"root=\" boot option; here are the available partitions:");
    say("Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)");
    if (config.panic_exit) {
        uint64_t begin = clock_ns();
        say("Rebooting in 1 seconds..");
        while (clock_ns() - begin < PANIC_EXIT_MS * NS_PER_MS)
            cpu_pause();
        power_reset();
    }
    say("---[ end Kernel panic - not syncing: VFS: Unable to mount root fs on "
        "unknown-block(0,0) ]---");
    power_halt();
}

static void emergency(void)
{
    say("[ TIME ] Timed out waiting for device /dev/vdb.");
    say("[DEPEND] Dependency failed for /data.");
    say("[DEPEND] Dependency failed for Local File Systems.");
    say("You are in emergency mode. After logging in, type \"journalctl -xb\" to view");
    say("system logs, \"systemctl reboot\" to reboot, \"systemctl default\" or \"exit\"");
    say("to boot into default mode.");
}

void boot_start(void)
{
    if (config.panic || config.panic_exit)
        panic();
    flood_lines = config.console_flood_kib * (1024 / FLOOD_LINE);
    enter(EARLY, clock_ns());
}

static void slow_line(uint64_t now)
{
    if (now < next_line || slow_lines == SLOW_LINES)
        return;
    next_line = now + config.slow_boot_ms * NS_PER_MS / SLOW_LINES;
    say("         Starting Slow Job %u of %u...", ++slow_lines, (uint32_t)SLOW_LINES);
}

static void start_network(uint64_t now)
{
    configure_static();
    if (!config.no_dhcp)
        dhcp_start();
    enter(NETWORK, now);
}

static void network_up(uint64_t now)
{
    if (net_address())
        start_unit(NETWORK_UNIT);
    for (uint32_t i = 0; i < config.unit_count; i++)
        start_unit(config.units[i]);
    if (config.unit_failed[0] && !streq(config.unit_failed, AGENT_UNIT) && !failed_shown)
        start_unit(config.unit_failed);
    if (config.emergency) {
        emergency();
        enter(FAILED, now);
        return;
    }
    if (config.agent_delay_ms)
        say("         Starting %s...", AGENT_UNIT);
    enter(AGENT, now);
}

static void wait_network(uint64_t now)
{
    struct lease l;

    /* Without a client nothing waits for an address: the rest starts. */
    if (static_ip || config.no_dhcp) {
        network_up(now);
    } else if (dhcp_bound(&l)) {
        net_set_address(l.ip);
        say("dhcp: lease %I mask %I router %I server %I for %u s", l.ip, l.mask, l.router,
            l.server, l.seconds);
        network_up(now);
    }
}

static void start_agent(uint64_t now)
{
    if (config.agent_down || !start_unit(AGENT_UNIT)) {
        enter(FAILED, now);
        return;
    }
    tcp_listen(AGENT_PORT);
    enter(RUNNING, now);
}

static void run(uint64_t now)
{
    if (after(now, phase_since, config.oom_ms)) {
        say("Out of memory: Killed process 123 (agent) total-vm:123456kB, anon-rss:65536kB, "
            "file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:256kB oom_score_adj:0");
        tcp_close_all();
        enter(FAILED, now);
    }
    if (after(now, phase_since, config.die_after_ms)) {
        say("reboot: Restarting system");
        power_reset();
    }
}

/* A lease that is lost or replaced takes the address with it. */
static void follow_lease(void)
{
    struct lease l;

    if (static_ip || config.no_dhcp || phase < AGENT)
        return;
    net_set_address(dhcp_bound(&l) ? l.ip : 0);
}

void boot_tick(uint64_t now)
{
    if (after(now, 0, config.crash_ms))
        triple_fault();
    if (after(now, 0, config.exit_ms)) {
        say("reboot: Restarting system");
        power_reset();
    }
    if (flood_lines)
        flood_console();
    follow_lease();
    switch (phase) {
    case EARLY:
        if (config.slow_boot_ms)
            slow_line(now);
        if (after(now, phase_since, config.slow_boot_ms))
            start_network(now);
        break;
    case NETWORK:
        wait_network(now);
        break;
    case AGENT:
        if (after(now, phase_since, config.agent_delay_ms))
            start_agent(now);
        break;
    case RUNNING:
        run(now);
        break;
    case FAILED:
        break;
    }
}
