"""The state of a node's peers that outlives a restart: bans, and addresses that the operator added (SPEC-FED-10)."""

import contextlib
import os
import threading
from pathlib import Path
from typing import Literal

import msgspec

from fastledger.errors import CorruptionError
from fastledger.peers.scores import Ban, Party, PartyKind

STATE_NAME = "peers.json"
STATE_BYTES_MAX = 4 << 20


class _Ban(msgspec.Struct):
    kind: Literal["organisation", "address"]
    name: str
    until_ms: int
    why: str


class _State(msgspec.Struct, kw_only=True):
    version: Literal[1] = 1
    bans: list[_Ban] = []
    peers: list[str] = []


class PeerState:
    """The file ``peers.json`` in a ledger directory; written wholly or not at all, from any thread."""

    def __init__(self, directory: Path) -> None:
        """Reads the file where there is one; raises ``CorruptionError`` where it is damaged."""
        self._path = directory / STATE_NAME
        self._lock = threading.Lock()
        self._state = self._load()

    def _load(self) -> _State:
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(STATE_BYTES_MAX), type=_State)
        except FileNotFoundError:
            return _State()
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise CorruptionError("is damaged: delete it to forget bans", path=str(self._path)) from None

    @property
    def bans(self) -> tuple[Ban, ...]:
        """The bans that were saved; some may have ended since."""
        return tuple(
            Ban(Party(PartyKind[ban.kind.upper()], ban.name), ban.until_ms, ban.why)
            for ban in self._state.bans
        )

    @property
    def peers(self) -> tuple[str, ...]:
        """The addresses that the operator added."""
        return tuple(self._state.peers)

    def add_peer(self, address: str) -> None:
        """Saves an address."""
        with self._lock:
            if address not in self._state.peers:
                self._state.peers.append(address)
                self._save()

    def set_bans(self, bans: "list[Ban]") -> None:
        """Saves exactly these bans."""
        held = [
            _Ban("address" if ban.subject.kind is PartyKind.ADDRESS else "organisation", *_rest(ban))
            for ban in bans
        ]
        with self._lock:
            self._state.bans = held
            self._save()

    def _save(self) -> None:
        fresh = self._path.with_name(f".{STATE_NAME}.new")
        with fresh.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self._state)))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _rest(ban: Ban) -> tuple[str, int, str]:
    return ban.subject.name, ban.until_ms, ban.why
