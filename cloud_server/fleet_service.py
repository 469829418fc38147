"""FleetService over gRPC: who calls is read from the certificate, never from a message."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fogline.cloud_server.messages import model_version
from fogline.cloud_server.models import ModelStore
from fogline.cloud_server.registry import Device, DeviceRole, Registry
from fogline.common.clock import now_us
from fogline.common.errors import IdentityError, InputError
from fogline.common.rpc.gen import control_pb2 as pb
from fogline.common.rpc.gen import control_pb2_grpc
from fogline.common.rpc.peer import Peer, peer
from fogline.common.rpc.presence import Presence

_ROLES: dict[pb.Role.ValueType, DeviceRole] = {pb.ROLE_EDGE: "edge", pb.ROLE_FOG: "fog"}
_NUMBERS: dict[DeviceRole, pb.Role.ValueType] = {"edge": pb.ROLE_EDGE, "fog": pb.ROLE_FOG}


class FleetService(control_pb2_grpc.FleetServiceServicer):
    """The registry's calls. Its statements take well under a millisecond, so they run on the event loop itself."""

    def __init__(
        self,
        registry: Registry,
        models: ModelStore,
        heartbeat_ms: int,
        clock: Callable[[], int] = now_us,
        presence: Presence | None = None,
    ) -> None:
        self._presence = presence or Presence()
        self._registry = registry
        self._models = models
        self._heartbeat_ms = heartbeat_ms
        self._clock = clock

    async def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinResponse:
        """Register the caller under the name and role of its certificate."""
        who = _device(context)
        role = _ROLES.get(request.role)
        if role is None:
            raise InputError(f"{who.name} joins with the role {request.role}; it must be ROLE_EDGE or ROLE_FOG")
        if role != who.role:
            raise IdentityError(f"{who.name} joins as {role} and its certificate says {who.role}; enrol it as {role}")
        now = self._clock()
        self._registry.join(who.name, role, request.version, request.address, request.capabilities, now, who.tenant)
        return pb.JoinResponse(heartbeat_ms=self._heartbeat_ms, server_time_us=now)

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        """Note that the caller lives, and tell it of newer models."""
        who = _device(context)
        name = who.name
        self._registry.heartbeat(name, request.gauges, self._clock())
        newer = self._models.newer(request.models, who.tenant)
        notice = self._presence.notice(name, time.monotonic())
        return pb.HeartbeatResponse(newer=[model_version(version) for version in newer], notice=notice)

    async def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveResponse:
        """Note that the caller ends on purpose."""
        self._registry.leave(_device(context).name, self._clock())
        return pb.LeaveResponse()

    async def FindFogs(self, request: pb.FindFogsRequest, context: Any) -> pb.FindFogsResponse:
        """Answer with the fog nodes that live, least loaded first."""
        who = peer(context)
        fogs = [fog for fog in self._registry.fogs(self._clock()) if fog.shown_to(who.role, who.tenant)]
        return pb.FindFogsResponse(fogs=[pb.Fog(name=fog.name, address=fog.address) for fog in fogs])

    async def FleetStatus(self, request: pb.FleetStatusRequest, context: Any) -> pb.FleetStatusResponse:
        """Answer with every device that the caller may know of."""
        who = peer(context)
        shown = (one for one in self._registry.devices(self._clock()) if one.shown_to(who.role, who.tenant))
        return pb.FleetStatusResponse(devices=[_status(device) for device in shown])


def _device(context: Any) -> Peer:
    return peer(context)


def _status(device: Device) -> pb.DeviceStatus:
    return pb.DeviceStatus(
        name=device.name,
        role=_NUMBERS[device.role],
        version=device.version,
        address=device.address,
        alive=device.alive,
        last_seen_us=device.last_seen_us,
        gauges=device.gauges,
        capabilities=device.capabilities,
    )
