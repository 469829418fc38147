"""Who is at the other end: from the mTLS certificate, or, on insecure loopback, from what the peer says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fogline.common import pki
from fogline.common.errors import IdentityError

NAME_HEADER = "x-fogline-name"
ROLE_HEADER = "x-fogline-role"
TENANT_HEADER = "x-fogline-tenant"
INSTANCE_HEADER = "x-fogline-instance"


@dataclass(frozen=True)
class Peer:
    """A device's name, role (edge, fog or cloud) and tenant, as enrolled.

    `instance` tells two agents with one identity apart (`presence.py`); empty: not told.
    """

    name: str
    role: str
    tenant: str = ""
    instance: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(pki.NAME_PATTERN, self.name) or self.role not in pki.ROLES:
            raise IdentityError(
                f"peer {self.name[:80]!r} with role {self.role[:20]!r}: a name is 1 to 63 of a-z 0-9 . _ - and a role "
                f"one of {', '.join(pki.ROLES)}"
            )
        if self.tenant and not re.fullmatch(pki.NAME_PATTERN, self.tenant):
            raise IdentityError(f"peer {self.name} with tenant {self.tenant[:80]!r}: 1 to 63 of a-z 0-9 . _ -")

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What an insecure client adds to each call."""
        tenant = ((TENANT_HEADER, self.tenant),) if self.tenant else ()
        return ((NAME_HEADER, self.name), (ROLE_HEADER, self.role), *tenant)


def peer(context: Any) -> Peer:
    """The caller of a server handler, from its `context`; raises IdentityError when it does not say who it is."""
    auth = context.auth_context()
    if certificates := auth.get("x509_pem_cert"):
        found = pki.identity(certificates[0], f"the certificate of {context.peer()}")
        return Peer(found.name, found.role, found.tenant)
    said = _first(context.invocation_metadata() or ())
    if NAME_HEADER not in said or ROLE_HEADER not in said:
        raise IdentityError(f"an insecure call without {NAME_HEADER} and {ROLE_HEADER}: pass `me` to connect()")
    return Peer(said[NAME_HEADER], said[ROLE_HEADER], said.get(TENANT_HEADER, ""))


def _first(metadata: Iterable[tuple[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in metadata:
        if isinstance(value, str):
            found.setdefault(key, value)
    return found
