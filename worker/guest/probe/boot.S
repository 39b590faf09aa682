/*
 * Entry points, page tables, descriptor tables and interrupt stubs.
 *
 * Two ways in, because VMMs differ: the PVH ELF note (32-bit protected mode,
 * used by QEMU microvm and by Firecracker >= 1.12) and the ELF entry point
 * (Linux 64-bit boot protocol, used by older Firecracker).  Both end in
 * probe_main(protocol, info) in long mode on tables of our own.
 */

    .set    CODE64_SEL, 0x08
    .set    DATA_SEL,   0x10
    .set    CR0_PG,     0x80000000
    .set    CR4_PAE,    0x20
    .set    MSR_EFER,   0xc0000080
    .set    EFER_LME,   0x100
    .set    LAPIC_EOI,  0xfee000b0
    .set    STACK_SIZE, 16384

    .section .note.pvh, "a", @note
    .align  4
    .long   4, 8, 18                /* name size, value size, PHYS32_ENTRY */
    .asciz  "Xen"
    .quad   pvh_start

    .section .text.boot, "ax", @progbits
    .code32
pvh_start:                          /* ebx: struct hvm_start_info */
    cli
    movl    $pml4, %eax
    movl    %eax, %cr3
    movl    $CR4_PAE, %eax
    movl    %eax, %cr4
    movl    $MSR_EFER, %ecx
    xorl    %edx, %edx
    movl    $EFER_LME, %eax
    wrmsr
    lgdt    gdt_pointer
    movl    %cr0, %eax
    orl     $CR0_PG, %eax
    movl    %eax, %cr0
    ljmp    $CODE64_SEL, $pvh_start64

    .code64
pvh_start64:
    movl    $1, %edi                /* enum boot_protocol: PVH */
    movl    %ebx, %esi
    jmp     start64

    .globl  linux_start
linux_start:                        /* rsi: struct boot_params */
    cli
    lgdt    gdt_pointer
    movl    $pml4, %eax
    movq    %rax, %cr3
    movl    $stack_top, %esp
    pushq   $CODE64_SEL
    pushq   $1f
    lretq
1:  xorl    %edi, %edi              /* enum boot_protocol: LINUX64 */

start64:
    movl    $DATA_SEL, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    movl    $stack_top, %esp
    xorl    %ebp, %ebp
    cld
    call    probe_main
1:  cli
    hlt
    jmp     1b

/* Only counts and acknowledges: the main loop does the work. */
    .macro  irq_stub name, counter
    .globl  \name
\name:
    pushq   %rax
    incl    \counter
    movl    $LAPIC_EOI, %eax
    movl    $0, (%rax)
    popq    %rax
    iretq
    .endm

    irq_stub isr_timer, timer_ticks
    irq_stub isr_device, device_irqs

    .globl  isr_spurious
isr_spurious:                       /* by definition not acknowledged */
    iretq

/*
 * 32 exception stubs of 16 bytes each.  They never return, so the error code
 * that some vectors push need not be told apart from the instruction pointer:
 * both words are shown.
 */
    .align  16
    .globl  exception_stubs
exception_stubs:
    .set    vector, 0
    .rept   32
    .align  16
    movl    $vector, %edi
    jmp     exception_common
    .set    vector, vector + 1
    .endr
exception_common:
    movq    0(%rsp), %rsi
    movq    8(%rsp), %rdx
    andq    $-16, %rsp
    call    exception_report

    .globl  triple_fault
triple_fault:                       /* an empty IDT turns any fault into a reset */
    cli
    lidt    empty_idt_pointer
    int3

    .section .rodata
    .align  8
gdt:
    .quad   0
    .quad   0x00af9b000000ffff      /* 64-bit code */
    .quad   0x00cf93000000ffff      /* data */
gdt_pointer:
    .word   gdt_pointer - gdt - 1
    .quad   gdt
empty_idt_pointer:
    .word   0
    .quad   0

/*
 * Identity map of the first 4 GiB in 2 MiB pages (the processor sets accessed
 * bits, hence .data).  Laid out at build time: under an interpreting
 * hypervisor, filling 2048 entries costs milliseconds.
 */
    .section .data
    .align  4096
pml4:
    .quad   pdpt + 3
    .fill   511, 8, 0
pdpt:
    .quad   pd + 3, pd + 0x1003, pd + 0x2003, pd + 0x3003
    .fill   508, 8, 0
pd:
    .set    page, 0
    .rept   2048
    .quad   (page << 21) + 0x83
    .set    page, page + 1
    .endr

    .section .bss
    .align  16
    .skip   STACK_SIZE
stack_top:

    .section .note.GNU-stack, "", @progbits
