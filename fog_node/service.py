"""The fog node's side of `ImageService`: who asks is taken from the certificate, what they may see from the store."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fogline.common.clock import now_us
from fogline.common.errors import ConfigError, ProtocolError
from fogline.common.images.forms import Form
from fogline.common.metrics import FogMetrics
from fogline.common.rpc.gen import images_pb2, images_pb2_grpc
from fogline.common.rpc.peer import peer
from fogline.common.wire.transfer import CHUNK_BYTES
from fogline.fog_node.advice import roi_qualities
from fogline.fog_node.audience import Audience
from fogline.fog_node.config import FogConfig
from fogline.fog_node.fetch import Fetch
from fogline.fog_node.head import Head
from fogline.fog_node.ingest import Ingest
from fogline.fog_node.store import Store
from fogline.fog_node.subscription import Filter, Subscription, Update
from fogline.fog_node.tenants import Viewer
from fogline.fog_node.upload_stream import UploadStream

log = logging.getLogger(__name__)

PROTOCOL = 1
PAGE = 256  # notices looked at in one step
MAX_FILTER = 256  # entries of each kind


class ImageService(images_pb2_grpc.ImageServiceServicer):
    """Serves edge agents only."""

    def __init__(
        self, store: Store, ingest: Ingest, head: Head, config: FogConfig, metrics: FogMetrics, audience: Audience
    ) -> None:
        self._store = store
        self._ingest = ingest
        self._head = head
        self._config, self._limits = config, config.limits
        self._metrics = metrics
        self._audience = audience
        self._subscribers = 0
        self._fetch = Fetch(store)

    @property
    def subscribers(self) -> int:
        """Open subscriptions."""
        return self._subscribers

    async def Hello(self, request: images_pb2.HelloRequest, context: Any) -> images_pb2.HelloResponse:
        """Tell limits and the time."""
        if request.protocol != PROTOCOL:
            raise ConfigError(f"the edge speaks protocol {request.protocol}, the fog node {PROTOCOL}; update the older")
        return images_pb2.HelloResponse(
            protocol=PROTOCOL,
            server_time_us=now_us(),
            max_image_bytes=self._limits.max_image_bytes,
            max_image_pixels=self._limits.max_image_pixels,
            max_boxes=self._limits.max_boxes,
            max_chunk_bytes=CHUNK_BYTES,
            store_id=self._store.store_id,
            uplink=_advice(self._config),
        )

    async def Upload(  # type: ignore[override]  # writes to the context, since answers come when they will
        self, request_iterator: AsyncIterator[images_pb2.UploadRequest], context: Any
    ) -> None:
        """Take images until the device ends the stream."""
        viewer = _viewer(context)
        await UploadStream(self._ingest, self._audience, viewer, context.write, CHUNK_BYTES).serve(request_iterator)

    async def Subscribe(
        self, request: images_pb2.SubscribeRequest, context: Any
    ) -> AsyncIterator[images_pb2.SubscribeResponse]:
        """What was published after a cursor, then what is published from now on."""
        viewer = _viewer(context)
        device = viewer.device
        if request.store_id != self._store.store_id:
            raise ConfigError(
                f"cursors of store {request.store_id.hex()!r} mean nothing to store {self._store.store_id.hex()}:"
                " call Hello, and subscribe from cursor 0"
            )
        if max(len(request.filter.labels), len(request.filter.cameras)) > MAX_FILTER:
            raise ProtocolError(f"a filter of more than {MAX_FILTER} entries; filter by fewer, or not at all")
        wanted = Filter(frozenset(request.filter.labels), frozenset(request.filter.cameras))
        subscription = Subscription(wanted, request.cursor)
        self._count(+1)
        self._audience.joined(device, wanted, viewer.tenant)
        log.info("subscribed", extra={"device": device, "cursor": request.cursor})
        try:
            async for update in self._updates(viewer, subscription):
                yield _subscribe_response(update)
        finally:
            self._count(-1)
            self._audience.left(device, wanted)
            log.info("unsubscribed", extra={"device": device, "cursor": subscription.scanned})

    async def Fetch(
        self, request_iterator: AsyncIterator[images_pb2.FetchRequest], context: Any
    ) -> AsyncIterator[images_pb2.FetchResponse]:
        """Send records and shared state, several to a message, each from an offset."""
        viewer = _viewer(context)
        wants = partial(self._audience.wants, viewer.device)
        async for request in request_iterator:
            with self._audience.sending() as sent:
                async for response in self._fetch.answer(viewer, request, wants):
                    yield response
                    sent(sum(len(part.chunk.data) for part in response.chunks))

    async def _updates(self, viewer: Viewer, subscription: Subscription) -> AsyncIterator[Update]:
        while True:
            page = await self._store.page(viewer.device, subscription.scanned, PAGE, viewer.tenant)
            update = subscription.scan(page, time.monotonic())
            if update is not None:
                yield update
            if len(page) == PAGE:
                continue
            due = subscription.head_due_at()
            timeout_s = None if due is None else due - time.monotonic()
            if timeout_s is not None and timeout_s <= 0:
                yield subscription.head_update(time.monotonic())
                timeout_s = None
            await self._head.beyond(subscription.scanned, timeout_s)

    def _count(self, change: int) -> None:
        self._subscribers += change
        self._metrics.subscribers.set(self._subscribers)


def _viewer(context: Any) -> Viewer:
    who = peer(context)
    return Viewer(who.name, who.tenant)


def _advice(config: FogConfig) -> images_pb2.UplinkAdvice:
    """What is worth sending."""
    number = images_pb2.UplinkForm.ValueType
    object_quality, background_quality = roi_qualities(config)
    return images_pb2.UplinkAdvice(
        coded_width=config.width,
        keeps_sources=config.keep_sources,
        accepts=[number(form.value) for form in config.uplink.forms if form is not Form.ORIGINAL],
        advises=number(config.uplink.advice(config.keep_sources).value),
        object_quality=object_quality,
        background_quality=background_quality,
    )


def _subscribe_response(update: Update) -> images_pb2.SubscribeResponse:
    return images_pb2.SubscribeResponse(
        published=[
            images_pb2.Published(
                cursor=notice.cursor,
                size=notice.size,
                digest=notice.digest,
                shared=[images_pb2.SharedState(digest=digest, size=size) for digest, size in notice.shared],
            )
            for notice in update.notices
        ],
        head=update.head,
    )
