"""Merkle roots and proofs against a recursive oracle, RFC 6962 probes and real blocks."""

import json
from base64 import b64decode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastledger._native import hashing as native_hashing
from fastledger.crypto.merkle import (
    EMPTY_ROOT,
    HistoryTree,
    MerkleTree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    leaf_hashes,
    merkle_root,
    node_hash,
    verify_consistency,
    verify_inclusion,
)
from fastledger.errors import FormatVersionError

ENTRIES = [Random(i).randbytes(32) for i in range(1100)]

# The entries and roots that Certificate Transparency implementations test their RFC 6962 trees with.
CT_ENTRIES = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]

# Bitcoin block 100000: transaction ids and Merkle root as displayed (reversed).
BLOCK_100000_TXIDS = [
    "8c14f0db3df150123e6f3dbbf30f8b955a8249b62ac1d1ff16284aefa3d06d87",
    "fff2525b8931402dd09222c50775608f75787bd2b87e56995a7bdd30f79702c4",
    "6359f0868171b1d194cbee1af2f16ea598ae8fad666d9b012c8ed2b79a236ec4",
    "e9a66845e05d5abc0ad04ec80f774a7e585c6e8db975962d069a522137b80c1d",
]
BLOCK_100000_ROOT = "f3e94742aca4b5ef85488dc37c06c3282295ffec960994b2c0d5ac2a25a95766"


@pytest.fixture(scope="module", params=native_hashing.backends())
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    native_hashing.force_backend(request.param)
    yield request.param
    native_hashing.force_backend(None)


# ---- Oracle: RFC 9162 section 2.1 word for word, over leaf hashes ----


def split(size: int) -> int:
    """The largest power of two smaller than ``size``."""
    return 1 << (size - 1).bit_length() - 1


def oracle_root(leaves: list[bytes]) -> bytes:
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return sha256(b"\x01" + oracle_root(leaves[:k]) + oracle_root(leaves[k:])).digest()


def oracle_path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if index < k:
        return [*oracle_path(index, leaves[:k]), oracle_root(leaves[k:])]
    return [*oracle_path(index - k, leaves[k:]), oracle_root(leaves[:k])]


def oracle_subproof(first: int, leaves: list[bytes], known: bool = True) -> list[bytes]:
    if first == len(leaves):
        return [] if known else [oracle_root(leaves)]
    k = split(len(leaves))
    if first <= k:
        return [*oracle_subproof(first, leaves[:k], known), oracle_root(leaves[k:])]
    return [*oracle_subproof(first - k, leaves[k:], False), oracle_root(leaves[:k])]


def oracle_bitcoin_root(nodes: list[bytes]) -> bytes:
    while len(nodes) > 1:
        if len(nodes) % 2:
            nodes = [*nodes, nodes[-1]]
        pairs = zip(nodes[::2], nodes[1::2], strict=True)
        nodes = [sha256(sha256(left + right).digest()).digest() for left, right in pairs]
    return nodes[0]


def hashed_entries(count: int) -> list[bytes]:
    return [sha256(b"\x00" + entry).digest() for entry in ENTRIES[:count]]


# ---- Roots ----

ROOT_SIZES = [
    *range(70),
    127,
    128,
    129,
    255,
    256,
    257,
    300,
    383,
    511,
    512,
    513,
    767,
    768,
    769,
    1023,
    1024,
    1025,
]


def test_rfc9162_roots(backend: str) -> None:
    # SPEC-MERKLE-1
    for size in ROOT_SIZES:
        expected = oracle_root(hashed_entries(size))
        assert merkle_root(ENTRIES[:size]) == expected, size
        assert merkle_root(b"".join(ENTRIES[:size])) == expected
        assert merkle_root(b"".join(hashed_entries(size)), hashed=True) == expected
        assert MerkleTree(ENTRIES[:size]).root == expected


def test_bitcoin_roots(backend: str) -> None:
    for size in ROOT_SIZES[1:]:
        assert merkle_root(ENTRIES[:size], "bitcoin") == oracle_bitcoin_root(ENTRIES[:size]), size


def test_deep_trees(backend: str) -> None:
    """Three levels of chunks, with a ragged edge at each."""
    leaves = Random(5).randbytes(32 * 70_001)
    items = [leaves[i : i + 32] for i in range(0, len(leaves), 32)]
    tree = HistoryTree()
    for item in items:
        tree.append(item)
    assert merkle_root(leaves) == tree.root() == MerkleTree(leaves).root
    assert merkle_root(leaves, "bitcoin") == oracle_bitcoin_root(items)


def test_certificate_transparency_roots(backend: str) -> None:
    # SPEC-MERKLE-1
    offsets = [0]
    for entry in CT_ENTRIES:
        offsets.append(offsets[-1] + len(entry))
    leaves = leaf_hashes(b"".join(CT_ENTRIES), offsets)
    for size, root in enumerate(CT_ROOTS):
        assert merkle_root(leaves[: 32 * size], hashed=True).hex() == root
    assert CT_ROOTS[0] == EMPTY_ROOT.hex()


def test_bitcoin_block_100000(backend: str) -> None:
    # SPEC-MERKLE-2
    txids = [bytes.fromhex(txid)[::-1] for txid in BLOCK_100000_TXIDS]
    assert merkle_root(txids, "bitcoin")[::-1].hex() == BLOCK_100000_ROOT


@pytest.mark.data
def test_bitcoin_blocks(shared_data: Path, backend: str) -> None:
    blocks = sorted((shared_data / "bitcoin" / "blocks").glob("*.bin"))
    assert len(blocks) >= 3
    for block in blocks:
        txids = [bytes.fromhex(line)[::-1] for line in block.with_suffix(".txids").read_text().split()]
        assert merkle_root(b"".join(txids), "bitcoin") == block.read_bytes()[36:68], block.name


def test_bitcoin_root_does_not_bind_repeated_ids() -> None:
    """CVE-2012-2459, which merkle_root's docstring warns of; RFC 9162 roots do bind them."""
    # SPEC-MERKLE-2
    three = ENTRIES[:3]
    four = [*three, three[-1]]
    assert merkle_root(three, "bitcoin") == merkle_root(four, "bitcoin")
    assert merkle_root(three) != merkle_root(four)


@pytest.mark.parametrize(
    ("leaves", "problem"),
    [
        (bytes(31), "expected n x 32 bytes, got 31"),
        (bytearray(33), "expected n x 32 bytes, got 33"),
        (memoryview(bytes(128))[::2], "leaves: expected a contiguous bytes-like object, got non-contiguous"),
        ([bytes(32), bytes(31)], "expected 32 bytes at index 1, got 31"),
        ([bytearray(32)], "expected 32 bytes at index 0, got bytearray"),
        (["0" * 32], "index 0, got str"),
        (None, "got NoneType"),
        (32, "got int"),
    ],
)
def test_wrong_leaves_are_named(leaves: object, problem: str) -> None:
    for function in (merkle_root, MerkleTree):
        with pytest.raises(ValueError, match=problem):
            function(leaves)  # type: ignore[operator]


def test_wrong_schemes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one, got none"):
        merkle_root([], "bitcoin")
    with pytest.raises(ValueError, match="expected 'rfc9162' or 'bitcoin', got 'md5'"):
        merkle_root(ENTRIES[:2], "md5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hashed: expected False"):
        merkle_root(ENTRIES[:2], "bitcoin", hashed=True)


# ---- Proofs ----


@pytest.mark.parametrize("size", [*range(1, 34), 64, 65, 100])
def test_inclusion_proofs(size: int) -> None:
    leaves = hashed_entries(size)
    tree = MerkleTree(ENTRIES[:size])
    for index in range(size):
        proof = tree.inclusion_proof(index)
        assert proof == oracle_path(index, leaves)
        assert verify_inclusion(ENTRIES[index], index, size, proof, tree.root)
        assert verify_inclusion(leaves[index], index, size, proof, tree.root, hashed=True)
        assert not verify_inclusion(ENTRIES[index], index, size, proof, tree.root, hashed=True)
    assert inclusion_proof(ENTRIES[:size], size - 1) == tree.inclusion_proof(size - 1)
    assert inclusion_proof(leaves, 0, hashed=True) == tree.inclusion_proof(0)


@pytest.mark.parametrize("size", [*range(1, 34), 64, 65])
def test_consistency_proofs(size: int) -> None:
    leaves = hashed_entries(size)
    tree = MerkleTree(ENTRIES[:size])
    for first in range(1, size + 1):
        proof = tree.consistency_proof(first)
        assert proof == oracle_subproof(first, leaves)
        assert verify_consistency(first, size, oracle_root(leaves[:first]), tree.root, proof)
    assert consistency_proof(ENTRIES[:size], 1) == tree.consistency_proof(1)


@pytest.mark.parametrize("size", [*range(1, 34), 64, 65, 255, 256, 257, 300, 511, 513, 1025])
def test_all_inclusion_proofs_in_one_pass(size: int) -> None:
    # SPEC-MERKLE-6
    tree = MerkleTree(ENTRIES[:size])
    proofs = tree.inclusion_proofs()
    assert (len(proofs), proofs.depth) == (size, (size - 1).bit_length())
    assert len(proofs.buffer) == size * proofs.depth * 32
    for index in range(size):
        assert proofs[index] == tree.inclusion_proof(index)
        unused = proofs.buffer[
            32 * (proofs.depth * index + proofs.lengths[index]) : 32 * proofs.depth * (index + 1)
        ]
        assert not any(unused)
    some = tree.inclusion_proofs(size // 3, size // 2)
    assert [some[i] for i in range(len(some))] == [proofs[size // 3 + i] for i in range(size // 2)]
    assert some.first == size // 3


def test_proof_ranges_outside_the_tree_are_refused() -> None:
    tree = MerkleTree(ENTRIES[:5])
    for first, count in ((-1, 1), (0, 6), (5, 1), (6, 0), (0, -1), (6, None), (2**70, None)):
        with pytest.raises(ValueError, match=r"expected leaves within 0 \.\. 5"):
            tree.inclusion_proofs(first, count)
    assert len(tree.inclusion_proofs(5)) == len(MerkleTree([]).inclusion_proofs()) == 0
    with pytest.raises(IndexError):
        tree.inclusion_proofs()[5]
    with pytest.raises(ValueError, match="nodes: expected all nodes"):
        native_hashing.merkle_proofs(bytes(32), 2, 0, 1)
    with pytest.raises(ValueError, match="expected leaves within"):
        native_hashing.merkle_proofs(bytes(96), 2, 1, 2)


@pytest.mark.parametrize("size", [32_768, 32_769, 70_001])
def test_threads_change_nothing(size: int, backend: str) -> None:
    # SPEC-MERKLE-1, SPEC-MERKLE-2
    leaves = Random(6).randbytes(32 * size)
    for scheme in ("rfc9162", "bitcoin"):
        roots = {merkle_root(leaves, scheme, threads=threads) for threads in (1, 2, 3, None)}
        assert len(roots) == 1
    one, several = MerkleTree(leaves, threads=1), MerkleTree(leaves, threads=4)
    assert one.root == several.root == merkle_root(leaves)
    assert one.inclusion_proofs(size - 600) == several.inclusion_proofs(size - 600)


@pytest.mark.parametrize("threads", [0, -1, 257, 1.5, "2"])
def test_wrong_numbers_of_threads_are_refused(threads: object) -> None:
    for function in (merkle_root, MerkleTree):
        with pytest.raises(ValueError, match="threads: expected 1 to 256"):
            function(ENTRIES[:2], threads=threads)  # type: ignore[operator]


def test_proofs_outside_the_tree_are_refused() -> None:
    tree = MerkleTree(ENTRIES[:5])
    for index in (-1, 5):
        with pytest.raises(ValueError, match=f"0 <= leaf_index < 5, got {index}"):
            tree.inclusion_proof(index)
    for first in (-1, 0, 6):
        with pytest.raises(ValueError, match=f"1 <= first_size <= 5, got {first}"):
            tree.consistency_proof(first)
    with pytest.raises(ValueError, match="leaf_index < 0"):
        inclusion_proof([], 0)
    assert MerkleTree([]).root == EMPTY_ROOT


def mutated(proof: list[bytes], root: bytes, random: Random) -> Iterator[list[bytes]]:
    """Proofs that differ from a good one in one way each."""
    yield [*proof, root]
    yield [root, *proof]
    yield [*proof, bytes(32)]
    for i, node in enumerate(proof):
        bit = random.randrange(256)
        damaged = (int.from_bytes(node, "big") ^ 1 << bit).to_bytes(32, "big")
        yield [*proof[:i], damaged, *proof[i + 1 :]]
        yield [*proof[:i], *proof[i + 1 :]]
        yield [*proof[:i], node, *proof[i:]]
        yield [*proof[:i], node[:31], *proof[i + 1 :]]
        yield [*proof[:i], node + b"\x00", *proof[i + 1 :]]
        yield [*proof[:i], b"", *proof[i + 1 :]]


# SPEC-MERKLE-3
@given(st.integers(1, 300), st.integers(0, 299), st.integers(0, 2**32))
def test_damaged_inclusion_proofs_are_refused(size: int, index: int, seed: int) -> None:
    index %= size
    tree = MerkleTree(ENTRIES[:size])
    proof, entry = tree.inclusion_proof(index), ENTRIES[index]
    for bad in mutated(proof, tree.root, Random(seed)):
        assert not verify_inclusion(entry, index, size, bad, tree.root)
    for other in {index - 1, index + 1, index ^ 1, index ^ 2, index + size, index + 2**64} - {index}:
        assert not verify_inclusion(entry, other, size, proof, tree.root)
    assert not verify_inclusion(ENTRIES[size], index, size, proof, tree.root)
    assert not verify_inclusion(entry, index, size, proof, ENTRIES[0])
    for not_a_size in (0, -size, index, size + 2**64):
        assert not verify_inclusion(entry, index, not_a_size, proof, tree.root)


# SPEC-MERKLE-4
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32))
def test_damaged_consistency_proofs_are_refused(size: int, first: int, seed: int) -> None:
    first = (first - 1) % size + 1
    proof = consistency_proof(ENTRIES[:size], first)
    roots = merkle_root(ENTRIES[:first]), merkle_root(ENTRIES[:size])
    for bad in mutated(proof, roots[1], Random(seed)):
        assert not verify_consistency(first, size, *roots, bad)
    if first != size:
        assert not verify_consistency(first, size, roots[1], roots[0], proof)
        assert not verify_consistency(first, first, *roots, [])
        assert not verify_consistency(size, first, roots[1], roots[0], proof)
    assert not verify_consistency(first, size, ENTRIES[0], roots[1], proof)
    assert not verify_consistency(first, size, roots[0], ENTRIES[0], proof)
    for not_a_size in (0, -1, 2**64 + first):
        assert not verify_consistency(not_a_size, size, *roots, proof)
        assert not verify_consistency(first, not_a_size, *roots, proof)


def test_verifiers_judge_what_no_tree_produces() -> None:
    """Foreign input may have any type; a verdict comes out, never an exception."""
    # SPEC-MERKLE-3, SPEC-MERKLE-4
    root = merkle_root(ENTRIES[:1])
    assert verify_inclusion(ENTRIES[0], 0, 1, [], root)
    assert verify_inclusion(ENTRIES[0], 0, 1, (), root)
    for bad in ([None], [b""], None, b"", "", {}, [ENTRIES[0]] * 70, [root.hex()]):
        assert not verify_inclusion(ENTRIES[0], 0, 1, bad, root)  # type: ignore[arg-type]
        assert not verify_consistency(1, 2, root, root, bad)  # type: ignore[arg-type]
    for leaf in (b"", bytearray(32), None):
        assert not verify_inclusion(leaf, 0, 1, [], root, hashed=True)  # type: ignore[arg-type]
    assert not verify_inclusion(b"", 0, 1, [], b"", hashed=True)
    assert not verify_inclusion(ENTRIES[0], 0.0, 1, [], root)  # type: ignore[arg-type]
    assert not verify_inclusion(EMPTY_ROOT, 0, 0, [], EMPTY_ROOT, hashed=True)
    assert not verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, [])
    assert not verify_consistency(0, 1, EMPTY_ROOT, root, [])
    assert not verify_consistency(1, 2, root, root, [])
    assert not verify_consistency(3, 5, root, root, [])


def test_largest_tree_that_a_proof_can_speak_of() -> None:
    size = 2**64 - 1
    assert not verify_inclusion(ENTRIES[0], size - 1, size, [], ENTRIES[1])
    root = leaf_hash(ENTRIES[0])
    for sibling in ENTRIES[1:65]:
        root = node_hash(root, sibling)
    assert verify_inclusion(ENTRIES[0], 0, size, ENTRIES[1:65], root)
    assert not verify_inclusion(ENTRIES[0], 0, size + 1, ENTRIES[1:65], root)


def probes(folder: Path, least: int) -> list[tuple[str, dict[str, object]]]:
    found = [(str(path.relative_to(folder)), json.loads(path.read_text())) for path in folder.rglob("*.json")]
    assert len(found) >= least
    assert {probe["wantErr"] for _, probe in found} == {True, False}
    return found


@pytest.mark.data
def test_rfc6962_inclusion_probes(shared_data: Path) -> None:
    for name, probe in probes(shared_data / "merkle-rfc6962" / "inclusion", 48):
        proof = [b64decode(node) for node in probe["proof"] or ()]
        leaf, root = b64decode(probe["leafHash"] or ""), b64decode(probe["root"] or "")
        accepted = verify_inclusion(leaf, probe["leafIdx"], probe["treeSize"], proof, root, hashed=True)
        assert accepted is not probe["wantErr"], name


@pytest.mark.data
def test_rfc6962_consistency_probes(shared_data: Path) -> None:
    for name, probe in probes(shared_data / "merkle-rfc6962" / "consistency", 53):
        proof = [b64decode(node) for node in probe["proof"] or ()]
        roots = b64decode(probe["root1"] or ""), b64decode(probe["root2"] or "")
        accepted = verify_consistency(probe["size1"], probe["size2"], *roots, proof)
        assert accepted is not probe["wantErr"], name


# ---- History ----


def test_history_tree_follows_the_roots_and_survives_storage() -> None:
    tree = HistoryTree()
    assert (tree.size, tree.root()) == (0, EMPTY_ROOT)
    for size, entry in enumerate(ENTRIES[:300], 1):
        tree.append(entry)
        tree = HistoryTree.from_bytes(tree.to_bytes())
        assert (tree.size, tree.root()) == (size, merkle_root(ENTRIES[:size]))


def test_history_tree_bytes_are_frozen() -> None:
    # SPEC-MERKLE-5
    tree = HistoryTree()
    assert tree.to_bytes().hex() == "010000000000000000"
    for entry in ENTRIES[:6]:
        tree.append(entry)
    subtrees = merkle_root(ENTRIES[:4]) + merkle_root(ENTRIES[4:6])
    assert tree.to_bytes() == bytes.fromhex("010000000000000006") + subtrees


@pytest.mark.parametrize("data", [b"", b"\x00" * 9, b"\x02" + bytes(8)])
def test_history_tree_of_another_version_is_refused(data: bytes) -> None:
    with pytest.raises(FormatVersionError):
        HistoryTree.from_bytes(data)


@pytest.mark.parametrize("size", [0, 1, 8, 9, 40, 42, 73])
def test_history_tree_of_a_wrong_length_is_refused(size: int) -> None:
    data = (bytes.fromhex("010000000000000001") + bytes(100))[:size]
    expected = FormatVersionError if size == 0 else ValueError
    with pytest.raises(expected):
        HistoryTree.from_bytes(data)


def test_history_tree_takes_only_hashes() -> None:
    tree = HistoryTree()
    for entry in (b"", bytes(31), bytes(33)):
        with pytest.raises(ValueError, match=f"expected 32 bytes, got {len(entry)}"):
            tree.append(entry)
    assert tree.size == 0
