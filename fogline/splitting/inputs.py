"""What the `fogline split` commands take: models and inputs by name, folders of images."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fogline.common.errors import ConfigError, InputError
from fogline.common.split.measure import Calibration

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MOST = 64  # images of a folder that are used
MAX_PIXELS = 100_000_000


def function(option: str, name: str) -> Any:
    """`package.module:function` of the user's own. The working directory counts as installed. Raises ConfigError."""
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f"{option} {name!r}: write it as package.module:function")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{option} {name!r}: {error}; install the package, or run where it lies") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        close = difflib.get_close_matches(attribute, [one for one in dir(module) if not one.startswith("_")], n=1)
        hint = f"did you mean {close[0]!r}?" if close else "give one that it defines"
        raise ConfigError(f"{option} {name!r}: {module_name} has no function {attribute!r}; {hint}")
    return found


def model(name: str) -> nn.Module:
    """Build the user's model, in eval mode. Raises ConfigError where the function makes none."""
    built = function("--model", name)()
    if not isinstance(built, nn.Module):
        raise ConfigError(f"--model {name!r} returned {type(built).__name__}; it must return a torch.nn.Module")
    return built.eval()


def calibration(inputs: str | None, images: Path | None, size: int) -> Calibration:
    """The calibration set: what a function returns, a folder of images, or painted noise.

    The function returns a Calibration, a tensor, a dict of tensors, or (inputs, labels).
    Raises ConfigError and InputError.
    """
    if inputs is not None and images is not None:
        raise ConfigError("give --inputs or --images, not both")
    if images is not None:
        return Calibration(folder(images, size), name=f"{images.name}, {size}x{size}")
    if inputs is None:
        from fogline.benchmarks.split_models import painted

        return Calibration(_resized(painted(16, seed=1), size), name=f"painted noise, {size}x{size}")
    made = function("--inputs", inputs)()
    if isinstance(made, Calibration):
        return made
    if isinstance(made, Tensor | Mapping):
        return Calibration(made, name=inputs)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], Tensor):
        return Calibration(made[0], made[1], inputs)
    raise ConfigError(
        f"--inputs {inputs!r} returned {type(made).__name__}; return a tensor, a dict, or (inputs, labels)"
    )


def folder(path: Path, size: int) -> Tensor:
    """Images, short side scaled to `size` and cut to a square: float32 (images, 3, size, size) in 0..1."""
    if not 8 <= size <= 4096:
        raise ConfigError(f"--size {size}: give 8 to 4096 pixels")
    files = sorted(one for one in path.rglob("*") if one.suffix.lower() in ENDINGS)[:MOST] if path.is_dir() else []
    if not files:
        raise InputError(f"--images {path}: holds no {', '.join(ENDINGS)}; name a folder with images")
    return torch.stack([_image(one, size) for one in files])


def _image(path: Path, size: int) -> Tensor:
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise InputError(f"{path}: {opened.width}x{opened.height} pixels are too many; make it smaller")
            picture = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} can't be read as an image: {error}; remove it") from error
    scale = size / min(picture.size)
    picture = picture.resize((max(size, round(picture.width * scale)), max(size, round(picture.height * scale))))
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    picture = picture.crop((left, top, left + size, top + size))
    data = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return data.reshape(size, size, 3).permute(2, 0, 1).contiguous().float() / 255


def _resized(inputs: Tensor, size: int) -> Tensor:
    if inputs.shape[-1] == size:
        return inputs
    return nn.functional.interpolate(inputs, size=(size, size), mode="bilinear")
