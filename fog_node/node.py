"""One fog node: its store, its encoder, its services, its metrics, from start to clean end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from fogline.common import addresses, notify, pki, process
from fogline.common.clock import now_us
from fogline.common.errors import ConfigError, FoglineError
from fogline.common.images.forms import Form
from fogline.common.instance import instance
from fogline.common.metrics import FogMetrics
from fogline.common.reload import Reload
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.gen import images_pb2_grpc
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.server import RpcServer, aio_server
from fogline.common.tails.config import TailHostConfig
from fogline.common.tails.supervisor import TailHostProcess
from fogline.common.tails.supervisor import check as check_tails
from fogline.fog_node.audience import Audience
from fogline.fog_node.cloud import Membership
from fogline.fog_node.config import FogConfig
from fogline.fog_node.encoder import check
from fogline.fog_node.head import Head
from fogline.fog_node.ingest import Ingest
from fogline.fog_node.pipeline import Pipeline
from fogline.fog_node.service import ImageService
from fogline.fog_node.store import QueuedImage, Store

log = logging.getLogger(__name__)

STATE_S = 0.5  # how often gauges and health are brought up to date
EXPIRE_S = 60.0  # how often records that are too old are looked for, at most
SWEEP_S = 600.0  # how often abandoned uploads are looked for
LEAVE_S = 3.0  # for the cloud server to hear that we end


async def serve(config: FogConfig, reload: Reload[FogConfig] | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises ConfigError or IdentityError when the configuration is wrong, also when only the encoder finds that out.
    """
    me = _identity(config)
    _advertised(config, 1)  # refuse before anything is started
    check(config.encoder)
    tails = _tails(config, me)
    stop = process.aio_stop_event()
    delete_oldest = config.retention.when_full == "delete-oldest"
    store = Store(config.data_dir, config.capacity_bytes, delete_oldest=delete_oldest)
    try:
        await store.open()
        me = replace(me, instance=instance(config.data_dir))
        node = _Node(config, me, store, tails)
        if reload is not None:
            reload.on("retention.max_age_s", lambda new: setattr(node, "retention", new.retention))
            reload.on("retention.when_full", lambda new: store.may_delete(new.retention.when_full == "delete-oldest"))
            reload.listen(asyncio.get_running_loop())
        await node.run(stop)
    finally:
        await asyncio.to_thread(store.close)


class _Node:
    """The parts of a running node."""

    def __init__(self, config: FogConfig, me: Peer, store: Store, tails: TailHostProcess | None) -> None:
        self._config, self._me, self._store, self._tails = config, me, store, tails
        self.retention = config.retention
        self._metrics = FogMetrics()
        self._head = Head()
        self._head.advance(store.head)
        audience = Audience()
        self._pipeline = Pipeline(config, store, self._metrics, self._head.advance, audience)
        self._ingest = Ingest(store, config.limits, config.width, self._taken, config.uplink.forms)
        self._service = ImageService(store, self._ingest, self._head, config, self._metrics, audience)
        self._health: dict[str, object] = {"ok": False, "encoder": "starting"}
        self._edges = LinkMeter("edge-fog", self._metrics.link_bytes)
        self._upstream = LinkMeter("fog-cloud", self._metrics.link_bytes)

    def _taken(self, images: Sequence[QueuedImage]) -> None:
        for image in images:
            form = Form.ORIGINAL if image.upload is None else image.upload.form
            self._metrics.taken_images.labels(form.text).inc()
            self._metrics.taken_bytes.labels(form.text).inc(image.size)
        self._pipeline.add(images)

    async def run(self, stop: asyncio.Event) -> None:
        config = self._config
        self._metrics.store_capacity_bytes.set(config.capacity_bytes or 0)
        web, metrics_port = self._metrics.serve(
            config.metrics, lambda: self._health, data_dir=config.data_dir, tls=config.tls
        )
        try:
            server, port = await aio_server(
                config.listen,
                config.tls,
                self._edges,
                [(images_pb2_grpc.add_ImageServiceServicer_to_server, self._service)],
            )
            if self._tails is not None:
                try:
                    await self._tails.start()
                except BaseException:
                    await server.stop(grace_s=0)
                    raise
            tasks = [asyncio.create_task(self._pipeline.run()), asyncio.create_task(self._watch(server))]
            if self._tails is not None:
                tasks.append(asyncio.create_task(self._tails.run(stop)))
            if config.cloud is not None:
                tasks.append(asyncio.create_task(self._membership(config.cloud, port).run(stop)))
            tensors_port = self._tails.port if self._tails is not None else None
            process.announce_ready(port=port, metrics_port=metrics_port, tensors_port=tensors_port)
            log.info(
                "serving",
                extra={
                    "port": port,
                    "metrics_port": metrics_port,
                    "data_dir": str(config.data_dir),
                    "store_id": self._store.store_id.hex(),
                    "head": self._head.value,
                    "queue": len(self._pipeline),
                },
            )
            stopped = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.set()
                log.info("stopping")
                await server.stop(grace_s=0.5)  # subscriptions never end by themselves
                await self._end(tasks, stopped)
        finally:
            web.close()

    async def _end(self, tasks: list[asyncio.Task[None]], stopped: asyncio.Task[bool]) -> None:
        """End every task and raise what the first failed one raised."""
        pipeline, watch, *others = tasks
        pipeline.cancel()
        watch.cancel()
        await asyncio.wait({stopped, *others}, timeout=LEAVE_S)
        for task in others:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _watch(self, server: RpcServer) -> None:
        """Bring gauges and health up to date, and tell the service manager that loop and store work."""
        serving, swept, watchdog = False, float("-inf"), notify.Watchdog()
        expired, counted = float("-inf"), 0
        while True:
            if time.monotonic() - swept > SWEEP_S:
                swept = time.monotonic()
                await self._ingest.sweep()
            max_age_s = self.retention.max_age_s
            if max_age_s and time.monotonic() - expired > max(1.0, min(EXPIRE_S, max_age_s / 10)):
                expired = time.monotonic()
                await self._ingest.expire(now_us() - int(max_age_s * 1e6))
            encoder = self._pipeline.state
            counts: dict[str, int] = {}
            trouble = ""
            try:
                counts = await self._store.counts()
            except FoglineError as error:
                trouble = str(error)
            ok = encoder == "ready" and not trouble
            if ok != serving:
                await server.set_ready(ok)
                serving = ok
            self._health = {
                "ok": ok,
                "encoder": encoder,
                "queue": len(self._pipeline),
                "head": self._head.value,
                "subscribers": self._service.subscribers,
                "images": counts,
                "store": trouble or "open",
                "certificates": server.trouble or "fresh",
            } | ({} if self._tails is None else {"tails": self._tails.state})
            watchdog.beat(f"encoder {encoder}" + (f"; {trouble}" if trouble else ""))
            if counts:
                self._metrics.stored_images.set(sum(counts.values()))
                self._metrics.set_aside_images.set(counts.get("bad", 0))
            self._metrics.store_bytes.set(self._store.blobs.total_bytes)
            self._metrics.expired_records.inc(self._store.expired - counted)
            counted = self._store.expired
            self._metrics.encode_queue_images.set(len(self._pipeline))
            self._metrics.encode_queue_age.set(self._pipeline.oldest_s)
            self._metrics.published_head.set(self._head.value)
            await asyncio.sleep(STATE_S)

    def _membership(self, cloud: str, port: int) -> Membership:
        address = _advertised(self._config, port)
        return Membership(cloud, self._config.tls, self._me, address, self._upstream, self._gauges)

    def _gauges(self) -> dict[str, float]:
        return {
            "encode_queue_images": float(len(self._pipeline)),
            "published_head": float(self._head.value),
            "subscribers": float(self._service.subscribers),
            "store_bytes": float(self._store.blobs.total_bytes),
        } | self._upstream.gauges()


def _tails(config: FogConfig, me: Peer) -> TailHostProcess | None:
    """The tail host beside us, not started yet. Raises ConfigError."""
    if not config.tensors.enabled:
        return None
    own = TailHostConfig.of_node(
        config.tensors, data_dir=config.data_dir, name=me.name, role="fog", tls=config.tls, log=config.log
    )
    check_tails(own)
    return TailHostProcess(own)


def _identity(config: FogConfig) -> Peer:
    if config.tls.insecure:
        return Peer(config.name, "fog")
    found = pki.own_identity(config.tls.files()[1], "fog")
    return Peer(found.name, found.role, found.tenant)


def _advertised(config: FogConfig, port: int) -> str:
    """Where edges reach us."""
    if config.advertise:
        return str(addresses.parse(config.advertise))
    listen = addresses.parse(config.listen, allow_any_port=True)
    if config.cloud is not None and listen.host in ("0.0.0.0", "::"):
        raise ConfigError(
            f"listen is {config.listen}, which tells nobody where to find us; set advertise to our host:port"
        )
    return str(addresses.Address(listen.host, listen.port or port))
