"""Frames and messages (SPEC-PEER-1..4): whatever arrives is a message or one typed offence."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastledger.limits import PEER_FRAME_BYTES_MAX, PEER_FRAME_SMALL_BYTES_MAX
from fastledger.peers.scores import Offence
from fastledger.peers.wire import (
    MESSAGES,
    TAGS,
    Attestation,
    BlobChunk,
    BlockMessage,
    BlockTransactions,
    Compact,
    FrameReader,
    GetBlob,
    GetBlocks,
    GetBlockTransactions,
    GetHeaders,
    GetPeers,
    GetPiece,
    GetSnapshots,
    GetTransactions,
    Goodbye,
    Headers,
    Hello,
    Inventory,
    Message,
    NotFound,
    Peers,
    Piece,
    Ping,
    Pong,
    Snapshots,
    Transactions,
    WireFault,
    WireHeader,
    encode_frame,
    split_ids,
)
from fastledger.version import PEER_PROTOCOL_VERSION

ID = bytes(range(32))
HEADER = WireHeader(bytes(80), b"body", b"seal", 3)
EVERY: list[Message] = [
    Hello(bytes(8), ID, bytes(8), 7, ID, ID, 1_800_000_000_000, "host:1", "agent", 2),
    Ping(bytes(8), 1, ID, ID),
    Pong(bytes(8), 1, ID, ID),
    Goodbye(3),
    GetHeaders(ID * 3, 1000),
    Headers([HEADER, HEADER], 9, ID, ID),
    GetBlocks(ID * 2),
    BlockMessage(b"block"),
    NotFound(ID),
    Compact(HEADER, bytes(8), bytes(18), bytes(6)),
    GetBlockTransactions(ID, b"\0\1\0\2"),
    BlockTransactions(ID, [b"one", b"two"]),
    Inventory(ID * 5),
    GetTransactions(ID),
    Transactions([b"tx"], ID),
    GetPeers(),
    Peers(["host:1", "other:2"]),
    GetBlob(ID, ID, 0, 1024),
    BlobChunk(ID, 0, 5, 0, b"bytes"),
    GetSnapshots(),
    Snapshots([Attestation(5, ID, ID, ID, 100, bytes(33), bytes(64))]),
    GetPiece(ID, 0),
    Piece(ID, 0, 5, b"piece"),
]


def any_tag(tag: int) -> None:
    """Everything may come."""


def read(data: bytes) -> list[Any]:
    return list(FrameReader(any_tag).feed(data))


def offence_of(data: bytes) -> Offence:
    with pytest.raises(WireFault) as caught:
        read(data)
    return caught.value.offence


def frame(body: bytes, version: int = PEER_PROTOCOL_VERSION) -> bytes:
    return (len(body) + 1).to_bytes(4, "big") + bytes([version]) + body


def test_every_message_is_told_here() -> None:
    assert {type(message) for message in EVERY} == set(TAGS)


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_a_message_is_what_it_was(message: Message) -> None:  # SPEC-PEER-1
    data = encode_frame(message)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert data[4] == PEER_PROTOCOL_VERSION
    assert data[6] == TAGS[type(message)]
    assert read(data) == [message]
    # Every answer names a request, and what is asked for has a tag of its own.
    assert MESSAGES[data[6]].answers is None or MESSAGES[data[6]].answers in MESSAGES


def test_the_bytes_of_the_protocol_stand_still() -> None:  # SPEC-PEER-1
    ping = encode_frame(Ping(b"12345678", 300, ID, ID)).hex()
    assert ping == "00000054" + "02" + "95" + "02" + "c408" + b"12345678".hex() + "cd012c" + 2 * (
        "c420" + ID.hex()
    )
    assert encode_frame(GetPeers()).hex() == "00000003029128"


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 10_000])
def test_frames_may_be_cut_anywhere_and_come_together(piece: int) -> None:  # SPEC-PEER-2
    data = b"".join(encode_frame(message) for message in EVERY)
    reader = FrameReader(any_tag)
    got = [message for at in range(0, len(data), piece) for message in reader.feed(data[at : at + piece])]
    assert got == EVERY
    assert reader.held_bytes == 0


def test_dribbled_frames_cost_what_they_weigh() -> None:  # SPEC-PEER-2
    reader = FrameReader(any_tag)
    data = encode_frame(BlockMessage(bytes(200_000)))
    steps = 0
    for at in range(0, len(data), 1):
        steps += sum(1 for _ in reader.feed(data[at : at + 1]))
        # What is held is what arrived, whatever length was announced.
        assert reader.held_bytes in (at + 1, 0)
    assert steps == 1


def test_an_announced_length_allocates_nothing() -> None:  # SPEC-PEER-2
    reader = FrameReader(any_tag)
    assert list(reader.feed(PEER_FRAME_BYTES_MAX.to_bytes(4, "big") + b"\2\x92\x0d")) == []
    assert reader.held_bytes == 7


def test_each_message_has_its_own_maximum() -> None:  # SPEC-PEER-2
    for tag, kind in MESSAGES.items():
        prefix = bytes([PEER_PROTOCOL_VERSION, 0x92, tag])
        assert list(FrameReader(any_tag).feed((kind.bytes_max).to_bytes(4, "big") + prefix)) == []
        assert offence_of((kind.bytes_max + 1).to_bytes(4, "big") + prefix) == Offence.OVERSIZED
    assert Ping.bytes_max == Hello.bytes_max == PEER_FRAME_SMALL_BYTES_MAX
    assert BlockMessage.bytes_max == PEER_FRAME_BYTES_MAX


@pytest.mark.parametrize(
    ("data", "offence"),
    [
        (b"\xff\xff\xff\xff", Offence.OVERSIZED),
        (b"\0\0\0\0", Offence.OVERSIZED),
        (b"\0\0\0\2", Offence.OVERSIZED),
        (frame(b"\x91\x28", version=1), Offence.WRONG_VERSION),
        (frame(b"\x91\x63"), Offence.GARBAGE),
        (frame(b"\xc0\x28"), Offence.GARBAGE),
        (frame(b"\x92\x28\x00"), Offence.GARBAGE),
        (frame(b"\x91\x28\x00"), Offence.GARBAGE),
        (frame(b"\x91\x1e"), Offence.GARBAGE),
        (frame(b"\x92\x1e\xa1a"), Offence.GARBAGE),
        (frame(b"\x92\x04\xff"), Offence.GARBAGE),
        (frame(b"\x92\x29\xdd\xff\xff\xff\xff"), Offence.GARBAGE),
        (frame(b"\x92\x29" + b"\x91" * 2_000), Offence.GARBAGE),
        (frame(b"\x92\x29\x91\xa2\xff\xfe"), Offence.GARBAGE),
    ],
)
def test_what_is_not_of_the_protocol_is_one_offence(data: bytes, offence: Offence) -> None:  # SPEC-PEER-1
    assert offence_of(data) == offence


@pytest.mark.parametrize(
    "message",
    [
        Hello(bytes(7), ID, bytes(8), 7, ID, ID, 0, "", "", 1),
        Hello(bytes(8), ID, bytes(8), -1, ID, ID, 0, "", "", 1),
        Hello(bytes(8), ID, bytes(8), 7, ID, ID, 0, "x" * 129, "", 1),
        Hello(bytes(8), ID, bytes(8), 7, ID, ID, 0, "", "", 0),
        GetHeaders(bytes(32 * 65), 10),
        GetHeaders(b"", 1_001),
        GetBlocks(bytes(32 * 65)),
        Inventory(bytes(32 * 4_097)),
        Peers(["a:1"] * 65),
        GetBlob(ID, ID, 0, 2**20 + 1),
        BlobChunk(ID, 0, 5, 70_000, b""),
    ],
)
def test_fields_have_bounds_of_their_own(message: Message) -> None:  # SPEC-PEER-2
    assert offence_of(encode_frame(message)) == Offence.GARBAGE


def test_a_list_of_ids_has_whole_ids() -> None:
    assert split_ids(ID * 3) == [ID] * 3
    with pytest.raises(WireFault):
        split_ids(bytes(33))


def test_a_tag_is_refused_before_its_frame_is_there() -> None:  # SPEC-PEER-4
    def refuse(tag: int) -> None:
        raise WireFault(f"message {tag}", Offence.UNREQUESTED)

    with pytest.raises(WireFault):
        list(FrameReader(refuse).feed(encode_frame(BlockMessage(bytes(100)))[:7]))


@given(st.binary(max_size=300), st.integers(1, 50))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_messages_or_one_fault(data: bytes, piece: int) -> None:  # SPEC-PEER-1
    reader = FrameReader(any_tag)
    try:
        for at in range(0, len(data), piece):
            list(reader.feed(data[at : at + piece]))
            assert reader.held_bytes <= at + piece
    except WireFault as fault:
        assert fault.offence in Offence


@given(st.sampled_from(EVERY), st.data())
@settings(max_examples=300, deadline=None)
def test_spoilt_messages_are_messages_or_one_fault(
    message: Message, data: st.DataObject
) -> None:  # SPEC-PEER-1
    body = bytearray(encode_frame(message)[5:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = read(frame(bytes(body)))
    except WireFault:
        return
    assert msgspec.msgpack.encode(got[0])
