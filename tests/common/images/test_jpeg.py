"""JPEGs as cameras and people make them; what is broken or hostile is in tests/attacks/images too."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fogline.common.errors import InputError
from fogline.common.images.jpeg import decode_jpeg, encode_jpeg, inspect_jpeg, resize


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """Smooth colours that survive compression."""
    y, x = np.mgrid[0:height, 0:width]
    channels = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=2)
    return Image.fromarray(channels.astype(np.uint8))


def saved(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


GOOD = saved(picture(), quality=80)

ODD = {
    "baseline": saved(picture()),
    "progressive": saved(picture(), progressive=True),
    "grey": saved(picture().convert("L")),
    "cmyk": saved(picture().convert("CMYK")),
    "progressive cmyk": saved(picture().convert("CMYK"), progressive=True),
    "rgb without conversion": saved(picture(), keep_rgb=True),
    "4:4:4": saved(picture(), subsampling=0),
    "4:2:2": saved(picture(), subsampling=1),
    "restart markers": saved(picture(), restart_marker_blocks=1),
    "comment and profile": saved(picture(), comment=b"hello", icc_profile=bytes(70_000)),
    "odd size": saved(picture(17, 5)),
    "one pixel": saved(picture(1, 1)),
    "several pictures (MPO)": saved(picture(), "MPO", save_all=True, append_images=[picture(16, 16)]),
    "bytes after the end": GOOD + bytes(100),
    "fill bytes": GOOD[:2] + b"\xff\xff" + GOOD[2:],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_but_good_files_decode_to_rgb(name: str) -> None:
    data = ODD[name]
    pixels = decode_jpeg(data)
    info = inspect_jpeg(data)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (info.height, info.width, 3)
    assert np.array_equal(pixels, pillow(data))
    assert info.progressive == ("progressive" in name)


def test_a_video_frame_without_huffman_tables_decodes() -> None:
    data = GOOD[: GOOD.index(b"\xff\xc4")] + GOOD[GOOD.index(b"\xff\xda") :]
    assert np.array_equal(decode_jpeg(data), decode_jpeg(GOOD))


def test_components() -> None:
    assert [inspect_jpeg(ODD[name]).components for name in ("grey", "baseline", "cmyk")] == [1, 3, 4]


def test_cmyk_keeps_its_colours() -> None:
    difference = decode_jpeg(ODD["cmyk"]).astype(int) - decode_jpeg(ODD["baseline"])
    assert np.abs(difference).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    rotated = saved(picture(), quality=80, exif=exif)
    assert np.array_equal(decode_jpeg(rotated), decode_jpeg(GOOD))


def test_limits_are_inclusive_and_checked_before_decoding() -> None:
    assert inspect_jpeg(GOOD, max_bytes=len(GOOD), max_pixels=48 * 32)
    with pytest.raises(InputError, match="48x32"):
        inspect_jpeg(GOOD, max_pixels=48 * 32 - 1)
    with pytest.raises(InputError, match="bytes"):
        decode_jpeg(GOOD, max_bytes=len(GOOD) - 1)


def test_a_real_100_megapixel_file_is_refused() -> None:
    data = saved(Image.new("L", (12_000, 8_500)), quality=1)
    with pytest.raises(InputError, match="12000x8500"):
        decode_jpeg(data)


@pytest.mark.parametrize("name", ["baseline", "progressive", "cmyk", "restart markers"])
def test_every_truncation_is_refused(name: str) -> None:
    data = ODD[name]
    for end in range(len(data)):
        with pytest.raises(InputError):
            decode_jpeg(data[:end])


@given(
    st.sampled_from(sorted(ODD)),
    st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6),
)
@settings(max_examples=400, deadline=None)
def test_a_changed_file_decodes_or_is_refused(name: str, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(ODD[name])
    for position, value in changes:
        at = position % len(data)
        data[at : at + len(value)] = value
    with suppress(InputError):
        pixels = decode_jpeg(bytes(data), max_pixels=1 << 20)
        assert pixels.shape[2] == 3


@given(st.binary(max_size=100))
def test_noise_is_refused(data: bytes) -> None:
    for prefix in (b"", b"\xff\xd8\xff"):
        with pytest.raises(InputError):
            decode_jpeg(prefix + data)


def test_encode_and_resize() -> None:
    pixels = np.asarray(picture())
    assert np.abs(decode_jpeg(encode_jpeg(pixels, 95)).astype(int) - pixels).mean() < 3
    assert resize(pixels, 48, 32) is pixels
    assert resize(pixels, 20, 10).shape == (10, 20, 3)


def test_resizing_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(resize(stripes, 8, 8)) < 10


def test_torch_is_not_imported() -> None:
    code = (
        "import sys, fogline.common.images.jpeg, fogline.common.images.container as c; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.data
def test_real_frames(data_root: Path) -> None:
    files = sorted((data_root / "tracking").glob("*/img/0001.jpg"))
    assert files
    for file in files:
        data = file.read_bytes()
        assert np.array_equal(decode_jpeg(data), pillow(data))
