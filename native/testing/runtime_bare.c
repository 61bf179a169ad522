/* A test program on the bare emulated machine: vectors where the emulator has put them, text to the debug port, and a
 * last line that says PASS or FAIL. boot.S in tests/emulator has entered 64-bit mode and enabled AVX-512. */
#include "runtime.h"

#include <cpuid.h>

enum { PORT_CONSOLE = 0xe9, PORT_SHUTDOWN = 0x8900, VECTORS_ADDRESS = 0x2000000 };

static void port_write(uint16_t port, uint8_t byte) { __asm__ volatile("outb %0, %1" : : "a"(byte), "d"(port)); }

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

__attribute__((section(".text.entry"), used)) void program_entry(void) {
    int passed = cpu_has_ifma() && test_run((const uint8_t *)(uintptr_t)VECTORS_ADDRESS) == 0;
    say(passed ? "PASS\n" : "FAIL\n");
    for (const char *word = "Shutdown"; *word != '\0'; word++) {
        port_write(PORT_SHUTDOWN, (uint8_t)*word);
    }
}
