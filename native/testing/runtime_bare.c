/* A test program on the bare emulated machine: vectors from its disk, text to the debug port, and a last line that says
 * PASS or FAIL. boot.S in tests/emulator has entered 64-bit mode and enabled AVX-512. */
#include "runtime.h"

#include <cpuid.h>

enum {
    PORT_CONSOLE = 0xe9,
    PORT_SHUTDOWN = 0x8900,
    PORT_DISK = 0x1f0, /* ATA, primary channel: data; + 2 .. + 6 count and address, + 7 status and command */
    DISK_BUSY = 0x80,
    DISK_DATA_READY = 0x08,
    DISK_ERROR = 0x01,
    DISK_READ_SECTORS = 0x20,
    SECTOR_BYTES = 512,
    VECTORS_ADDRESS = 0x2000000
};

static void port_write(uint16_t port, uint8_t byte) { __asm__ volatile("outb %0, %1" : : "a"(byte), "d"(port)); }

static uint8_t port_read(uint16_t port) {
    uint8_t byte;
    __asm__ volatile("inb %1, %0" : "=a"(byte) : "d"(port));
    return byte;
}

void say(const char *text) {
    while (*text != '\0') {
        port_write(PORT_CONSOLE, (uint8_t)*text++);
    }
}

void say_number(uint64_t number) {
    if (number >= 10) {
        say_number(number / 10);
    }
    port_write(PORT_CONSOLE, (uint8_t)('0' + number % 10));
}

/* GCC calls these without being asked; written so that it does not turn them into calls of themselves. */
#define NO_LIBRARY_CALLS __attribute__((optimize("no-tree-loop-distribute-patterns")))

NO_LIBRARY_CALLS void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    for (size_t i = 0; i < size; i++) {
        ((uint8_t *)to)[i] = ((const uint8_t *)from)[i];
    }
    return to;
}

NO_LIBRARY_CALLS void *memset(void *to, int byte, size_t size) {
    for (size_t i = 0; i < size; i++) {
        ((uint8_t *)to)[i] = (uint8_t)byte;
    }
    return to;
}

NO_LIBRARY_CALLS int memcmp(const void *left, const void *right, size_t size) {
    const uint8_t *a = left, *b = right;
    for (size_t i = 0; i < size; i++) {
        if (a[i] != b[i]) {
            return a[i] < b[i] ? -1 : 1;
        }
    }
    return 0;
}

void abort(void) {
    say("a bound of our own was broken\nFAIL\n");
    for (const char *word = "Shutdown"; *word != '\0'; word++) {
        port_write(PORT_SHUTDOWN, (uint8_t)*word);
    }
    for (;;) {
        __asm__ volatile("hlt");
    }
}

/* CPUID leaf 7: what the kernels need, so that a machine without it fails instead of hanging in a fault. */
static int cpu_has_ifma(void) {
    uint32_t eax, ebx = 0, ecx, edx;
    const uint32_t needed = bit_AVX512F | bit_AVX512VL | bit_AVX512IFMA | bit_AVX512DQ | bit_AVX512BW;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & needed) == needed;
}

/* One sector by its number (ATA, 28-bit addresses, programmed I/O). Returns 1/0. */
static int disk_read(uint8_t *to, uint32_t sector) {
    uint8_t status;
    port_write(PORT_DISK + 6, (uint8_t)(0xe0 | sector >> 24));
    port_write(PORT_DISK + 2, 1);
    for (int i = 0; i < 3; i++) {
        port_write((uint16_t)(PORT_DISK + 3 + i), (uint8_t)(sector >> 8 * i));
    }
    port_write(PORT_DISK + 7, DISK_READ_SECTORS);
    do {
        status = port_read(PORT_DISK + 7);
    } while (status & DISK_BUSY);
    if ((status & (DISK_DATA_READY | DISK_ERROR)) != DISK_DATA_READY) {
        return 0;
    }
    uint64_t words = SECTOR_BYTES / 2;
    __asm__ volatile("rep insw" : "+D"(to), "+c"(words) : "d"(PORT_DISK) : "memory");
    return 1;
}

/* The disk starts with the size of the vectors in bytes; they follow from its second sector on. */
static int load_vectors(uint8_t *to) {
    uint64_t size = 0;
    if (!disk_read(to, 0)) {
        return 0;
    }
    memcpy(&size, to, sizeof size);
    for (uint64_t done = 0; done < size; done += SECTOR_BYTES) {
        if (!disk_read(to + done, (uint32_t)(1 + done / SECTOR_BYTES))) {
            return 0;
        }
    }
    return 1;
}

__attribute__((section(".text.entry"), used)) void program_entry(void) {
    uint8_t *vectors = (uint8_t *)(uintptr_t)VECTORS_ADDRESS;
    int passed = cpu_has_ifma() && load_vectors(vectors) && test_run(vectors) == 0;
    say(passed ? "PASS\n" : "FAIL\n");
    for (const char *word = "Shutdown"; *word != '\0'; word++) {
        port_write(PORT_SHUTDOWN, (uint8_t)*word);
    }
}
