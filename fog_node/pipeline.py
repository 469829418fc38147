"""From the queue through the encoder into the store: the fog node's one long-running job."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from fogline.common.errors import CapacityError, UnavailableError
from fogline.common.images.forms import Form
from fogline.common.metrics import AREAS, FogMetrics, count_record
from fogline.common.rpc.retry import Backoff
from fogline.fog_node import encode_messages as messages
from fogline.fog_node.audience import Audience
from fogline.fog_node.choices import Choices
from fogline.fog_node.config import FogConfig
from fogline.fog_node.encode_queue import Batch, EncodeQueue, size_of
from fogline.fog_node.encoder import BatchFailed, EncoderProcess
from fogline.fog_node.gathering import Gathering
from fogline.fog_node.store import EncodedRecord, QueuedImage, Store

log = logging.getLogger(__name__)


class Pipeline:
    """Encodes what the store has queued and publishes it, until stopped.

    While one batch is being written and published, the next is already being encoded.
    """

    def __init__(
        self,
        config: FogConfig,
        store: Store,
        metrics: FogMetrics,
        on_head: Callable[[int], None],
        audience: Audience,
    ) -> None:
        self._config = config
        self._store = store
        self._metrics = metrics
        self._on_head = on_head
        self._choices = Choices(store, audience, metrics) if config.encoder.codec == "auto" else None
        gathering = Gathering.of(config.encoder)
        self._queue = EncodeQueue(gathering.batch, gathering.max_wait_s, config.width, by_camera=gathering.by_camera)
        self._added = asyncio.Event()
        self._stop = asyncio.Event()
        self._backoff = Backoff()
        self._encoder: EncoderProcess | None = None
        self.state = "starting"  # then ready, restarting or full; for health
        self.ready = asyncio.Event()

    def add(self, images: Sequence[QueuedImage]) -> None:
        """Queue images that the store holds durably."""
        self._queue.add(images, time.monotonic())
        self._metrics.encode_queue_images.set(len(self._queue))
        self._added.set()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def oldest_s(self) -> float:
        """For how long the oldest image that is not published or set aside yet has been queued."""
        return self._queue.oldest_s(time.monotonic())

    @property
    def encoder_pid(self) -> int | None:
        """Of the child, while there is one."""
        return self._encoder.pid if self._encoder is not None else None

    async def run(self) -> None:
        """Work until `stop`. Raises ConfigError when the encoder refuses its configuration."""
        self.add(await self._store.queued())
        publishing: asyncio.Task[None] | None = None
        try:
            while not self._stop.is_set():
                if publishing is not None and publishing.done():
                    await publishing  # which may have failed
                    publishing = None
                encoder = await self._ensure_encoder()
                batch = await self._next(encoder) if encoder is not None else None
                if encoder is None or batch is None:
                    continue
                began = time.monotonic()
                encoded = await self._encode(encoder, batch)
                if encoded is None:
                    continue
                if publishing is not None:
                    await publishing
                publishing = asyncio.create_task(self._publish(encoded, batch, time.monotonic() - began))
                publishing.add_done_callback(lambda _: self._added.set())
            if publishing is not None:
                await publishing
        finally:
            self._stop.set()
            if publishing is not None:
                await asyncio.gather(publishing, return_exceptions=True)
            if self._encoder is not None:
                await self._encoder.close()

    async def _ensure_encoder(self) -> EncoderProcess | None:
        if self._encoder is not None:
            return self._encoder
        config = self._config
        try:
            self._encoder = await EncoderProcess.start(config.encoder, config.limits, config.log)
        except BatchFailed as failure:
            log.error("the encoder did not start: %s; trying again", failure.reason)
            self.state = "restarting"
            await self._backoff.wait_async(self._stop)
            return None
        self._backoff.reset()
        self.state = "ready"
        self.ready.set()
        log.info(
            "the encoder is ready",
            extra={"codec": config.encoder.codec, "device": self._encoder.device, "pid": self._encoder.pid},
        )
        return self._encoder

    async def _next(self, encoder: EncoderProcess) -> Batch | None:
        """The next batch; None after something was added, time has passed or the encoder ended: look again."""
        if encoder.ended.done():
            await self._lost(encoder)
            return None
        now = time.monotonic()
        batch = self._queue.take(now)
        if batch is None:
            due = self._queue.due_at()
            added = asyncio.ensure_future(self._added.wait())
            try:
                wait_s = None if due is None else max(0.001, due - now)
                await asyncio.wait({added, encoder.ended}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                added.cancel()
                self._added.clear()
        return batch

    async def _lost(self, encoder: EncoderProcess) -> None:
        log.warning("the encoder process has gone; starting another", extra={"pid": encoder.pid})
        await encoder.close()
        self._encoder = None
        self.state = "restarting"
        self._metrics.encoder_restarts.inc()

    async def _encode(self, encoder: EncoderProcess, batch: Batch) -> messages.Encoded | None:
        items = [self._work(image) for image in batch.images]
        situation = None if self._choices is None else await self._choices.situation(batch)
        try:
            return await encoder.encode(items, situation)
        except BatchFailed as failure:
            log.warning(
                "a batch failed: %s",
                failure.reason,
                extra={"images": len(items), "before": batch.failures, "traces": _traces(batch)},
            )
            rejected = self._queue.failed(batch, failure.reason)
            if rejected is not None:
                await self._set_aside(rejected.image, rejected.reason)
            if failure.died:
                await self._lost(encoder)
            self._metrics.encode_queue_images.set(len(self._queue))
            return None

    def _work(self, image: QueuedImage) -> messages.WorkItem:
        return messages.WorkItem(
            image.content_id,
            str(self._store.blobs.path(image.digest)),
            image.camera,
            image.capture_time_us,
            [(b.x, b.y, b.w, b.h, b.label) for b in image.boxes],
            size_of(image, self._config.width),
            image.trace,
            (Form.ORIGINAL if image.upload is None else image.upload.form).value,
            image.tenant,
        )

    async def _publish(self, encoded: messages.Encoded, batch: Batch, wall_s: float) -> None:
        good = [result for result in encoded.results if not result.error]
        for image, result in zip(batch.images, encoded.results, strict=True):
            if result.error:
                await self._set_aside(image, result.error)
        choices = self._choices
        if choices is not None and not await self._insist(lambda: choices.take(encoded)):
            return
        if not await self._insist(lambda: self._write(good, encoded)):
            return
        self._count(good, encoded)
        self._queue.done(batch.images)
        self._metrics.encode_queue_images.set(len(self._queue))
        self._on_head(self._store.head)
        log.info(
            "encoded a batch",
            extra={
                "images": len(good),
                "encode_s": round(encoded.seconds, 3),
                "wall_s": round(wall_s, 3),
                "record_bytes": sum(len(result.record) for result in good),
                "queue": len(self._queue),
                "head": self._store.head,
                "traces": _traces(batch),
            },
        )
        if not self._config.keep_sources:
            await self._insist(lambda: self._store.drop_sources([result.content_id for result in good]))

    def _count(self, good: Sequence[messages.Result], encoded: messages.Encoded) -> None:
        metrics = self._metrics
        metrics.encoded_images.inc(len(good))
        metrics.encode_seconds.inc(encoded.seconds)
        for result in good:
            count_record(metrics.record_bytes, result.layers, len(result.record))
            metrics.resized_bytes.inc(result.resized_bytes)
        judged = encoded.quality
        for area, value in zip(AREAS, () if judged is None else judged, strict=False):
            if value is not None:
                metrics.quality.labels(area).observe(value)

    async def _write(self, good: Sequence[messages.Result], encoded: messages.Encoded) -> None:
        blobs = [*encoded.shared, *(result.record for result in good)]
        await asyncio.to_thread(self._store.put, blobs)
        sizes = {hashlib.sha256(data).digest(): len(data) for data in encoded.shared}
        coded = sum(not result.as_is for result in encoded.results)
        share = (encoded.seconds - encoded.trial_seconds) / max(1, coded)
        await self._store.publish([_encoded_record(r, sizes, 0.0 if r.as_is else share) for r in good])

    async def _insist(self, write: Callable[[], Awaitable[None]]) -> bool:
        """Repeat a write until there is room for it; False when we are stopped before.

        Nothing is dropped to make room for records: the images stay queued on disk.
        """
        while True:
            try:
                await write()
            except (CapacityError, UnavailableError) as error:
                self.state = "full"
                log.error("can't publish: %s", error)
                if await self._backoff.wait_async(self._stop):
                    return False
            else:
                if self.state == "full":
                    self.state = "ready"
                    self._backoff.reset()
                return True

    async def _set_aside(self, image: QueuedImage, reason: str) -> None:
        extra = {"content_id": image.content_id.hex(), "trace": image.trace}
        log.error("an image can't be encoded and is set aside: %s", reason, extra=extra)
        await self._insist(lambda: self._store.set_aside(image.content_id, reason))
        self._queue.done([image])


def _traces(batch: Batch) -> list[str]:
    """Trace ids of the uploads that brought a batch."""
    return sorted({image.trace for image in batch.images if image.trace})


def _encoded_record(result: messages.Result, sizes: dict[bytes, int], encode_s: float) -> EncodedRecord:
    return EncodedRecord(
        content_id=result.content_id,
        digest=hashlib.sha256(result.record).digest(),
        size=len(result.record),
        layers=tuple(result.layers),
        shared=tuple((digest, sizes[digest]) for digest in result.shared),
        encode_s=encode_s,
    )
