"""One cloud server: its stores, its services, its metrics, from start to clean end."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from fogline.cloud_server.config import CloudConfig
from fogline.cloud_server.fleet_service import FleetService
from fogline.cloud_server.model_service import ModelService
from fogline.cloud_server.models import ModelStore
from fogline.cloud_server.registry import MISSES, Registry
from fogline.common import notify, pki, process
from fogline.common.clock import now_us
from fogline.common.files import DirectoryLock
from fogline.common.metrics import DEVICE_ROLES, CloudMetrics
from fogline.common.reload import Reload
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.gen import control_pb2_grpc
from fogline.common.rpc.presence import Presence
from fogline.common.rpc.server import RpcServer, aio_server
from fogline.common.tails.config import TailHostConfig
from fogline.common.tails.supervisor import TailHostProcess, check

log = logging.getLogger(__name__)


async def serve(config: CloudConfig, reload: Reload[CloudConfig] | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Raises what the stores and the sockets raise before it is ready."""
    tails = _tails(config)
    stop = process.aio_stop_event()
    if reload is not None:
        reload.listen(asyncio.get_running_loop())
    metrics = CloudMetrics()
    lock = DirectoryLock(config.data_dir, "cloud server")
    registry = Registry(config.data_dir / "fleet.sqlite", config.heartbeat_ms, config.max_devices)
    models = ModelStore(config.data_dir / "models", config.models)
    _connect(metrics, registry, models)
    presence = Presence(hold_s=MISSES * config.heartbeat_ms / 1000)
    state = {"ok": False}
    servers: list[RpcServer] = []

    def health() -> dict[str, object]:
        return {**state, "certificates": next((one.trouble for one in servers), "") or "fresh"}

    web, metrics_port = metrics.serve(config.metrics, health, data_dir=config.data_dir, tls=config.tls)
    try:
        server, port = await aio_server(
            config.listen,
            config.tls,
            LinkMeter("cloud", metrics.link_bytes),
            [
                (
                    control_pb2_grpc.add_FleetServiceServicer_to_server,
                    FleetService(registry, models, config.heartbeat_ms, presence=presence),
                ),
                (control_pb2_grpc.add_ModelServiceServicer_to_server, ModelService(models)),
            ],
            presence=presence,
        )
        tensors_port, watching = None, None
        if tails is not None:
            try:
                await tails.start()
            except BaseException:
                await server.stop(0)
                raise
            tensors_port, watching = tails.port, asyncio.create_task(tails.run(stop))
        await server.set_ready(True)
        servers.append(server)
        state["ok"] = True
        process.announce_ready(port=port, metrics_port=metrics_port, tensors_port=tensors_port)
        log.info("serving", extra={"port": port, "metrics_port": metrics_port, "data_dir": str(config.data_dir)})
        beats = asyncio.create_task(notify.Watchdog().beat_always(lambda: _summary(registry)))
        await stop.wait()
        state["ok"] = False
        log.info("stopping")
        beats.cancel()
        await server.stop()
        if watching is not None:
            await watching
    finally:
        web.close()
        models.close()
        registry.close()
        lock.close()


def _tails(config: CloudConfig) -> TailHostProcess | None:
    """The tail host beside us, not started yet. Raises ConfigError or IdentityError."""
    if not config.tensors.enabled:
        return None
    name = config.name if config.tls.insecure else pki.own_identity(config.tls.files()[1], "cloud").name
    own = TailHostConfig.of_node(
        config.tensors, data_dir=config.data_dir, name=name, role="cloud", tls=config.tls, log=config.log
    )
    check(own)
    return TailHostProcess(own)


def _summary(registry: Registry) -> str:
    devices = registry.devices(now_us())
    return f"{sum(device.alive for device in devices)} of {len(devices)} devices alive"


def _connect(metrics: CloudMetrics, registry: Registry, models: ModelStore) -> None:
    """Have the gauges read the stores whenever they are scraped."""

    def count(role: str, which: int) -> float:
        return registry.counts(now_us()).get(role, (0, 0))[which]

    for role in DEVICE_ROLES:
        metrics.devices_known.labels(role).set_function(partial(count, role, 0))
        metrics.devices_alive.labels(role).set_function(partial(count, role, 1))
    metrics.model_versions.set_function(lambda: models.totals()[0])
    metrics.model_bytes.set_function(lambda: models.totals()[1])
