"""Merkle trees of RFC 9162 (and RFC 6962), their proofs, and Bitcoin's root.

A tree stands over *entries* of 32 bytes (transaction ids, block ids). Its leaf hashes are
SHA-256(0x00 || entry) and its nodes SHA-256(0x01 || left || right), RFC 9162 section 2.1.1. Entries of other
lengths are hashed with `leaf_hashes` first and passed with ``hashed=True``.

Verifiers return a verdict and never raise: what they judge comes from outside. They are stricter than the
pseudocode of RFC 9162: every hash must be exactly 32 bytes, trees have at least one leaf, and a proof must
have exactly the length that its sizes call for. Nothing is included in an empty tree, or consistent with one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Literal, Self

from fastledger._native import hashing as _hashing
from fastledger.errors import FormatVersionError

if TYPE_CHECKING:
    from typing_extensions import Buffer

HASH_BYTES = 32
TREE_SIZE_MAX = 2**64 - 1  # RFC 9162 carries sizes as uint64
EMPTY_ROOT = sha256(b"").digest()
FRONTIER_FORMAT_VERSION = 1

_FRONTIER_HEADER_BYTES = 9

Scheme = Literal["rfc9162", "bitcoin"]


def leaf_hash(entry: bytes) -> bytes:
    """Returns SHA-256(0x00 || entry), the leaf hash of an entry of any length."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Returns SHA-256(0x01 || left || right), the node above two nodes of 32 bytes."""
    return sha256(b"\x01" + left + right).digest()


def leaf_hashes(buffer: "Buffer", offsets: "Iterable[int] | Buffer") -> bytes:
    """Leaf hashes of n entries of any lengths in one buffer, as n x 32 bytes; shaped like `sha256_many`.

    Raises:
        ValueError: another shape of either argument.
    """
    return _hashing.leaf_hashes(buffer, offsets)


def merkle_root(
    leaves: "Buffer | Iterable[bytes]",
    scheme: Scheme = "rfc9162",
    *,
    hashed: bool = False,
    threads: int | None = None,
) -> bytes:
    """Root over n leaves of 32 bytes, given as one contiguous buffer or as a sequence of ``bytes``.

    Args:
        leaves: entries; leaf hashes with ``hashed``; transaction ids in internal order under ``"bitcoin"``.
        scheme: ``"rfc9162"``, or ``"bitcoin"``: SHA256d nodes, an unpaired last node paired with itself.
            Bitcoin's rule gives some lists with repeated ids the root of a shorter list (CVE-2012-2459), so
            whoever checks a foreign block must refuse repeated ids.
        hashed: the leaves are leaf hashes already (RFC 9162 only).
        threads: how many may work on a large tree, at most 256; by default one for each CPU that this process
            may run on. Each gets at least 16,384 leaves.

    Raises:
        ValueError: another shape, scheme or number of threads, or no leaves under ``"bitcoin"``; the RFC 9162
            root of no leaves is `EMPTY_ROOT`.
    """
    if scheme == "bitcoin":
        if hashed:
            raise ValueError("hashed: expected False under the bitcoin scheme, which has no leaf hashes")
        return _hashing.merkle_root(leaves, _hashing.BITCOIN, threads)
    if scheme != "rfc9162":
        raise ValueError(f"scheme: expected 'rfc9162' or 'bitcoin', got {scheme!r}")
    return _hashing.merkle_root(leaves, _hashing.RFC9162_HASHED if hashed else _hashing.RFC9162, threads)


@dataclass(frozen=True, slots=True)
class InclusionProofs:
    """Proofs of consecutive leaves in one buffer, as `MerkleTree.inclusion_proofs` gives them.

    Proof i belongs to leaf ``first + i`` and takes ``depth * 32`` bytes of ``buffer``, n x depth x 32 in all:
    ``lengths[i]`` hashes, lowest first, and zeros after them where the leaf's path is shorter than the tree is
    deep.
    """

    first: int
    depth: int
    buffer: bytes
    lengths: bytes

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> list[bytes]:
        """Proof ``index`` as `verify_inclusion` wants it.

        Raises:
            IndexError: there is no such proof.
        """
        if not 0 <= index < len(self.lengths):
            raise IndexError(f"proof {index} of {len(self.lengths)}")
        start = index * self.depth * HASH_BYTES
        ends = range(start + HASH_BYTES, start + HASH_BYTES * (self.lengths[index] + 1), HASH_BYTES)
        return [self.buffer[end - HASH_BYTES : end] for end in ends]


class MerkleTree:
    """An RFC 9162 tree with all its nodes in memory (some 64 bytes a leaf), for many proofs of one list."""

    def __init__(
        self, leaves: "Buffer | Iterable[bytes]", *, hashed: bool = False, threads: int | None = None
    ) -> None:
        """Builds the tree over leaves shaped, and with threads, as for `merkle_root`.

        Raises:
            ValueError: another shape or number of threads.
        """
        size, self._nodes = _hashing.merkle_levels(leaves, hashed, threads)
        self._level_sizes: list[int] = []
        self._level_starts: list[int] = []  # in nodes
        start = 0
        while size > 0:
            self._level_sizes.append(size)
            self._level_starts.append(start)
            start += size
            size = (size + 1) // 2 if size > 1 else 0

    @property
    def size(self) -> int:
        """How many leaves the tree has."""
        return self._level_sizes[0] if self._level_sizes else 0

    @property
    def root(self) -> bytes:
        """The root, 32 bytes; `EMPTY_ROOT` where there are no leaves."""
        return self._nodes[-HASH_BYTES:] if self._nodes else EMPTY_ROOT

    def inclusion_proof(self, leaf_index: int) -> list[bytes]:
        """Returns PATH(leaf_index, D_size) of RFC 9162 section 2.1.3.1: hashes of 32 bytes, lowest node first.

        Raises:
            ValueError: the tree has no such leaf.
        """
        if not 0 <= leaf_index < self.size:
            raise ValueError(f"leaf_index: expected 0 <= leaf_index < {self.size}, got {leaf_index}")
        return self._siblings(0, leaf_index)

    def inclusion_proofs(self, first: int = 0, count: int | None = None) -> InclusionProofs:
        """Returns the proofs of leaves first .. first + count - 1, or to the last one, in one native pass.

        They take count x depth x 32 bytes. For all of 2^20 leaves that is some 670 MB: ask for such a tree in
        ranges.

        Raises:
            ValueError: the tree has no such leaves.
        """
        left = self.size - first
        if first < 0 or left < 0 or not 0 <= (left if count is None else count) <= left:
            raise ValueError(
                f"first, count: expected leaves within 0 .. {self.size}, got {first} and {count}"
            )
        if self.size == 0:
            return InclusionProofs(0, 0, b"", b"")
        depth, buffer, lengths = _hashing.merkle_proofs(
            self._nodes, self.size, first, left if count is None else count
        )
        return InclusionProofs(first, depth, buffer, lengths)

    def consistency_proof(self, first_size: int) -> list[bytes]:
        """Returns PROOF(first_size, D_size) of RFC 9162 section 2.1.4.1.

        It shows that the tree over the first ``first_size`` leaves grew into this one.

        Raises:
            ValueError: ``first_size`` is not 1 .. size. Nothing can be proved about an empty tree.
        """
        if not 1 <= first_size <= self.size:
            raise ValueError(f"first_size: expected 1 <= first_size <= {self.size}, got {first_size}")
        if first_size == self.size:
            return []
        # The last complete subtree of the first tree, from which both roots can be reached.
        level = _trailing_zeros(first_size)
        index = (first_size >> level) - 1
        start = [] if index == 0 else [self._node(level, index)]  # alone it is the first root itself
        return start + self._siblings(level, index)

    def _node(self, level: int, index: int) -> bytes:
        at = (self._level_starts[level] + index) * HASH_BYTES
        return self._nodes[at : at + HASH_BYTES]

    def _siblings(self, level: int, index: int) -> list[bytes]:
        """The nodes that a node is combined with on its way to the root.

        An unpaired last node moves up without one.
        """
        path = []
        for above, size in enumerate(self._level_sizes[level:], level):
            if index ^ 1 < size:
                path.append(self._node(above, index ^ 1))
            index >>= 1
        return path


def inclusion_proof(
    leaves: "Buffer | Iterable[bytes]", leaf_index: int, *, hashed: bool = False
) -> list[bytes]:
    """Inclusion proof of one leaf; for proofs of many leaves build one `MerkleTree`.

    Raises:
        ValueError: no such leaf, or leaves of another shape.
    """
    return MerkleTree(leaves, hashed=hashed).inclusion_proof(leaf_index)


def consistency_proof(
    leaves: "Buffer | Iterable[bytes]", first_size: int, *, hashed: bool = False
) -> list[bytes]:
    """Proof that the tree over the first ``first_size`` leaves grew into the tree over all of them.

    Raises:
        ValueError: ``first_size`` is not 1 .. n, or leaves of another shape.
    """
    return MerkleTree(leaves, hashed=hashed).consistency_proof(first_size)


def verify_inclusion(
    leaf: bytes, leaf_index: int, tree_size: int, proof: Sequence[bytes], root: bytes, *, hashed: bool = False
) -> bool:
    """Whether ``leaf`` stands at ``leaf_index`` of the tree of ``tree_size`` leaves and this root.

    ``leaf`` has 32 bytes: an entry, or a leaf hash with ``hashed``. Accepts exactly the proofs of RFC 9162 section
    2.1.3 where ``leaf_index < tree_size <= TREE_SIZE_MAX``: hashes of 32 bytes, and the one length that index and
    size allow.
    """
    if not (_are_hashes((leaf, root)) and _is_proof(proof) and _are_sizes(leaf_index, tree_size)):
        return False
    if not leaf_index < tree_size:
        return False
    # Below `inner` the leaf's path differs from that of the tree's last leaf, and each level has a sibling;
    # above it both are the right edge of the tree, where only left siblings exist.
    inner = (leaf_index ^ (tree_size - 1)).bit_length()
    if len(proof) != inner + (leaf_index >> inner).bit_count():
        return False
    node = leaf if hashed else leaf_hash(leaf)
    for level, sibling in enumerate(proof):
        is_left = level < inner and not leaf_index >> level & 1
        node = node_hash(node, sibling) if is_left else node_hash(sibling, node)
    return node == root


def verify_consistency(
    first_size: int, second_size: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Whether the tree of the first size and root is the beginning of the tree of the second.

    The algorithm of RFC 9162 section 2.1.4.2, for ``1 <= first_size <= second_size <= TREE_SIZE_MAX``; equal
    sizes need equal roots and an empty proof.
    """
    if not (_are_hashes((first_root, second_root)) and _is_proof(proof)):
        return False
    if not _are_sizes(first_size, second_size):
        return False
    if not 1 <= first_size <= second_size:
        return False
    if first_size == second_size:
        return first_root == second_root and not proof
    # A first tree that is complete is itself the node to start from, and is then left out of the proof.
    complete = first_size & (first_size - 1) == 0
    path = [first_root, *proof] if complete else list(proof)
    if not path:
        return False
    # Indexes of the first tree's last leaf and of the second's, seen from the level of the starting node.
    level = _trailing_zeros(first_size)
    first_index, second_index = (first_size - 1) >> level, (second_size - 1) >> level
    first_node = second_node = path[0]
    for sibling in path[1:]:
        if second_index == 0:
            return False
        if first_index & 1 or first_index == second_index:
            first_node = node_hash(sibling, first_node)
            second_node = node_hash(sibling, second_node)
            climb = _trailing_zeros(first_index)  # levels on which the first tree's edge has no sibling
            first_index, second_index = first_index >> climb, second_index >> climb
        else:
            second_node = node_hash(second_node, sibling)
        first_index, second_index = first_index >> 1, second_index >> 1
    return second_index == 0 and first_node == first_root and second_node == second_root


class HistoryTree:
    """A growing RFC 9162 tree over 32-byte entries that keeps only its frontier, at most 64 hashes.

    The frontier holds the roots of the complete subtrees that the tree's size, in binary, calls for, largest
    first. Proofs need the full list of entries: `inclusion_proof`, `consistency_proof` or `MerkleTree`.
    """

    def __init__(self) -> None:
        self._size = 0
        self._frontier: list[bytes] = []

    @property
    def size(self) -> int:
        """How many entries were appended."""
        return self._size

    def append(self, entry: bytes) -> None:
        """Adds one entry of 32 bytes, in O(1) hashes on average.

        Raises:
            ValueError: the entry has another length.
        """
        if len(entry) != HASH_BYTES:
            raise ValueError(f"entry: expected 32 bytes, got {len(entry)}")
        node = leaf_hash(entry)
        for _ in range(_trailing_zeros(~self._size)):
            node = node_hash(self._frontier.pop(), node)
        self._frontier.append(node)
        self._size += 1

    def root(self) -> bytes:
        """The root over all entries so far, in O(log size) hashes; `EMPTY_ROOT` where there are none."""
        if not self._frontier:
            return EMPTY_ROOT
        node = self._frontier[-1]
        for left in reversed(self._frontier[:-1]):
            node = node_hash(left, node)
        return node

    def to_bytes(self) -> bytes:
        """Encodes the tree: version (1 byte), size (8, big-endian), frontier (32 a hash, largest subtree first)."""
        head = bytes((FRONTIER_FORMAT_VERSION,)) + self._size.to_bytes(8, "big")
        return head + b"".join(self._frontier)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Restores a tree from the bytes that `to_bytes` gave.

        Raises:
            FormatVersionError: another version.
            ValueError: another length than the size calls for.
        """
        if not data or data[0] != FRONTIER_FORMAT_VERSION:
            got = data[0] if data else "nothing"
            raise FormatVersionError(f"history tree: expected version {FRONTIER_FORMAT_VERSION}, got {got}")
        size = int.from_bytes(data[1:_FRONTIER_HEADER_BYTES], "big")
        expected = _FRONTIER_HEADER_BYTES + HASH_BYTES * size.bit_count()
        if len(data) != expected:
            raise ValueError(f"history tree: expected {expected} bytes, got {len(data)}")
        tree = cls()
        tree._size = size
        tree._frontier = [
            bytes(data[at : at + HASH_BYTES]) for at in range(_FRONTIER_HEADER_BYTES, expected, HASH_BYTES)
        ]
        return tree


def _trailing_zeros(number: int) -> int:
    """How many low bits of a number other than 0 are 0."""
    return (number & -number).bit_length() - 1


def _are_hashes(values: Iterable[object]) -> bool:
    return all(isinstance(value, bytes) and len(value) == HASH_BYTES for value in values)


def _is_proof(proof: object) -> bool:
    """Whether this is a list of hashes no longer than any proof: one of `TREE_SIZE_MAX` leaves has at most 65."""
    return isinstance(proof, list | tuple) and len(proof) <= 65 and _are_hashes(proof)


def _are_sizes(*values: object) -> bool:
    return all(isinstance(value, int) and 0 <= value <= TREE_SIZE_MAX for value in values)
