"""The certificate service over gRPC, and the process that serves it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fogline.common import notify, pki, process
from fogline.common.authority import csr
from fogline.common.authority.registrar import Registrar
from fogline.common.config import MetricsConfig, TlsConfig
from fogline.common.errors import FoglineError, ProtocolError
from fogline.common.metrics import Metrics
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.gen import authority_pb2 as pb
from fogline.common.rpc.gen import authority_pb2_grpc
from fogline.common.rpc.server import aio_server
from fogline.common.rpc.tls import Material

log = logging.getLogger(__name__)

MAX_MESSAGE = 64 << 10  # bytes of a request: a request for a certificate has about 500
PARALLEL = 4  # requests that are judged at once; others wait
LOOK_S = 1.0  # how often the register is asked whether that is still of the right authority
SERVING = timedelta(days=2)  # of our own certificate, which is made anew after half of it


class AuthorityService(authority_pb2_grpc.AuthorityServiceServicer):
    """Answers whoever asks; what they may have is the registrar's to say."""

    def __init__(self, registrar: Registrar, clock: Callable[[], datetime] | None = None) -> None:
        self._registrar = registrar
        self._clock = clock or _now
        self._turn = asyncio.Semaphore(PARALLEL)

    async def Enrol(self, request: pb.EnrolRequest, context: Any) -> pb.EnrolResponse:
        """Certify a device that brings a token."""
        _limit(request.csr)
        async with self._turn:
            made = await asyncio.to_thread(self._registrar.enrol, request.secret, request.csr, self._clock())
        log.info("enrolled", extra={"device": _name(made.certificate), "peer": context.peer()})
        return pb.EnrolResponse(certificate=made.certificate, authorities=made.authorities)

    async def Renew(self, request: pb.RenewRequest, context: Any) -> pb.RenewResponse:
        """Certify the next key of a device."""
        _limit(request.csr)
        given = (request.certificate, request.csr, request.signature)
        async with self._turn:
            made = await asyncio.to_thread(self._registrar.renew, *given, self._clock())
        log.info("renewed", extra={"device": _name(made.certificate), "peer": context.peer()})
        return pb.RenewResponse(certificate=made.certificate, authorities=made.authorities)

    async def RevocationList(self, request: pb.RevocationListRequest, context: Any) -> pb.RevocationListResponse:
        """Tell what was revoked, signed by every authority that is trusted."""
        async with self._turn:
            lists, bundle = await asyncio.to_thread(self._registrar.lists, self._clock())
        return pb.RevocationListResponse(lists=lists, authorities=bundle)


class _Serving:
    """Our own certificate, made anew in time. gRPC asks for it from threads of its own, with every new connection."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar
        self._lock = threading.Lock()
        self._held: tuple[datetime, bytes, Material] | None = None  # until when, of which authority
        self._looked = float("-inf")

    def __call__(self) -> Material:
        with self._lock:
            if self._held is None or time.monotonic() - self._looked > LOOK_S:
                try:
                    self._held = self._fresh(_now())
                except FoglineError as error:
                    if self._held is None:
                        raise
                    log.error("the service's own certificate can't be looked after: %s", error)
                self._looked = time.monotonic()
            assert self._held is not None
            return self._held[2]

    def _fresh(self, now: datetime) -> tuple[datetime, bytes, Material]:
        signer = self._registrar.known_to_all(now)
        authority = signer.certificate_pem
        if self._held is not None and now < self._held[0] and authority == self._held[1]:
            return self._held
        made = signer.serving(SERVING)
        # The authority goes along, for devices that know no more of it than its hash.
        chain = made.cert_pem + authority
        size = len(x509.load_pem_x509_certificate(made.cert_pem).public_bytes(Encoding.DER))
        return now + SERVING / 2, authority, Material(authority, chain, made.key_pem, size, Path(), Path())


async def serve(folder: Path, listen: str, lifetime: timedelta, metrics_config: MetricsConfig) -> None:
    """Serve an authority's folder until SIGTERM or SIGINT. Raises ConfigError or IdentityError before it is ready."""
    stop = process.aio_stop_event()
    registrar = Registrar(folder, lifetime)
    state = {"ok": False}
    metrics = Metrics()
    web, metrics_port = metrics.serve(metrics_config, lambda: state)
    try:
        server, port = await aio_server(
            listen,
            TlsConfig(),
            LinkMeter("cloud", metrics.link_bytes),
            [(authority_pb2_grpc.add_AuthorityServiceServicer_to_server, AuthorityService(registrar))],
            anonymous=_Serving(registrar),
            max_message=MAX_MESSAGE,
        )
        await server.set_ready(True)
        state["ok"] = True
        process.announce_ready(port=port, metrics_port=metrics_port)
        log.info("serving", extra={"port": port, "metrics_port": metrics_port, "folder": str(folder)})
        beats = asyncio.create_task(notify.Watchdog().beat_always(lambda: "serving"))
        await stop.wait()
        beats.cancel()
        state["ok"] = False
        log.info("stopping")
        await server.stop()
    finally:
        web.close()
        registrar.close()


def _limit(request: bytes) -> None:
    if len(request) > csr.MAX_BYTES:
        raise ProtocolError(f"a certificate request of {len(request)} bytes; at most {csr.MAX_BYTES}")


def _name(pem: bytes) -> str:
    found = pki.inspect(pem).identity
    return found.name if found else ""


def _now() -> datetime:
    return datetime.now(timezone.utc)
