"""Scan of signed transactions, and check of deterministic CBOR (SPEC-CBOR, SPEC-TX).

Statuses are numbers of ``fastledger.errors.Code``; 0 is success. A verdict is data here: nothing raises
because of what a transaction holds, so that one bad transaction costs its batch no more than its own row.
"""

from cpython.buffer cimport PyBuffer_Release
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport UINT32_MAX, UINT64_MAX, uint8_t, uint16_t, uint64_t
from libc.string cimport memcmp, memcpy

from fastledger._native.c_fl cimport GIL_RELEASE_BYTES_MIN, acquire_bytes, fl_offsets_check, init_backend
from fastledger._native.c_fl_tx cimport (
    FL_CBOR_DEPTH_CAP,
    FL_MALFORMED,
    FL_OK,
    FL_TX_BYTES_MIN,
    fl_cbor_check,
    fl_cbor_to_msgpack,
    fl_scan_many,
    fl_split,
    fl_tx_columns,
    fl_tx_fields,
    fl_tx_limits,
)

from fastledger.errors import Code, TransactionError
from fastledger.limits import (
    BATCH_TRANSACTIONS_MAX,
    CBOR_DEPTH_MAX,
    KIND_BYTES_MAX,
    TRANSACTION_BYTES_MAX,
)

cdef enum:
    CHAIN_ID_LEN = 8
    TXID_LEN = 32
    SIGNER_LEN = 33
    SIG_LEN = 64
    LENGTH_LEN = 4
    MSGPACK_ON_STACK = 4096

cdef fl_tx_limits LIMITS = fl_tx_limits(
    transaction_bytes_max=TRANSACTION_BYTES_MAX,
    kind_bytes_max=KIND_BYTES_MAX,
    cbor_depth_max=CBOR_DEPTH_MAX,
)
# Room for the largest Sig_structure, or some hundred ordinary ones, before they are hashed; small enough that
# it stays in the cache.
cdef size_t SCRATCH_LEN = 2 * TRANSACTION_BYTES_MAX

if CBOR_DEPTH_MAX > FL_CBOR_DEPTH_CAP:
    raise ImportError(f"CBOR_DEPTH_MAX {CBOR_DEPTH_MAX} is beyond what the native checker can do")


def check_cbor(data):
    """Check that ``data`` is exactly one item of deterministic CBOR (RFC 8949 section 4.2.1, SPEC-CBOR).

    Returns ``(status, offset)``: ``(0, len(data))`` or the code and offset of the first problem. ValueError
    unless ``data`` is a contiguous bytes-like object.
    """
    cdef Py_buffer view
    acquire_bytes(data, &view, "data")
    cdef const uint8_t *begin = <const uint8_t *>view.buf
    cdef size_t size = view.len, item_len = 0, error_offset = 0
    cdef int status
    if size < GIL_RELEASE_BYTES_MIN:
        status = fl_cbor_check(&item_len, &error_offset, begin, size, LIMITS.cbor_depth_max)
    else:
        with nogil:
            status = fl_cbor_check(&item_len, &error_offset, begin, size, LIMITS.cbor_depth_max)
    PyBuffer_Release(&view)
    if status != FL_OK:
        return status, error_offset
    return (FL_OK if item_len == size else FL_MALFORMED), item_len


def split(data, *, size_t count_max=BATCH_TRANSACTIONS_MAX):
    """Cut a concatenation of transactions (a CBOR sequence, RFC 8742) by their outlines (SPEC-TX-8).

    Returns ``(offsets, status, offset)``. ``offsets`` is a memoryview of n + 1 uint64, fit for ``scan_many``,
    over the n transactions before the end or the first problem. ``status`` says what stops the cut at byte
    ``offset``: 0 at the end, OVERSIZED where more than ``count_max`` stand, else MALFORMED, NON_CANONICAL or
    BAD_HEADER. ValueError unless ``data`` is a contiguous bytes-like object.
    """
    cdef Py_buffer view
    acquire_bytes(data, &view, "data")
    cdef size_t fitting = <size_t>view.len // FL_TX_BYTES_MIN + 1
    cdef size_t room = min(count_max, fitting)
    cdef size_t count = 0, error_offset = view.len
    cdef int status
    cdef bytes offsets
    try:
        offsets = PyBytes_FromStringAndSize(NULL, (room + 1) * sizeof(uint64_t))
        status = fl_split(
            &count,
            &error_offset,
            <uint64_t *>PyBytes_AS_STRING(offsets),
            room,
            <const uint8_t *>view.buf,
            view.len,
        )
    finally:
        PyBuffer_Release(&view)
    return memoryview(offsets)[: (count + 1) * sizeof(uint64_t)].cast("Q"), status, error_offset


def find_at_least(data, const uint64_t[::1] offsets not None, size_t back, uint8_t least):
    """Find the items ``data[offsets[i]:offsets[i + 1]]`` whose byte at ``back`` before the end is at least ``least``.

    Returns their indices; an item shorter than ``back`` is not among them. ValueError unless ``data`` and ``offsets``
    are as :func:`scan_many` wants them.
    """
    cdef Py_buffer view
    cdef list found = []
    cdef size_t bad_index = 0
    cdef Py_ssize_t count = offsets.shape[0] - 1, i
    if count < 0 or back == 0:
        raise ValueError("expected n + 1 offsets and a distance of at least 1")
    acquire_bytes(data, &view, "data")
    try:
        if not fl_offsets_check(&bad_index, &offsets[0], count, view.len):
            raise ValueError(f"offsets: entry {bad_index} is below the one before it or beyond the data")
        for i in range(count):
            if offsets[i + 1] - offsets[i] >= back and (<const uint8_t *>view.buf)[offsets[i + 1] - back] >= least:
                found.append(i)
    finally:
        PyBuffer_Release(&view)
    return found


def scan_many(data, offsets):
    """Scan transactions ``data[offsets[i]:offsets[i + 1]]`` and hash what each signs (SPEC-TX).

    ``data``: contiguous bytes, kept by the result; a writable buffer is copied first. ``offsets``: a buffer
    of n + 1 uint64 that never decrease and end within ``data``. ValueError for anything else. The GIL is
    released once, or not at all for a batch of less than 64 KiB.
    """
    cdef ScanBatch batch = ScanBatch.__new__(ScanBatch)
    batch._take_data(data)
    batch._take_offsets(offsets)
    batch._allocate()
    if batch.count > 0:
        batch._scan()
    return batch


cdef class ScanBatch:
    """The findings of ``scan_many`` on n transactions, as columns of one row each.

    A refused transaction has its status and error offset; its other columns are zero bytes, which no
    signature check accepts, and asking for its fields raises TransactionError with the status as its code.
    """

    cdef readonly Py_ssize_t count
    cdef readonly object statuses
    cdef readonly bytes txids
    cdef readonly bytes signers
    cdef readonly bytes signatures
    cdef Py_buffer _data # zero, which is nothing to release, until it is acquired
    cdef bytes _offsets
    cdef bytes _statuses
    cdef bytes _fields

    def __init__(self):
        raise TypeError("a ScanBatch comes from scan_many")

    def __dealloc__(self):
        PyBuffer_Release(&self._data)

    def __len__(self):
        return self.count

    @property
    def all_ok(self):
        """Whether no transaction was refused."""
        return not any(self._statuses)

    def status(self, Py_ssize_t index):
        """The code of the verdict on a transaction, 0 for one in form."""
        self._check_index(index)
        return self._status_column()[index]

    def error_offset(self, Py_ssize_t index):
        """The offset in bytes of a transaction's first problem; 0 for one in form."""
        self._check_index(index)
        return self._field_column()[index].error_offset

    def transaction(self, Py_ssize_t index):
        """The bytes of the whole transaction, refused or not."""
        self._check_index(index)
        return self._slice(index, 0, self._bounds()[index + 1] - self._bounds()[index])

    def issued_ms(self, Py_ssize_t index):
        """The time of issue, UTC ms."""
        return self._row(index).issued_ms

    def expires_ms(self, Py_ssize_t index):
        """The time of expiry, UTC ms."""
        return self._row(index).expires_ms

    def nonce(self, Py_ssize_t index):
        """The nonce, uint64."""
        return self._row(index).nonce

    def chain_id(self, Py_ssize_t index):
        """The chain id, 8 bytes."""
        return PyBytes_FromStringAndSize(<const char *>self._row(index).chain_id, CHAIN_ID_LEN)

    def kind(self, Py_ssize_t index):
        """The kind, 1 to KIND_BYTES_MAX characters of ``[a-z0-9._-]``."""
        cdef const fl_tx_fields *row = self._row(index)
        return self._slice(index, row.kind_at, row.kind_len).decode("ascii")

    def body(self, Py_ssize_t index):
        """The body: one CBOR map, deterministic."""
        cdef const fl_tx_fields *row = self._row(index)
        return self._slice(index, row.body_at, row.body_len)

    def body_as_msgpack(self, Py_ssize_t index):
        """The body as MessagePack, translated item by item, for a typed decoder to read."""
        cdef const fl_tx_fields *row = self._row(index)
        cdef const uint8_t *body = <const uint8_t *>self._data.buf + self._bounds()[index] + row.body_at
        cdef uint8_t small[MSGPACK_ON_STACK]
        cdef bytes room
        cdef size_t length
        if 3 * <size_t>row.body_len <= MSGPACK_ON_STACK:
            length = fl_cbor_to_msgpack(small, body, row.body_len)
            return PyBytes_FromStringAndSize(<char *>small, length)
        room = PyBytes_FromStringAndSize(NULL, 3 * row.body_len)
        length = fl_cbor_to_msgpack(<uint8_t *>PyBytes_AS_STRING(room), body, row.body_len)
        return room[:length]

    def payload(self, Py_ssize_t index):
        """The payload: one CBOR array(6), deterministic."""
        cdef const fl_tx_fields *row = self._row(index)
        return self._slice(index, row.payload_at, row.payload_len)

    def txid(self, Py_ssize_t index):
        """The transaction id, 32 bytes: SHA-256 of the Sig_structure."""
        self._row(index)
        return self.txids[TXID_LEN * index : TXID_LEN * (index + 1)]

    def signer(self, Py_ssize_t index):
        """The signer's compressed key, 33 bytes, not yet known to be on the curve."""
        self._row(index)
        return self.signers[SIGNER_LEN * index : SIGNER_LEN * (index + 1)]

    def signature(self, Py_ssize_t index):
        """The signature, 64 bytes r || s, not yet verified."""
        self._row(index)
        return self.signatures[SIG_LEN * index : SIG_LEN * (index + 1)]

    def matches_chain(self, bytes chain_id not None):
        """Returns n bytes: 1 where the transaction is in form and names this chain (8 bytes), else 0."""
        if len(chain_id) != CHAIN_ID_LEN:
            raise ValueError(f"chain_id: expected {CHAIN_ID_LEN} bytes, got {len(chain_id)}")
        cdef bytes mask = PyBytes_FromStringAndSize(NULL, self.count)
        cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(mask)
        cdef const uint8_t *wanted = <const uint8_t *>PyBytes_AS_STRING(chain_id)
        cdef const uint16_t *status = self._status_column()
        cdef const fl_tx_fields *fields = self._field_column()
        cdef Py_ssize_t i
        for i in range(self.count):
            out[i] = status[i] == FL_OK and memcmp(fields[i].chain_id, wanted, CHAIN_ID_LEN) == 0
        return mask

    def windows(self):
        """Returns ``(last issue, first expiry, shortest, longest validity)`` of the transactions in form, in ms.

    None where no transaction is in form.

        An expiry before its issue counts as a validity of 0.
        """
        cdef const uint16_t *status = self._status_column()
        cdef const fl_tx_fields *fields = self._field_column()
        cdef uint64_t issued = 0, expires = UINT64_MAX, shortest = UINT64_MAX, longest = 0, span
        cdef Py_ssize_t i
        cdef bint found = False
        for i in range(self.count):
            if status[i] == FL_OK:
                found = True
                span = max(fields[i].expires_ms, fields[i].issued_ms) - fields[i].issued_ms
                issued, expires = max(issued, fields[i].issued_ms), min(expires, fields[i].expires_ms)
                shortest, longest = min(shortest, span), max(longest, span)
        return (issued, expires, shortest, longest) if found else None

    def gather(self, list indices not None):
        """Returns the bytes of the transactions at ``indices``, refused or not, joined, and n lengths as u32 LE."""
        cdef const uint64_t *bounds = self._bounds()
        cdef Py_ssize_t count = len(indices), i, index
        cdef size_t total = 0, size, byte
        for i in range(count):
            index = indices[i]
            self._check_index(index)
            total += bounds[index + 1] - bounds[index]
        cdef bytes joined = PyBytes_FromStringAndSize(NULL, total)
        cdef bytes lengths = PyBytes_FromStringAndSize(NULL, count * LENGTH_LEN)
        cdef char *at = PyBytes_AS_STRING(joined)
        cdef uint8_t *length = <uint8_t *>PyBytes_AS_STRING(lengths)
        for i in range(count):
            index = indices[i]
            size = bounds[index + 1] - bounds[index]
            if size > UINT32_MAX:
                raise ValueError(f"transaction {index} has {size} bytes")
            memcpy(at, <const char *>self._data.buf + bounds[index], size)
            at += size
            for byte in range(<size_t>LENGTH_LEN):
                length[byte] = <uint8_t>(size >> (8 * byte))
            length += LENGTH_LEN
        return joined, lengths

    cdef int _take_data(self, object data) except -1:
        """Keep read-only bytes as they are; of a writable buffer keep a copy, which cannot change after its check."""
        acquire_bytes(data, &self._data, "data")
        if self._data.readonly:
            return 0
        snapshot = PyBytes_FromStringAndSize(<const char *>self._data.buf, self._data.len)
        PyBuffer_Release(&self._data)
        return acquire_bytes(snapshot, &self._data, "data")

    cdef int _take_offsets(self, object offsets) except -1:
        """Copy the offsets and check the copy, which cannot change while it is used."""
        cdef const uint64_t[::1] entries
        try:
            entries = offsets
        except (TypeError, ValueError, BufferError):
            raise ValueError("offsets: expected a contiguous one-dimensional uint64 buffer") from None
        if entries is None or entries.shape[0] < 1:
            raise ValueError("offsets: expected n + 1 entries for n transactions, got none")
        self.count = entries.shape[0] - 1
        self._offsets = PyBytes_FromStringAndSize(
            <const char *>&entries[0], entries.shape[0] * sizeof(uint64_t)
        )
        cdef const uint64_t *bounds = self._bounds()
        cdef size_t bad_index = 0
        if not fl_offsets_check(&bad_index, bounds, self.count, self._data.len):
            raise ValueError(
                f"offsets: entry {bad_index} is {bounds[bad_index]}, below the one before it "
                f"or beyond the {self._data.len} bytes of data"
            )
        return 0

    cdef int _allocate(self) except -1:
        cdef Py_ssize_t count = self.count
        self._statuses = PyBytes_FromStringAndSize(NULL, count * sizeof(uint16_t))
        self._fields = PyBytes_FromStringAndSize(NULL, count * sizeof(fl_tx_fields))
        self.statuses = memoryview(self._statuses).cast("H")
        self.txids = PyBytes_FromStringAndSize(NULL, count * TXID_LEN)
        self.signers = PyBytes_FromStringAndSize(NULL, count * SIGNER_LEN)
        self.signatures = PyBytes_FromStringAndSize(NULL, count * SIG_LEN)
        return 0

    cdef int _scan(self) except -1:
        cdef const uint64_t *bounds = self._bounds()
        cdef size_t scratch_len = min(SCRATCH_LEN, <size_t>(bounds[self.count] - bounds[0]))
        cdef bytes scratch = PyBytes_FromStringAndSize(NULL, scratch_len)
        cdef uint8_t *room = <uint8_t *>PyBytes_AS_STRING(scratch)
        cdef const uint8_t *data = <const uint8_t *>self._data.buf
        cdef size_t count = self.count
        cdef fl_tx_columns out
        out.status = <uint16_t *>PyBytes_AS_STRING(self._statuses)
        out.fields = <fl_tx_fields *>PyBytes_AS_STRING(self._fields)
        out.txid32 = <uint8_t *>PyBytes_AS_STRING(self.txids)
        out.signer33 = <uint8_t *>PyBytes_AS_STRING(self.signers)
        out.sig64 = <uint8_t *>PyBytes_AS_STRING(self.signatures)
        if scratch_len < GIL_RELEASE_BYTES_MIN:
            fl_scan_many(&out, room, scratch_len, &LIMITS, data, bounds, count)
        else:
            with nogil:
                fl_scan_many(&out, room, scratch_len, &LIMITS, data, bounds, count)
        return 0

    cdef const uint64_t *_bounds(self):
        return <const uint64_t *>PyBytes_AS_STRING(self._offsets)

    cdef const uint16_t *_status_column(self):
        return <const uint16_t *>PyBytes_AS_STRING(self._statuses)

    cdef const fl_tx_fields *_field_column(self):
        return <const fl_tx_fields *>PyBytes_AS_STRING(self._fields)

    cdef int _check_index(self, Py_ssize_t index) except -1:
        if index < 0 or index >= self.count:
            raise IndexError(f"transaction {index} of {self.count}")
        return 0

    cdef const fl_tx_fields *_row(self, Py_ssize_t index) except NULL:
        self._check_index(index)
        cdef const fl_tx_fields *row = self._field_column() + index
        cdef uint16_t status = self._status_column()[index]
        if status != FL_OK:
            raise TransactionError(
                f"transaction {index} was refused at its byte {row.error_offset}",
                code=Code(status),
                index=index,
            )
        return row

    cdef bytes _slice(self, Py_ssize_t index, size_t at, size_t length):
        cdef const char *transaction = <const char *>self._data.buf + self._bounds()[index]
        return PyBytes_FromStringAndSize(transaction + at, length)


init_backend()
