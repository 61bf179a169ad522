"""A source of blocks for a program that is no running node: it asks peers one after another (SPEC-REP-8)."""

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from fastledger.clock import system_clock_ms
from fastledger.errors import CertificateError, InputError, UnreachableError
from fastledger.model.block import Block, SealedHeader
from fastledger.model.body import newest_rule_set
from fastledger.model.genesis import Genesis
from fastledger.node.federation.options import FederationOptions, split_address
from fastledger.node.federation.tls import PeerTls, peer_certificate
from fastledger.peers.sync import open_header
from fastledger.peers.wire import (
    WORK_BYTES,
    BlockMessage,
    FrameReader,
    GetBlocks,
    GetHeaders,
    Goodbye,
    Headers,
    Hello,
    Message,
    NotFound,
    Ping,
    Pong,
    encode_frame,
)

T = TypeVar("T")
MessageT = TypeVar("MessageT", bound=Message)
ANSWER_S = 30.0
RECEIVE_BYTES = 1 << 18


class PeerSource:
    """A :class:`~fastledger.chain.keeping.repair.BlockSource` over the configured peers.

    The first peer that answers is asked. Where it fails, the next is asked the same; where all did,
    ``UnreachableError``.
    """

    def __init__(self, config: FederationOptions, genesis: Genesis) -> None:
        """Loads the TLS files.

        Raises ``InputError`` where no peer is configured, ``CertificateError`` for the files.
        """
        if not config.peers:
            raise InputError("federation.peers names nobody to ask")
        self._config = config
        self._genesis = genesis
        self._tls = PeerTls(config.tls)
        self._addresses = list(config.peers)
        self._link: Conversation | None = None

    def headers_after(self, block_id: bytes, limit: int) -> Sequence[SealedHeader]:
        """Returns up to ``limit`` headers of a peer's best chain after a block."""

        def ask(link: "Conversation") -> Sequence[SealedHeader]:
            answer = link.ask(GetHeaders(block_id, limit), Headers)
            return [open_header(header) for header in answer.headers]

        return self._with_link(ask)

    def blocks(self, block_ids: Sequence[bytes]) -> Iterator[Block]:
        """Yields copies of these blocks, in order."""
        for block_id in block_ids:
            yield self._with_link(partial(Conversation.block, block_id=block_id))

    def _with_link(self, ask: "Callable[[Conversation], T]") -> T:
        """Returns the answer of the present peer, or of the next one that gives any."""
        for _ in range(len(self._addresses) + 1):
            try:
                if self._link is None:
                    self._link = Conversation(self._addresses[0], self._tls, self._config, self._genesis)
                return ask(self._link)
            except (OSError, InputError, UnreachableError, CertificateError):
                self.close()
                self._addresses.append(self._addresses.pop(0))
        raise UnreachableError("no peer answers, or none has what is missing")

    def close(self) -> None:
        """Closes the connection to the present peer."""
        if self._link is not None:
            self._link.close()
            self._link = None


class Conversation:
    """One blocking connection to a peer, whose handshake is done."""

    def __init__(self, address: str, tls: PeerTls, config: FederationOptions, genesis: Genesis) -> None:
        timeout_s = config.limits.dial_timeout_ms / 1000
        connection = socket.create_connection(split_address(address), timeout_s)
        try:
            self._socket: ssl.SSLSocket = tls.client_context.wrap_socket(connection)
            peer_certificate(self._socket)
            self._reader = FrameReader(lambda _tag: None)
            self._inbox: list[Message] = []
            self._send(
                Hello(
                    genesis.chain_id,
                    genesis.digest,
                    os.urandom(8),
                    0,
                    bytes(WORK_BYTES),
                    genesis.digest,
                    system_clock_ms(),
                    "",
                    "fastledger-repair",
                    newest_rule_set(),
                )
            )
            hello = self._next(Hello)
            if hello.genesis_digest != genesis.digest:
                raise UnreachableError("the peer serves another chain", transient=False)
        except BaseException:
            connection.close()
            raise

    def ask(self, question: Message, kind: type[MessageT]) -> MessageT:
        """Sends a question and returns the next message of the kind ``kind``; other messages are passed over."""
        self._send(question)
        return self._next(kind)

    def block(self, block_id: bytes) -> Block:
        """Returns one block by its id; raises where the peer does not send it."""
        answer = self.ask(GetBlocks(block_id), BlockMessage)
        return Block.decode(answer.block)

    def _send(self, message: Message) -> None:
        self._socket.settimeout(ANSWER_S)
        self._socket.sendall(encode_frame(message))

    def _next(self, kind: type[MessageT]) -> MessageT:
        deadline = time.monotonic() + ANSWER_S
        while True:
            while self._inbox:
                message = self._inbox.pop(0)
                if isinstance(message, kind):
                    return message
                if isinstance(message, Ping):
                    self._send(Pong(message.nonce, 0, bytes(WORK_BYTES), bytes(32)))
                elif isinstance(message, NotFound | Goodbye):
                    raise UnreachableError("the peer has it not")
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise UnreachableError("the peer hung up")
            self._inbox += self._reader.feed(data)

    def close(self) -> None:
        """Closes the connection."""
        with contextlib.suppress(OSError):
            self._socket.close()
