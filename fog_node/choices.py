"""The fog node's side of the encoder `auto`: what it is told before a batch, and what becomes of its choices."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict

from fogline.common.images.planning import Choice, Situation
from fogline.common.metrics import FogMetrics
from fogline.fog_node import encode_messages as messages
from fogline.fog_node.audience import Audience
from fogline.fog_node.encode_queue import Batch
from fogline.fog_node.encoders.candidates import CANDIDATES
from fogline.fog_node.store import QueuedImage, Store
from fogline.fog_node.tenants import stream

log = logging.getLogger(__name__)

MAX_CAMERAS = 65_536  # counted; names come from strangers


class Choices:
    """Tells the encoder who receives a batch; logs, counts and keeps what it chose."""

    def __init__(self, store: Store, audience: Audience, metrics: FogMetrics) -> None:
        self._store, self._audience, self._metrics = store, audience, metrics
        self._codecs: OrderedDict[tuple[str, int, int], str] = OrderedDict()
        self._show()

    async def situation(self, batch: Batch) -> Situation:
        """Receivers of every camera in the batch, and the links."""
        cameras: dict[str, list[QueuedImage]] = {}
        for image in batch.images:
            cameras.setdefault(stream(image.tenant, image.camera), []).append(image)
        receivers = {}
        for camera, images in cameras.items():
            sources = await self._store.sources(image.content_id for image in images)
            receivers[camera] = self._audience.receivers(images, sources)
        audience = self._audience
        return Situation(receivers, audience.downlink.bit_s, audience.uplink.bit_s, cautious=batch.failures > 0)

    async def take(self, encoded: messages.Encoded) -> None:
        """What came with a batch. Raises CapacityError when it can't be kept."""
        if encoded.choices:
            await self._store.choose(encoded.choices)
        self._metrics.auto_trial_seconds.inc(encoded.trial_seconds)
        for choice in encoded.choices:
            self._count(choice)
            if choice.changed:
                _log(choice)

    def _count(self, choice: Choice) -> None:
        self._codecs[choice.camera, choice.width, choice.height] = choice.decision.codec
        if len(self._codecs) > MAX_CAMERAS:
            self._codecs.popitem(last=False)
        self._show()

    def _show(self) -> None:
        counts = Counter(self._codecs.values())
        for codec in CANDIDATES:
            self._metrics.auto_cameras.labels(codec).set(counts[codec])


def _log(choice: Choice) -> None:
    decision = choice.decision
    log.info(
        "camera %s is encoded with %s: %s",
        choice.camera,
        decision.codec,
        decision.reason,
        extra={
            "camera": choice.camera,
            "coded": [choice.width, choice.height],
            "chosen": decision.codec,
            "chosen_params": dict(decision.params),
            "receivers": decision.link.receivers,
            "rejected": {one.figures.codec: one.reason for one in decision.weighed if not one.chosen},
            "dropped": {one.codec: one.reason for one in decision.dropped},
        },
    )
