"""Copies of blocks: what is checked before one is stored, and whom a fault condemns (SPEC-FORK-1..4).

A block's id covers its header and body, and by the roots in the body its transactions' ids and their results. It
covers neither signatures nor lengths, results' bytes, seal or hints: whoever passes a block on can spoil those. So a
fault in them is one of the *copy*, which is thrown away, and never of the *id*; else one liar could keep a good block
from a node for ever. Only where the transactions are those of the id, every signature holds, and the rules still say
no, is the id condemned, at every node alike.
"""

from typing import Any, NamedTuple

from fastledger._native.ecdsa import HINTS_PARITY, parity_hints
from fastledger._native.scan import ScanBatch
from fastledger.chain.admission import Batch, CpuShare, Pending, Trust, admit, hint_at
from fastledger.chain.forks.mempool import Mempool
from fastledger.crypto.merkle import leaf_hashes, merkle_root
from fastledger.errors import BlockFault, Code
from fastledger.limits import BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX
from fastledger.model.block import Block, result_entries
from fastledger.model.receipt import check_seals


class CheckedBlock(NamedTuple):
    """A good copy with the right hints and its transactions parsed, and whether it came with wrong hints."""

    block: Block
    batch: Batch
    wrong_hints: bool


def check_copy(
    block: Block,
    *,
    chain_id: bytes,
    of_chain: bool = False,
    pool: Mempool,
    known_seal: bytes,
    verify_threads: int | None,
) -> CheckedBlock:
    """Checks a copy of a block in everything but the results of executing it; raises ``BlockFault``.

    Kinds and bodies are seen at execution too: the rule set in force follows from the blocks below, which need not be
    here yet (SPEC-RULE-10). ``of_chain``: the id is known to be of the chain, so that chain and time of its
    transactions need no judgement. Transactions whose very bytes ``pool`` holds are not verified again, nor a seal
    that equals ``known_seal``.
    """
    _check_shape(block)
    if block.seal != known_seal and not check_seals([block.sealed_header], chain_id, threads=1)[0]:
        raise _copy_fault(block, "seal")
    batch = Batch.of_block(block)
    _check_roots(block, batch.scan.txids)
    if not batch.scan.all_ok:
        raise _copy_fault(block, "form of a transaction")
    trust = Trust(contents=of_chain, known=_take_known(batch, pool), hints=block.hints)
    cpu_share = CpuShare(verify_threads)
    admit(batch, None, chain_id=chain_id, trust=trust, keep_hints=True, cpu_share=cpu_share)
    if Code.BAD_SIGNATURE in batch.codes:
        raise _copy_fault(block, f"signature of transaction {batch.codes.index(Code.BAD_SIGNATURE)}")
    bad = next((index for index, code in enumerate(batch.codes) if code), None)
    if bad is not None:
        raise id_fault(block, f"transaction {bad} ({Code(batch.codes[bad]).slug})")
    wrong_hints = bool(block.hints) and not _agree(block.hints, batch.hints)
    return CheckedBlock(_with_hints(block, batch.hints), batch, wrong_hints)


def readmit(block: Block, chain_id: bytes) -> Batch:
    """Parses the transactions of a block that was checked before it was stored; its roots are checked again.

    Their bodies are decoded at execution. Raises ``BlockFault`` where the bytes are not those that were stored.
    """
    _check_shape(block)
    batch = Batch.of_block(block)
    _check_roots(block, batch.scan.txids)
    trust = Trust(signatures=True, hints=block.hints)
    admit(batch, None, chain_id=chain_id, trust=trust)
    if any(batch.codes):
        raise _copy_fault(block, "transaction")
    return batch


def _check_shape(block: Block) -> None:
    """Checks the shape, as :meth:`Block.decode` does: a block may have been put together from parts.

    After it the lengths fit the bytes, which is all that :meth:`Batch.of_block` asks for.
    """
    sizes = len(block.lengths) % 4 == 0 and len(block.results) * 2 == len(block.lengths)
    if not sizes or block.count > BLOCK_TRANSACTIONS_MAX or len(block.transactions) > BLOCK_BYTES_MAX:
        raise _copy_fault(block, "number of transactions")
    if block.offsets[-1] != len(block.transactions):
        raise _copy_fault(block, "length of transactions")
    if block.header.commitment != block.body.commitment:
        raise _copy_fault(block, "commitment")


def _check_roots(block: Block, txids: bytes) -> None:
    if merkle_root(txids) != block.body.tx_root:
        raise _copy_fault(block, "transactions")
    if result_root(txids, block.results) != block.body.result_root:
        raise _copy_fault(block, "results")


def result_root(txids: bytes, results: bytes) -> bytes:
    """Returns the root over ids and codes that a header body commits to (SPEC-BLK-4)."""
    entries, offsets = result_entries(txids, results)
    return merkle_root(leaf_hashes(entries, offsets), hashed=True)


def _take_known(batch: Batch, pool: Mempool) -> dict[int, bytes]:
    """Fills in what the pool has parsed already; returns index -> hint of the transactions that it has verified."""
    known: dict[int, bytes] = {}
    if pool.is_empty:
        return known
    for index, txid in enumerate(batch.txids):
        pending = pool.find(txid)
        if pending is None or batch.codes[index]:
            continue
        batch.bodies[index] = pending.body
        if pending.encoded == batch.scan.transaction(index):
            known[index] = pending.hint
    return known


def _agree(given: bytes, right: bytes) -> bool:
    if given == right:
        return True
    return bool(right) and given[0] == HINTS_PARITY and given == parity_hints(right)


def _with_hints(block: Block, hints: bytes) -> Block:
    if block.hints == hints:
        return block
    return Block(
        block.header, block.body, block.seal, block.transactions, block.lengths, block.results, hints
    )


def pendings_of(block: Block, batch: Batch, pool: Mempool) -> list[Pending]:
    """Returns the transactions of a block that left the best chain, in the form in which they wait again."""
    found: list[Pending] = []
    for index, txid in enumerate(batch.txids):
        pending = pool.find(txid)
        if pending is None:
            pending = pending_at(batch, index, block.hints, b"")
        found.append(pending)
    return found


def pending_at(batch: Batch, index: int, hints: bytes, source: bytes) -> Pending:
    """Returns transaction ``index`` of a batch that passed the border, in the form in which it waits."""
    scan: ScanBatch = batch.scan
    body: Any = batch.bodies[index]
    return Pending(
        batch.txids[index],
        scan.transaction(index),
        hint_at(hints, index),
        batch.signers[index],
        body,
        scan.issued_ms(index),
        scan.expires_ms(index),
        source,
    )


def _copy_fault(block: Block, what: str) -> BlockFault:
    return BlockFault(f"a copy of block {block.block_id.hex()} has a wrong {what}", block_id=block.block_id)


def id_fault(block: Block, what: str, code: Code = Code.BAD_BLOCK) -> BlockFault:
    """Returns a fault that every copy of the block has, so that its id is condemned."""
    return BlockFault(
        f"block {block.block_id.hex()} has a wrong {what}", code=code, block_id=block.block_id, condemns=True
    )
