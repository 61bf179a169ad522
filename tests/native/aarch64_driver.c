/* Runs one backend of the native layer over fixed inputs and prints what it computed, for test_aarch64.py.
 *
 * Usage: driver BACKEND. Byte i of the input is 167 i + 13; message i has 7 i bytes from where the one before ends.
 */
#include <stdio.h>
#include <stdlib.h>

#include "fl.h"

enum { MESSAGES = 61, INPUT_BYTES = 32 * 1024 };

static void print_hex(const char *name, const uint8_t *bytes, size_t size) {
    printf("%s ", name);
    for (size_t i = 0; i < size; i++) {
        printf("%02x", bytes[i]);
    }
    printf("\n");
}

int main(int argc, char **argv) {
    static uint8_t input[INPUT_BYTES], out[32 * MESSAGES], scratch[INPUT_BYTES];
    uint64_t offsets[MESSAGES + 1] = {0};
    uint8_t target[32];
    uint32_t nonce = 0;

    if (argc != 2 || !fl_init(argv[1])) {
        return 2;
    }
    for (size_t i = 0; i < INPUT_BYTES; i++) {
        input[i] = (uint8_t)(167 * i + 13);
    }
    for (size_t i = 0; i < MESSAGES; i++) {
        offsets[i + 1] = offsets[i] + 7 * i;
    }
    printf("backend %s\n", fl_backend_name());
    fl_sha256_many(out, input, offsets, MESSAGES);
    print_hex("messages", out, sizeof out);
    fl_sha256_leaf_many(out, input, offsets, MESSAGES);
    print_hex("leaves", out, sizeof out);
    fl_merkle_root(out, FL_MERKLE_RFC9162, input, 1001, 2, scratch);
    print_hex("rfc9162", out, 32);
    fl_merkle_root(out, FL_MERKLE_BITCOIN, input, 1001, 1, scratch);
    print_hex("bitcoin", out, 32);
    fl_header_hash_many(out, input, 33);
    print_hex("headers", out, 32 * 33);
    for (size_t i = 0; i < sizeof target; i++) {
        target[i] = i < 30 ? 0xff : 0;
    }
    printf("nonce %d %u\n", fl_pow_search(&nonce, input, target, 5, 300000, 2, NULL), nonce);
    return 0;
}
