"""MS-SSIM against values of another implementation, and against what must hold of it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")

from fogline.compare.ms_ssim import Similarity, ms_ssim, scales_of

Pixels = NDArray[np.uint8]


def picture(height: int, width: int) -> Pixels:
    y, x = np.mgrid[0:height, 0:width]
    waves = (100 * np.sin(x / 7 + y / 11), 90 * np.cos(x / 13 - y / 5), 80 * np.sin(x * y / 900))
    return (127 + np.stack(waves, -1)).clip(0, 255).astype(np.uint8)


def spoiled(pixels: Pixels, by: int = 20) -> Pixels:
    y, x = np.mgrid[0 : pixels.shape[0], 0 : pixels.shape[1]]
    noise = (x * 7919 + y * 104729) % (2 * by + 1) - by
    return (pixels.astype(int) + noise[..., None]).clip(0, 255).astype(np.uint8)


def value(found: Similarity | None) -> float:
    assert found is not None
    return found.value


@pytest.mark.parametrize(
    ("height", "width", "expected", "scales"),
    # Of pytorch-msssim 1.0.0 (ms_ssim, and ssim for the smallest), data_range 255.
    [(192, 256, 0.98224, 5), (360, 640, 0.98740, 5), (176, 200, 0.98037, 5), (12, 20, 0.54164, 1)],
)
def test_it_gives_the_values_of_a_widely_used_implementation(
    height: int, width: int, expected: float, scales: int
) -> None:
    whole, part = ms_ssim(picture(height, width), spoiled(picture(height, width)))
    assert whole == part
    assert value(whole) == pytest.approx(expected, abs=1e-5)
    assert whole is not None
    assert whole.scales == scales


def test_equal_images_are_1_and_worse_ones_less() -> None:
    original = picture(180, 320)
    assert value(ms_ssim(original, original)[0]) == pytest.approx(1.0, abs=1e-6)
    values = [value(ms_ssim(original, spoiled(original, by))[0]) for by in (5, 20, 60)]
    assert values == sorted(values, reverse=True)
    assert ms_ssim(original, spoiled(original))[0] == pytest.approx(ms_ssim(spoiled(original), original)[0])


def test_an_inverted_image_is_worth_nothing() -> None:
    original = picture(180, 320)
    assert value(ms_ssim(original, 255 - original)[0]) == 0.0


@pytest.mark.parametrize(
    ("width", "height", "scales"), [(161, 161, 5), (160, 900, 4), (81, 81, 4), (80, 80, 3), (11, 11, 1), (10, 500, 0)]
)
def test_small_images_have_fewer_scales_and_say_so(width: int, height: int, scales: int) -> None:
    assert scales_of(width, height) == scales
    whole, _ = ms_ssim(picture(height, width), spoiled(picture(height, width)))
    assert (whole.scales if whole else 0) == scales


def test_parts_are_judged_apart() -> None:
    original = picture(240, 320)
    decoded = original.copy()
    decoded[80:160, 120:200] = spoiled(original, 60)[80:160, 120:200]
    outside = np.ones((240, 320), bool)
    outside[80:160, 120:200] = False
    whole, clean = ms_ssim(original, decoded, outside)
    _, dirty = ms_ssim(original, decoded, ~outside)
    assert value(clean) > value(whole) > value(dirty)
    far = np.zeros((240, 320), bool)
    far[:, :16] = True
    assert ms_ssim(original, decoded, far)[1] is None  # no window of the coarsest scale is centred there
    assert ms_ssim(original, decoded, np.zeros((240, 320), bool))[1] is None
