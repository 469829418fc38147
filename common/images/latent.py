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
from fogline.common.images.latent_motion import Field
from fogline.common.images.latent_payload import LAYOUTS, Latents, unpack, vectors
from fogline.common.images.latent_picture import ReferencePicture, unpack_picture
from fogline.common.images.latent_render import field_tensor, predict, residual
from fogline.common.images.record import Layer, LayerKind
from fogline.common.images.sampling import Sampling, Window

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

    def prepare(self, layer: Layer, shared: Mapping[bytes, bytes]) -> PreparedLatents:
        """Entropy-decode a layer and find its reference. Raises FormatError also where that does not fit."""
        width, height = layer.region[2:]
        latents = unpack(layer.payload, layer.kind, width, height)
        blobs = SharedBlobs.of(shared)
        frame = (width, height) if layer.kind is LayerKind.BACKGROUND else blobs.frame
        picture = blobs.open(latents.reference, partial(unpack_picture, frame=frame))
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
        groups: dict[tuple[object, ...], list[int]] = {}
        for i, one in enumerate(prepared):
            # Objects of one picture share it uncopied; a background is as large as its picture.
            picture = one.picture.size if one.kind is LayerKind.BACKGROUND else id(one.picture)
            groups.setdefault((one.kind, one.region[2:], picture), []).append(i)
        out: dict[int, torch.Tensor] = {}
        for members in groups.values():
            size = prepared[members[0]].region[2:]
            most = max(1, (_CPU_PIXELS if device.type == "cpu" else _GPU_PIXELS) // (size[0] * size[1]))
            for start in range(0, len(members), most):
                some = members[start : start + most]
                samplings = [Sampling.of(places[i], size) for i in some]
                # What any of them needs: on a device with a launch to each call, one call for all costs the least.
                window = _union([sampling.window for sampling in samplings])
                pixels = decode([prepared[i] for i in some], device, window)
                out.update((i, samplings[n].take(pixels[n], window).clamp_(0, 1)) for n, i in enumerate(some))
        return [out[i] for i in range(len(prepared))]


def decode(layers: Sequence[PreparedLatents], device: torch.device, window: Window) -> torch.Tensor:
    """A window of layers of one kind, size and size of reference, at the coded size: float32 (B, 3, h, w) in [0, 1]."""
    first = layers[0]
    layout = LAYOUTS[first.kind]
    distinct = {id(layer.picture): layer.picture for layer in layers}
    stack = torch.stack([picture.pixels.to(device) for picture in distinct.values()]).to(torch.float32)
    order = {key: n for n, key in enumerate(distinct)}
    which = torch.tensor([order[id(layer.picture)] for layer in layers], device=device)
    references = stack.expand(len(layers), -1, -1, -1) if len(distinct) == 1 else stack[which]
    origins = torch.tensor([layer.region[:2] for layer in layers], dtype=torch.float32, device=device)
    fields = field_tensor([layer.field for layer in layers], device)
    out = predict(references, origins, fields, layout.block, window)
    latents = [layer.latents for layer in layers]
    if any(one.planes is not None for one in latents):
        out += residual(latents, layout, first.region[2:], window, device)
    return out.div_(255).clamp_(0, 1)


def _union(windows: Sequence[Window]) -> Window:
    x, y = min(one.x for one in windows), min(one.y for one in windows)
    return Window(x, y, max(one.x + one.w for one in windows) - x, max(one.y + one.h for one in windows) - y)
