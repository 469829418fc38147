"""What is sent of a captured image: the form that both ends want, made from the JPEG when its turn comes.

At upload and not at capture, so that the outbox does not depend on which fog node takes it in the end, an old one that
wants JPEGs included, and nothing is lost before the fog node has it. Equal bytes are made again after a restart, so an
upload that broke goes on where it was.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from fogline.common.boxes import Box
from fogline.common.errors import InputError, ProtocolError
from fogline.common.images.container import MAX_CODED_SIDE
from fogline.common.images.forms import CODED_FORMS, Form, Qualities
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.edge_agent.config import UplinkConfig
from fogline.edge_agent.outbox import Item

_log = logging.getLogger(__name__)
_SINGLES = struct.Struct("<4f")


@dataclass(frozen=True)
class Upload:
    """What is sent for one image. `data` is None for the JPEG as captured, which is read when it is needed."""

    item: Item
    form: Form
    size: int  # bytes
    digest: bytes = b""  # SHA-256 of `data`
    data: bytes | None = None

    @classmethod
    def original(cls, item: Item) -> Upload:
        """The JPEG as captured."""
        return cls(item, Form.ORIGINAL, item.size)


class Transcoder:
    """Makes uploads for one connection to one fog node."""

    def __init__(self, config: UplinkConfig, hello: pb.HelloResponse, spent: Callable[[float], object]) -> None:
        """`spent` is told the CPU seconds of each image. Raises ProtocolError for advice that makes no sense."""
        advice = hello.uplink
        self.form = _choose(config, advice)
        if self.form in (Form.AVIF, Form.ROI) and not _writes_avif():
            _log.warning("this Pillow can't write AVIF; images are sent as captured: install pillow from PyPI")
            self.form = Form.ORIGINAL
        self._width, self._spent = advice.coded_width, spent
        self._max_bytes, self._max_pixels = hello.max_image_bytes, hello.max_image_pixels
        if self.form is not Form.ORIGINAL and not 1 <= advice.coded_width <= MAX_CODED_SIDE:
            raise ProtocolError(f"the fog node codes frames {advice.coded_width} pixels wide; update the older end")
        self._qualities = Qualities(
            config.resized_quality,
            config.avif_quality,
            config.roi_object_quality or min(100, advice.object_quality) or Qualities.roi_object,
            config.roi_background_quality or min(100, advice.background_quality) or Qualities.roi_background,
        )

    def refused(self, detail: str) -> None:
        """The fog node took no image in this form: from now on images go as captured, until the next connection."""
        if self.form is not Form.ORIGINAL:
            _log.warning("the fog node refused form %s, images are sent as captured: %s", self.form.text, detail)
            self.form = Form.ORIGINAL

    def make(self, item: Item, jpeg: bytes) -> Upload:
        """The image in the chosen form, or as captured where that is smaller, or where only the fog node can say
        what is wrong with it."""
        form = self.form  # once: `refused` may come from another thread
        if form is Form.ORIGINAL:
            return Upload.original(item)
        # Only now: numpy and Pillow take 15 MB, which an agent that sends JPEGs as captured does without.
        from fogline.common.images.uplink import encode

        began = time.thread_time()
        try:
            data = encode(
                form,
                jpeg,
                item.content_id,
                [_as_sent(box) for box in item.boxes],
                self._width,
                self._qualities,
                max_bytes=self._max_bytes,
                max_pixels=self._max_pixels,
            )
        except InputError as error:
            _log.warning("an image of %s is sent as captured: %s", item.camera, error)
            return Upload.original(item)
        finally:
            self._spent(time.thread_time() - began)
        if len(data) >= len(jpeg):
            return Upload.original(item)
        return Upload(item, form, len(data), hashlib.sha256(data).digest(), data)


def _writes_avif() -> bool:
    from PIL import features

    return bool(features.check("avif"))


def _as_sent(box: Box) -> Box:
    """As the fog node gets it, which must find the same regions by it: the offer has floats of 32 bits."""
    x, y, w, h = _SINGLES.unpack(_SINGLES.pack(box.x, box.y, box.w, box.h))
    return Box(x, y, w, h, box.label)


def _choose(config: UplinkConfig, advice: pb.UplinkAdvice) -> Form:
    taken = {form for form in CODED_FORMS if form.value in advice.accepts}
    if config.form == "auto":
        return next((form for form in taken if form.value == advice.advises), Form.ORIGINAL)
    wanted = Form.of(config.form)
    if wanted is Form.ORIGINAL or wanted in taken:
        return wanted
    _log.warning("uplink.form is %s, which this fog node does not take; images are sent as captured", config.form)
    return Form.ORIGINAL
