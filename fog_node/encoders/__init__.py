"""Encoders by name. Each is imported only when asked for: the classical ones don't need torch, the others do.

`auto` is no codec of its own: it chooses one for each camera.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fogline.common.errors import ConfigError
from fogline.common.images.codec import ImageEncoder

ENCODERS = ("siren", "latent", "nerv", "jpeg2", "avif2")
# Of which a few frames say something: not of `nerv`, which trains for minutes and whose network pays over many frames.
TRIED_ON_FEW = tuple(name for name in ENCODERS if name != "nerv")
CHOICES = (*ENCODERS, "auto")  # what a user may ask for


def build_encoder(name: str, params: Mapping[str, Any], device: str = "cpu") -> ImageEncoder:
    """The encoder of this name. Raises ConfigError for an unknown name, parameter or device."""
    if name == "siren":
        from fogline.fog_node.encoders.siren import SirenEncoder
        from fogline.fog_node.encoders.siren_params import siren_params

        return SirenEncoder(siren_params(params), device)
    if name == "latent":
        from fogline.fog_node.encoders.latent import LatentEncoder
        from fogline.fog_node.encoders.latent_params import latent_params

        return LatentEncoder(latent_params(params))
    if name == "nerv":
        from fogline.fog_node.encoders.nerv import NervEncoder
        from fogline.fog_node.encoders.nerv_params import nerv_params

        return NervEncoder(nerv_params(params), device)
    if name == "jpeg2":
        from fogline.common.images.jpeg2 import build_jpeg2

        return build_jpeg2(params, device)
    if name == "avif2":
        from fogline.common.images.avif2 import build_avif2

        return build_avif2(params, device)
    if name == "auto":
        from fogline.fog_node.encoders.auto import AutoEncoder
        from fogline.fog_node.encoders.auto_params import auto_params

        return AutoEncoder(auto_params(params), device)
    raise ConfigError(f"image codec {name!r} is unknown; known: {', '.join(CHOICES)}")
