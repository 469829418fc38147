"""Backgrounds of the built-in clip: wide painted scenes with the 1/f statistics of photographs. numpy only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]  # (H, W)
Pixels = NDArray[np.floating[Any]]  # (H, W, 3) in [0, 1]
HORIZON = 0.4  # share of the height that is sky


def noise(rng: np.random.Generator, height: int, width: int, slope: float) -> Field:
    """A periodic field (H, W) of mean 0 and deviation 1 whose amplitude falls with frequency to the power `-slope`."""
    fy, fx = np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None, :] * width
    radius = np.hypot(fy, fx * height / width)
    radius[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) * radius**-slope
    field = np.fft.irfft2(spectrum, s=(height, width))
    scaled: Field = (field / field.std()).astype(np.float32)
    return scaled


def _mix(base: Pixels, colour: Pixels | tuple[float, float, float], weight: Field) -> Pixels:
    w = np.clip(weight, 0, 1)[..., None].astype(np.float32)
    return base * (1 - w) + np.asarray(colour, np.float32) * w


def _sky(rng: np.random.Generator, height: int, width: int) -> Pixels:
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    top, low = np.array([0.36, 0.55, 0.83], np.float32), np.array([0.80, 0.87, 0.93], np.float32)
    fall = np.clip(y / HORIZON, 0, 1) ** 0.8
    sky = (top * (1 - fall[..., None]) + low * fall[..., None]) * np.ones((1, width, 1), np.float32)
    clouds = noise(rng, height, width, 1.7)
    lit = 0.93 + 0.05 * np.roll(clouds, 6, axis=0)
    return _mix(sky, np.repeat(lit[..., None], 3, axis=2), (clouds - 0.1) * 0.7)


def _plane(rng: np.random.Generator, height: int, width: int, stretch: float = 1.0) -> tuple[Field, Field, Field]:
    """A ground plane in perspective: coarse texture, fine texture, and nearness (0 at the horizon, 1 at the feet)."""
    rows = np.arange(height, dtype=np.float32)[:, None] / height
    near = np.clip((rows - HORIZON) / (1 - HORIZON), 0.004, 1) * np.ones((1, width), np.float32)
    x = (np.arange(width, dtype=np.float32)[None, :] - width / 2) / width
    size = 512
    u, v = x / near * 260, stretch * 70 / near

    def sample(texture: Field, scale: float) -> Field:
        sampled: Field = texture[(v * scale).astype(np.int64) % size, (u * scale).astype(np.int64) % size]
        return sampled

    coarse = sample(noise(rng, size, size, 1.2), 1.0) * np.clip(near * 5, 0.15, 1)
    fine = sample(noise(rng, size, size, 0.6), 3.0) * np.clip(near * 2.2 - 0.1, 0, 1)
    return coarse, fine, near


def _ridge(rng: np.random.Generator, width: int, slope: float) -> Field:
    ridge: Field = noise(rng, 8, width, slope)[0]
    return ridge


def _hills(rng: np.random.Generator, image: Pixels) -> Pixels:
    height, width = image.shape[:2]
    rows = np.arange(height, dtype=np.float32)[:, None]
    texture = noise(rng, height, width, 1.0)
    for lift, colour in ((0.085, (0.62, 0.70, 0.78)), (0.045, (0.45, 0.56, 0.56)), (0.02, (0.30, 0.42, 0.33))):
        top = height * (HORIZON - lift - 0.022 * _ridge(rng, width, 1.3))
        below = np.clip((rows - top) * 0.7, 0, 1)
        image = _mix(image, np.asarray(colour, np.float32) * (1 + 0.07 * texture[..., None]), below)
    return image


def _buildings(rng: np.random.Generator, image: Pixels, count: int, tallest: float) -> Pixels:
    height, width = image.shape[:2]
    image = image.copy()
    base = round(height * (HORIZON + 0.02))
    dirt = noise(rng, height, width, 0.8)[..., None]
    for _ in range(count):
        w = int(rng.integers(height // 10, height // 4))
        h = int(height * tallest * rng.uniform(0.35, 1))
        x, y = int(rng.integers(0, width - w)), base - h
        wall = rng.uniform(0.35, 0.8) * (1 + np.array(rng.uniform(-0.06, 0.06, 3), np.float32))
        shade = np.linspace(1.08, 0.86, w, dtype=np.float32)[None, :, None]
        face = wall.astype(np.float32) * shade * np.ones((h, 1, 1), np.float32)
        pitch_x, pitch_y = int(rng.integers(6, 13)), int(rng.integers(8, 15))
        gx, gy = np.arange(w) % pitch_x, np.arange(h) % pitch_y
        windows = ((gx > pitch_x * 0.4)[None, :] & (gy > pitch_y * 0.45)[:, None]).astype(np.float32)
        lit = rng.uniform(0.12, 0.62, (h // pitch_y + 1, w // pitch_x + 1)).astype(np.float32)
        panes = lit.repeat(pitch_y, 0)[:h].repeat(pitch_x, 1)[:, :w]
        face = _mix(face, panes[..., None] * np.array([0.8, 0.95, 1.1], np.float32), windows * 0.85)
        image[y:base, x : x + w] = face * (1 + 0.05 * dirt[y:base, x : x + w])
        image[y : y + 2, x : x + w] *= 0.7
    return image


def _trees(rng: np.random.Generator, image: Pixels, count: int, size: float) -> Pixels:
    height, width = image.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    leaves, edge = noise(rng, height, width, 0.75), noise(rng, height, width, 1.0)
    for _ in range(count):
        r = height * size * rng.uniform(0.6, 1.2)
        cx, foot = rng.uniform(0, width), height * (HORIZON + rng.uniform(0.01, 0.07))
        cy = foot - 1.35 * r
        trunk = (np.abs(columns - cx) < r * 0.09) & (rows > cy) & (rows < foot)
        image = _mix(image, (0.22, 0.17, 0.13), trunk.astype(np.float32))
        distance = np.hypot((columns - cx) / r, (rows - cy) / (r * 1.05)) + 0.16 * edge
        light = 0.85 - 0.35 * (rows - cy) / r - 0.22 * (columns - cx) / r + 0.3 * leaves
        tint = np.array([0.27, 0.40, 0.16], np.float32) * (1 + rng.uniform(-0.2, 0.2, 3).astype(np.float32))
        image = _mix(image, tint * np.clip(light, 0.25, 1.7)[..., None], np.clip((1 - distance) * 9, 0, 1))
    return image


def street(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Houses and trees behind a road seen from its side."""
    image = _trees(rng, _buildings(rng, _hills(rng, _sky(rng, height, width)), 26, 0.3), 16, 0.07)
    coarse, fine, near = _plane(rng, height, width)
    grass = np.array([0.32, 0.42, 0.18], np.float32) * (1 + 0.13 * coarse + 0.17 * fine)[..., None]
    road = np.array([0.36, 0.36, 0.38], np.float32) * (1 + 0.07 * coarse + 0.10 * fine)[..., None]
    path = np.array([0.66, 0.63, 0.58], np.float32) * (1 + 0.06 * coarse + 0.08 * fine)[..., None]
    ground = _mix(grass, path, ((near > 0.16) & (near < 0.93)).astype(np.float32))
    ground = _mix(ground, road, ((near > 0.24) & (near < 0.82)).astype(np.float32))
    dashes = (np.arange(width)[None, :] // (width // 30) % 2 == 0) & (near > 0.475) & (near < 0.5)
    ground = _mix(ground, (0.82, 0.81, 0.76), dashes * np.float32(0.85))
    return _mix(image, ground, _below(height, width))


def meadow(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """A mown field before hills and trees."""
    image = _trees(rng, _hills(rng, _sky(rng, height, width)), 34, 0.085)
    coarse, fine, near = _plane(rng, height, width)
    stripes = np.sin(8.0 / (near + 0.12))
    light = 1 + 0.12 * coarse + 0.2 * fine + 0.1 * np.tanh(4 * stripes)
    flowers = np.clip(fine - 2.1, 0, 1) * 2
    ground = np.array([0.41, 0.46, 0.23], np.float32) * light[..., None]
    return _mix(image, _mix(ground, (0.9, 0.85, 0.45), flowers), _below(height, width))


def waterfront(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Open water before a built-up far shore."""
    image = _trees(rng, _buildings(rng, _hills(rng, _sky(rng, height, width)), 34, 0.17), 26, 0.035)
    coarse, fine, near = _plane(rng, height, width, stretch=4.0)
    waves = 0.75 * coarse + 0.55 * fine
    deep, sky = np.array([0.12, 0.27, 0.36], np.float32), np.array([0.66, 0.76, 0.84], np.float32)
    mirror = np.clip(0.75 - 0.75 * near**0.6 + 0.17 * waves, 0, 1)[..., None]
    water = deep * (1 - mirror) + sky * mirror
    return _mix(image, _mix(water, (0.97, 0.98, 0.98), np.clip(waves - 1.7, 0, 1)), _below(height, width))


def _below(height: int, width: int) -> Field:
    rows = np.arange(height, dtype=np.float32)[:, None] - height * HORIZON
    weight: Field = np.clip(rows, 0, 1) * np.ones((1, width), np.float32)
    return weight


SCENES: tuple[Callable[[np.random.Generator, int, int], Pixels], ...] = (street, meadow, waterfront)
