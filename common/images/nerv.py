"""Codec 5, `nerv`: a run of frames of one camera as one network, and a small grid of latents for each frame.

The network is shared state: sent once to each device for all frames of the run. A record holds a frame's index and its
latents, so any frame decodes by itself, in any order. Backgrounds only: objects are layers of another codec on top.
Sources: Residual-INR (arXiv:2408.05617), its variant for video; NeRV and HNeRV (see `nerv_network`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fogline.common.errors import FormatError
from fogline.common.images.codec import LayerCodec, Placement, SharedBlobs, register
from fogline.common.images.nerv_network import dequantise, synthesise
from fogline.common.images.nerv_payload import Frame, Network, unpack_frame, unpack_network, which
from fogline.common.images.record import Layer, LayerKind
from fogline.common.images.sampling import Samplings, Window

_CPU_ACTIVATIONS = 1 << 22  # pixels times channels of one tensor call: bounds its memory
_GPU_ACTIVATIONS = 1 << 28


@dataclass(frozen=True)
class SharedNetwork:
    """A network that frames share; kept while one of them is."""

    network: Network


@dataclass(frozen=True)
class PreparedFrame:
    """A frame with its network."""

    frame: Frame
    shared: SharedNetwork


@register
class Nerv(LayerCodec):
    """Decodes `nerv` layers."""

    number: ClassVar[int] = 5
    version: ClassVar[int] = 1
    name: ClassVar[str] = "nerv"
    additive: ClassVar[bool] = False

    def prepare(self, layer: Layer, shared: Mapping[bytes, bytes]) -> PreparedFrame:
        """Entropy-decode a frame's latents and find its network. Raises FormatError also where that does not fit."""
        if layer.kind is not LayerKind.BACKGROUND:
            raise FormatError("nerv layer for an object: this codec has only backgrounds; encode the image again")
        opened = SharedBlobs.of(shared).open(which(layer.payload), "nerv network", open_network)
        shape = opened.network.shape
        if layer.region[2:] != (shape.width, shape.height):
            raise FormatError(
                f"nerv layer of {layer.region[2]}x{layer.region[3]} has a network for {shape.width}x{shape.height};"
                " encode the image again"
            )
        return PreparedFrame(unpack_frame(layer.payload, opened.network), opened)

    def render(
        self, prepared: Sequence[Any], kinds: Sequence[LayerKind], places: Sequence[Placement], device: torch.device
    ) -> list[torch.Tensor]:
        """See `LayerCodec.render`. Whole frames, of which views are then cut."""
        made = Samplings(device)
        groups: dict[int, list[int]] = {}
        for i, one in enumerate(prepared):
            groups.setdefault(id(one.shared), []).append(i)
        out: dict[int, torch.Tensor] = {}
        for members in groups.values():
            network = prepared[members[0]].shared.network
            shape, weights = network.shape, dequantise(network, device)
            whole = Window(0, 0, shape.width, shape.height)
            budget = _CPU_ACTIVATIONS if device.type == "cpu" else _GPU_ACTIVATIONS
            most = max(1, budget // (shape.width * shape.height * shape.channels))
            for start in range(0, len(members), most):
                some = members[start : start + most]
                frames = [prepared[i].frame for i in some]
                latents = torch.stack([torch.from_numpy(frame.latents) for frame in frames]).to(device, torch.float32)
                with torch.no_grad():
                    pixels = synthesise(shape, weights, latents, [frame.index for frame in frames]).clamp_(0, 1)
                for i, one in zip(some, pixels, strict=True):
                    out[i] = made.of(places[i], (shape.width, shape.height)).take(one, whole).clamp(0, 1)
        return [out[i] for i in range(len(prepared))]


def open_network(blob: bytes) -> SharedNetwork:
    """Parse a blob. Raises FormatError."""
    return SharedNetwork(unpack_network(blob))
