"""A node's peers, forks and mining as a client sees them (SPEC-CLI-11)."""

from abc import abstractmethod
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastledger.client.reading import INFO_BYTES_MAX, NodeReader

T = TypeVar("T")


class FederationCalls(NodeReader):
    """The methods about the other organisations' nodes; all but the status take the operator's role."""

    async def federation_status(self) -> dict[str, Any]:
        """Tip, finality, synchronisation and mining; ``NotFoundError`` on a chain of one organisation."""
        return await self._call("federation.status", dict[str, Any], INFO_BYTES_MAX)

    async def peers(self) -> dict[str, Any]:
        """Every link and every ban."""
        return await self._call("federation.peers", dict[str, Any], INFO_BYTES_MAX)

    async def add_peer(self, address: str) -> None:
        """Has the node call ``host:port`` from now on."""
        await self._call("federation.add_peer", dict[str, Any], INFO_BYTES_MAX, address=address)

    async def ban(
        self, *, organisation: str | None = None, address: str | None = None, duration_ms: int | None = None
    ) -> None:
        """Has the node shut an organisation, or a host, out for a time."""
        given = {"organisation": organisation, "address": address, "duration_ms": duration_ms}
        await self._call("federation.ban", dict[str, Any], INFO_BYTES_MAX, **_present(given))

    async def unban(self, *, organisation: str | None = None, address: str | None = None) -> bool:
        """Has it let in again; False where it was not shut out."""
        given = _present({"organisation": organisation, "address": address})
        return bool((await self._call("federation.unban", dict[str, Any], INFO_BYTES_MAX, **given))["done"])

    async def mine(self, *, on: bool | None = None) -> dict[str, Any]:
        """Begins or ends the node's search for blocks, and tells how it goes."""
        return await self._call("federation.mine", dict[str, Any], INFO_BYTES_MAX, **_present({"on": on}))


def _present(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


class SyncFederationCalls:
    """The methods of :class:`FederationCalls` for a client that blocks."""

    _client: FederationCalls

    @abstractmethod
    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for a coroutine on the client's loop."""

    def federation_status(self) -> dict[str, Any]:
        """See :meth:`AsyncClient.federation_status`."""
        return self._run(self._client.federation_status())

    def peers(self) -> dict[str, Any]:
        """See :meth:`AsyncClient.peers`."""
        return self._run(self._client.peers())

    def add_peer(self, address: str) -> None:
        """See :meth:`AsyncClient.add_peer`."""
        self._run(self._client.add_peer(address))

    def ban(
        self, *, organisation: str | None = None, address: str | None = None, duration_ms: int | None = None
    ) -> None:
        """See :meth:`AsyncClient.ban`."""
        self._run(self._client.ban(organisation=organisation, address=address, duration_ms=duration_ms))

    def unban(self, *, organisation: str | None = None, address: str | None = None) -> bool:
        """See :meth:`AsyncClient.unban`."""
        return self._run(self._client.unban(organisation=organisation, address=address))

    def mine(self, *, on: bool | None = None) -> dict[str, Any]:
        """See :meth:`AsyncClient.mine`."""
        return self._run(self._client.mine(on=on))
