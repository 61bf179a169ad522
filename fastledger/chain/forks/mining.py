"""Mining in the caller's thread, for tests and for programs that embed a chain without a node."""

from fastledger.chain.forks.chain import ForkChain
from fastledger.crypto.work import NonceSearch
from fastledger.errors import InputError
from fastledger.model.block import Block


def mine_block(chain: ForkChain, now_ms: int, *, threads: int | None = 1) -> Block:
    """Builds a block of the transactions that wait, finds its work, takes it in, and returns it.

    Raises ``InputError`` where the chain has no key to seal with, ``ReleaseNeededError`` where this release lacks the
    rule set of the block. The search takes as long as the target asks for.
    """
    if chain.release_needed is not None:
        raise chain.release_needed
    template = chain.template(now_ms)
    if template is None:
        raise InputError("a chain without a key mines no blocks")
    found = NonceSearch(template.make_header, template.target, threads=threads).run()
    if found is None:
        raise InputError("no extra nonce has the work that is asked for")
    block = chain.complete(template, found.header, found.extra_nonce)
    chain.add_block(block, now_ms)
    return block
