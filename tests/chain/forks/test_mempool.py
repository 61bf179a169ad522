"""Transactions that wait: order, bounds, quotas, expiry, and what a reorganisation puts back (SPEC-POOL)."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fastledger import Code
from fastledger.chain.admission import Pending
from fastledger.chain.forks.mempool import Mempool


def pending(number: int, *, size: int = 10, expires_ms: int = 1_000, source: bytes = b"") -> Pending:
    txid = number.to_bytes(32, "big")
    return Pending(txid, bytes(size), bytes(33), bytes(33), None, 0, expires_ms, source)


def ids(pool: Mempool) -> list[int]:
    return [int.from_bytes(txid, "big") for txid in pool]


def test_order_of_arrival_and_duplicates() -> None:  # SPEC-POOL-2
    pool = Mempool()
    assert [pool.add(pending(number)) for number in (3, 1, 2)] == [Code.OK] * 3
    assert pool.add(pending(1)) == Code.DUPLICATE
    assert ids(pool) == [3, 1, 2]
    assert [int.from_bytes(item.txid, "big") for item in pool.take(2, 1_000, 0)] == [3, 1]
    assert ids(pool) == [3, 1, 2]


def test_bounds_of_count_and_bytes() -> None:  # SPEC-POOL-1
    pool = Mempool(transactions_max=3, bytes_max=100)
    assert pool.add(pending(0, size=60)) == Code.OK
    assert pool.add(pending(1, size=60)) == Code.POOL_FULL
    assert pool.add(pending(2)) == pool.add(pending(3)) == Code.OK
    assert (pool.room, pool.byte_count) == (0, 80)
    assert pool.add(pending(4)) == Code.POOL_FULL
    pool.drop([pending(0).txid])
    assert (pool.room, pool.byte_count) == (1, 20)
    assert pool.add(pending(4)) == Code.OK


def test_a_source_has_its_share_and_the_node_itself_all() -> None:  # SPEC-POOL-1
    pool = Mempool(transactions_max=10, source_transactions_max=2)
    assert [pool.add(pending(number, source=b"a")) for number in range(3)] == [
        Code.OK,
        Code.OK,
        Code.POOL_FULL,
    ]
    assert pool.add(pending(3, source=b"b")) == Code.OK
    assert {pool.add(pending(number)) for number in range(4, 10)} == {Code.OK}
    pool.confirm([pending(0).txid])
    assert pool.add(pending(11, source=b"a")) == Code.OK


def test_a_block_is_filled_up_to_its_bounds() -> None:  # SPEC-POOL-2
    pool = Mempool()
    for number in range(5):
        pool.add(pending(number, size=40, expires_ms=100 if number == 1 else 1_000))
    assert len(pool.take(3, 1_000, 0)) == 3
    assert len(pool.take(10, 100, 0)) == 2
    taken = [int.from_bytes(item.txid, "big") for item in pool.take(10, 1_000, 500)]
    assert taken == [0, 2, 3, 4]  # number 1 could enter a block of an earlier time only


def test_confirmed_ones_stand_aside_and_come_back_first() -> None:  # SPEC-POOL-3, SPEC-POOL-4
    pool = Mempool()
    for number in range(4):
        pool.add(pending(number))
    pool.confirm([pending(0).txid, pending(1).txid])
    assert ids(pool) == [2, 3]
    found = pool.find(pending(0).txid)
    assert found == pending(0) and pool.get(pending(0).txid) is None
    pool.put_back([pending(0), pending(1)])
    assert ids(pool) == [0, 1, 2, 3]
    pool.confirm([pending(2).txid])
    pool.drop([pending(2).txid])
    assert pool.find(pending(2).txid) is None


def test_what_comes_back_to_a_full_pool_pushes_out_the_newest() -> None:  # SPEC-POOL-4
    pool = Mempool(transactions_max=3, source_transactions_max=1)
    pool.add(pending(0, source=b"a"))
    pool.confirm([pending(0).txid])
    for number in (1, 2, 3):
        pool.add(pending(number))
    pool.put_back([pending(0, source=b"a"), pending(9, source=b"a")])
    assert ids(pool) == [0, 9, 1]
    pool.put_back([pending(1)])
    assert ids(pool) == [0, 9, 1]


def test_expiry_follows_the_final_time() -> None:  # SPEC-POOL-5
    pool = Mempool()
    for number, expires_ms in enumerate((300, 100, 200, 100)):
        pool.add(pending(number, expires_ms=expires_ms))
    assert pool.expire(99) == []
    assert pool.expire(100) == [pending(1).txid, pending(3).txid]
    assert pool.expire(199) == []
    assert pool.expire(10_000) == [pending(0).txid, pending(2).txid]
    assert (len(pool), pool.byte_count) == (0, 0)
    pool.add(pending(7, expires_ms=20_000))
    assert pool.expire(19_999) == []
    assert pool.expire(20_000) == [pending(7).txid]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "drop", "confirm", "put_back", "expire"]),
            st.integers(0, 12),
            st.sampled_from([b"", b"a", b"b"]),
        ),
        max_size=60,
    )
)
def test_any_sequence_keeps_the_bounds(steps: list[tuple[str, int, bytes]]) -> None:  # SPEC-POOL-1
    pool = Mempool(transactions_max=6, bytes_max=100, source_transactions_max=3)
    for act, number, source in steps:
        item = pending(number, size=7 + number, expires_ms=100 * number, source=source)
        if act == "add":
            pool.add(item)
        elif act == "put_back":
            pool.put_back([item])
        elif act == "expire":
            pool.expire(100 * number)
            assert all(other.expires_ms > 100 * number for other in pool.take(99, 10_000, 0))
        else:
            getattr(pool, act)([item.txid])
        assert len(pool) <= 6 and pool.byte_count <= 100
        items = pool.take(99, 10_000, 0)
        assert pool.byte_count == sum(len(other.encoded) for other in items)
        assert sum(pool._by_source.values()) == len(pool) == len(items)
