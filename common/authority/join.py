"""A device enrols itself: makes its key, has it certified with a token, and keeps what it needs to renew.

The key is written before anything is asked for, so that a device that is killed on the way asks again with the same
key, which costs the token nothing.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fogline.common import pki
from fogline.common.authority import client, csr
from fogline.common.authority.token import JoinToken
from fogline.common.errors import ConfigError, FoglineError, IdentityError
from fogline.common.files import replace_file
from fogline.common.pki import Identity
from fogline.common.rpc.gen import authority_pb2 as pb

FACTS = "authority.json"


@dataclass(frozen=True)
class Joined:
    """What a device holds after it joined. `fresh`: only now."""

    who: Identity
    not_after: datetime
    fresh: bool


def held(folder: Path, name: str) -> Joined | None:
    """The certificate of that name that a folder holds already, if it is valid; None where there is none."""
    files = [folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key"]
    try:
        ca, cert, key = (path.read_bytes() for path in files)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{folder} can't be read: {error.strerror}; run as the user who owns it") from error
    try:
        who = pki.check(cert, ca, key, origin=files[1])
    except IdentityError:
        return None
    return Joined(who, pki.inspect(cert).not_after, fresh=False) if who.name == name else None


def join(token: JoinToken, name: str, hosts: tuple[str, ...], folder: Path) -> Joined:
    """Have `folder` hold `NAME.pem`, `NAME.key`, `ca.pem` and `authority.json`; nothing is asked where it does.

    Raises ConfigError, IdentityError, UnavailableError, ProtocolError.
    """
    if not re.fullmatch(pki.NAME_PATTERN, name):
        raise ConfigError(f"device name {name!r} is not allowed; use 1 to 63 of a-z 0-9 . _ - (give one with --name)")
    found = held(folder, name)
    if found is not None:
        return found
    key = own_key(folder / f"{name}.key")
    request = csr.make(key, name, hosts)
    authority = client.pinned(token.address, token.sha256)
    with client.connected(token.address, authority) as service:
        answer = service.Enrol(pb.EnrolRequest(secret=token.secret, csr=request), timeout=client.DEADLINE_S)
    who = pki.check(answer.certificate, answer.authorities, pki.dump_key(key), origin=f"the certificate for {name}")
    if who.name != name:
        raise IdentityError(f"{token.address} certified {who.name} where {name} was asked for; update the service")
    replace_file(folder / FACTS, json.dumps({"authority": str(token.address)}).encode())
    replace_file(folder / "ca.pem", answer.authorities)
    replace_file(folder / f"{name}.pem", answer.certificate)  # last: with it, the device has joined
    return Joined(who, pki.inspect(answer.certificate).not_after, fresh=True)


def own_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in a file, made when there is none. Raises ConfigError or IdentityError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            return pki.load_key(path.read_bytes(), path)
        except FileNotFoundError:
            pass
        key = ec.generate_private_key(ec.SECP256R1())
        temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temp.unlink(missing_ok=True)
        handle = os.open(temp, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(pki.dump_key(key))
            file.flush()
            os.fsync(handle)
        temp.replace(path)
    except FoglineError:
        raise
    except OSError as error:
        raise ConfigError(f"{path} can't be used: {error.strerror}; choose a folder that you may write to") from error
    return key
