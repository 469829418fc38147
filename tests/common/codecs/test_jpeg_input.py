"""jpeg-input: images of every layout, and files that are not what was announced."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from fogline.common.codecs import Chain
from fogline.common.errors import ConfigError, FormatError, InputError

NORMAL = "mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]"
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def smooth(batch: int, channels: int, height: int = 24, width: int = 32) -> torch.Tensor:
    """Pixels uint8 (B, C, H, W) as smooth as those of photographs."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    waves = [(torch.sin(x + n) * torch.cos(y - n) + 1) * 120 for n in range(batch * channels)]
    return torch.stack(waves).reshape(batch, channels, height, width).to(torch.uint8)


def round_trip(spec: str, tensor: torch.Tensor) -> torch.Tensor:
    chain = Chain.parse(spec)
    coded = chain.encoder().encode(tensor)
    return chain.decoder().decode(coded.stages, bytearray(coded.payload), coded.dtype, coded.shape)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch", [1, 5])
def test_bytes_come_back_as_jpeg_has_them(channels: int, batch: int) -> None:
    pixels = smooth(batch, channels)
    back = round_trip("jpeg-input(quality=95)", pixels)
    assert back.dtype == torch.uint8
    assert float((back.float() - pixels.float()).abs().mean()) < 3
    last = round_trip("jpeg-input(quality=95, layout=bhwc)", pixels.permute(0, 2, 3, 1))
    assert torch.equal(last.permute(0, 3, 1, 2), back)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_normalised_floats_give_the_same_images(dtype: torch.dtype) -> None:
    pixels = smooth(2, 3)
    values = (pixels.float() / 255 - MEAN.reshape(3, 1, 1)) / STD.reshape(3, 1, 1)
    back = round_trip(f"jpeg-input({NORMAL})", values.to(dtype))
    assert back.dtype == dtype
    levels = (back.float() * STD.reshape(3, 1, 1) + MEAN.reshape(3, 1, 1)) * 255
    plain = round_trip("jpeg-input", pixels).float()
    assert float((levels - plain).abs().max()) < (0.01 if dtype != torch.float16 else 30)
    assert float((levels - plain).abs().mean()) < 0.2


def test_floats_between_0_and_1_need_no_mean() -> None:
    pixels = smooth(1, 3)
    back = round_trip("jpeg-input", pixels.float() / 255)
    assert torch.allclose(back * 255, round_trip("jpeg-input", pixels).float(), atol=1e-3)


def test_it_is_small() -> None:
    pixels = smooth(4, 3, 64, 64).float() / 255
    coded = Chain.parse("jpeg-input").encoder().encode(pixels)
    assert memoryview(coded.payload).nbytes < pixels.nbytes / 20


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, 8), "no batch of images"),
        (torch.zeros(2, 4, 8, 8), "4 channels"),
        (torch.randn(2, 3, 8, 8) * 3, "mean and std"),
        (torch.full((1, 3, 8, 8), float("nan")), "mean and std"),
    ],
)
def test_what_is_no_image_is_refused(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        round_trip("jpeg-input", tensor)


def test_mean_and_std_of_another_number_of_channels() -> None:
    with pytest.raises(InputError, match="3 channels, images of 1"):
        round_trip(f"jpeg-input({NORMAL})", torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    "spec",
    [
        "jpeg-input(mean=[0.5])",
        "jpeg-input(mean=[0.5], std=[0])",
        "jpeg-input(mean=[0.5], std=[nan])",
        "jpeg-input(mean=[0.5, 0.5], std=[1, 1])",
        "jpeg-input(quality=0)",
        "jpeg-input+zstd",
        "fp16+jpeg-input",
    ],
)
def test_wrong_options_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError):
        Chain.parse(spec)


def jpeg(width: int, height: int, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    "file",
    [
        jpeg(9, 8),
        jpeg(8, 8, "L"),
        jpeg(8, 8, "CMYK"),
        jpeg(8, 8, kind="PNG"),
        jpeg(20_000, 20_000, "L"),
        jpeg(8, 8)[:-30],
        jpeg(8, 8)[:20],
        b"",
        b"\xff\xd8\xff",
    ],
)
def test_another_file_than_announced_is_refused(file: bytes) -> None:
    payload = struct.pack("<I", len(file)) + file
    with pytest.raises(FormatError):
        Chain.parse("jpeg-input").decoder().decode(STAGES, payload, torch.uint8, (1, 3, 8, 8))


@pytest.mark.parametrize("lengths", [(1 << 31, 5), (0, 0), (10,), ()])
def test_forged_lengths_are_refused(lengths: tuple[int, ...]) -> None:
    payload = struct.pack(f"<{len(lengths)}I", *lengths) + jpeg(8, 8)
    with pytest.raises(FormatError):
        Chain.parse("jpeg-input").decoder().decode(STAGES, payload, torch.uint8, (2, 3, 8, 8))


STAGES = Chain.parse("jpeg-input").encoder().encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).stages


def test_any_pixels_fit_the_bound() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 40, 40), dtype=np.uint8))
    assert round_trip("jpeg-input(quality=100)", noise).shape == noise.shape
