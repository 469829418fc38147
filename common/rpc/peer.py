"""Who is at the other end: from the mTLS certificate, or, on insecure loopback, from what the peer says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fogline.common import pki
from fogline.common.errors import IdentityError

NAME_HEADER = "x-fogline-name"
ROLE_HEADER = "x-fogline-role"


@dataclass(frozen=True)
class Peer:
    """A device's name (as enrolled) and role: edge, fog or cloud."""

    name: str
    role: str

    def __post_init__(self) -> None:
        if not re.fullmatch(pki.NAME_PATTERN, self.name) or self.role not in pki.ROLES:
            raise IdentityError(
                f"peer {self.name[:80]!r} with role {self.role[:20]!r}: a name is 1 to 63 of a-z 0-9 . _ - and a role "
                f"one of {', '.join(pki.ROLES)}"
            )

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What an insecure client adds to each call."""
        return ((NAME_HEADER, self.name), (ROLE_HEADER, self.role))


def peer(context: Any) -> Peer:
    """The caller of a server handler, from its `context`; raises IdentityError when it does not say who it is."""
    auth = context.auth_context()
    if certificates := auth.get("x509_pem_cert"):
        found = pki.identity(certificates[0], f"the certificate of {context.peer()}")
        return Peer(found.name, found.role)
    said = _first(context.invocation_metadata() or ())
    if NAME_HEADER not in said or ROLE_HEADER not in said:
        raise IdentityError(f"an insecure call without {NAME_HEADER} and {ROLE_HEADER}: pass `me` to connect()")
    return Peer(said[NAME_HEADER], said[ROLE_HEADER])


def require(context: Any, *roles: str) -> Peer:
    """`peer`, or IdentityError unless it has one of `roles`."""
    who = peer(context)
    if who.role not in roles:
        raise IdentityError(f"{who.name} has role {who.role!r}, and this call is for {' or '.join(roles)}", number=704)
    return who


def _first(metadata: Iterable[tuple[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in metadata:
        if isinstance(value, str):
            found.setdefault(key, value)
    return found
