/* What a test program of the lane kernels runs on: an ordinary process, or the bare emulated machine of tests/emulator. */
#ifndef FL_TESTING_RUNTIME_H
#define FL_TESTING_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

/* The program's own part: checks the vectors, says what it found, returns the number of failures. Vectors are aligned
 * to 64 bytes. */
uint64_t test_run(const uint8_t *vectors);

void say(const char *text);
void say_number(uint64_t number);

#endif
