# Byte order of keys: numbers and sorting for the modules that lay out what is read from databases and hashed.
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcmp

cdef enum:
    PREFIX_LEN = 8

# A key, its first 8 bytes as a number, so that few comparisons look any further, and its place in the list it is of.
cdef struct keyed:
    uint64_t prefix
    const uint8_t *data
    Py_ssize_t size
    Py_ssize_t place


cdef inline uint64_t read_big_endian(const uint8_t *data, size_t size) noexcept nogil:
    """A number of up to 8 bytes."""
    cdef uint64_t number = 0
    cdef size_t i
    for i in range(size):
        number = number << 8 | data[i]
    return number


cdef inline void write_big_endian(uint8_t *out, uint64_t number, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(size):
        out[i] = <uint8_t>(number >> (8 * (size - 1 - i)))


cdef inline uint64_t prefix_of(const uint8_t *data, size_t size) noexcept nogil:
    """The first 8 bytes, zeros behind fewer: the smaller of two prefixes belongs to the smaller key."""
    cdef size_t length = size if size < PREFIX_LEN else PREFIX_LEN
    return read_big_endian(data, length) << (8 * (PREFIX_LEN - length)) if length else 0


cdef inline int compare_keyed(const void *left, const void *right) noexcept nogil:
    cdef const keyed *a = <const keyed *>left
    cdef const keyed *b = <const keyed *>right
    if a.prefix != b.prefix:
        return -1 if a.prefix < b.prefix else 1
    cdef int order = memcmp(a.data, b.data, a.size if a.size < b.size else b.size)
    if order != 0:
        return order
    return (a.size > b.size) - (a.size < b.size)


cdef inline bint in_order(const keyed *items, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(1, count):
        if compare_keyed(&items[i - 1], &items[i]) > 0:
            return False
    return True


cdef inline keyed *sort_keys(list keys) except NULL:
    """The n keys in byte order, for the caller to free; they point into ``keys``. The GIL is released for sorting.

    ValueError where an item is not bytes.
    """
    cdef Py_ssize_t count = len(keys), i
    cdef keyed *items = <keyed *>malloc((count + 1) * sizeof(keyed))
    if items == NULL:
        raise MemoryError(f"no room to sort {count} keys")
    for i in range(count):
        key = keys[i]
        if type(key) is not bytes:
            free(items)
            raise ValueError(f"item {i}: expected bytes, got {type(key).__name__}")
        items[i].data = <const uint8_t *>PyBytes_AS_STRING(key)
        items[i].size = PyBytes_GET_SIZE(key)
        items[i].place = i
    with nogil:
        for i in range(count):
            items[i].prefix = prefix_of(items[i].data, items[i].size)
        if not in_order(items, count):
            qsort(items, count, sizeof(keyed), compare_keyed)
    return items
