/* A test program as a process: vectors from the file named by the first argument, exit status 0 when all is well. */
#include "runtime.h"

#include <stdio.h>
#include <stdlib.h>

void say(const char *text) { fputs(text, stdout); }

void say_number(uint64_t number) {
    if (number >= 10) {
        say_number(number / 10);
    }
    putchar('0' + (int)(number % 10));
}

static uint8_t *read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    uint8_t *bytes = NULL;
    if (file != NULL && fseek(file, 0, SEEK_END) == 0) {
        long size = ftell(file);
        bytes = aligned_alloc(64, ((size_t)size + 127) / 64 * 64);
        rewind(file);
        if (bytes != NULL && fread(bytes, 1, (size_t)size, file) != (size_t)size) {
            free(bytes);
            bytes = NULL;
        }
        fclose(file);
    }
    return bytes;
}

int main(int argc, char **argv) {
    uint8_t *vectors = argc == 2 ? read_file(argv[1]) : NULL;
    if (vectors == NULL) {
        say("cannot read the vectors\n");
        return 2;
    }
    uint64_t failures = test_run(vectors);
    free(vectors);
    return failures == 0 ? 0 : 1;
}
