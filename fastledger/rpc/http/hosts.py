"""The check of the host that a request names: the defence of a node in plain HTTP against web pages (SPEC-RPC-11).

A page that a browser opened can point its own site's name at this machine (DNS rebinding) and then speak to a node
that trusts whoever reaches it. The browser gives it away: ``Host`` is the name of the page's site.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping

from fastledger.errors import BadRequestError

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::[0-9]{0,5})?")
_SEEN_MAX = 256
_HOST_CHARS_MAX = 300


class HostCheck:
    """The names and addresses that a request may name as its host."""

    def __init__(self, listening: str, allowed: Iterable[str], *, plain: bool) -> None:
        """Takes the address listened on and further names that are ``allowed``.

        ``plain``: the node speaks without TLS, whose certificate would prove the host.
        """
        self._plain = plain
        self._allowed = {_bare(name) for name in allowed}
        self._names = {_bare(listening), "localhost", *self._allowed}
        own = _address(_bare(listening))
        # Beyond loopback any of the machine's addresses may be meant; what is an address is nobody's name.
        self._any_address = not (_bare(listening) == "localhost" or (own is not None and own.is_loopback))
        self._seen: dict[str, bool] = {}

    def check(self, headers: Mapping[str, str], *, authenticated: bool) -> None:
        """Raises ``BadRequestError``: 421 for another ``Host``, 403 for the ``Origin`` of another site.

        A caller that proved a name by a token is no web page, so its ``Host`` may be any.
        """
        host = headers.get("Host")
        if self._plain and host is not None and not authenticated and not self._is_own(host):
            raise BadRequestError("this node is not the host that the request names", status=421)
        origin = headers.get("Origin")
        if origin is not None and not self._is_same(origin, host or ""):
            raise BadRequestError("this node does not serve that origin", status=403)

    def _is_own(self, host: str) -> bool:
        known = self._seen.get(host)
        if known is None:
            known = self._names_own(host)
            if len(self._seen) >= _SEEN_MAX:
                self._seen.clear()
            self._seen[host] = known
        return known

    def _names_own(self, host: str) -> bool:
        if len(host) > _HOST_CHARS_MAX:
            return False
        name = _bare(_without_port(host))
        if name in self._names:
            return True
        address = _address(name)
        return address is not None and (self._any_address or address.is_loopback)

    def _is_same(self, origin: str, host: str) -> bool:
        authority = origin.partition("://")[2].lower()
        return bool(authority) and (
            authority == host.lower() or _bare(_without_port(authority)) in self._allowed
        )


def _without_port(authority: str) -> str:
    """Returns the host of ``host:port``; "" where the text has another form."""
    found = _AUTHORITY.fullmatch(authority)
    return "" if found is None else found[1]


def _bare(name: str) -> str:
    """Returns a name or address as it is compared: without brackets, case, and the dot at a name's end."""
    return name.strip("[]").lower().removesuffix(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
