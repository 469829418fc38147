"""Codec 4, `latent`: a frame as motion from a reference picture of its camera, and integer latents for what is left.

The reference is shared state: sent once to each device and used by all frames of the camera until another one is
cheaper. Every frame is predicted from a reference alone, never from another frame, so any image of a batch decodes by
itself and all of them together, on the device that trains. Sources: overlapped block motion compensation (Orchard and
Sullivan, IEEE Trans. Image Processing 3(5), 1994); long-term references as in video coding, here content-addressed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from fogline.common.errors import FormatError
from fogline.common.images.codec import LayerCodec, Placement, SharedBlobs, register
from fogline.common.images.latent_motion import Field, blocks_of
from fogline.common.images.latent_payload import LAYOUTS, Latents, unpack, vectors
from fogline.common.images.latent_picture import ReferencePicture, unpack_picture
from fogline.common.images.latent_render import field_tensor, predict, predict_one, residual
from fogline.common.images.record import Layer, LayerKind
from fogline.common.images.sampling import Sampling, Samplings, Window
from fogline.common.images.threads import each

_PIXELS = 1 << 25  # of one tensor call: bounds its memory
_WASTE = 2  # windows of a call are grown to the largest: by this factor in area at most


@dataclass(frozen=True)
class PreparedLatents:
    """A layer with its reference picture."""

    kind: LayerKind
    region: tuple[int, int, int, int]
    latents: Latents
    field: Field
    picture: ReferencePicture


@register
class Latent(LayerCodec):
    """Decodes `latent` layers."""

    number: ClassVar[int] = 4
    version: ClassVar[int] = 1
    name: ClassVar[str] = "latent"
    additive: ClassVar[bool] = False

    def prepare(self, layer: Layer, shared: Mapping[bytes, bytes]) -> PreparedLatents:
        """Entropy-decode a layer and find its reference. Raises FormatError also where that does not fit."""
        width, height = layer.region[2:]
        latents = unpack(layer.payload, layer.kind, width, height)
        blobs = SharedBlobs.of(shared)
        frame = (width, height) if layer.kind is LayerKind.BACKGROUND else blobs.frame
        picture = blobs.open(latents.reference, "latent picture", partial(unpack_picture, cache=blobs.cache))
        x, y = layer.region[:2]
        if frame is not None and picture.size != frame:
            raise FormatError(f"a frame of {frame[0]}x{frame[1]} has a reference of {picture.size}; encode it again")
        if x + width > picture.size[0] or y + height > picture.size[1]:
            raise FormatError(f"latent layer at {layer.region} leaves its reference of {picture.size}; encode again")
        return PreparedLatents(layer.kind, layer.region, latents, vectors(latents, layer.kind, width, height), picture)

    def render(
        self, prepared: Sequence[Any], kinds: Sequence[LayerKind], places: Sequence[Placement], device: torch.device
    ) -> list[torch.Tensor]:
        """See `LayerCodec.render`."""
        made = Samplings(device)
        samplings = [made.of(place, one.region[2:]) for one, place in zip(prepared, places, strict=True)]
        out: dict[int, torch.Tensor] = {}

        def some(members: Sequence[int]) -> None:
            windows = [samplings[i].window for i in members]
            for i, pixels in zip(members, decode([prepared[i] for i in members], windows, device), strict=True):
                out[i] = samplings[i].take(pixels, samplings[i].window).clamp_(0, 1)

        each(some, calls(prepared, samplings, device), device)
        return [out[i] for i in range(len(prepared))]


def decode(
    layers: Sequence[PreparedLatents], windows: Sequence[Window], device: torch.device
) -> Sequence[torch.Tensor]:
    """Windows of layers of one kind, size and size of reference, at the coded size: float32 (3, h, w) in [0, 1] each.

    On a CPU one by one, by what each needs; elsewhere together, where a call costs more than the pixels that it is for.
    """
    if device.type == "cpu":
        return [_decode_one(layer, window) for layer, window in zip(layers, windows, strict=True)]
    return decode_together(layers, windows, device)


def _decode_one(layer: PreparedLatents, window: Window) -> torch.Tensor:
    layout, cpu = LAYOUTS[layer.kind], torch.device("cpu")
    out = predict_one(layer.picture.pixels(cpu), layer.region[:2], layer.field, layout.block, window)
    if layer.latents.planes is not None:
        (corner,), shape = _in_blocks([window], layout.luma)
        added = residual([layer.latents], layout, layer.region[2:], [corner], shape, cpu)[0]
        x, y = window.x - corner[0] * layout.luma, window.y - corner[1] * layout.luma
        out += added[:, y : y + window.h, x : x + window.w]
    return out.div_(255).clamp_(0, 1)


def decode_together(
    layers: Sequence[PreparedLatents], windows: Sequence[Window], device: torch.device
) -> list[torch.Tensor]:
    """As `decode`, in as few calls as possible: all windows are grown to whole blocks and to the largest one's size."""
    first = layers[0]
    layout = LAYOUTS[first.kind]
    corners, shape = _in_blocks(windows, layout.luma)
    distinct = {id(layer.picture): layer.picture for layer in layers}
    stack = torch.stack([picture.pixels(device) for picture in distinct.values()]).to(torch.float32)
    order = {key: n for n, key in enumerate(distinct)}
    which = torch.tensor([order[id(layer.picture)] for layer in layers], device=device)
    references = stack.expand(len(layers), -1, -1, -1) if len(distinct) == 1 else stack[which]
    origins = torch.tensor([layer.region[:2] for layer in layers], dtype=torch.float32, device=device)
    fields = field_tensor([layer.field for layer in layers], device)
    starts = torch.tensor(corners, device=device) * layout.luma
    size = shape[0] * layout.luma, shape[1] * layout.luma
    out = predict(references, origins, fields, layout.block, starts, size)
    latents = [layer.latents for layer in layers]
    if any(one.planes is not None for one in latents):
        out += residual(latents, layout, first.region[2:], corners, shape, device)
    out.div_(255).clamp_(0, 1)
    lefts = [window.x - x * layout.luma for window, (x, _) in zip(windows, corners, strict=True)]
    tops = [window.y - y * layout.luma for window, (_, y) in zip(windows, corners, strict=True)]
    return [
        pixels[:, y : y + window.h, x : x + window.w]
        for pixels, window, x, y in zip(out, windows, lefts, tops, strict=True)
    ]


def _in_blocks(windows: Sequence[Window], side: int) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """The x, y of windows in blocks, and a size in blocks that holds any of them from there."""
    corners = [(window.x // side, window.y // side) for window in windows]
    wide = max(blocks_of(window.x + window.w, side) - x for window, (x, _) in zip(windows, corners, strict=True))
    tall = max(blocks_of(window.y + window.h, side) - y for window, (_, y) in zip(windows, corners, strict=True))
    return corners, (wide, tall)


def calls(
    prepared: Sequence[PreparedLatents], samplings: Sequence[Sampling], device: torch.device
) -> list[Sequence[int]]:
    """Which layers are decoded in one call: on a CPU each by itself; else those alike, of windows not too unlike."""
    if device.type == "cpu":
        return [[i] for i in range(len(prepared))]
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, one in enumerate(prepared):
        # Objects of one picture share it uncopied; a background is as large as its picture.
        picture = one.picture.size if one.kind is LayerKind.BACKGROUND else id(one.picture)
        groups.setdefault((one.kind, one.region[2:], picture), []).append(i)
    out: list[Sequence[int]] = []
    for members in groups.values():
        call: list[int] = []
        wide = tall = 0
        for i in sorted(members, key=lambda i: -samplings[i].window.w * samplings[i].window.h):
            window = samplings[i].window
            grown = max(wide, window.w), max(tall, window.h)
            area = grown[0] * grown[1]
            if call and (area > _WASTE * window.w * window.h or area * (len(call) + 1) > _PIXELS):
                out.append(call)
                call, grown = [], (window.w, window.h)
            call.append(i)
            wide, tall = grown
        out.append(call)
    return out
