"""Layers, references and records of `latent`, made without an encoder."""

import hashlib
from functools import cache

import numpy as np
import torch

from fogline.common.images import avif2
from fogline.common.images.latent import Latent
from fogline.common.images.latent_blocks import Plane
from fogline.common.images.latent_payload import LAYOUTS, Latents, pack
from fogline.common.images.latent_picture import pack_picture
from fogline.common.images.record import ImageRecord, Layer, LayerKind

CPU = torch.device("cpu")
WHOLE = (0.0, 0.0, 1.0, 1.0)
W, H = 56, 40


def texture(width: int = W, height: int = H, seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    phases = np.random.default_rng(seed).uniform(0, 6, 3)
    pixels = np.stack([128 + 90 * np.sin(x / 5 + p) * np.cos(y / 4 + 2 * p) for p in phases], axis=-1)
    return pixels.round().astype(np.uint8)


def reference(pixels: np.ndarray | None = None) -> bytes:
    pixels = texture() if pixels is None else pixels
    return _reference(pixels.tobytes(), pixels.shape[1], pixels.shape[0])


@cache  # coding is most of what an example costs
def _reference(data: bytes, width: int, height: int) -> bytes:
    pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
    return pack_picture(width, height, avif2.encode_payload(pixels, 90, full_chroma=False), [])


def plane(rows: int, columns: int, size: int, seed: int, density: float = 0.3, scale: float = 2.0) -> Plane:
    rng = np.random.default_rng(seed)
    values = np.zeros((rows * columns, size, size), np.int16)
    for i in np.flatnonzero(rng.random(rows * columns) < density):
        reach = rng.integers(1, size)
        block = np.rint(rng.laplace(0, scale, (size, size))).astype(np.int16)
        values[i] = np.where(np.add.outer(np.arange(size), np.arange(size)) < reach, block, 0)
    index = np.flatnonzero(values.any(axis=(1, 2))).astype(np.int32)
    return Plane(rows, columns, size, index, values[index])


def latents(kind: LayerKind, width: int = W, height: int = H, seed: int = 0) -> Latents:
    layout, rng = LAYOUTS[kind], np.random.default_rng(seed)
    rows, columns = -(-height // layout.block), -(-width // layout.block)
    affine = (12, 3, -4, -9, 2, 1) if kind is LayerKind.BACKGROUND else (12, 0, 0, -9, 0, 0)
    offsets = rng.integers(-6, 7, (rows, columns, 2)).astype(np.int32)
    y, b, r = (plane(*shape, seed + i) for i, shape in enumerate(layout.planes(width, height)))
    return Latents(0, 40, affine, offsets, (y, b, r))


def record(layers: list[Layer], blobs: list[bytes], size: tuple[int, int] = (W, H)) -> tuple[ImageRecord, dict]:
    shared = {hashlib.sha256(blob).digest(): blob for blob in blobs}
    return ImageRecord(bytes(32), 0, "", size, size, (), tuple(layers), tuple(shared)), shared


def background(payload: bytes, size: tuple[int, int] = (W, H)) -> Layer:
    return Layer(LayerKind.BACKGROUND, Latent.number, 1, (0, 0, *size), 1.0, payload)


@cache
def coded(kind: LayerKind, width: int = W, height: int = H, seed: int = 0) -> bytes:
    return pack(latents(kind, width, height, seed), kind)


def thing(region: tuple[int, int, int, int], seed: int = 0) -> Layer:
    """An object with motion and coefficients."""
    data = coded(LayerKind.OBJECT, region[2], region[3], seed)
    return Layer(LayerKind.OBJECT, Latent.number, 1, region, 1.0, data)
