"""Codec 4, `latent`: a frame as motion from a reference picture of its camera, and integer latents for what is left.

The reference is shared state: sent once to each device and used by all frames of the camera until another one is cheaper.
Every frame is predicted from a reference alone, never from another frame, so any image of a batch decodes by itself
and all of them together, on the device that trains. Sources: overlapped block motion compensation (Orchard and Sullivan,
IEEE Trans. Image Processing 3(5), 1994); long-term references as in video coding, here content-addressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from fogline.common.errors import FormatError
from fogline.common.images import resample
from fogline.common.images.codec import LayerCodec, Placement, SharedBlobs, register
from fogline.common.images.latent_motion import Field
from fogline.common.images.latent_payload import LAYOUTS, Latents, unpack, vectors
from fogline.common.images.latent_picture import ReferencePicture, unpack_picture
from fogline.common.images.latent_render import field_tensor, predict, residual
from fogline.common.images.record import Layer, LayerKind

_CPU_PIXELS = 1 << 19  # of one tensor call: bounds its memory
_GPU_PIXELS = 1 << 25


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

    def prepare(self, layer: Layer, shared: SharedBlobs) -> PreparedLatents:
        """Entropy-decode a layer and find its reference. Raises FormatError also where that does not fit."""
        width, height = layer.region[2:]
        latents = unpack(layer.payload, layer.kind, width, height)
        picture = shared.open(latents.reference, unpack_picture)
        x, y = layer.region[:2]
        if layer.kind is LayerKind.BACKGROUND and picture.size != (width, height):
            raise FormatError(f"latent layer of {width}x{height} pixels has a reference of {picture.size}; encode it again")
        if x + width > picture.size[0] or y + height > picture.size[1]:
            raise FormatError(f"latent layer at {layer.region} leaves its reference of {picture.size}; encode it again")
        return PreparedLatents(layer.kind, layer.region, latents, vectors(latents, layer.kind, width, height), picture)

    def render(
        self, prepared: Sequence[Any], kinds: Sequence[LayerKind], places: Sequence[Placement], device: torch.device
    ) -> list[torch.Tensor]:
        """See `LayerCodec.render`."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for i, one in enumerate(prepared):
            groups.setdefault((one.kind, one.region[2:], one.picture.size), []).append(i)
        out: dict[int, torch.Tensor] = {}
        for members in groups.values():
            w, h = prepared[members[0]].region[2:]
            most = max(1, (_CPU_PIXELS if device.type == "cpu" else _GPU_PIXELS) // (w * h))
            for start in range(0, len(members), most):
                some = members[start : start + most]
                pixels = decode([prepared[i] for i in some], device)
                out.update((i, _placed(pixels[n], places[i])) for n, i in enumerate(some))
        return [out[i] for i in range(len(prepared))]


def decode(layers: Sequence[PreparedLatents], device: torch.device) -> torch.Tensor:
    """Layers of one kind, size and size of reference at their coded size: float32 (B, 3, h, w) in [0, 1]."""
    first = layers[0]
    (w, h), layout = first.region[2:], LAYOUTS[first.kind]
    distinct = {id(layer.picture): layer.picture for layer in layers}
    stack = torch.stack([picture.pixels.to(device) for picture in distinct.values()]).to(torch.float32)
    order = {key: n for n, key in enumerate(distinct)}
    which = torch.tensor([order[id(layer.picture)] for layer in layers], device=device)
    origins = torch.tensor([layer.region[:2] for layer in layers], dtype=torch.float32, device=device)
    fields = field_tensor([layer.field for layer in layers], device)
    out = predict(stack[which], origins, fields, layout.block, w, h)
    latents = [layer.latents for layer in layers]
    if any(one.planes is not None for one in latents):
        out += residual(latents, layout, w, h, device)
    return out.div_(255).clamp_(0, 1)


def _placed(pixels: torch.Tensor, place: Placement) -> torch.Tensor:
    """A layer's pixels (3, h, w) resampled to a placement."""
    h, w = pixels.shape[1:]
    if place.source == (0.0, 0.0, 1.0, 1.0) and (place.w, place.h) == (w, h):
        return pixels
    x0, y0, x1, y1 = place.source
    left, across = resample.weights(place.w, x0 * w, x1 * w, w)
    top, down = resample.weights(place.h, y0 * h, y1 * h, h)
    window = pixels[:, top : top + down.shape[1], left : left + across.shape[1]]
    rows, columns = torch.from_numpy(down).to(pixels.device), torch.from_numpy(np.ascontiguousarray(across.T)).to(pixels.device)
    return (rows @ window @ columns).clamp_(0, 1)
