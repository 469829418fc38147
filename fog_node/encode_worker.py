"""The encoder's process: the only place of the fog node that imports torch.

Run as `python -m fogline.fog_node.encode_worker PARENT_PID` with pipes on stdin and stdout.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import BinaryIO

import msgspec

from fogline.common import logs
from fogline.common.boxes import Box
from fogline.common.config import LogConfig
from fogline.common.errors import ConfigError, FoglineError, FormatError, ProtocolError
from fogline.common.images.codec import EncodedImage, ImageEncoder, SourceImage
from fogline.common.images.record import ImageRecord
from fogline.common.process import STOP_SIGNALS, die_with_parent
from fogline.fog_node import encode_messages as messages
from fogline.fog_node.config import TORCH_CODECS

log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Serve until stdin ends."""
    die_with_parent(int(argv[1]))
    for number in STOP_SIGNALS:  # a terminal's Ctrl-C reaches us too; when we end is the parent's business
        signal.signal(number, signal.SIG_IGN)
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up between our frames
    start = _receive(source)
    if not isinstance(start, messages.Start):
        raise ProtocolError("the encoder was not told what to be")
    logs.setup(LogConfig(level=start.log_level, format=start.log_format), "fog-node-encoder")  # type: ignore[arg-type]
    try:
        encoder, device = _build(start)
    except (ConfigError, ImportError) as error:
        _send(sink, messages.Refused(f"encoder {start.codec}: {error}"))
        return ConfigError.exit_code
    _send(sink, messages.Ready(device))
    while (request := _receive(source)) is not None:
        if not isinstance(request, messages.Encode):
            raise ProtocolError(f"unexpected {type(request).__name__}")
        try:
            answer: messages.FromChild = _encode(encoder, request, start, device)
        except Exception as error:  # the root of a batch: the parent decides what to try next
            traces = sorted({item.trace for item in request.items})
            log.exception("a batch failed", extra={"images": len(request.items), "traces": traces})
            answer = messages.Failed(f"{type(error).__name__}: {error}"[:1000])
        _send(sink, answer)
    return 0


def _build(start: messages.Start) -> tuple[ImageEncoder, str]:
    from fogline.fog_node.encoders import build_encoder

    torch = importlib.util.find_spec("torch") is not None
    device = _device(start) if start.codec in TORCH_CODECS or (start.codec == "auto" and torch) else "cpu"
    return build_encoder(start.codec, start.params, device), device


def _device(start: messages.Start) -> str:
    import torch

    if start.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    count = torch.cuda.device_count()
    if start.device != "cpu" and int(start.device.partition(":")[2] or 0) >= count:
        raise ConfigError(f"device {start.device!r}: torch finds {count} CUDA devices here; use auto or cpu")
    return start.device


def _encode(encoder: ImageEncoder, request: messages.Encode, start: messages.Start, device: str) -> messages.Encoded:
    from fogline.common.images.container import to_bytes
    from fogline.common.images.jpeg import RESIZED_QUALITY, encode_jpeg
    from fogline.fog_node.encoders.auto import AutoEncoder

    items = request.items
    planner = encoder if isinstance(encoder, AutoEncoder) else None
    if planner is not None and request.situation is not None:
        planner.inform(request.situation)

    began = time.perf_counter()
    results: dict[bytes, messages.Result] = {}
    loaded: list[_Loaded] = []
    for item in items:
        try:
            loaded.append(_load(item, start))
        except (FoglineError, OSError) as error:
            results[item.content_id] = messages.Result(item.content_id, error=f"{type(error).__name__}: {error}")
    sources = [one.source for one in loaded if one.coded is None]
    encoded = iter(encoder.encode(sources) if sources else [])
    shared: dict[bytes, bytes] = {}
    judged: tuple[SourceImage, EncodedImage] | None = None
    for one in loaded:
        item, image = one.item, one.coded or next(encoded)
        try:
            record = to_bytes(_record(item, one.frame, image))
        except FormatError as error:
            results[item.content_id] = messages.Result(item.content_id, error=str(error))
            continue
        shared.update((state.digest, state.data) for state in image.shared)
        results[item.content_id] = messages.Result(
            item.content_id,
            record,
            [(int(layer.kind), layer.codec, len(layer.payload)) for layer in image.layers],
            [state.digest for state in image.shared],
            as_is=one.coded is not None,
        )
        judged = judged or (one.source, image)
    seconds = time.perf_counter() - began
    for one in loaded:  # after the clock was read: it is no part of encoding
        size = len(encode_jpeg(one.source.pixels, RESIZED_QUALITY))
        results[one.item.content_id] = msgspec.structs.replace(results[one.item.content_id], resized_bytes=size)
    ordered = [results[item.content_id] for item in items]
    choices, trial_seconds = ([], 0.0) if planner is None else planner.news()
    found = None if judged is None else _judge(*judged, device)
    return messages.Encoded(ordered, list(shared.values()), seconds, choices, trial_seconds, found)


def _judge(source: SourceImage, image: EncodedImage, device: str) -> tuple[float, float | None, float | None] | None:
    """Quality of one image of a batch: what every image takes to decode would be too much to spend on a metric."""
    from fogline.fog_node.encoders.trial import judge

    try:
        found = judge([source], [image], {state.digest: state.data for state in image.shared}, device)
    except Exception as error:  # the root of a measurement: the batch must not suffer from it
        log.warning("an image that was just encoded can't be judged: %s", error, exc_info=True)
        return None
    return found.full, found.background, found.object


@dataclass(frozen=True)
class _Loaded:
    """An upload, decoded."""

    item: messages.WorkItem
    source: SourceImage  # at the coded size
    frame: tuple[int, int]  # width and height as captured
    coded: EncodedImage | None  # where the edge has coded it as we would


def _load(item: messages.WorkItem, start: messages.Start) -> _Loaded:
    from fogline.common.images.forms import Form
    from fogline.common.images.jpeg import resize
    from fogline.common.images.uplink import decode
    from fogline.fog_node.advice import publishable
    from fogline.fog_node.tenants import stream

    with open(item.path, "rb") as file:
        data = file.read(start.max_image_bytes + 1)
    limits = {"max_bytes": start.max_image_bytes, "max_pixels": start.max_image_pixels}
    found = decode(Form(item.form), data, item.content_id, **limits)
    width, height = found.source_size
    coded_width, coded_height = item.size
    scaled = [Box(*fields).scaled(coded_width / width, coded_height / height) for fields in item.boxes]
    boxes = tuple((box.x, box.y, box.w, box.h) for box in scaled)
    source = SourceImage(resize(found.pixels, coded_width, coded_height), boxes, stream(item.tenant, item.camera))
    size = (found.pixels.shape[1], found.pixels.shape[0])
    ready = item.form == Form.ROI.value and publishable(start.codec, found.layers, size, source)
    return _Loaded(item, source, (width, height), EncodedImage(found.layers) if ready else None)


def _record(item: messages.WorkItem, frame: tuple[int, int], image: EncodedImage) -> ImageRecord:
    return ImageRecord(
        content_id=item.content_id,
        capture_time_us=item.capture_time_us,
        camera=item.camera,
        source_size=frame,
        size=item.size,
        boxes=tuple(Box(*fields) for fields in item.boxes),
        layers=image.layers,
        shared=tuple(state.digest for state in image.shared),
    )


def _receive(source: BinaryIO) -> messages.ToChild | None:
    header = source.read(messages.HEADER.size)
    if not header:
        return None
    return messages.unpack_to_child(source.read(messages.frame_size(header)))


def _send(sink: BinaryIO, message: messages.FromChild) -> None:
    sink.write(messages.pack(message))
    sink.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
