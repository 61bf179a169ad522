/* Scan of transactions: tagged COSE_Sign1 (RFC 9052 section 4.2) of one exact outline,
 *
 *   d2 84                                   tag 18, array(4)
 *   58 28 a2 01 38 2e 04 58 21 <33 bytes>   protected header {1: -47 (ES256K, RFC 8812), 4: signer}
 *   a0                                      unprotected header, empty
 *   <payload>                               byte string, shortest head
 *   58 40 <64 bytes>                        signature, r || s
 *
 * whose payload is deterministic CBOR: [chain_id, kind, issued_ms, expires_ms, nonce, body]. The transaction
 * id is the SHA-256 of the Sig_structure ["Signature1", protected, h'', payload] that the signature signs.
 *
 * Problems are looked for in this order: size, outline, encoding of the payload, shape of the payload; within
 * each in reading order.
 */
#include "fl.h"
#include "fl_tx.h"

#include <string.h>

static const uint8_t PREFIX[11] = {0xd2, 0x84, 0x58, 0x28, 0xa2, 0x01, 0x38, 0x2e, 0x04, 0x58, 0x21};
/* array(4), text(10) "Signature1" */
static const uint8_t SIG_STRUCTURE_PREFIX[12] = {0x84, 0x6a, 'S', 'i', 'g', 'n',
                                                 'a',  't',  'u', 'r', 'e', '1'};

enum {
    PROTECTED_AT = 2, /* of its byte string's head */
    SIGNER_AT = sizeof PREFIX,
    SIGNER_LEN = 33,
    UNPROTECTED_AT = SIGNER_AT + SIGNER_LEN,
    PAYLOAD_HEAD_AT = UNPROTECTED_AT + 1,
    SIG_HEAD_LEN = 2,
    SIG_LEN = 64,
    EMPTY_MAP = 0xa0,
    EMPTY_BYTES = 0x40,
    PAYLOAD_ITEMS = 0x86, /* array(6) */
    CHAIN_ID_HEAD = 0x48, /* bytes(8) */
    CHAIN_ID_LEN = 8
};

/* The Sig_structure has 55 bytes before the payload where the transaction has 111 around it, and so always
 * fits into as much room as the transaction takes. */
_Static_assert(PAYLOAD_HEAD_AT + SIG_HEAD_LEN + SIG_LEN == 111, "outline");
_Static_assert(sizeof SIG_STRUCTURE_PREFIX + (UNPROTECTED_AT - PROTECTED_AT) + 1 == 55, "Sig_structure");
_Static_assert(FL_TX_BYTES_MIN == 111 + 1, "outline and the head of an empty payload");

/* Where the parts of a transaction lie. */
typedef struct {
    size_t payload_at;
    size_t payload_len;
    size_t sig_at; /* of the 64 bytes, past their head */
    size_t end;
} outline;

/* Messages gathered for one call of the multi-lane hash: large enough to fill its lanes many times over,
 * small enough that the scratch stays in the cache. */
#define GROUP_MESSAGES 256

typedef struct {
    uint8_t *scratch;
    size_t scratch_len;
    size_t first; /* transaction of the first message */
    size_t count;
    uint64_t offsets[GROUP_MESSAGES + 1];
} message_group;

static int refuse(size_t *error_offset, size_t at, int status)
{
    *error_offset = at;
    return status;
}

/* Everything up to the payload: constant but for the signer. */
static int read_headers(size_t *error_offset, const uint8_t *tx, size_t len)
{
    size_t common = len < sizeof PREFIX ? len : sizeof PREFIX;
    for (size_t i = 0; i < common; i++)
        if (tx[i] != PREFIX[i])
            return refuse(error_offset, i, i < PROTECTED_AT ? FL_MALFORMED : FL_BAD_HEADER);
    if (len <= UNPROTECTED_AT)
        return refuse(error_offset, len, FL_MALFORMED);
    if (tx[UNPROTECTED_AT] != EMPTY_MAP)
        return refuse(error_offset, UNPROTECTED_AT, FL_BAD_HEADER);
    return FL_OK;
}

/* Read the outline of the transaction that begins at tx[0]; bytes may follow it. */
static int read_outline(outline *out, size_t *error_offset, const uint8_t *tx, size_t len)
{
    fl_cbor_head head;
    int status = read_headers(error_offset, tx, len);
    if (status != FL_OK)
        return status;

    status = fl_cbor_read_head(&head, tx, len, PAYLOAD_HEAD_AT);
    if (status != FL_OK)
        return refuse(error_offset, PAYLOAD_HEAD_AT, status);
    if (head.major != FL_CBOR_BYTES || head.argument > len - head.next)
        return refuse(error_offset, PAYLOAD_HEAD_AT, FL_MALFORMED);
    out->payload_at = head.next;
    out->payload_len = (size_t)head.argument;

    size_t at = out->payload_at + out->payload_len;
    if (len - at < SIG_HEAD_LEN + SIG_LEN)
        return refuse(error_offset, at, FL_MALFORMED);
    if (tx[at] != 0x58 || tx[at + 1] != SIG_LEN)
        return refuse(error_offset, at, FL_MALFORMED);
    out->sig_at = at + SIG_HEAD_LEN;
    out->end = out->sig_at + SIG_LEN;
    return FL_OK;
}

static int is_kind_name(const uint8_t *name, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        uint8_t c = name[i];
        int allowed = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
        if (!allowed)
            return 0;
    }
    return 1;
}

/* Read the six items of a payload whose encoding has been checked. Offsets here count from the transaction,
 * and `end` is where the payload ends. */
static int read_payload_items(fl_tx_fields *out, size_t *error_offset, const uint8_t *tx, size_t at,
                              size_t end, const fl_tx_limits *limits)
{
    fl_cbor_head head;
    uint64_t *const numbers[3] = {&out->issued_ms, &out->expires_ms, &out->nonce};

    if (tx[at] != PAYLOAD_ITEMS)
        return refuse(error_offset, at, FL_MALFORMED);
    at++;
    if (tx[at] != CHAIN_ID_HEAD)
        return refuse(error_offset, at, FL_MALFORMED);
    memcpy(out->chain_id, tx + at + 1, CHAIN_ID_LEN);
    at += 1 + CHAIN_ID_LEN;

    int status = fl_cbor_read_head(&head, tx, end, at);
    if (status != FL_OK || head.major != FL_CBOR_TEXT || head.argument < 1 ||
        head.argument > limits->kind_bytes_max || !is_kind_name(tx + head.next, (size_t)head.argument))
        return refuse(error_offset, at, FL_MALFORMED);
    out->kind_at = (uint32_t)head.next;
    out->kind_len = (uint32_t)head.argument;
    at = head.next + (size_t)head.argument;

    for (size_t i = 0; i < 3; i++) {
        status = fl_cbor_read_head(&head, tx, end, at);
        if (status != FL_OK || head.major != FL_CBOR_UINT)
            return refuse(error_offset, at, FL_MALFORMED);
        *numbers[i] = head.argument;
        at = head.next;
    }
    if (tx[at] >> 5 != FL_CBOR_MAP)
        return refuse(error_offset, at, FL_MALFORMED);
    out->body_at = (uint32_t)at;
    out->body_len = (uint32_t)(end - at);
    return FL_OK;
}

/* Scan one transaction, which must fill tx[0..len) to the end. */
static int scan_one(fl_tx_fields *out, outline *parts, size_t *error_offset, const uint8_t *tx, size_t len,
                    const fl_tx_limits *limits)
{
    size_t item_len;

    if (len > limits->transaction_bytes_max)
        return refuse(error_offset, limits->transaction_bytes_max, FL_OVERSIZED);
    int status = read_outline(parts, error_offset, tx, len);
    if (status != FL_OK)
        return status;
    if (parts->end != len)
        return refuse(error_offset, parts->end, FL_MALFORMED);

    status = fl_cbor_check(&item_len, error_offset, tx + parts->payload_at, parts->payload_len,
                           limits->cbor_depth_max);
    if (status != FL_OK)
        return refuse(error_offset, parts->payload_at + *error_offset, status);
    if (item_len != parts->payload_len)
        return refuse(error_offset, parts->payload_at + item_len, FL_MALFORMED);
    out->payload_at = (uint32_t)parts->payload_at;
    out->payload_len = (uint32_t)parts->payload_len;
    return read_payload_items(out, error_offset, tx, parts->payload_at,
                              parts->payload_at + parts->payload_len, limits);
}

/* Write the Sig_structure (RFC 9052 section 4.4) at out and return its length. */
static size_t write_sig_structure(uint8_t *out, const uint8_t *tx, const outline *parts)
{
    uint8_t *at = out;
    size_t protected_len = UNPROTECTED_AT - PROTECTED_AT;
    size_t payload_len = parts->payload_at + parts->payload_len - PAYLOAD_HEAD_AT; /* with its head */

    memcpy(at, SIG_STRUCTURE_PREFIX, sizeof SIG_STRUCTURE_PREFIX);
    at += sizeof SIG_STRUCTURE_PREFIX;
    memcpy(at, tx + PROTECTED_AT, protected_len);
    at += protected_len;
    *at++ = EMPTY_BYTES; /* external_aad */
    memcpy(at, tx + PAYLOAD_HEAD_AT, payload_len);
    at += payload_len;
    return (size_t)(at - out);
}

/* Hash the gathered messages into the ids of their transactions. A refused transaction took part as an empty
 * message, which keeps ids and messages in step; its id becomes zero. */
static void flush_group(message_group *group, const fl_tx_columns *out)
{
    uint8_t *txid32 = out->txid32 + 32 * group->first;

    fl_sha256_many(txid32, group->scratch, group->offsets, group->count);
    for (size_t i = 0; i < group->count; i++)
        if (out->status[group->first + i] != FL_OK)
            memset(txid32 + 32 * i, 0, 32);
    group->first += group->count;
    group->count = 0;
}

/* Scan transaction `index` into its row and append its message, if it has one, to the group. */
static void scan_row(const fl_tx_columns *out, message_group *group, size_t index, const uint8_t *tx,
                     size_t len, const fl_tx_limits *limits)
{
    fl_tx_fields *fields = &out->fields[index];
    outline parts;
    size_t error_offset = 0, message_at = (size_t)group->offsets[group->count], message_len = 0;

    memset(fields, 0, sizeof *fields);
    int status = scan_one(fields, &parts, &error_offset, tx, len, limits);
    if (status == FL_OK) {
        message_len = write_sig_structure(group->scratch + message_at, tx, &parts);
        memcpy(out->signer33 + SIGNER_LEN * index, tx + SIGNER_AT, SIGNER_LEN);
        memcpy(out->sig64 + SIG_LEN * index, tx + parts.sig_at, SIG_LEN);
    } else {
        memset(fields, 0, sizeof *fields);
        fields->error_offset = (uint32_t)error_offset;
        memset(out->signer33 + SIGNER_LEN * index, 0, SIGNER_LEN);
        memset(out->sig64 + SIG_LEN * index, 0, SIG_LEN);
    }
    out->status[index] = (uint16_t)status;
    group->offsets[++group->count] = message_at + message_len;
}

void fl_scan_many(const fl_tx_columns *out, uint8_t *scratch, size_t scratch_len, const fl_tx_limits *limits,
                  const uint8_t *data, const uint64_t *offsets, size_t count)
{
    message_group group = {.scratch = scratch, .scratch_len = scratch_len};

    for (size_t i = 0; i < count; i++) {
        size_t len = (size_t)(offsets[i + 1] - offsets[i]);
        size_t room = group.scratch_len - (size_t)group.offsets[group.count];
        /* Longer than the limit means refused, and a refused transaction needs no room. */
        if (group.count == GROUP_MESSAGES || (len > room && len <= limits->transaction_bytes_max))
            flush_group(&group, out);
        scan_row(out, &group, i, data + offsets[i], len, limits);
    }
    if (group.count > 0)
        flush_group(&group, out);
}

int fl_split(size_t *count, size_t *error_offset, uint64_t *offsets, size_t count_max, const uint8_t *data,
             size_t len)
{
    size_t at = 0;

    *count = 0;
    offsets[0] = 0;
    while (at < len) {
        outline parts;
        size_t offset_in_item = 0;
        if (*count == count_max)
            return refuse(error_offset, at, FL_OVERSIZED);
        int status = read_outline(&parts, &offset_in_item, data + at, len - at);
        if (status != FL_OK)
            return refuse(error_offset, at + offset_in_item, status);
        at += parts.end;
        offsets[++*count] = at;
    }
    return FL_OK;
}
