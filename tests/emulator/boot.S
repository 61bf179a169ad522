/* The firmware of the emulated machine: from the reset vector to 64-bit mode with AVX-512 enabled, then a jump
 * to the test program, which the ROM holds too and which runs at 1 MiB. There is no BIOS and no kernel.
 *
 * The ROM ends at 4 GiB; this part fills its last 64 KiB, where an x86 CPU starts, and the program stands before it.
 */
    .set PROGRAM, 0x100000
    .set PROGRAM_BYTES, 0x80000
    .set STACK_TOP, 0x2000000    /* grows down; above it stand the vectors */
    .set PML4, 0x1000            /* page tables; RAM starts out zeroed */
    .set PDPT, 0x2000
    .set PAGE_DIRECTORIES, 0x3000
    .set SEGMENT_CODE64, 0x08
    .set SEGMENT_CODE32, 0x10
    .set SEGMENT_DATA, 0x18

    .text
    .code16
start16:
    cli
    lgdtl %cs:(descriptor_table_pointer - start16)
    mov %cr0, %eax
    or $1, %eax                  /* protection enable */
    mov %eax, %cr0
    ljmpl $SEGMENT_CODE32, $start32

    .code32
start32:
    mov $SEGMENT_DATA, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss

    /* Identity map of 4 GiB in pages of 2 MiB: present, writable. */
    movl $(PDPT + 3), PML4
    xor %ecx, %ecx
1:  mov %ecx, %eax
    shl $12, %eax
    add $(PAGE_DIRECTORIES + 3), %eax
    mov %eax, PDPT(,%ecx,8)
    inc %ecx
    cmp $4, %ecx
    jne 1b
    xor %ecx, %ecx
2:  mov %ecx, %eax
    shl $21, %eax
    or $0x83, %eax               /* page size bit too */
    mov %eax, PAGE_DIRECTORIES(,%ecx,8)
    inc %ecx
    cmp $2048, %ecx
    jne 2b

    mov $0x40620, %eax           /* CR4: PAE, OSFXSR, OSXMMEXCPT, OSXSAVE */
    mov %eax, %cr4
    mov $PML4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx        /* EFER: long mode enable */
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    and $~4, %eax                /* no FPU emulation */
    or $0x80000002, %eax         /* paging, monitor coprocessor */
    mov %eax, %cr0
    ljmpl $SEGMENT_CODE64, $start64

    .code64
start64:
    xor %ecx, %ecx
    xor %edx, %edx
    mov $0xe7, %eax              /* XCR0: x87, SSE, AVX, opmask, both halves of ZMM */
    xsetbv
    mov $(base - PROGRAM_BYTES), %esi
    mov $PROGRAM, %edi
    mov $PROGRAM_BYTES, %ecx
    rep movsb
    mov $STACK_TOP, %esp
    mov $PROGRAM, %eax
    call *%rax
3:  hlt
    jmp 3b

    .balign 8
descriptor_table:
    .quad 0
    .quad 0x00af9b000000ffff     /* 64-bit code */
    .quad 0x00cf9b000000ffff     /* 32-bit code */
    .quad 0x00cf93000000ffff     /* data */
descriptor_table_pointer:
    .word . - descriptor_table - 1
    .long descriptor_table

    .section .reset, "ax"
    .code16
    jmp start16
    .balign 16, 0
