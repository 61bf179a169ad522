"""A peer that means ill: an organisation's certificate and key in the hands of a plain TLS socket."""

import contextlib
import os
import socket
import ssl
import time
from pathlib import Path
from typing import Any, Self

from fastledger.model.genesis import Genesis
from fastledger.node.federation.tls import PEER_PROTOCOL
from fastledger.peers.wire import FrameReader, Hello, Message, encode_frame

HOST = "127.0.0.1"


class HostilePeer:
    """One connection to a node's peer port, over which anything may be sent."""

    def __init__(
        self, authority: Path, name: str, port: int, genesis: Genesis, *, source: str = HOST
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(authority / "bundle.pem")
        context.load_cert_chain(authority / f"{name}.pem", authority / f"{name}.key")
        context.set_alpn_protocols([PEER_PROTOCOL])
        self.genesis = genesis
        self.socket = context.wrap_socket(socket.create_connection((HOST, port), 10, (source, 0)))
        self.socket.settimeout(10)
        self._reader = FrameReader(lambda _tag: None)
        self.heard: list[Message] = []

    def hello(self, **changes: Any) -> Hello:
        fields: dict[str, Any] = {
            "chain_id": self.genesis.chain_id,
            "genesis_digest": self.genesis.digest,
            "nonce": os.urandom(8),
            "height": 0,
            "work": bytes(32),
            "tip": self.genesis.digest,
            "time_ms": int(time.time() * 1000),
            "listen": "",
            "agent": "hostile",
            "rule_set": 1,
        }
        return Hello(**(fields | changes))

    def greet(self, **changes: Any) -> Self:
        self.say(self.hello(**changes))
        return self

    def say(self, *messages: Message) -> None:
        self.send(b"".join(map(encode_frame, messages)))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def listen(self, seconds: float) -> bool:
        """Takes what comes for so long; False where the node has hung up."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                return True
            except OSError:
                return False
            if not data:
                return False
            self.heard += self._reader.feed(data)
        return True

    def is_refused(self, seconds: float = 10) -> bool:
        """Whether the node hangs up within a time."""
        return not self.listen(seconds)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
