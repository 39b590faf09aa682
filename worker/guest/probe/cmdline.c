/* The kernel command line, from either boot protocol. */
#include "probe.h"

enum {
    CMDLINE_MAX = 4096,         /* Linux takes 2048 */
    PARAMS_MAX = 256,
    /* struct boot_params (Linux), Documentation/arch/x86/boot.rst */
    BP_EXT_CMD_LINE_PTR = 0x0c8,
    BP_CMD_LINE_PTR = 0x228,
    /* struct hvm_start_info (PVH) */
    SI_MAGIC = 0x336ec578,
    SI_CMDLINE = 24,
};

static char line[CMDLINE_MAX + 1];
static struct param params[PARAMS_MAX];
static size_t param_count;

static uint32_t load32(uintptr_t address)
{
    return *(const volatile uint32_t *)address;
}

static uintptr_t locate(enum boot_protocol protocol, uintptr_t info)
{
    if (protocol == BOOT_LINUX64)
        return load32(info + BP_CMD_LINE_PTR) |
               (uintptr_t)load32(info + BP_EXT_CMD_LINE_PTR) << 32;
    if (load32(info) != SI_MAGIC)
        return 0;
    return load32(info + SI_CMDLINE) | (uintptr_t)load32(info + SI_CMDLINE + 4) << 32;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void add_param(const char *s, const char *end, const char *equals)
{
    if (param_count == PARAMS_MAX)
        return;
    struct param *p = &params[param_count++];
    p->key = s;
    p->key_len = (size_t)((equals ? equals : end) - s);
    p->has_value = equals != NULL;
    p->value = equals ? equals + 1 : end;
    p->value_len = (size_t)(end - p->value);
}

static void tokenise(void)
{
    const char *s = line;

    for (;;) {
        while (is_space(*s))
            s++;
        if (!*s)
            return;
        const char *start = s, *equals = NULL;
        for (; *s > ' '; s++)
            if (*s == '=' && !equals)
                equals = s;
        add_param(start, s, equals);
        if (*s && !is_space(*s))    /* a byte outside ASCII or a control code */
            return;
    }
}

void cmdline_init(enum boot_protocol protocol, uintptr_t info)
{
    uintptr_t at = locate(protocol, info);
    size_t n = 0;

    /* Only the first 4 GiB are mapped. */
    if (at == 0 || at > UINT32_MAX - CMDLINE_MAX)
        return;
    for (const char *s = (const char *)at; n < CMDLINE_MAX && s[n]; n++)
        line[n] = s[n];
    line[n] = '\0';
    tokenise();
}

const struct param *cmdline_next(const struct param *last)
{
    const struct param *p = last ? last + 1 : params;

    return p < params + param_count ? p : NULL;
}

bool param_is(const struct param *p, const char *key)
{
    return p->key[0] == key[0] && p->key_len == strlen(key) &&
           memcmp(p->key, key, p->key_len) == 0;
}

const struct param *cmdline_find(const char *key)
{
    for (size_t i = param_count; i > 0; i--)
        if (param_is(&params[i - 1], key))
            return &params[i - 1];
    return NULL;
}
