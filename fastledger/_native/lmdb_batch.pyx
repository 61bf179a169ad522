"""Whole batches of LMDB puts and gets in one release of the GIL, through the engine's function addresses.

The caller (``storage/lmdb_engine.py``) chooses the functions and handles: nothing here can check them.
The engine is the one that the ``lmdb`` package bundles; only its ``MDB_val`` layout is known here.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from fastledger._native.c_keyed cimport keyed, read_big_endian, sort_keys, write_big_endian

from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memcmp, memcpy

from zlib import crc32

cdef struct mdb_val:
    size_t size
    void *data

ctypedef int (*cursor_put_fn)(void *cursor, mdb_val *key, mdb_val *value, unsigned flags) noexcept nogil
ctypedef int (*cursor_get_fn)(void *cursor, mdb_val *key, mdb_val *value, unsigned operation) noexcept nogil
ctypedef int (*get_fn)(void *txn, unsigned dbi, mdb_val *key, mdb_val *value) noexcept nogil

cdef enum:
    NOTFOUND = -30798
    GET_CURRENT = 4
    PAGE_LEN = 4096
    TERM_LEN = 18
    SEQ_LEN = 6
    CHECKSUM_LEN = 4
    TERM_TABLES = 1 << 16
    RUN_SEQS_MAX = 256  # a run's value stays a fraction of a page, so that runs of rare terms share pages

cdef uint64_t SEQ_END = <uint64_t>1 << 48
cdef uint64_t RUN_SPAN_MAX = <uint64_t>1 << 32

# A cursor that puts in key order, and about how many leaves it has written to: at least half as many, and no more.
cdef struct writer:
    cursor_put_fn put
    cursor_get_fn get
    void *cursor
    uintptr_t low
    uintptr_t high
    size_t pages

# One posting, as three numbers whose order is that of term and then seq: bytes 0 to 7 of the term, bytes 8 to 15,
# and bytes 16 and 17 before the 48 bits of the seq.
cdef struct posting:
    uint64_t high
    uint64_t middle
    uint64_t low


cdef int compare_postings(const void *left, const void *right) noexcept nogil:
    cdef const posting *a = <const posting *>left
    cdef const posting *b = <const posting *>right
    if a.high != b.high:
        return -1 if a.high < b.high else 1
    if a.middle != b.middle:
        return -1 if a.middle < b.middle else 1
    return (a.low > b.low) - (a.low < b.low)


cdef inline uint64_t seq_of(const posting *item) noexcept nogil:
    return item.low & (SEQ_END - 1)


cdef inline bint same_term(const posting *a, const posting *b) noexcept nogil:
    return a.high == b.high and a.middle == b.middle and a.low >> (8 * SEQ_LEN) == b.low >> (8 * SEQ_LEN)


cdef int put_counting(writer *at, mdb_val *key, mdb_val *value) noexcept nogil:
    """Puts one pair and counts the leaf page that its key went to, unless it is the one counted last.

    A page that a transaction writes to is a block of memory of its own, so two addresses a page's length apart are in
    two pages. Two pages that lie side by side may count as one. Returns 0 or the engine's error code.
    """
    cdef mdb_val held_key, held_value
    cdef uintptr_t place
    cdef int code = at.put(at.cursor, key, value, 0)
    if code == 0:
        code = at.get(at.cursor, &held_key, &held_value, GET_CURRENT)
    if code != 0:
        return code
    place = <uintptr_t>held_key.data
    if at.pages == 0 or max(place, at.high) - min(place, at.low) >= PAGE_LEN:
        at.pages += 1
        at.low = at.high = place
    else:
        at.low = min(at.low, place)
        at.high = max(at.high, place)
    return 0


cdef void open_writer(writer *at, uintptr_t cursor_put, uintptr_t cursor_get, uintptr_t cursor) noexcept nogil:
    at.put = <cursor_put_fn>cursor_put
    at.get = <cursor_get_fn>cursor_get
    at.cursor = <void *>cursor
    at.low = at.high = at.pages = 0


cdef int point_at(mdb_val *val, object item, Py_ssize_t index) except -1:
    """Points ``val`` at the bytes of ``item``, which the caller keeps alive."""
    if type(item) is not bytes:
        raise ValueError(f"item {index}: expected bytes, got {type(item).__name__}")
    val.size = PyBytes_GET_SIZE(item)
    val.data = PyBytes_AS_STRING(item)
    return 0


def put_many(
    uintptr_t cursor_put, uintptr_t cursor_get, uintptr_t cursor, list keys not None, list values not None
):
    """Puts n pairs through an open cursor in the order of their keys.

    Returns 0 or the engine's first error code, and about how many leaves were written to. The GIL is released once
    for all n.
    """
    cdef Py_ssize_t count = len(keys), i
    if len(values) != count:
        raise ValueError(f"values: expected {count}, got {len(values)}")
    if count == 0:
        return 0, 0
    cdef mdb_val *held = <mdb_val *>malloc(count * sizeof(mdb_val))
    if held == NULL:
        raise MemoryError(f"no room to put {count} pairs")
    cdef keyed *items = NULL
    cdef mdb_val key
    cdef int code = 0
    cdef writer at
    open_writer(&at, cursor_put, cursor_get, cursor)
    try:
        for i in range(count):
            point_at(&held[i], values[i], i)
        # Sorted puts are several times faster than unsorted ones.
        items = sort_keys(keys)
        with nogil:
            for i in range(count):
                key.size, key.data = items[i].size, <void *>items[i].data
                code = put_counting(&at, &key, &held[items[i].place])
                if code != 0:
                    break
    finally:
        free(items)
        free(held)
    return code, at.pages


def sorted_items(items):
    """Returns keys and values of a mapping as two lists, in the byte order of the keys.

    The GIL is released for sorting.
    """
    cdef list keys = list(items.keys()), values = list(items.values())
    cdef Py_ssize_t count = len(keys), i
    cdef list ordered_keys = [None] * count, ordered_values = [None] * count
    if len(values) != count:
        raise ValueError("the mapping changed while it was read")
    cdef keyed *ordered = sort_keys(keys)
    try:
        for i in range(count):
            ordered_keys[i] = keys[ordered[i].place]
            ordered_values[i] = values[ordered[i].place]
    finally:
        free(ordered)
    return ordered_keys, ordered_values


def seal_many(list keys not None, list values not None):
    """Seals values as the index stores them: each behind the CRC-32 over its key and value, 4 bytes big-endian.

    Returns ``(keys, sealed values, keys whose value is None)``, all in the order given.
    """
    cdef Py_ssize_t count = len(keys), i
    cdef bytes key, value, sealed
    cdef uint8_t *at
    cdef uint32_t checksum
    cdef list held = [], found = [], gone = []
    if len(values) != count:
        raise ValueError(f"values: expected {count}, got {len(values)}")
    for i in range(count):
        key, value = keys[i], values[i]
        if value is None:
            gone.append(key)
            continue
        checksum = crc32(value, crc32(key))
        sealed = PyBytes_FromStringAndSize(NULL, CHECKSUM_LEN + len(value))
        at = <uint8_t *>PyBytes_AS_STRING(sealed)
        write_big_endian(at, checksum, CHECKSUM_LEN)
        memcpy(at + CHECKSUM_LEN, PyBytes_AS_STRING(value), len(value))
        held.append(key)
        found.append(sealed)
    return held, found, gone


def encode_seqs(list seqs not None):
    """Returns each number in 6 bytes, big-endian; raises ValueError or OverflowError outside 0 to 2^48 - 1."""
    cdef uint64_t seq
    cdef uint8_t encoded[SEQ_LEN]
    cdef list found = []
    for seq in seqs:
        if seq >= SEQ_END:
            raise ValueError(f"number {seq} is out of range")
        write_big_endian(encoded, seq, SEQ_LEN)
        found.append(PyBytes_FromStringAndSize(<char *>encoded, SEQ_LEN))
    return found


cdef enum:
    ITEM_HEAD_LEN = 6  # u16 key length, u32 value length, big-endian

cdef uint32_t DELETED = 0xFFFFFFFF


def pack_items(list keys not None, list values not None):
    """Packs n keys and values into one bytes object: ``key length u16 | value length u32 | key | value``, big-endian.

    A value of None has the length 2^32-1 and no bytes. Raises ValueError for a longer key or value than fits.
    """
    cdef Py_ssize_t count = len(keys), i
    cdef size_t total = 0, key_len, value_len
    cdef bytes key, value, packed
    cdef uint8_t *at
    if len(values) != count:
        raise ValueError(f"values: expected {count}, got {len(values)}")
    for i in range(count):
        key, value = keys[i], values[i]
        key_len, value_len = len(key), 0 if value is None else len(value)
        if key_len > 0xFFFF or value_len >= DELETED:
            raise ValueError(f"item {i}: {value_len} bytes under a key of {key_len}")
        total += ITEM_HEAD_LEN + key_len + value_len
    packed = PyBytes_FromStringAndSize(NULL, total)
    at = <uint8_t *>PyBytes_AS_STRING(packed)
    for i in range(count):
        key, value = keys[i], values[i]
        key_len, value_len = len(key), 0 if value is None else len(value)
        write_head(at, key_len, DELETED if value is None else <uint32_t>value_len)
        memcpy(at + ITEM_HEAD_LEN, PyBytes_AS_STRING(key), key_len)
        if value_len:
            memcpy(at + ITEM_HEAD_LEN + key_len, PyBytes_AS_STRING(value), value_len)
        at += ITEM_HEAD_LEN + key_len + value_len
    return packed


cdef void write_head(uint8_t *out, size_t key_len, uint32_t value_len) noexcept nogil:
    cdef int b
    out[0] = <uint8_t>(key_len >> 8)
    out[1] = <uint8_t>key_len
    for b in range(4):
        out[2 + b] = <uint8_t>(value_len >> (8 * (3 - b)))


cdef struct term_log:
    const uint8_t *terms
    const uint32_t *counts
    uint64_t first_seq
    size_t tx_count
    size_t term_count


cdef size_t read_logs(list logs, term_log *out) except? 0:
    """Lists term logs in ``out`` and returns how many terms they hold; raises ValueError where lengths differ."""
    cdef Py_ssize_t i
    cdef size_t total = 0, held, j
    cdef const uint8_t[::1] terms
    cdef const uint32_t[::1] counts
    for i in range(len(logs)):
        terms, counts, first_seq = logs[i]
        held = 0
        for j in range(<size_t>counts.shape[0]):
            held += counts[j]
        if held * TERM_LEN != <size_t>terms.shape[0]:
            raise ValueError(f"log {i}: expected {held} x {TERM_LEN} bytes of terms, got {terms.shape[0]}")
        # The buffers are bytes and arrays that the caller's list keeps alive.
        out[i].terms = &terms[0] if terms.shape[0] else NULL
        out[i].term_count = held
        out[i].counts = &counts[0] if counts.shape[0] else NULL
        out[i].first_seq = first_seq
        out[i].tx_count = counts.shape[0]
        total += held
    return total


cdef int check_numbers(const term_log *logs, size_t log_count) except -1:
    """Checks that transactions' numbers fit 6 bytes, and offsets within a run 4; raises ValueError."""
    cdef size_t i
    cdef uint64_t low = logs[0].first_seq, high = 0, end
    for i in range(log_count):
        if logs[i].first_seq >= SEQ_END:
            raise ValueError(f"log {i}: number {logs[i].first_seq} is out of range")
        end = logs[i].first_seq + logs[i].tx_count
        low = min(low, logs[i].first_seq)
        high = max(high, end)
    if high > SEQ_END or high - low > RUN_SPAN_MAX:
        raise ValueError(f"numbers from {low} to {high} are out of range or span too many")
    return 0


# Postings of one bucket share the table (two bytes) and the first byte of the name. Few tables are in use, so that
# buckets are numbered by the rank of the table among those that are there.
cdef inline size_t table_of(const uint8_t *term) noexcept nogil:
    return <size_t>term[0] << 8 | term[1]


cdef inline size_t bucket_of(const uint32_t *ranks, const uint8_t *term) noexcept nogil:
    return <size_t>ranks[table_of(term)] << 8 | term[2]


cdef size_t rank_tables(uint32_t *ranks, const term_log *logs, size_t log_count) noexcept nogil:
    """Ranks the tables that the logs name, in ascending order, and returns their number. ``ranks`` start as zeros."""
    cdef size_t i, j, count = 0
    for i in range(log_count):
        for j in range(logs[i].term_count):
            ranks[table_of(logs[i].terms + j * TERM_LEN)] = 1
    for i in range(<size_t>TERM_TABLES):
        if ranks[i]:
            ranks[i] = <uint32_t>count
            count += 1
    return count


cdef void find_buckets(
    size_t *starts, size_t bucket_count, const uint32_t *ranks, const term_log *logs, size_t log_count
) noexcept nogil:
    """Sets ``starts``, which are zeros before, to the places in the sorted postings where the buckets begin."""
    cdef size_t i, j, at = 0, size
    for i in range(log_count):
        for j in range(logs[i].term_count):
            starts[bucket_of(ranks, logs[i].terms + j * TERM_LEN)] += 1
    for i in range(bucket_count):
        size = starts[i]
        starts[i] = at
        at += size


cdef void sort_postings(
    posting *out,
    size_t *starts,
    size_t bucket_count,
    const uint32_t *ranks,
    const term_log *logs,
    size_t log_count,
) noexcept nogil:
    """Writes every posting of the logs to ``out``, ordered by term and seq.

    ``starts`` are those of :func:`find_buckets`; they are changed.
    """
    cdef size_t i, begin = 0
    list_postings(out, starts, ranks, logs, log_count)
    # By now each bucket's start has moved to its end. Sorted one by one they stay in the cache.
    for i in range(bucket_count):
        if starts[i] - begin > 1:
            qsort(out + begin, starts[i] - begin, sizeof(posting), compare_postings)
        begin = starts[i]


cdef void list_postings(
    posting *out, size_t *starts, const uint32_t *ranks, const term_log *logs, size_t log_count
) noexcept nogil:
    """Writes every posting of the logs to ``out``, bucket by bucket, and moves each of ``starts`` to its bucket's end."""
    cdef size_t i, j, k, n
    cdef uint64_t seq
    cdef const uint8_t *term
    for i in range(log_count):
        term = logs[i].terms
        for j in range(logs[i].tx_count):
            for k in range(logs[i].counts[j]):
                seq = logs[i].first_seq + j
                n = starts[bucket_of(ranks, term)]
                starts[bucket_of(ranks, term)] += 1
                out[n].high = read_big_endian(term, 8)
                out[n].middle = read_big_endian(term + 8, 8)
                out[n].low = read_big_endian(term + 16, 2) << (8 * SEQ_LEN) | seq
                term += TERM_LEN


cdef int put_runs(
    writer *cursor, const posting *postings, size_t *at, size_t count, size_t runs_max
) noexcept nogil:
    """Puts sorted postings from place ``at`` on as up to ``runs_max`` runs; ``at`` moves behind them.

    A run's key is a term and its first seq (6 bytes BE), its value the offsets from that (u32 LE). Returns 0 or the
    engine's error code.
    """
    cdef uint8_t key[TERM_LEN + SEQ_LEN]
    cdef uint32_t offsets[RUN_SEQS_MAX]
    cdef mdb_val key_val, value
    cdef size_t i = at[0], put_count = 0, run
    cdef const posting *first
    cdef uint32_t offset
    cdef int code
    while i < count and put_count < runs_max:
        first = &postings[i]
        write_big_endian(key, first.high, 8)
        write_big_endian(key + 8, first.middle, 8)
        write_big_endian(key + 16, first.low, 2 + SEQ_LEN)
        run = 0
        while i < count and run < RUN_SEQS_MAX and same_term(&postings[i], first):
            offset = <uint32_t>(seq_of(&postings[i]) - seq_of(first))
            # A transaction may name a term twice.
            if run == 0 or offsets[run - 1] != offset:
                offsets[run] = offset
                run += 1
            i += 1
        key_val.size = TERM_LEN + SEQ_LEN
        key_val.data = key
        value.size = run * sizeof(uint32_t)
        value.data = offsets
        code = put_counting(cursor, &key_val, &value)
        if code != 0:
            return code
        put_count += 1
        at[0] = i
    return 0


cdef class PostingRuns:
    """The postings of term logs in the order of their keys, put as runs, some at a time.

    A log is ``(terms, counts, first_seq)``: the 18-byte terms of consecutive transactions, one after another, as
    bytes; how many each transaction has, as uint32; the number of the first one. Numbers are below 2^48 and those
    of one list of logs span less than 2^32, else ValueError. The GIL is released for sorting and for each put.
    """

    cdef list _logs
    cdef posting *_postings
    cdef size_t _count
    cdef size_t _next

    def __cinit__(self, list logs not None):
        cdef size_t log_count = len(logs), total
        cdef term_log *listed
        cdef size_t bucket_count
        cdef size_t *starts = NULL
        cdef uint32_t *ranks
        self._postings = NULL
        self._count = self._next = 0
        if log_count == 0:
            return
        self._logs = list(logs)  # keeps the terms alive
        listed = <term_log *>malloc(log_count * sizeof(term_log))
        ranks = <uint32_t *>calloc(TERM_TABLES, sizeof(uint32_t))
        try:
            if listed == NULL or ranks == NULL:
                raise MemoryError(f"no room for {log_count} term logs")
            total = read_logs(self._logs, listed)
            check_numbers(listed, log_count)
            if total == 0:
                return
            self._postings = <posting *>malloc(total * sizeof(posting))
            bucket_count = rank_tables(ranks, listed, log_count) << 8
            starts = <size_t *>calloc(bucket_count, sizeof(size_t))
            if self._postings == NULL or starts == NULL:
                raise MemoryError(f"no room for {total} postings")
            with nogil:
                find_buckets(starts, bucket_count, ranks, listed, log_count)
                sort_postings(self._postings, starts, bucket_count, ranks, listed, log_count)
            self._count = total
        finally:
            free(listed)
            free(ranks)
            free(starts)

    def __dealloc__(self):
        free(self._postings)

    def __len__(self):
        """How many postings are left to put, in at most so many runs."""
        return self._count - self._next

    def put(self, uintptr_t cursor_put, uintptr_t cursor_get, uintptr_t cursor, size_t runs_max):
        """Puts the next runs, at most ``runs_max``; returns an error code and a number of leaves, as :func:`put_many`."""
        cdef int code
        cdef writer at
        open_writer(&at, cursor_put, cursor_get, cursor)
        with nogil:
            code = put_runs(&at, self._postings, &self._next, self._count, runs_max)
        return code, at.pages


def find_postings(logs, const uint8_t[::1] term not None):
    """Returns the numbers of the transactions of term logs that name ``term`` (18 bytes), in the order of the logs.

    Raises ValueError for a term of another length, or a log whose parts do not fit together.
    """
    if term.shape[0] != TERM_LEN:
        raise ValueError(f"term: expected {TERM_LEN} bytes, got {term.shape[0]}")
    cdef list held = list(logs)
    cdef size_t log_count = len(held), i, j, k, found
    cdef list seqs = []
    cdef const uint8_t *at
    if log_count == 0:
        return seqs
    cdef term_log *listed = <term_log *>malloc(log_count * sizeof(term_log))
    if listed == NULL:
        raise MemoryError(f"no room for {log_count} term logs")
    try:
        read_logs(held, listed)
        for i in range(log_count):
            at = listed[i].terms
            for j in range(listed[i].tx_count):
                found = 0
                for k in range(listed[i].counts[j]):
                    # Random bytes first: the table byte is shared by many.
                    found += at[17] == term[17] and at[2] == term[2] and memcmp(at, &term[0], TERM_LEN) == 0
                    at += TERM_LEN
                if found:
                    seqs.append(listed[i].first_seq + j)
    finally:
        free(listed)
    return seqs


cdef inline bint within(const mdb_val *found, uintptr_t map_start, uintptr_t file_end) noexcept nogil:
    cdef uintptr_t at = <uintptr_t>found.data
    return map_start == 0 or (at <= file_end and found.size <= file_end - at)


def get_many(
    uintptr_t get,
    uintptr_t txn,
    unsigned database,
    list keys not None,
    uintptr_t map_start,
    uintptr_t file_end,
    int beyond,
):
    """Returns the values of n keys in order, None for a key that is not there, or the engine's first error code (an int).

    The GIL is released once for all n; the values are copied out. In a read transaction all pages lie in the map, and
    a value that ends behind ``file_end`` gives the code ``beyond``. A ``map_start`` of 0 turns that check off.
    """
    cdef Py_ssize_t count = len(keys), i
    if count == 0:
        return []
    cdef mdb_val *vals = <mdb_val *>malloc(2 * count * sizeof(mdb_val))
    if vals == NULL:
        raise MemoryError(f"no room to get {count} values")
    cdef int code = 0
    cdef get_fn getter = <get_fn>get
    cdef list found = []
    try:
        for i in range(count):
            point_at(&vals[i], keys[i], i)
        with nogil:
            for i in range(count):
                code = getter(<void *>txn, database, &vals[i], &vals[count + i])
                if code == NOTFOUND:
                    vals[count + i].data = NULL
                    code = 0
                elif code == 0 and not within(&vals[count + i], map_start, file_end):
                    code = beyond
                if code != 0:
                    break
        if code != 0:
            return code
        for i in range(count):
            if vals[count + i].data == NULL:
                found.append(None)
            else:
                found.append(PyBytes_FromStringAndSize(<char *>vals[count + i].data, vals[count + i].size))
    finally:
        free(vals)
    return found
