"""Access control: a caller shows a client certificate or a bearer token, or is anonymous (SPEC-RPC-6).

Roles: *reader* asks, *submitter* brings transactions and envelopes, *operator* runs the node. None contains another;
a client that needs two has two. Without any configuration whoever reaches the port reads and submits, which is why
the port is loopback's unless told otherwise.
"""

import hashlib
import hmac
from collections.abc import Iterable
from ssl import SSLObject

from fastledger.errors import ForbiddenError, UnauthenticatedError
from fastledger.rpc.http.routes import Caller
from fastledger.rpc.options import AccessOptions, CallerRole, ClientRule

TOKEN_CHARS_MAX = 512


class Access:
    """Finds the caller of a request. A connection's certificate is examined once, a token with every request."""

    def __init__(self, options: AccessOptions) -> None:
        """Takes the rules, as :meth:`replace` does."""
        self.replace(options)

    def replace(self, options: AccessOptions) -> None:
        """Replaces the rules, for every request that comes from now on, also on connections that are open."""
        self._anonymous = options.anonymous_roles
        self._tokens = [
            (bytes.fromhex(rule.token_sha256), rule) for rule in options.clients if rule.token_sha256
        ]
        self._fingerprints = {
            rule.certificate_sha256.lower().replace(":", ""): rule
            for rule in options.clients
            if rule.certificate_sha256
        }
        self._names = {rule.certificate_name: rule for rule in options.clients if rule.certificate_name}

    def caller(self, authorization: str | None, of_connection: Caller) -> Caller:
        """Returns the caller with this ``Authorization`` header: ``of_connection`` unless a token names a client.

        Raises ``UnauthenticatedError`` for a token that nobody has: a caller with a wrong one is not anonymous.
        """
        if authorization is None:
            return of_connection
        scheme, _, token = authorization.partition(" ")
        rule = self._rule_of_token(token.strip()) if scheme.lower() == "bearer" else None
        if rule is None:
            raise UnauthenticatedError("no client has these credentials")
        return Caller(rule.name, of_connection.address, rule.roles, authenticated=True)

    def of_connection(self, address: str, tls: SSLObject | None) -> Caller:
        """Returns the caller by its certificate, which the TLS layer has verified; else an anonymous one."""
        rule = None if tls is None else self._rule_of_certificate(tls)
        if rule is None:
            return Caller(address, address, self._anonymous)
        return Caller(rule.name, address, rule.roles, authenticated=True)

    def _rule_of_token(self, token: str) -> ClientRule | None:
        if not token or len(token) > TOKEN_CHARS_MAX:
            return None
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        found: ClientRule | None = None
        for expected, rule in self._tokens:
            # All are compared, whichever fits: the time tells nothing.
            if hmac.compare_digest(expected, digest):
                found = rule
        return found

    def _rule_of_certificate(self, tls: SSLObject) -> ClientRule | None:
        encoded = tls.getpeercert(binary_form=True)
        if not encoded:
            return None
        rule = self._fingerprints.get(hashlib.sha256(encoded).hexdigest())
        if rule is not None:
            return rule
        for name in _common_names(tls.getpeercert()):
            if name in self._names:
                return self._names[name]
        return None


def _common_names(certificate: object) -> Iterable[str]:
    """Yields the common names in a certificate's subject, given in the form of :meth:`ssl.SSLSocket.getpeercert`."""
    if not isinstance(certificate, dict):
        return
    for part in certificate.get("subject", ()):
        for name, value in part:
            if name == "commonName":
                yield value


def check_role(caller: Caller, role: CallerRole | None) -> None:
    """Raises ``ForbiddenError``, or ``UnauthenticatedError`` for an anonymous caller, that lacks ``role``."""
    if role is None or role in caller.roles:
        return
    if caller.authenticated:
        raise ForbiddenError(f"this needs the role {role}")
    raise UnauthenticatedError(f"this needs a client with the role {role}")
