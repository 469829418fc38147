"""The link to the cloud server: joining the fleet, heartbeats, finding fog nodes."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from fogline.common import addresses
from fogline.common.config import TlsConfig
from fogline.common.errors import CapacityError, ConfigError, FoglineError
from fogline.common.files import replace_file
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import control_pb2 as pb
from fogline.common.rpc.gen.control_pb2_grpc import FleetServiceStub, ModelServiceStub
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.status import translate
from fogline.edge_agent.link import Link
from fogline.edge_agent.workers import Stop

_log = logging.getLogger(__name__)
_DEADLINE_S = 10.0
_MAX_FOGS = 16
_MAX_NOTICE = 500  # characters


@dataclass(frozen=True)
class CloudSession:
    """One connection on which we have joined."""

    fleet: FleetServiceStub
    models: ModelServiceStub
    heartbeat_s: float
    channel: grpc.Channel = field(repr=False)


class CloudLink(Link[CloudSession]):
    """Joins, then sends heartbeats. Other threads use the same connection."""

    def __init__(
        self, address: str, tls: TlsConfig, me: Peer, meter: LinkMeter, stop: Stop, *, version: str,
        capabilities: Mapping[str, str], state_dir: Path,
    ) -> None:  # fmt: skip
        super().__init__("cloud server", stop)
        self.address = address
        self._tls, self._me, self._meter, self._version = tls, me, meter, version
        self._capabilities = dict(capabilities)
        self._known_fogs = state_dir / "fogs.json"
        self.notice = ""  # what the cloud server wants our operator to know

    def heartbeats(
        self,
        gauges: Callable[[], dict[str, float]],
        held: Callable[[], dict[str, int]],
        on_newer: Callable[[list[pb.ModelVersion]], None],
    ) -> None:
        """Until the order to stop: tell how we are, hear of newer models. Then leave."""
        while not self._stop:
            session: CloudSession | None = None
            try:
                session = self.session()
                while True:
                    started = time.monotonic()
                    with translate(self.address):
                        answer = session.fleet.Heartbeat(pb.HeartbeatRequest(gauges=gauges(), models=held()))
                    self.progressed()
                    self._tell(answer.notice)
                    if answer.newer:
                        on_newer(list(answer.newer))
                    if self._stop.wait(max(0.1, session.heartbeat_s - (time.monotonic() - started))):
                        break
                with suppress(grpc.RpcError):
                    session.fleet.Leave(pb.LeaveRequest(), timeout=1.0)
            except FoglineError as error:
                self.failed(session, error)

    def _tell(self, notice: str) -> None:
        if notice and notice != self.notice:
            _log.error("%s", notice[:_MAX_NOTICE])
        self.notice = notice[:_MAX_NOTICE]

    def fogs(self) -> list[str]:
        """Addresses of live fog nodes, least loaded first; those of the last answer when the cloud is out of reach."""
        session: CloudSession | None = None
        try:
            session = self.session()
            with translate(self.address):
                answer = session.fleet.FindFogs(pb.FindFogsRequest())
            found = _valid([fog.address for fog in answer.fogs])
            if found and found != self._load():
                try:
                    replace_file(self._known_fogs, json.dumps(found).encode())
                except CapacityError as error:  # uploads are what makes room: they must not wait for it
                    _log.warning("the fog nodes can't be remembered: %s", error)
            return found
        except FoglineError as error:
            known = self._load()
            if not known:
                raise
            _log.warning("can't ask the cloud server for fog nodes (%s); trying the last known: %s", error, known)
            return known

    def _open(self) -> CloudSession:
        channel = connect(self.address, self._tls, meter=self._meter, deadline_s=_DEADLINE_S, me=self._me)
        try:
            fleet = FleetServiceStub(channel)
            request = pb.JoinRequest(
                role=pb.ROLE_EDGE,
                version=self._version,
                capabilities=self._capabilities,
                client_time_us=time.time_ns() // 1000,
            )
            with translate(self.address):
                answer = fleet.Join(request)
        except BaseException:
            channel.close()
            raise
        _log.info("joined the fleet", extra={"address": self.address, "pid": os.getpid()})
        heartbeat_s = min(600.0, max(0.1, answer.heartbeat_ms / 1000))
        return CloudSession(fleet, ModelServiceStub(channel), heartbeat_s, channel)

    def _load(self) -> list[str]:
        try:
            known = json.loads(self._known_fogs.read_bytes())
        except (OSError, ValueError):
            return []
        return _valid(known) if isinstance(known, list) else []


def _valid(found: list[object] | list[str]) -> list[str]:
    """What a peer or a file calls addresses, checked."""
    kept = []
    for address in found[:_MAX_FOGS]:
        try:
            kept.append(str(addresses.parse(str(address))))
        except ConfigError as error:
            _log.warning("a fog node's address is skipped: %s", error)
    return kept
