/* The console: an 8250/16550 UART at the PC's first serial port. */
#include "probe.h"

enum {
    UART = 0x3f8,
    UART_DATA = UART + 0,
    UART_IER = UART + 1,
    UART_FCR = UART + 2,
    UART_LCR = UART + 3,
    UART_MCR = UART + 4,
    UART_LSR = UART + 5,
    FCR_ENABLE = 0x01,
    LCR_8N1 = 0x03,
    MCR_DTR_RTS = 0x03,
    LSR_THR_EMPTY = 0x20,
    FIFO_SIZE = 16,
    /* A VMM whose console reader is stuck must not stop the guest for ever. */
    READY_SPINS = 1000000,
    LINE_MAX = 512,
};

static bool muted;

void serial_init(bool silent)
{
    muted = silent;
    outb(UART_IER, 0);
    outb(UART_LCR, LCR_8N1);
    outb(UART_FCR, FCR_ENABLE);
    outb(UART_MCR, MCR_DTR_RTS);
}

static void wait_ready(void)
{
    for (uint32_t i = 0; i < READY_SPINS; i++) {
        if (inb(UART_LSR) & LSR_THR_EMPTY)
            return;
        cpu_pause();
    }
}

/* Each port access is a VM exit, so the status is read once per FIFO load. */
static void serial_write(const char *s, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (i % FIFO_SIZE == 0)
            wait_ready();
        outb(UART_DATA, (uint8_t)s[i]);
    }
}

void say(const char *format, ...)
{
    char line[LINE_MAX];
    struct text t = { line, 0, LINE_MAX - 2 };
    va_list args;

    if (muted)
        return;
    va_start(args, format);
    text_vformat(&t, format, args);
    va_end(args);
    t.cap = LINE_MAX;
    text_bytes(&t, "\r\n", 2);
    serial_write(line, t.len);
}
