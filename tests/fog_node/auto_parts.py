"""Painted frames for the encoder `auto`, and codecs that fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fogline.common.images.codec import EncodedImage, ImageEncoder, SourceImage
from fogline.fog_node import encoders
from fogline.fog_node.encoders import build_encoder
from fogline.fog_node.encoders.auto import AutoEncoder
from fogline.fog_node.encoders.trial import Limits

AVIF2, JPEG2 = 2, 1
BOX = (20.0, 16.0, 40.0, 30.0)
LIMITS = Limits(encode_s=30.0, shared_frames=256)


def frame(
    seed: int = 0, size: tuple[int, int] = (128, 96), camera: str = "cam", boxes: Any = (BOX,), detail: int = 12
) -> SourceImage:
    """Smooth colours of a camera with a textured object; `detail` is how many patches there are across."""
    rng = np.random.default_rng(sum(camera.encode()) + detail)
    coarse = rng.integers(40, 215, (detail * 3 // 4, detail, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)).copy()
    pixels = np.roll(pixels, seed, axis=1)
    for x, y, w, h in boxes:
        texture = np.random.default_rng(seed).integers(60, 200, (int(h) // 4 + 1, int(w) // 4 + 1, 3), dtype=np.uint8)
        patch = np.asarray(Image.fromarray(texture).resize((int(w), int(h)), Image.Resampling.BILINEAR))
        pixels[int(y) : int(y) + int(h), int(x) : int(x) + int(w)] = patch
    return SourceImage(pixels, tuple(boxes), camera)


def frames(count: int, **settings: Any) -> list[SourceImage]:
    return [frame(seed, **settings) for seed in range(count)]


def auto(**params: Any) -> AutoEncoder:
    encoder = build_encoder(
        "auto", {"candidates": ["jpeg2", "avif2"], "max_encode_s": 30.0, "trial_after": 1, **params}
    )
    assert isinstance(encoder, AutoEncoder)
    return encoder


def chosen(encoder: AutoEncoder) -> list[tuple[str, str]]:
    return [(choice.camera, choice.decision.codec) for choice in encoder.news()[0]]


def codecs(encoded: Sequence[EncodedImage]) -> set[int]:
    return {layer.codec for image in encoded for layer in image.layers}


class Broken(ImageEncoder):
    """Raises, at once or after some batches."""

    def __init__(self, inner: ImageEncoder, calls: list[int], healthy: int) -> None:
        self.inner, self.calls, self.healthy = inner, calls, healthy

    def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        self.calls.append(len(images))
        if len(self.calls) > self.healthy:
            raise RuntimeError("out of memory")
        return self.inner.encode(images)


def break_codec(monkeypatch: pytest.MonkeyPatch, name: str, healthy: int) -> list[int]:
    """Let the encoder of this codec raise after so many calls; returns the calls."""
    real, calls = encoders.build_encoder, list[int]()

    def build(codec: str, params: Mapping[str, Any], device: str = "cpu") -> ImageEncoder:
        encoder = real(codec, params, device)
        return Broken(encoder, calls, healthy) if codec == name else encoder

    monkeypatch.setattr(encoders, "build_encoder", build)
    return calls
