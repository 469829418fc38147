"""The built-in clip: cameras that pan over painted scenes while one object moves through each. Its boxes are exact.

It is synthetic and says so (`README.txt` beside the folders); it exists so that the whole job can be shown and
tested on a machine without any data.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fogline.common.data.clip_object import OBJECTS
from fogline.common.data.clip_scene import HORIZON, SCENES, Pixels
from fogline.common.errors import InputError

_README = """Built-in clip of Fogline: {cameras} cameras, {frames} frames each, {width}x{height}, seed {seed}.

SYNTHETIC: painted by fogline.common.data.clip, not filmed. Textured objects move over panned backgrounds;
boxes are the exact extent of each object. Figures measured on it say that the software works, not how well
it does on real cameras.
"""


def write_clip(
    folder: Path, *, cameras: int = 3, frames: int = 24, width: int = 640, height: int = 360, seed: int = 0
) -> list[Path]:
    """Write the clip as OTB folders `camera-1`, … in `folder` and return them; the same arguments, the same files.

    A folder that holds this very clip is used as it is. Raises InputError for a size that can't hold an object, and
    for a folder that holds anything else.
    """
    if cameras < 1 or frames < 1 or width < 64 or height < 48:
        raise InputError(f"{cameras} cameras x {frames} frames of {width}x{height}: need 1 x 1 of at least 64x48")
    text = _README.format(cameras=cameras, frames=frames, width=width, height=height, seed=seed)
    names = [f"camera-{i + 1}" for i in range(cameras)]
    if folder.exists():
        note = folder / "README.txt"
        if not note.is_file() or note.read_text(encoding="utf-8") != text:
            raise InputError(f"{folder}: holds something other than this clip; remove it or name another folder")
        return [folder / name for name in names]
    partial = folder.parent / f".{folder.name}.partial"  # a killed writer leaves no folder that looks whole
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "README.txt").write_text(text, encoding="utf-8")
    for i, name in enumerate(names):
        _write_camera(partial / name, i, frames, width, height, seed)
    partial.rename(folder)
    return [folder / name for name in names]


def _write_camera(folder: Path, camera: int, frames: int, width: int, height: int, seed: int) -> None:
    rng = np.random.default_rng([seed, camera])
    kind = camera % len(SCENES)
    margin = height // 12  # room for tilt and shake
    scene = SCENES[kind](rng, height + 2 * margin, width * 2)
    sprite = OBJECTS[kind](rng)
    phase = np.random.default_rng([seed, camera, 1]).uniform(0, 2 * math.pi, 5)  # the same path at any size
    (folder / "img").mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(frames):
        # About 24 frames to a turn whatever their number, so that a longer clip revisits places but never repeats.
        t = i / 24 * 2 * math.pi
        pan = (0.5 + 0.42 * math.sin(0.61 * t + phase[0])) * width
        tilt = margin * (1 + 0.5 * math.sin(1.3 * t + phase[1]) + 0.12 * rng.standard_normal())
        view = _view(scene, pan, tilt, width, height)
        frame, box = _place(view, sprite, kind, t, phase, height, width)
        exposed = _expose(frame, rng, 1 + 0.05 * math.sin(0.8 * t + phase[2]))
        Image.fromarray(exposed).save(folder / "img" / f"{i + 1:04d}.jpg", "JPEG", quality=90)
        lines.append(f"{box[0] + 1},{box[1] + 1},{box[2]},{box[3]}\n")
    (folder / "groundtruth_rect.txt").write_text("".join(lines), encoding="ascii")


def _view(scene: Pixels, pan: float, tilt: float, width: int, height: int) -> Pixels:
    """What the camera sees of the scene, shifted by fractions of a pixel (bilinear)."""
    x, y = int(pan), int(tilt)
    fx, fy = pan - x, tilt - y
    part = scene[y : y + height + 1, x : x + width + 1]
    rows = part[:-1] * (1 - fy) + part[1:] * fy
    return rows[:, :-1] * (1 - fx) + rows[:, 1:] * fx


def _place(
    view: Pixels, sprite: Image.Image, kind: int, t: float, phase: NDArray[np.float64], height: int, width: int
) -> tuple[Pixels, tuple[int, int, int, int]]:
    """Put the object where it is at time `t`, nearer ones larger; the box is the extent of what is painted."""
    across = 0.5 + 0.47 * math.sin(1.17 * t + phase[3])
    depth = 0.5 + 0.5 * math.sin(1.71 * t + phase[4])  # 0 far, 1 near
    tall = height * (0.17 + 0.2 * depth) * (0.8 if sprite.width > sprite.height else 1.25)
    turned = sprite.rotate(4 * math.sin(2.3 * t + phase[2]), Image.Resampling.BICUBIC, expand=True)
    scale = tall / turned.height
    small = turned.resize((max(8, round(turned.width * scale)), max(8, round(tall))), Image.Resampling.LANCZOS)
    airborne = OBJECTS[kind].__name__ == "balloon"
    foot = height * (0.55 + 0.4 * across * (1 - 0.2 * depth)) if airborne else height * (HORIZON + 0.2 + 0.32 * depth)
    x = round(across * (width - small.width - 4)) + 2
    if airborne:  # drifts across at its own pace, so that height above ground and place are not tied
        x = round((0.5 + 0.47 * math.sin(0.9 * t + phase[1])) * (width - small.width - 4)) + 2
    y = min(height - small.height - 2, max(2, round(foot) - small.height))
    layer = Image.new("RGBA", (width, height))
    layer.paste(small, (x, y))
    pixels = np.asarray(layer, np.float32) / 255
    alpha = pixels[..., 3:]
    rows, columns = np.nonzero(alpha[..., 0] > 0.5)
    box = (int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1)
    shade = np.zeros((height, width), np.uint8)
    if not airborne:
        low = slice(max(0, box[1] + box[3] - max(2, box[3] // 12)), min(height, box[1] + box[3] + max(2, box[3] // 14)))
        shade[low, box[0] : box[0] + box[2]] = 150
    soft = Image.fromarray(shade).filter(ImageFilter.GaussianBlur(max(1.0, box[3] / 20)))
    dark = 1 - np.asarray(soft, np.float32)[..., None] / 255
    return view * dark * (1 - alpha) + pixels[..., :3] * alpha, box


def _expose(frame: Pixels, rng: np.random.Generator, gain: float) -> NDArray[np.uint8]:
    """Exposure, darker corners, photon and read-out noise."""
    height, width = frame.shape[:2]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    light = np.clip(frame * (gain * (1 - 0.07 * (x * x + y * y)))[..., None], 0, 1)
    grain = rng.standard_normal(frame.shape, dtype=np.float32) * (0.006 + 0.014 * np.sqrt(light))
    exposed: NDArray[np.uint8] = (np.clip(light + grain, 0, 1) * 255).round().astype(np.uint8)
    return exposed
