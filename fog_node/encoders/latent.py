"""The `latent` encoder: reference pictures for each camera, and frames predicted from them.

A camera's first frame becomes its reference. Those that follow are coded by prediction as long as that pays: a
reference is replaced when frames cost more than the mean of all frames that shared it, its own cost included, because
from then on the mean can only rise: two in a row, or one that costs more than the reference did. Costs are bits, and
squared error at the price of bits.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from fogline.common.images import avif2
from fogline.common.images.codec import EncodedImage, ImageEncoder, SourceImage
from fogline.common.images.latent import Latent
from fogline.common.images.latent_motion import Field
from fogline.common.images.latent_payload import Latents, pack
from fogline.common.images.latent_picture import MAX_CROPS, ReferencePicture, pack_picture, unpack_picture
from fogline.common.images.record import Layer, LayerKind, SharedState
from fogline.common.images.shared_cache import SharedCache
from fogline.fog_node.encoders.latent_frame import Coded, Frame, Reference, Steps, code_frame, squared_error
from fogline.fog_node.encoders.latent_params import LatentParams

_CAMERAS = 64  # whose references are kept, compressed; one that comes back later starts a new one
_CACHE_BYTES = 256 << 20  # of decoded references and what vectors are searched in: ten cameras of 640x360
_REMEMBERED = 256  # frames of a camera that may come again, when a batch failed or its records found no room
_TOGETHER = 4  # frames coded side by side; fixed, so that batches give the same bytes on any number of cores
_PATIENCE = 2  # frames in a row that cost more than the mean, so that one odd frame does not end a reference


@dataclass
class _Camera:
    picture: ReferencePicture
    cost: float  # of the reference
    shared: SharedState
    total: float  # the same, and of the frames that shared it
    frames: int = 1
    above: int = 0  # frames in a row that cost more than the mean
    field: Field | None = None
    booked: tuple[bytes, ...] = ()  # digests of the last frames in `total`


class LatentEncoder(ImageEncoder):
    """Encodes images of any number of cameras, each in its order."""

    def __init__(self, params: LatentParams, cache_bytes: int = _CACHE_BYTES) -> None:
        """`cache_bytes` bounds what is kept to save time; a camera whose part has gone has it made again."""
        self._params = params
        self._steps = Steps(
            step_number(params.background_quality), object_step_number(params.object_quality), params.object_quality
        )
        self._cameras: OrderedDict[tuple[str, int, int], _Camera] = OrderedDict()
        self._cache = SharedCache(cache_bytes)

    def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        """See ImageEncoder.encode."""
        runs: dict[tuple[str, int, int], list[int]] = {}
        for i, image in enumerate(images):
            runs.setdefault((image.camera, *image.pixels.shape[1::-1]), []).append(i)
        out: dict[int, EncodedImage] = {}
        before = OrderedDict((key, replace(camera)) for key, camera in self._cameras.items())
        configured = torch.get_num_threads()
        with ThreadPoolExecutor(configured, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for key, members in runs.items():
                    encoded = self._run(key, [Frame(images[i]) for i in members], pool)
                    out.update(zip(members, encoded, strict=True))
            except BaseException:
                self._cameras = before  # the batch comes again
                raise
            finally:
                torch.set_num_threads(configured)  # a part of the setting is the process's, not the thread's
        return [out[i] for i in range(len(images))]

    def _run(
        self, key: tuple[str, int, int], frames: Sequence[Frame], pool: ThreadPoolExecutor
    ) -> Iterator[EncodedImage]:
        """A camera's frames in order; several at once, since they depend on the reference alone."""
        at = 0
        while at < len(frames):
            camera = self._cameras.get(key)
            if camera is None or camera.frames >= self._params.max_frames:
                yield self._begin(key, frames[at])
                at += 1
                continue
            self._cameras.move_to_end(key)
            some = frames[at : at + _TOGETHER]
            # Open while these frames are coded, also where the cache has no room for it.
            code = partial(code_frame, reference=Reference.open(camera.picture), steps=self._steps, before=camera.field)
            for frame, coded in zip(some, pool.map(code, some), strict=True):
                if camera.frames >= self._params.max_frames or coded is None or self._worn(camera, frame, coded):
                    yield self._begin(key, frame)
                    at += 1
                    break
                camera.field = coded.field
                yield EncodedImage(coded.layers, (camera.shared,))
                at += 1

    def _worn(self, camera: _Camera, frame: Frame, coded: Coded) -> bool:
        """Whether a new reference is due; else the frame is booked: once, though its batch may be encoded again."""
        digest = _digest(frame)
        if digest in camera.booked:
            return False
        mean = camera.total / camera.frames
        camera.above = camera.above + 1 if coded.cost > mean else 0
        if camera.above >= _PATIENCE or coded.cost > camera.cost:
            return True
        camera.total += coded.cost
        camera.frames += 1
        camera.booked = (*camera.booked[1 - _REMEMBERED :], digest)
        return False

    def _begin(self, key: tuple[str, int, int], frame: Frame) -> EncodedImage:
        """Make a frame the camera's reference."""
        params, image = self._params, frame.image
        payload = avif2.encode_payload(image.pixels, params.background_quality, full_chroma=False)
        crops = []
        for x, y, w, h in frame.regions[:MAX_CROPS]:
            crop = np.ascontiguousarray(image.pixels[y : y + h, x : x + w])
            crops.append(((x, y, w, h), avif2.encode_payload(crop, params.object_quality, full_chroma=True)))
        blob = pack_picture(frame.width, frame.height, payload, crops)
        picture = unpack_picture(blob, self._cache)
        shown = picture.pixels(torch.device("cpu")).float()
        cost = 8.0 * len(blob)
        for kind, where in ((LayerKind.BACKGROUND, ~frame.inside), (LayerKind.OBJECT, frame.inside)):
            cost += squared_error(frame.pixels, shown, where) / self._steps.price(kind)
        shared = SharedState(hashlib.sha256(blob).digest(), blob)
        self._cameras[key] = _Camera(picture, cost, shared, cost, booked=(_digest(frame),))
        while len(self._cameras) > _CAMERAS:
            self._cameras.popitem(last=False)
        region = (0, 0, frame.width, frame.height)
        still = pack(Latents(0, self._steps.background, (0,) * 6, None, None), LayerKind.BACKGROUND)
        layers = [Layer(LayerKind.BACKGROUND, Latent.number, Latent.version, region, 1.0, still)]
        for x, y, w, h in frame.regions[MAX_CROPS:]:
            crop = np.ascontiguousarray(image.pixels[y : y + h, x : x + w])
            rest = avif2.encode_payload(crop, params.object_quality, full_chroma=True)
            layers.append(Layer(LayerKind.OBJECT, avif2.Avif2.number, avif2.Avif2.version, (x, y, w, h), 1.0, rest))
        return EncodedImage(tuple(layers), (shared,))


def _digest(frame: Frame) -> bytes:
    return hashlib.blake2b(frame.image.pixels.tobytes(), digest_size=16).digest()


def step_number(background_quality: int) -> int:
    """The background's step beside references of an AVIF quality: 90 grey levels at 30, half of that 20 further."""
    return round(8 * (6.5 - (background_quality - 30) / 20))


def object_step_number(object_quality: int) -> int:
    """The objects' step beside crops of an AVIF quality: 12 grey levels at 60."""
    return round(8 * (3.585 - (object_quality - 60) / 20))
