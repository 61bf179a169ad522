from collections.abc import Iterable
from typing import Final

from typing_extensions import Buffer

RFC9162: Final[int]
RFC9162_HASHED: Final[int]
BITCOIN: Final[int]

def sha256_many(buffer: Buffer, offsets: Iterable[int] | Buffer) -> bytes:
    """SHA-256 of n messages of one buffer; see `fastledger.crypto.hashing.sha256_many`."""

def leaf_hashes(buffer: Buffer, offsets: Iterable[int] | Buffer) -> bytes:
    """RFC 9162 leaf hashes of n entries of one buffer; see `fastledger.crypto.merkle.leaf_hashes`."""

def join_rows(left: Buffer, left_width: int, right: Buffer, right_width: int) -> bytes:
    """Row i of both beside one another, for n rows of each; ValueError where there are not as many whole ones."""

def merkle_root(leaves: Buffer | Iterable[bytes], scheme: int, threads: int | None = None) -> bytes:
    """Root over n x 32 bytes; ``scheme`` is one of the three constants above.

    Raises:
        ValueError: another shape or number of threads, or no leaves under `BITCOIN`.
    """

def merkle_levels(
    leaves: Buffer | Iterable[bytes], hashed: bool, threads: int | None = None
) -> tuple[int, bytes]:
    """How many leaves, and all nodes of their RFC 9162 tree, from the leaf hashes to the root, 32 bytes each.

    Level k + 1 has half as many nodes as level k, rounded up: an unpaired last node moves up unchanged.
    """

def merkle_proofs(nodes: bytes, count: int, first: int, proof_count: int) -> tuple[int, bytes, bytes]:
    """Inclusion proofs of leaves first .. first + proof_count - 1 from what `merkle_levels` gave.

    Depth d, proof_count x d x 32 bytes with zeros after each proof's end, and the proofs' lengths, a byte each.

    Raises:
        ValueError: the nodes are not those of ``count`` leaves, or there are no such leaves.
    """

def multiply_chain(count: int) -> int:
    """Runs ``count`` multiplications that wait for each other, 3 cycles each, to find the clock rate."""

def backend() -> str:
    """Name of the SHA-256 backend that this module uses."""

def backend_lanes() -> int:
    """How many messages that backend hashes side by side at most."""

def backend_streams() -> str:
    """Name of the backend that hashes single messages for it: its own, or one that it borrows from."""

def backends() -> list[str]:
    """Names of the backends that work on this CPU, fastest first."""

def cpu_features() -> list[str]:
    """What the CPU offers and the operating system enables, of what the native layer can use."""

def force_backend(name: str | None) -> None:
    """For tests: use the named backend, or the best (None). No other thread may be inside this module.

    Raises:
        ValueError: the backend is unknown, or not usable on this CPU.
    """
