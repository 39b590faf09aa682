/* Freestanding basics: memory, text formatting, port and MMIO access. */
#ifndef PROBE_LIB_H
#define PROBE_LIB_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)    ((a) < (b) ? (a) : (b))

#define NS_PER_MS 1000000ull
#define NS_PER_S  1000000000ull

/* gcc emits calls to the first three for copies and initialisers. */
void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);
void *memmove(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);

/* Lets gcc fold lengths of literals and inline small copies, freestanding or not. */
#define memcpy(to, from, n)  __builtin_memcpy(to, from, n)
#define memset(to, byte, n)  __builtin_memset(to, byte, n)
#define memcmp(a, b, n)      __builtin_memcmp(a, b, n)
#define strlen(s)            __builtin_strlen(s)

bool streq(const char *a, const char *b);

/* Decimal number filling all of `s`; false when it is not one or overflows. */
bool parse_u32(const char *s, size_t len, uint32_t *out);

/* Dotted quad filling all of `s`, in host byte order. */
bool parse_ipv4(const char *s, size_t len, uint32_t *out);

/* Text that stops at its capacity instead of overflowing. */
struct text {
    char *data;
    size_t len, cap;
};
void text_char(struct text *t, char c);
void text_bytes(struct text *t, const char *s, size_t n);

/*
 * %s string, %u uint32_t, %U uint64_t, %x uint64_t in hex, %I IPv4 address
 * (uint32_t, host order), %M MAC (6 bytes), %%.  A width such as %02u pads
 * numbers with zeros, and with spaces when it does not begin with 0.
 */
void text_vformat(struct text *t, const char *format, va_list args);
void text_format(struct text *t, const char *format, ...);

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* Plain moves: a hypervisor has to decode these, so keep them simple. */
static inline uint32_t mmio_read(uintptr_t address)
{
    uint32_t value;
    __asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static inline void mmio_write(uintptr_t address, uint32_t value)
{
    __asm__ volatile("movl %0, (%1)" : : "r"(value), "r"(address) : "memory");
}

static inline void cpu_pause(void)
{
    __asm__ volatile("pause" : : : "memory");
}

#endif
