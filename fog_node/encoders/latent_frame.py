"""Codes one frame against a reference picture: the motion, what it leaves over, the objects, and what it all costs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fogline.common.images import avif2
from fogline.common.images.codec import Placement, SourceImage
from fogline.common.images.latent import Latent
from fogline.common.images.latent_motion import Field, blocks_of
from fogline.common.images.latent_payload import LAYOUTS, Latents, Layout, pack, step_size, vectors
from fogline.common.images.latent_picture import ReferencePicture
from fogline.common.images.latent_render import cosines, predict_one, residual
from fogline.common.images.record import Layer, LayerKind
from fogline.common.images.regions import Region, object_regions
from fogline.common.images.sampling import Window
from fogline.common.images.static_rans import StreamTooLongError
from fogline.fog_node.encoders.block_matching import Quarters
from fogline.fog_node.encoders.latent_quantise import quantise
from fogline.fog_node.encoders.motion_search import (
    affine_motion,
    frame_field,
    median_vector,
    pyramid,
    region_field,
)

PRICE = 0.15  # squared steps for a bit: the slope of rate against error at a quantiser's usual working point
_FINE = 1 / 7  # squared steps of error to a pixel: what objects have at their own step
_LAYER_BITS = 8 * 20  # of an object's line in a record
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Steps:
    """How finely a frame is coded."""

    background: int  # step number
    object: int
    object_quality: int  # of AVIF crops

    def price(self, kind: LayerKind) -> float:
        """Squared grey levels of luma for a bit."""
        return PRICE * step_size(self.object if kind is LayerKind.OBJECT else self.background) ** 2


class Frame:
    """A frame to be coded: its pixels in the forms that the search needs."""

    def __init__(self, image: SourceImage) -> None:
        self.image = image
        self.height, self.width = image.pixels.shape[:2]
        self.regions = object_regions(image.boxes, self.width, self.height)

    @cached_property
    def pixels(self) -> torch.Tensor:
        """Float (3, H, W), 0 to 255."""
        return torch.from_numpy(self.image.pixels.astype(np.float32)).permute(2, 0, 1).contiguous()

    @cached_property
    def luma(self) -> list[torch.Tensor]:
        """A pyramid of luma."""
        return pyramid(luma(self.pixels))

    @cached_property
    def inside(self) -> torch.Tensor:
        """Which pixels lie in an object's region (H, W)."""
        mask = torch.zeros((self.height, self.width), dtype=torch.bool)
        for x, y, w, h in self.regions:
            mask[y : y + h, x : x + w] = True
        return mask


@dataclass(frozen=True)
class Coded:
    """A coded frame."""

    layers: tuple[Layer, ...]
    field: Field  # vectors of its blocks, to begin the next frame's search with
    cost: float  # bits, and squared error at the price of bits


@dataclass(frozen=True)
class Reference:
    """A reference picture as an encoder sees it, open: some 110 bytes a pixel."""

    pixels: torch.Tensor  # uint8 (3, H, W)
    luma: list[torch.Tensor]  # a pyramid
    fine: list[Quarters]  # each of its planes at quarter pixels

    @classmethod
    def open(cls, picture: ReferencePicture) -> Reference:
        """Open a picture, or take it from the picture's cache, which keeps it as far as its budget goes."""

        def make() -> Reference:
            pixels = picture.pixels(_CPU)
            planes = pyramid(luma(pixels.to(torch.float32)))
            return cls(pixels, planes, [Quarters.of(plane) for plane in planes])

        return picture.cache.decoded(("latent reference", picture.digest), make)

    @property
    def nbytes(self) -> int:
        """Bytes of all it holds besides the picture's pixels, which the cache counts by themselves."""
        return sum(plane.nbytes for plane in self.luma) + sum(plane.nbytes for plane in self.fine)


def luma(pixels: torch.Tensor) -> torch.Tensor:
    """BT.601 luma (H, W) of RGB (3, H, W)."""
    return 0.299 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2]


def code_frame(frame: Frame, reference: Reference, steps: Steps, before: Field | None) -> Coded | None:
    """Code a frame by prediction; None where that takes more than a payload holds.

    `before` may be the field of the frame before, from the same reference.
    """
    kind, price = LayerKind.BACKGROUND, steps.price(LayerKind.BACKGROUND)
    layout = LAYOUTS[kind]
    affine = affine_motion(frame.luma, reference.luma)
    offsets = frame_field(frame.luma, reference.fine, affine, layout.block, price, before)
    moved = Latents(0, steps.background, affine, offsets, None)
    region = (0, 0, frame.width, frame.height)
    latents, shown = _with_residual(moved, kind, region, frame, reference, ~frame.inside)
    try:
        payload = pack(latents, kind)
    except StreamTooLongError:
        return None
    layers = [Layer(kind, Latent.number, Latent.version, region, 1.0, payload)]
    cost = 8 * len(payload) + squared_error(frame.pixels, shown, ~frame.inside) / price
    field = vectors(latents, kind, frame.width, frame.height)
    for place in frame.regions:
        layer, bits = _code_object(frame, reference, steps, place, shown, field)
        cost += bits
        if layer is not None:
            layers.append(layer)
    return Coded(
        tuple(layers), field, cost + squared_error(frame.pixels, shown, frame.inside) / steps.price(LayerKind.OBJECT)
    )


def _code_object(
    frame: Frame,
    reference: Reference,
    steps: Steps,
    region: Region,
    shown: torch.Tensor,
    field: Field,
) -> tuple[Layer | None, float]:
    """The cheapest of: no layer, where the background is good enough; prediction and residual; an AVIF crop.

    What a receiver sees of it is written to `shown`.
    """
    x, y, w, h = region
    price, kind = steps.price(LayerKind.OBJECT), LayerKind.OBJECT
    here = (slice(None), slice(y, y + h), slice(x, x + w))
    target = frame.pixels[here]
    choices: list[tuple[float, Layer | None, float, torch.Tensor]] = []

    def consider(layer: Layer | None, pixels: torch.Tensor) -> None:
        bits = 0.0 if layer is None else 8 * len(layer.payload) + _LAYER_BITS
        choices.append((bits + squared_error(target, pixels, None) / price, layer, bits, pixels))

    if squared_error(target, shown[here], None) <= w * h * step_size(steps.object) ** 2 * _FINE:
        consider(None, shown[here])
    block = LAYOUTS[LayerKind.BACKGROUND].block
    around = field[y // block : -(-(y + h) // block), x // block : -(-(x + w) // block)]
    affine, offsets = region_field(
        frame.luma[0][here[1:]], reference.fine[0], (x, y), median_vector(around), LAYOUTS[kind].block, price
    )
    moved = Latents(0, steps.object, affine, offsets, None)
    latents, pixels = _with_residual(moved, kind, region, frame, reference, None)
    with suppress(StreamTooLongError):
        consider(Layer(kind, Latent.number, Latent.version, region, 1.0, pack(latents, kind)), pixels)
    crop = np.ascontiguousarray(frame.image.pixels[y : y + h, x : x + w])
    payload = avif2.encode_payload(crop, steps.object_quality, full_chroma=True)
    layer = Layer(kind, avif2.Avif2.number, avif2.Avif2.version, region, 1.0, payload)
    consider(layer, _decode_avif(layer))
    _, chosen, bits, pixels = min(choices, key=lambda choice: choice[0])
    if chosen is not None:
        shown[here] = pixels
    return chosen, bits


def _with_residual(
    latents: Latents, kind: LayerKind, region: Region, frame: Frame, reference: Reference, where: torch.Tensor | None
) -> tuple[Latents, torch.Tensor]:
    """Latents with the coefficients that are worth their bits, and what a receiver sees of them (3, h, w), 0 to 255.

    Outside `where` nothing is left to code.
    """
    x, y, w, h = region
    layout = LAYOUTS[kind]
    predicted = predict_one(reference.pixels, (x, y), vectors(latents, kind, w, h), layout.block, Window(0, 0, w, h))
    left = frame.pixels[:, y : y + h, x : x + w] - predicted.clamp(0, 255)
    if where is not None:
        left = left * where
    bright = luma(left)
    planes = []
    for number, plane in enumerate((bright, (left[2] - bright) / 1.772, (left[0] - bright) / 1.402)):
        factor = layout.chroma_step if number else 1.0
        coefficients = transform(plane, layout, number)
        planes.append(quantise(coefficients, step_size(latents.step) * factor, 2 * kind + (number > 0), PRICE))
    if any(plane.index.size for plane in planes):
        latents = replace(latents, planes=(planes[0], planes[1], planes[2]))
        shape = blocks_of(w, layout.luma), blocks_of(h, layout.luma)
        predicted += residual([latents], layout, (w, h), [(0, 0)], shape, _CPU)[0, :, :h, :w]
    return latents, predicted.clamp_(0, 255)


def transform(plane: torch.Tensor, layout: Layout, number: int) -> NDArray[np.float32]:
    """Coefficients (rows, columns, size, size) of plane `number` (H, W), its edge repeated to whole blocks."""
    size = layout.chroma if number else layout.luma
    plane = plane[None, None]
    if number and layout.halved:
        plane = functional.avg_pool2d(plane, 2, ceil_mode=True, count_include_pad=False)
    plane = functional.pad(plane, (0, -plane.shape[3] % size, 0, -plane.shape[2] % size), mode="replicate")[0, 0]
    matrix = cosines(size)
    out: NDArray[np.float32] = (matrix @ plane.unfold(0, size, size).unfold(1, size, size) @ matrix.T).numpy()
    return out


def _decode_avif(layer: Layer) -> torch.Tensor:
    codec = avif2.Avif2()
    place = Placement(0, 0, layer.region[2], layer.region[3], (0.0, 0.0, 1.0, 1.0))
    prepared = codec.prepare(layer, {})
    return codec.render([prepared], [layer.kind], [place], _CPU)[0] * 255


def squared_error(target: torch.Tensor, shown: torch.Tensor, where: torch.Tensor | None) -> float:
    """Squared error, mean over the channels and summed over pixels."""
    error = (target - shown).square().mean(0)
    return float((error if where is None else error[where]).sum())
