"""The fog node's membership in a fleet: join, heartbeats, leave. Images flow with or without it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

import fogline
from fogline.common.clock import now_us
from fogline.common.config import TlsConfig
from fogline.common.errors import FoglineError
from fogline.common.rpc import tls as tls_files
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import aio_connect
from fogline.common.rpc.gen import control_pb2 as pb
from fogline.common.rpc.gen.control_pb2_grpc import FleetServiceStub
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.retry import Backoff
from fogline.common.rpc.status import translate

log = logging.getLogger(__name__)

CALL_S = 10.0
LEAVE_S = 2.0


class Membership:
    """Keeps the cloud server told that we live and where; starts again after every failure."""

    def __init__(
        self,
        cloud: str,
        tls: TlsConfig,
        me: Peer,
        address: str,
        meter: LinkMeter,
        gauges: Callable[[], dict[str, float]],
    ) -> None:
        self._cloud, self._tls, self._me, self._meter = cloud, tls, me, meter
        self._address = address
        self._gauges = gauges
        self._backoff = Backoff()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set."""
        said = ""
        while not stop.is_set():
            try:
                await self._member(stop)
            except FoglineError as error:
                # The cloud may be away for days: one line for each new reason, not one for each attempt.
                if str(error) != said:
                    log.warning("not in a fleet: %s; trying again", error)
                said = str(error)
                await self._backoff.wait_async(stop)
            except Exception:  # the root of a task: images flow whatever goes wrong here
                log.exception("membership failed by a mistake of ours; trying again")
                await self._backoff.wait_async(stop)

    async def _member(self, stop: asyncio.Event) -> None:
        certificates = () if self._tls.insecure else tls_files.stamp(self._tls)
        channel = await aio_connect(self._cloud, self._tls, meter=self._meter, deadline_s=CALL_S, me=self._me)
        try:
            with translate(self._cloud):
                fleet = FleetServiceStub(channel)
                joined = await fleet.Join(
                    pb.JoinRequest(
                        role=pb.ROLE_FOG,
                        version=fogline.__version__,
                        address=self._address,
                        capabilities={"cores": str(os.cpu_count() or 1)},
                        client_time_us=now_us(),
                    )
                )
                self._backoff.reset()
                log.info("joined the fleet", extra={"cloud": self._cloud, "address": self._address})
                while not await _set_within(stop, max(0.1, joined.heartbeat_ms / 1000)):
                    if certificates and tls_files.stamp(self._tls) != certificates:
                        return  # to connect with our renewed certificate
                    await fleet.Heartbeat(pb.HeartbeatRequest(gauges=self._gauges()))
                await fleet.Leave(pb.LeaveRequest(), timeout=LEAVE_S)
        finally:
            await channel.close(None)


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True
