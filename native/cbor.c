/* Checker of deterministic CBOR: RFC 8949 section 4.2.1 (core deterministic encoding), narrowed to a profile.
 *
 * Allowed: integers of the int64/uint64 range, byte strings, UTF-8 text, arrays, maps, false, true, null, all
 * of definite length, with shortest heads; map keys strictly ascending in bytewise order of their encodings.
 * Refused as malformed: what no decoder may accept (truncated or reserved, RFC 8949 appendix F; text that is
 * not UTF-8, section 5.3.1). Refused as non-canonical: the profile has another form for it, or none.
 *
 * Time is linear: every byte is read once as content and, inside keys, compared at most twice per open map.
 */
#include "fl_tx.h"

#include <string.h>

/* An array or map whose items are being read. */
typedef struct {
    uint64_t items_left; /* keys and values both count; in a map an even number says that a key comes next */
    size_t item_at;      /* where the item being read began */
    size_t previous_key_at;
    size_t previous_key_len; /* 0 before the first key: no encoding is empty */
    int is_map;
} open_container;

static uint64_t read_be(const uint8_t *data, size_t width)
{
    uint64_t value = 0;
    for (size_t i = 0; i < width; i++)
        value = value << 8 | data[i];
    return value;
}

int fl_cbor_read_head(fl_cbor_head *head, const uint8_t *data, size_t len, size_t at)
{
    /* Smallest argument that needs 1, 2, 4 or 8 bytes. */
    static const uint64_t argument_min[4] = {24, UINT64_C(1) << 8, UINT64_C(1) << 16, UINT64_C(1) << 32};

    if (at >= len)
        return FL_MALFORMED;
    head->major = data[at] >> 5;
    head->info = data[at] & 31;
    if (head->info < 24) {
        head->argument = head->info;
        head->next = at + 1;
        return FL_OK;
    }
    if (head->info == 31 && head->major >= FL_CBOR_BYTES && head->major <= FL_CBOR_MAP)
        return FL_NON_CANONICAL; /* indefinite length */
    if (head->info > 27)
        return FL_MALFORMED; /* reserved, or a break that ends nothing */
    size_t width = (size_t)1 << (head->info - 24);
    if (width > len - at - 1)
        return FL_MALFORMED;
    head->argument = read_be(data + at + 1, width);
    head->next = at + 1 + width;
    if (head->major != FL_CBOR_SIMPLE && head->argument < argument_min[head->info - 24])
        return FL_NON_CANONICAL;
    return FL_OK;
}

/* Bytes of the well-formed UTF-8 sequence at s[0..len), 0 when there is none (Unicode 15, table 3-7): the
 * range of the second byte depends on the first, which is what shuts out overlong forms and surrogates. */
static size_t utf8_sequence_len(const uint8_t *s, size_t len)
{
    uint8_t lead = s[0], second_min = 0x80, second_max = 0xbf;
    size_t n;

    if (lead < 0x80)
        return 1;
    if (lead < 0xc2 || lead > 0xf4)
        return 0;
    n = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (lead == 0xe0)
        second_min = 0xa0;
    else if (lead == 0xed)
        second_max = 0x9f;
    else if (lead == 0xf0)
        second_min = 0x90;
    else if (lead == 0xf4)
        second_max = 0x8f;
    if (n > len || s[1] < second_min || s[1] > second_max)
        return 0;
    for (size_t i = 2; i < n; i++)
        if (s[i] < 0x80 || s[i] > 0xbf)
            return 0;
    return n;
}

static int is_utf8(const uint8_t *s, size_t len)
{
    size_t at = 0;
    while (at < len) {
        uint64_t word;
        if (len - at >= sizeof word) {
            memcpy(&word, s + at, sizeof word);
            if (!(word & UINT64_C(0x8080808080808080))) { /* eight ASCII bytes at once */
                at += sizeof word;
                continue;
            }
        }
        size_t n = utf8_sequence_len(s + at, len - at);
        if (n == 0)
            return 0;
        at += n;
    }
    return 1;
}

/* false, true and null are the only values of major type 7. */
static int check_simple(const fl_cbor_head *head)
{
    if (head->info >= 20 && head->info <= 22)
        return FL_OK;
    if (head->info == 24 && head->argument < 32)
        return FL_MALFORMED; /* RFC 8949 section 3.3 */
    return FL_NON_CANONICAL;
}

/* Check what a head alone decides, and the content of strings. An array or map is refused at its head when
 * its items, of a byte each at least, cannot all be there: no count promises more than the input holds. */
static int check_item(const fl_cbor_head *head, const uint8_t *data, size_t len)
{
    size_t left = len - head->next;

    switch (head->major) {
    case FL_CBOR_UINT:
        return FL_OK;
    case FL_CBOR_NEGATIVE: /* -1 - argument >= INT64_MIN */
        return head->argument > INT64_MAX ? FL_NON_CANONICAL : FL_OK;
    case FL_CBOR_BYTES:
        return head->argument > left ? FL_MALFORMED : FL_OK;
    case FL_CBOR_TEXT:
        if (head->argument > left)
            return FL_MALFORMED;
        return is_utf8(data + head->next, (size_t)head->argument) ? FL_OK : FL_MALFORMED;
    case FL_CBOR_ARRAY:
        return head->argument > left ? FL_MALFORMED : FL_OK;
    case FL_CBOR_MAP:
        return head->argument > left / 2 ? FL_MALFORMED : FL_OK;
    case FL_CBOR_TAG:
        return FL_NON_CANONICAL;
    default:
        return check_simple(head);
    }
}

/* Note the key data[item_at..end), and say whether it comes strictly after the one before. */
static int key_ascends(open_container *map, const uint8_t *data, size_t end)
{
    size_t key_len = end - map->item_at;
    size_t common = key_len < map->previous_key_len ? key_len : map->previous_key_len;
    int order = memcmp(data + map->previous_key_at, data + map->item_at, common);
    int ascends = order < 0 || (order == 0 && map->previous_key_len < key_len);

    map->previous_key_at = map->item_at;
    map->previous_key_len = key_len;
    return ascends;
}

/* An item has ended at `at`: close every container that it completes. On an unordered key *error_offset is
 * that key's beginning. */
static int close_items(open_container *open, unsigned *depth, size_t *error_offset, const uint8_t *data,
                       size_t at)
{
    while (*depth > 0) {
        open_container *top = &open[*depth - 1];
        if (top->is_map && top->items_left % 2 == 0 && !key_ascends(top, data, at)) {
            *error_offset = top->item_at;
            return FL_NON_CANONICAL;
        }
        top->items_left--;
        if (top->items_left > 0) {
            top->item_at = at;
            return FL_OK;
        }
        --*depth;
    }
    return FL_OK;
}

int fl_cbor_check(size_t *item_len, size_t *error_offset, const uint8_t *data, size_t len, unsigned depth_max)
{
    open_container open[FL_CBOR_DEPTH_CAP];
    unsigned depth = 0;
    size_t at = 0;

    if (depth_max > FL_CBOR_DEPTH_CAP)
        depth_max = FL_CBOR_DEPTH_CAP;
    do {
        fl_cbor_head head;
        int status = fl_cbor_read_head(&head, data, len, at);
        if (status == FL_OK)
            status = check_item(&head, data, len);
        int is_container = status == FL_OK && (head.major == FL_CBOR_ARRAY || head.major == FL_CBOR_MAP);
        if (is_container && depth == depth_max)
            status = FL_NON_CANONICAL;
        if (status != FL_OK) {
            *error_offset = at;
            return status;
        }
        at = head.next;
        if (head.major == FL_CBOR_BYTES || head.major == FL_CBOR_TEXT)
            at += (size_t)head.argument;
        if (is_container && head.argument > 0) {
            int is_map = head.major == FL_CBOR_MAP;
            open[depth++] = (open_container){
                .items_left = is_map ? 2 * head.argument : head.argument, .item_at = at, .is_map = is_map};
            continue;
        }
        status = close_items(open, &depth, error_offset, data, at);
        if (status != FL_OK)
            return status;
    } while (depth > 0);
    *item_len = at;
    return FL_OK;
}
