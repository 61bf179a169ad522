"""Blocks asked of peers one after another, by a program that is no running node (SPEC-REP-8)."""

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
from fastledger.model.genesis import Genesis
from fastledger.node.config.federation import FederationConfig, split_address
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
    """A :class:`~fastledger.chain.keeping.repair.BlockSource` over configured peers; the first that answers is asked.

    Where one fails, the next is asked the same; where all did, ``UnreachableError``.
    """

    def __init__(self, config: FederationConfig, genesis: Genesis) -> None:
        """Raises ``InputError`` where no peer is configured, ``CertificateError`` for the TLS files."""
        if not config.peers:
            raise InputError("federation.peers names nobody to ask")
        self._config = config
        self._genesis = genesis
        self._tls = PeerTls(config.tls)
        self._addresses = list(config.peers)
        self._link: Conversation | None = None

    def headers_after(self, block_id: bytes, limit: int) -> Sequence[SealedHeader]:
        """Headers of a peer's chain behind a block."""

        def ask(link: "Conversation") -> Sequence[SealedHeader]:
            answer = link.ask(GetHeaders(block_id, limit), Headers)
            return [open_header(header) for header in answer.headers]

        return self._with_link(ask)

    def blocks(self, block_ids: Sequence[bytes]) -> Iterator[Block]:
        """Copies of these blocks."""
        for block_id in block_ids:
            yield self._with_link(partial(Conversation.block, block_id=block_id))

    def _with_link(self, ask: "Callable[[Conversation], T]") -> T:
        """What the present peer answers, or else the next."""
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
        """Ends the link."""
        if self._link is not None:
            self._link.close()
            self._link = None


class Conversation:
    """One blocking connection, handshake done."""

    def __init__(self, address: str, tls: PeerTls, config: FederationConfig, genesis: Genesis) -> None:
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
                )
            )
            hello = self._next(Hello)
            if hello.genesis_digest != genesis.digest:
                raise UnreachableError("the peer serves another chain", transient=False)
        except BaseException:
            connection.close()
            raise

    def ask(self, question: Message, kind: type[MessageT]) -> MessageT:
        """The answer of that kind; what else comes is not for us."""
        self._send(question)
        return self._next(kind)

    def block(self, block_id: bytes) -> Block:
        """One block; raises where the peer has none."""
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
        """Hangs up."""
        with contextlib.suppress(OSError):
            self._socket.close()
