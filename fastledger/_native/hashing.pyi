from collections.abc import Iterable
from typing import Final

from typing_extensions import Buffer

RFC9162: Final[int]
RFC9162_HASHED: Final[int]
BITCOIN: Final[int]

def sha256_many(buffer: Buffer, offsets: Iterable[int] | Buffer) -> bytes:
    """Returns the SHA-256 of n messages in one buffer, n x 32 bytes; the contract is `crypto.hashing.sha256_many`'s."""

def leaf_hashes(buffer: Buffer, offsets: Iterable[int] | Buffer) -> bytes:
    """Returns RFC 9162 leaf hashes of n entries in one buffer; the contract is `crypto.merkle.leaf_hashes`'s."""

def join_rows(left: Buffer, left_width: int, right: Buffer, right_width: int) -> bytes:
    """Returns n rows: row i of ``left``, then row i of ``right``; ValueError where they have not n whole rows each."""

def merkle_root(leaves: Buffer | Iterable[bytes], scheme: int, threads: int | None = None) -> bytes:
    """Returns the root over n x 32 bytes; ``scheme`` is RFC9162, RFC9162_HASHED or BITCOIN.

    Raises:
        ValueError: another shape or number of threads, or no leaves under `BITCOIN`.
    """

def merkle_levels(
    leaves: Buffer | Iterable[bytes], hashed: bool, threads: int | None = None
) -> tuple[int, bytes]:
    """Returns how many leaves there are, and all nodes of their RFC 9162 tree, leaf hashes first, 32 bytes each.

    Level k + 1 has half as many nodes as level k, rounded up: an unpaired last node moves up unchanged.
    """

def merkle_proofs(nodes: bytes, count: int, first: int, proof_count: int) -> tuple[int, bytes, bytes]:
    """Makes inclusion proofs of leaves first .. first + proof_count - 1 from the nodes that `merkle_levels` gave.

    Returns the depth d, proof_count x d x 32 bytes with zeros after each proof's end, and a byte for the length of
    each proof.

    Raises:
        ValueError: the nodes are not those of ``count`` leaves, or there are no such leaves.
    """

def multiply_chain(count: int) -> int:
    """Runs ``count`` multiplications that wait for each other, 3 cycles each, to find the clock rate."""

def backend() -> str:
    """Returns the name of the SHA-256 backend in use, which is one for all native modules."""

def backend_lanes() -> int:
    """Returns how many messages the backend in use hashes side by side at most."""

def backend_streams() -> str:
    """Returns the name of the backend whose code hashes single messages for the one in use."""

def backends() -> list[str]:
    """Returns the names of the backends that work on this CPU, fastest first."""

def cpu_features() -> list[str]:
    """Returns the CPU features that the native layer can use and the operating system has enabled."""

def force_backend(name: str | None) -> None:
    """Makes all native modules use the named backend, or the best (None); for tests and benchmarks.

    No other thread may be inside a native module.

    Raises:
        ValueError: the backend is unknown, or not usable on this CPU.
    """
