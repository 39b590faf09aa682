/* Ends of the machine: reset, halt, and the keyboard controller's wishes. */
#include "probe.h"

enum {
    I8042_DATA = 0x60,
    I8042_STATUS = 0x64,
    I8042_RESET = 0xfe,
    STATUS_DATA_AVAILABLE = 0x01,
    STATUS_ABSENT = 0xff,       /* what a port without a device reads as */
    RESET_GRACE_MS = 200,       /* Firecracker's event loop needs a moment */
    DRAIN_MAX = 16,             /* the controller's buffer */
};

void power_halt(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

void power_reset(void)
{
    uint64_t begin = clock_ns();

    __asm__ volatile("cli");
    outb(I8042_STATUS, I8042_RESET);
    while (clock_ns() - begin < RESET_GRACE_MS * NS_PER_MS)
        cpu_pause();
    /* No keyboard controller (QEMU microvm): a triple fault resets, too. */
    triple_fault();
}

bool power_ctrl_alt_del(void)
{
    static bool ctrl, alt;

    for (int i = 0; i < DRAIN_MAX; i++) {
        uint8_t status = inb(I8042_STATUS);

        if (status == STATUS_ABSENT || !(status & STATUS_DATA_AVAILABLE))
            return false;
        switch (inb(I8042_DATA)) {
        case 0x14: case 0x1d: ctrl = true; break;   /* scan code sets 2, 1 */
        case 0x11: case 0x38: alt = true; break;
        case 0xe0: break;
        case 0x71: case 0x53:
            if (ctrl && alt)
                return true;
            break;
        default: ctrl = alt = false; break;
        }
    }
    return false;
}
