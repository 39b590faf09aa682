/*
 * The trial: a fixed amount of work in slices, each followed by a line with a dot.  A host
 * that watches the console learns from its own clock how fast guest code runs there, and
 * what an exit to the VMM costs.  A guest's own clock cannot tell: an emulated CPU's may be
 * right and the CPU a thousand times too slow.
 */
#include "probe.h"

enum {
    TURNS = 100000,             /* a slice of work */
    TURN_INSTRUCTIONS = 10,
    WORK_SLICES = 64,
    EXITS = 100,
    EXIT_SLICES = 20,
    UART_SCRATCH = 0x3ff,       /* does nothing, but the VMM has to be asked */
};

/* TURN_INSTRUCTIONS a turn, two of them to memory. */
static void work(void)
{
    static uint64_t cell = 1;
    uint64_t a, b = 7, turns = TURNS;

    __asm__ volatile("1:\n\t"
                     "mov (%3), %0\n\t"
                     "add %1, %0\n\t"
                     "rol $7, %0\n\t"
                     "xor %0, %1\n\t"
                     "mov %0, (%3)\n\t"
                     "lea 1(%1), %1\n\t"
                     "imul $3, %0, %0\n\t"
                     "test %0, %0\n\t"
                     "dec %2\n\t"
                     "jnz 1b"
                     : "=&r"(a), "+r"(b), "+r"(turns)
                     : "r"(&cell)
                     : "cc", "memory");
}

void trial_run(void)
{
    say("trial: %u slices of %u instructions", (uint32_t)WORK_SLICES, (uint32_t)(TURNS * TURN_INSTRUCTIONS));
    for (uint32_t i = 0; i < WORK_SLICES; i++) {
        work();
        say(".");
    }
    say("trial: %u slices of %u exits", (uint32_t)EXIT_SLICES, (uint32_t)EXITS);
    for (uint32_t i = 0; i < EXIT_SLICES; i++) {
        for (uint32_t j = 0; j < EXITS; j++)
            outb(UART_SCRATCH, (uint8_t)j);
        say(".");
    }
    say("trial: done");
    triple_fault();             /* at once: the VMM ends */
}
