/*
 * Freestanding basics; see lib.h.
 *
 * Where nested virtualization interprets the guest, an instruction takes about
 * a microsecond; hence eight bytes at a time wherever it is easy.
 */
#include "lib.h"

/* Parentheses keep the macros of lib.h away from the definitions. */
void *(memcpy)(void *to, const void *from, size_t n)
{
    void *result = to;
    size_t words = n / 8, rest = n % 8;

    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(rest) : : "memory");
    return result;
}

void *(memset)(void *to, int byte, size_t n)
{
    void *result = to;
    uint64_t pattern = (uint8_t)byte * 0x0101010101010101ull;
    size_t words = n / 8, rest = n % 8;

    __asm__ volatile("rep stosq" : "+D"(to), "+c"(words) : "a"(pattern) : "memory");
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(rest) : "a"(pattern) : "memory");
    return result;
}

void *memmove(void *to, const void *from, size_t n)
{
    uint8_t *d = to;
    const uint8_t *s = from;

    if (d <= s || d >= s + n)
        return memcpy(to, from, n);
    while (n--)
        d[n] = s[n];
    return to;
}

int (memcmp)(const void *a, const void *b, size_t n)
{
    const uint8_t *x = a, *y = b;

    for (size_t i = 0; i < n; i++)
        if (x[i] != y[i])
            return x[i] < y[i] ? -1 : 1;
    return 0;
}

size_t (strlen)(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}

bool streq(const char *a, const char *b)
{
    size_t n = strlen(a);
    return n == strlen(b) && memcmp(a, b, n) == 0;
}

bool parse_u32(const char *s, size_t len, uint32_t *out)
{
    uint64_t value = 0;

    if (len == 0 || len > 10)
        return false;
    for (size_t i = 0; i < len; i++) {
        if (s[i] < '0' || s[i] > '9')
            return false;
        value = value * 10 + (uint64_t)(s[i] - '0');
    }
    if (value > UINT32_MAX)
        return false;
    *out = (uint32_t)value;
    return true;
}

bool parse_ipv4(const char *s, size_t len, uint32_t *out)
{
    uint32_t address = 0;
    size_t at = 0;

    for (int part = 0; part < 4; part++) {
        size_t start = at;
        uint32_t octet;

        while (at < len && s[at] != '.')
            at++;
        if (!parse_u32(s + start, at - start, &octet) || octet > 255)
            return false;
        address = address << 8 | octet;
        if (part < 3) {
            if (at == len)
                return false;
            at++;
        }
    }
    if (at != len)
        return false;
    *out = address;
    return true;
}

void text_char(struct text *t, char c)
{
    if (t->len < t->cap)
        t->data[t->len++] = c;
}

void text_bytes(struct text *t, const char *s, size_t n)
{
    n = MIN(n, t->cap - t->len);
    memcpy(t->data + t->len, s, n);
    t->len += n;
}

static void text_number(struct text *t, uint64_t value, unsigned base,
                        unsigned width, char pad)
{
    char digits[20];
    unsigned n = 0;

    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    for (unsigned i = n; i < width; i++)
        text_char(t, pad);
    while (n)
        text_char(t, digits[--n]);
}

static void text_mac(struct text *t, const uint8_t *mac)
{
    for (int i = 0; i < 6; i++) {
        if (i)
            text_char(t, ':');
        text_number(t, mac[i], 16, 2, '0');
    }
}

static void text_ipv4(struct text *t, uint32_t address)
{
    for (int shift = 24; shift >= 0; shift -= 8) {
        text_number(t, address >> shift & 0xff, 10, 0, '0');
        if (shift)
            text_char(t, '.');
    }
}

void text_vformat(struct text *t, const char *format, va_list args)
{
    for (const char *f = format; *f; f++) {
        unsigned width = 0;
        char pad = ' ';

        if (*f != '%') {
            const char *literal = f;
            while (f[1] && f[1] != '%')
                f++;
            text_bytes(t, literal, (size_t)(f + 1 - literal));
            continue;
        }
        f++;
        if (*f == '0')
            pad = *f++;
        while (*f >= '0' && *f <= '9')
            width = width * 10 + (unsigned)(*f++ - '0');
        switch (*f) {
        case 's': {
            const char *s = va_arg(args, const char *);
            text_bytes(t, s, strlen(s));
            break;
        }
        case 'u': text_number(t, va_arg(args, uint32_t), 10, width, pad); break;
        case 'U': text_number(t, va_arg(args, uint64_t), 10, width, pad); break;
        case 'x': text_number(t, va_arg(args, uint64_t), 16, width, pad); break;
        case 'I': text_ipv4(t, va_arg(args, uint32_t)); break;
        case 'M': text_mac(t, va_arg(args, const uint8_t *)); break;
        case '\0': return;
        default: text_char(t, *f); break;
        }
    }
}

void text_format(struct text *t, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    text_vformat(t, format, args);
    va_end(args);
}
