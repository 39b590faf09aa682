/*
 * The fault switches and other probe.* and stoker.* parameters.  A mistake in
 * them stops the guest: a test that misspells a fault must not pass.
 */
#include "probe.h"

struct config config;

enum { FLOOD_MAX_KIB = 16384, DELAY_MAX_MS = 3600000 };

/* How a switch takes its value. */
enum kind {
    FLAG,       /* name */
    NUMBER,     /* name=N, required */
    MOMENT,     /* name or name=N, 0 without */
    TEXT,       /* name=text, form-urlencoded */
};

struct fault {
    const char *name;
    enum kind kind;
    void *target;
    uint32_t min, max;          /* of a number; capacity of a text */
};

static const struct fault faults[] = {
    { "agent-delay-ms", NUMBER, &config.agent_delay_ms, 0, DELAY_MAX_MS },
    { "agent-down", FLAG, &config.agent_down, 0, 0 },
    { "body", TEXT, config.body, 0, BODY_MAX_LEN },
    { "console-flood", NUMBER, &config.console_flood_kib, 1, FLOOD_MAX_KIB },
    { "crash", MOMENT, &config.crash_ms, 0, DELAY_MAX_MS },
    { "dhcp-silent-after-offer", FLAG, &config.dhcp_silent_after_offer, 0, 0 },
    { "die-after-ms", NUMBER, &config.die_after_ms, 0, DELAY_MAX_MS },
    { "emergency", FLAG, &config.emergency, 0, 0 },
    { "exit", MOMENT, &config.exit_ms, 0, DELAY_MAX_MS },
    { "hang", FLAG, &config.hang, 0, 0 },
    { "no-arp", FLAG, &config.no_arp, 0, 0 },
    { "no-dhcp", FLAG, &config.no_dhcp, 0, 0 },
    { "no-id", FLAG, &config.no_id, 0, 0 },
    { "oom", MOMENT, &config.oom_ms, 0, DELAY_MAX_MS },
    { "panic", FLAG, &config.panic, 0, 0 },
    { "panic-exit", FLAG, &config.panic_exit, 0, 0 },
    { "silent", FLAG, &config.silent, 0, 0 },
    { "slow-boot-ms", NUMBER, &config.slow_boot_ms, 0, DELAY_MAX_MS },
    { "status", NUMBER, &config.status, 200, 599 },
    { "unit-failed", TEXT, config.unit_failed, 1, NAME_MAX_LEN },
    { "wrong-id", FLAG, &config.wrong_id, 0, 0 },
};

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Form-urlencoding: + is a space, %XX any byte (a comma is %2C). */
static bool decode(const char *s, size_t len, char *out, size_t max)
{
    size_t n = 0;

    for (size_t i = 0; i < len; i++) {
        char c = s[i];
        if (c == '+') {
            c = ' ';
        } else if (c == '%') {
            if (len - i < 3 || hex_digit(s[i + 1]) < 0 || hex_digit(s[i + 2]) < 0)
                return false;
            c = (char)(hex_digit(s[i + 1]) << 4 | hex_digit(s[i + 2]));
            i += 2;
        }
        if (n == max || c == '\0')
            return false;
        out[n++] = c;
    }
    out[n] = '\0';
    return true;
}

static bool set_fault(const struct fault *f, const char *value, size_t len)
{
    uint32_t *number = f->target;

    if (f->kind == FLAG) {
        *(bool *)f->target = true;
        return value == NULL;
    }
    if (f->kind == TEXT) {
        if (f->target == config.body)
            config.has_body = true;
        return value && len >= f->min && decode(value, len, f->target, f->max);
    }
    if (value == NULL) {
        *number = 0;
        return f->kind == MOMENT;
    }
    return parse_u32(value, len, number) && *number >= f->min && *number <= f->max;
}

static void complain(struct text *why, const char *what, const char *s, size_t len)
{
    text_format(why, "%s '", what);
    text_bytes(why, s, len);
    text_char(why, '\'');
}

/* Calls `each` for every comma-separated item. */
static bool split(const struct param *p, struct text *why,
                  bool (*each)(const char *item, size_t len, struct text *why))
{
    size_t start = 0;

    for (size_t i = 0; i <= p->value_len; i++) {
        if (i < p->value_len && p->value[i] != ',')
            continue;
        if (i > start && !each(p->value + start, i - start, why))
            return false;
        start = i + 1;
    }
    return true;
}

static bool add_fault(const char *item, size_t len, struct text *why)
{
    size_t name_len = 0;

    while (name_len < len && item[name_len] != '=')
        name_len++;
    const char *value = name_len < len ? item + name_len + 1 : NULL;
    size_t value_len = value ? len - name_len - 1 : 0;

    for (size_t i = 0; i < ARRAY_LEN(faults); i++) {
        const struct fault *f = &faults[i];
        if (strlen(f->name) != name_len || memcmp(f->name, item, name_len) != 0)
            continue;
        if (set_fault(f, value, value_len))
            return true;
        complain(why, "wrong value in probe.fault item", item, len);
        return false;
    }
    complain(why, "unknown probe.fault", item, name_len);
    return false;
}

static bool add_unit(const char *item, size_t len, struct text *why)
{
    if (config.unit_count < UNITS_MAX &&
        decode(item, len, config.units[config.unit_count], NAME_MAX_LEN)) {
        config.unit_count++;
        return true;
    }
    complain(why, "bad or one too many in probe.units:", item, len);
    return false;
}

/* address:port */
static bool add_reach(const char *item, size_t len, struct text *why)
{
    size_t colon = 0;
    uint32_t port;

    while (colon < len && item[colon] != ':')
        colon++;
    uint32_t n = config.reach_count;
    if (n < REACH_MAX && colon < len && parse_ipv4(item, colon, &config.reach[n].ip) &&
        parse_u32(item + colon + 1, len - colon - 1, &port) && port > 0 && port < 65536) {
        config.reach[n].port = (uint16_t)port;
        config.reach_count++;
        return true;
    }
    complain(why, "bad or one too many in probe.reach:", item, len);
    return false;
}

/* It is quoted into JSON, so nothing that would need escaping. */
static bool set_vm_id(const struct param *p, struct text *why)
{
    bool good = p->has_value && p->value_len > 0 && p->value_len <= NAME_MAX_LEN;

    for (size_t i = 0; good && i < p->value_len; i++) {
        char c = p->value[i];
        good = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') ||
               c == '-' || c == '_' || c == '.';
    }
    if (!good) {
        complain(why, "bad stoker.vm_id", p->value, p->value_len);
        return false;
    }
    memcpy(config.vm_id, p->value, p->value_len);
    config.vm_id[p->value_len] = '\0';
    return true;
}

static bool take_param(const struct param *p, struct text *why)
{
    if (param_is(p, "stoker.vm_id"))
        return set_vm_id(p, why);
    if (param_is(p, "probe.fault"))
        return split(p, why, add_fault);
    if (param_is(p, "probe.units"))
        return split(p, why, add_unit);
    if (param_is(p, "probe.reach"))
        return split(p, why, add_reach);
    if (param_is(p, "probe.trial"))
        return config.trial = true;
    if (p->key_len > 6 && memcmp(p->key, "probe.", 6) == 0) {
        complain(why, "unknown parameter", p->key, p->key_len);
        return false;
    }
    return true;
}

bool config_parse(struct text *why)
{
    bool good = true;

    config.status = 200;
    config.crash_ms = config.exit_ms = NEVER;
    config.oom_ms = config.die_after_ms = NEVER;
    for (const struct param *p = cmdline_next(NULL); p && good; p = cmdline_next(p))
        good = take_param(p, why);
    return good;
}
