/* Deterministic CBOR as MessagePack, so that a typed decoder can read bodies without a generic one in between.
 *
 * The profile of cbor.c (integers, byte strings, text, arrays, maps, booleans, null) has a MessagePack form for
 * every value, item by item and in the same order, with heads in their shortest form.
 */
#include "fl_tx.h"

#include <string.h>

/* A head grows by two bytes at most, from the one that an item has at least: 3 x len always suffices. */

static uint8_t *write_be(uint8_t *out, uint64_t value, unsigned width)
{
    for (unsigned i = 0; i < width; i++)
        out[i] = (uint8_t)(value >> (8 * (width - 1 - i)));
    return out + width;
}

/* Bytes that a value needs, of 1, 2, 4 and 8. */
static unsigned width_of(uint64_t value)
{
    return value < 0x100 ? 1 : value < 0x10000 ? 2 : value < UINT64_C(0x100000000) ? 4 : 8;
}

/* 0, 1, 2, 3 for widths 1, 2, 4, 8: how MessagePack numbers the sizes of one family. */
static unsigned width_index(unsigned width)
{
    return width == 1 ? 0 : width == 2 ? 1 : width == 4 ? 2 : 3;
}

static uint8_t *write_uint(uint8_t *out, uint64_t value)
{
    if (value < 0x80)
        return write_be(out, value, 1);
    unsigned width = width_of(value);
    *out++ = (uint8_t)(0xcc + width_index(width));
    return write_be(out, value, width);
}

/* CBOR's -1 - argument, which is at least -2^63. */
static uint8_t *write_negative(uint8_t *out, uint64_t argument)
{
    uint64_t two_complement = ~argument;
    if (argument < 32)
        return write_be(out, two_complement & 0xff, 1);
    unsigned width = width_of(argument << 1);
    *out++ = (uint8_t)(0xd0 + width_index(width));
    return write_be(out, two_complement, width);
}

/* Head of a string or container: `fix` with `fix_max` for short ones, else `first` for the smallest `width_min`. */
static uint8_t *write_length(uint8_t *out, uint64_t length, unsigned fix, unsigned fix_count, unsigned first,
                             unsigned width_min)
{
    if (length < fix_count)
        return write_be(out, fix | length, 1);
    unsigned width = width_of(length);
    if (width < width_min)
        width = width_min;
    *out++ = (uint8_t)(first + width_index(width) - width_index(width_min));
    return write_be(out, length, width);
}

size_t fl_cbor_to_msgpack(uint8_t *out, const uint8_t *data, size_t len)
{
    uint8_t *at_out = out;
    size_t at = 0;
    fl_cbor_head head;

    while (at < len) {
        if (fl_cbor_read_head(&head, data, len, at) != FL_OK)
            return 0;
        at = head.next;
        switch (head.major) {
        case FL_CBOR_UINT:
            at_out = write_uint(at_out, head.argument);
            break;
        case FL_CBOR_NEGATIVE:
            at_out = write_negative(at_out, head.argument);
            break;
        case FL_CBOR_BYTES:
        case FL_CBOR_TEXT:
            if (head.argument > len - at)
                return 0;
            at_out = head.major == FL_CBOR_BYTES ? write_length(at_out, head.argument, 0, 0, 0xc4, 1)
                                                 : write_length(at_out, head.argument, 0xa0, 32, 0xd9, 1);
            memcpy(at_out, data + at, (size_t)head.argument);
            at_out += head.argument;
            at += (size_t)head.argument;
            break;
        case FL_CBOR_ARRAY:
            at_out = write_length(at_out, head.argument, 0x90, 16, 0xdc, 2);
            break;
        case FL_CBOR_MAP:
            at_out = write_length(at_out, head.argument, 0x80, 16, 0xde, 2);
            break;
        default: /* false 20, true 21, null 22 */
            *at_out++ = head.info == 22 ? 0xc0 : (uint8_t)(0xc2 + (head.info & 1));
            break;
        }
    }
    return (size_t)(at_out - out);
}
