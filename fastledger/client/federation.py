"""A node's peers, forks and mining as a client sees them (SPEC-CLI-11)."""

from typing import Any

from fastledger.client.export import NodeExporter
from fastledger.client.reading import INFO_BYTES_MAX


class FederationCalls(NodeExporter):
    """The methods about the other organisations' nodes; all but the status take the operator's role."""

    async def federation_status(self) -> dict[str, Any]:
        """Returns tip, finality, synchronisation and mining.

        Raises ``NotFoundError`` on a chain of one organisation.
        """
        return await self._call("federation.status", dict[str, Any], INFO_BYTES_MAX)

    async def peers(self) -> dict[str, Any]:
        """Returns every link to another organisation's node and every ban."""
        return await self._call("federation.peers", dict[str, Any], INFO_BYTES_MAX)

    async def add_peer(self, address: str) -> None:
        """Has the node call ``host:port`` from now on."""
        await self._call("federation.add_peer", dict[str, Any], INFO_BYTES_MAX, address=address)

    async def ban(
        self, *, organisation: str | None = None, address: str | None = None, duration_ms: int | None = None
    ) -> None:
        """Has the node shut out an organisation, or a host by its ``address``, for ``duration_ms``.

        Without a duration the node's own one holds.
        """
        given = {"organisation": organisation, "address": address, "duration_ms": duration_ms}
        await self._call("federation.ban", dict[str, Any], INFO_BYTES_MAX, **_present(given))

    async def unban(self, *, organisation: str | None = None, address: str | None = None) -> bool:
        """Has the node let an organisation or a host in again; returns whether it was shut out."""
        given = _present({"organisation": organisation, "address": address})
        return bool((await self._call("federation.unban", dict[str, Any], INFO_BYTES_MAX, **given))["done"])

    async def mine(self, *, on: bool | None = None) -> dict[str, Any]:
        """Begins (``on=True``) or ends the node's search for blocks, and returns how it goes; None changes nothing."""
        return await self._call("federation.mine", dict[str, Any], INFO_BYTES_MAX, **_present({"on": on}))


def _present(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
