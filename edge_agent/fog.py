"""The link to the fog node: finding it, connecting, and the greeting with its limits and clock."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from fogline.common.config import TlsConfig
from fogline.common.errors import FoglineError, ProtocolError, UnavailableError
from fogline.common.images.container import MAX_TIME_US
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import MAX_MESSAGE, connect
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.rpc.gen.images_pb2_grpc import ImageServiceStub
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.status import translate
from fogline.edge_agent.clock import FogClock
from fogline.edge_agent.link import Link
from fogline.edge_agent.workers import Stop

_log = logging.getLogger(__name__)
PROTOCOL = 1
_MIN_CHUNK = 1 << 12
_DEADLINE_S = 10.0


@dataclass(frozen=True)
class FogSession:
    """One connection on which the fog node has answered our greeting."""

    address: str
    images: ImageServiceStub
    limits: pb.HelloResponse
    channel: grpc.Channel = field(repr=False)


class FogLink(Link[FogSession]):
    """The connection that uploader and receiver share."""

    def __init__(
        self, find: Callable[[], list[str]], tls: TlsConfig, me: Peer, meter: LinkMeter, clock: FogClock, stop: Stop
    ) -> None:
        """`find` returns the addresses to try, best first."""
        super().__init__("fog node", stop)
        self._find, self._tls, self._me, self._meter, self._clock = find, tls, me, meter, clock

    def _open(self) -> FogSession:
        failure: FoglineError = UnavailableError("no fog node is known; the cloud server has none alive")
        for address in self._find():
            if self._stop:
                break
            try:
                return self._greet(address)
            except FoglineError as error:  # another one may be well
                failure = error
        raise failure

    def _greet(self, address: str) -> FogSession:
        channel = connect(address, self._tls, meter=self._meter, deadline_s=_DEADLINE_S, me=self._me)
        try:
            images = ImageServiceStub(channel)
            sent = self._clock.stamp()
            with translate(address):
                limits = images.Hello(pb.HelloRequest(protocol=PROTOCOL, client_time_us=max(0, sent.wall_us)))
            got = self._clock.stamp()
            _check(address, limits)
        except BaseException:
            channel.close()
            raise
        self._clock.measured(sent, limits.server_time_us, got)
        _log.info("connected to the fog node", extra={"address": address, "clock_offset_us": self._clock.offset_us})
        return FogSession(address, images, limits, channel)


def _check(address: str, limits: pb.HelloResponse) -> None:
    if limits.protocol != PROTOCOL:
        raise ProtocolError(f"{address} speaks protocol {limits.protocol}, this agent {PROTOCOL}; update the older one")
    if not _MIN_CHUNK <= limits.max_chunk_bytes < MAX_MESSAGE:
        raise ProtocolError(f"{address} wants chunks of {limits.max_chunk_bytes} bytes; 4 KiB to below 4 MiB will do")
    if limits.server_time_us > MAX_TIME_US // 2:
        raise ProtocolError(f"{address} says that it is {limits.server_time_us} us since 1970; set its clock")
    if len(limits.store_id) != 16:
        raise ProtocolError(f"{address} gave a store id of {len(limits.store_id)} bytes, not 16")
