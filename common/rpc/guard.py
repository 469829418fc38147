"""Who is let in: role, tenant, revocation, dates and identity are looked at before every call, and while it runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509

from fogline.common.errors import FoglineError, IdentityError, UnavailableError
from fogline.common.rpc.peer import INSTANCE_HEADER, Peer, peer
from fogline.common.rpc.permissions import TABLE
from fogline.common.rpc.presence import Presence
from fogline.common.rpc.revocations import Revocations

log = logging.getLogger(__name__)

SWEEP_S = 2.0  # how often running calls are looked at
MAX_CACHED = 4096  # certificates, parsed
MAX_INSTANCE = 64  # characters


@dataclass(frozen=True)
class _Certificate:
    serial: int
    not_after: float  # seconds since the Unix epoch


@dataclass(eq=False)
class Call:
    """One call, from its beginning to its end."""

    task: asyncio.Task[Any] | None
    peer: Peer | None = None
    certificate: _Certificate | None = None
    instance: str = ""
    ended: FoglineError | None = field(default=None)  # why we ended it


class Guard:
    """Of one server. `tenant`: ours; where there is one, edges of others are refused."""

    def __init__(
        self,
        revocations: Revocations | None = None,
        presence: Presence | None = None,
        tenant: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.revocations = Revocations() if revocations is None else revocations
        self._presence = presence or Presence()
        self._tenant, self._clock = tenant, clock
        self._running: set[Call] = set()
        self._parsed: OrderedDict[bytes, _Certificate] = OrderedDict()

    @contextmanager
    def call(self) -> Iterator[Call]:
        """Around a call, which `admit` then judges."""
        call = Call(asyncio.current_task())
        self._running.add(call)
        try:
            yield call
        finally:
            self._running.discard(call)
            if call.peer is not None and call.instance:
                self._presence.release(call.peer.name, call.instance, time.monotonic())

    def admit(self, call: Call, method: str, context: Any) -> None:
        """Raise IdentityError for who may not make this call, UnavailableError for who may later, or connected anew."""
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
        if pem is not None:
            call.certificate = self._parse(pem)
            self._check(call, context.peer())
        roles = TABLE.get(method, frozenset())
        if roles is None:
            return
        who = peer(context)
        if who.role not in roles:
            allowed = f"for {' or '.join(sorted(roles))}" if roles else "not served"
            raise IdentityError(
                f"{who.name} has role {who.role!r}, and {method.rpartition('/')[2]} is {allowed}", number=704
            )
        if self._tenant and who.role == "edge" and who.tenant != self._tenant:
            raise IdentityError(f"{who.name} is of another tenant than this server; enrol it for this one")
        self._claim(call, who, context)

    def sweep(self) -> None:
        """End the running calls of who is not let in any more."""
        for call in list(self._running):
            if call.ended is None and call.certificate is not None and call.task is not None:
                try:
                    self._check(call, "")
                except FoglineError as error:
                    log.warning("running call ended: %s", error)
                    call.ended = error
                    call.task.cancel()

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep()

    def _check(self, call: Call, address: str) -> None:
        assert call.certificate is not None
        name = f"the certificate of {call.peer.name}" if call.peer else f"the certificate of {address}"
        if call.certificate.serial in self.revocations:
            raise IdentityError(f"{name} was revoked; join again with a new token and a new key", number=712)
        if self._clock() >= call.certificate.not_after:
            # The next connection shows the next certificate, if the device has renewed it.
            raise UnavailableError(f"{name}, shown when it connected, has ended; connect again")

    def _claim(self, call: Call, who: Peer, context: Any) -> None:
        instance = next((str(v) for k, v in context.invocation_metadata() or () if k == INSTANCE_HEADER), "")
        if not instance or len(instance) > MAX_INSTANCE:
            call.peer = who
            return
        conflict = self._presence.claim(who.name, instance, _host(context.peer()), time.monotonic())
        if conflict is not None:
            if conflict.new:
                log.error(
                    "two agents have the identity %s: the one at %s goes on, the one at %s is refused; enrol it under "
                    "a name of its own",
                    conflict.name,
                    conflict.holder,
                    conflict.refused,
                )
            raise UnavailableError(  # and no IdentityError, which would end an agent whose own old call still lingers
                f"another agent with the identity {who.name} is connected from {conflict.holder}; enrol this one under "
                "a name of its own (was its disk or its data folder copied?), or stop the other",
                number=805,
            )
        call.peer, call.instance = who, instance

    def _parse(self, pem: bytes) -> _Certificate:
        found = self._parsed.get(pem)
        if found is None:
            certificate = x509.load_pem_x509_certificate(pem)
            found = _Certificate(certificate.serial_number, certificate.not_valid_after_utc.timestamp())
            self._parsed[pem] = found
            if len(self._parsed) > MAX_CACHED:
                self._parsed.popitem(last=False)
        return found


def _host(address: str) -> str:
    """`ipv4:10.0.0.5:1234` without its kind and port."""
    return address.partition(":")[2].rpartition(":")[0] or address
