"""The one string that lets a device enrol: where the certificate service is, which authority it must show, a secret."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from fogline.common import addresses
from fogline.common.addresses import Address
from fogline.common.errors import ConfigError

PREFIX = "fogline-join"
SECRET_BYTES = 32


@dataclass(frozen=True)
class JoinToken:
    """A token. `sha256` is that of the authority's certificate in DER."""

    address: Address
    sha256: bytes
    secret: str

    def __str__(self) -> str:
        """Write it as the operator passes it on."""
        return f"{PREFIX}:{self.address}:{self.sha256.hex()}:{self.secret}"

    def __repr__(self) -> str:
        """Show it without its secret."""
        return f"JoinToken({self.address}, {self.sha256.hex()[:16]}…, ***)"


def parse(text: str) -> JoinToken:
    """Read a token. Raises ConfigError, which never repeats the secret."""
    prefix, _, rest = text.strip().partition(":")
    place, _, secret = rest.rpartition(":")
    address, _, sha256 = place.rpartition(":")
    if prefix != PREFIX or not address:
        raise ConfigError(
            f"a token looks like {PREFIX}:HOST:PORT:SHA256:SECRET and this one does not; copy all that `fogline ca "
            "token` printed"
        )
    if not re.fullmatch(r"[0-9a-f]{64}", sha256) or not re.fullmatch(r"[A-Za-z0-9_-]{16,128}", secret):
        raise ConfigError("the token was cut off or changed on its way; copy all that `fogline ca token` printed")
    return JoinToken(addresses.parse(address), bytes.fromhex(sha256), secret)


def new_secret() -> str:
    """Return a secret that nobody guesses."""
    return secrets.token_urlsafe(SECRET_BYTES)


def digest(secret: str) -> bytes:
    """Return what the service keeps of a secret. It has 256 random bits: nothing slower than SHA-256 is called for."""
    return hashlib.sha256(secret.encode()).digest()
