"""Moving objects of the built-in clip, each painted once, large, with transparency. numpy and Pillow."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from fogline.common.data.clip_scene import noise

Colour = tuple[int, int, int]


def _finish(image: Image.Image, rng: np.random.Generator, grain: float = 0.07) -> Image.Image:
    """Give flat paint a surface: grain, and light from the upper left."""
    pixels = np.asarray(image, np.float32).copy()
    height, width = pixels.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = 1.12 - 0.24 * y / height - 0.08 * x / width + grain * noise(rng, height, width, 0.9)
    pixels[..., :3] = np.clip(pixels[..., :3] * light[..., None], 0, 255)
    return Image.fromarray(pixels.astype(np.uint8)).crop(image.getbbox())


def _darker(colour: Colour, by: float) -> Colour:
    return tuple(int(c * by) for c in colour)  # type: ignore[return-value]


def van(rng: np.random.Generator) -> Image.Image:
    """A painted van from its side."""
    paint: Colour = (205, 58, 42)
    image = Image.new("RGBA", (480, 240))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((10, 20, 400, 200), 26, fill=paint)
    draw.polygon([(380, 24), (412, 40), (448, 112), (468, 128), (472, 200), (380, 200)], fill=paint)
    draw.rectangle((10, 132, 470, 146), fill=(238, 230, 212))
    for left, right in ((150, 246), (262, 340)):
        draw.rounded_rectangle((left, 44, right, 112), 8, fill=(58, 78, 96))
        draw.polygon([(left + 16, 46), (left + 44, 46), (left + 22, 110), (left - 4 + 16, 110)], fill=(132, 156, 172))
    draw.polygon([(358, 44), (398, 48), (430, 112), (358, 112)], fill=(66, 90, 110))
    draw.rounded_rectangle((34, 44, 128, 112), 6, fill=_darker(paint, 0.82))
    draw.line((137, 30, 137, 196), fill=_darker(paint, 0.6), width=3)
    draw.line((350, 30, 350, 196), fill=_darker(paint, 0.6), width=3)
    draw.rectangle((10, 186, 474, 204), fill=(46, 46, 50))
    draw.ellipse((452, 148, 474, 170), fill=(250, 240, 190))
    draw.rectangle((10, 152, 22, 176), fill=(250, 120, 60))
    for x in (104, 372):
        draw.ellipse((x - 42, 150, x + 42, 234), fill=(26, 26, 28))
        draw.ellipse((x - 24, 168, x + 24, 216), fill=(160, 162, 166))
        draw.ellipse((x - 9, 183, x + 9, 201), fill=(72, 72, 76))
    return _finish(image, rng)


def balloon(rng: np.random.Generator) -> Image.Image:
    """A hot-air balloon with coloured panels."""
    panels: tuple[Colour, ...] = ((196, 44, 60), (246, 196, 52), (44, 92, 168))
    image = Image.new("RGBA", (320, 440))
    draw = ImageDraw.Draw(image)
    for x in (132, 146, 174, 188):
        draw.line((160 + (x - 160) * 2.2, 262, x, 372), fill=(70, 60, 54), width=3)
    edges = [160 + 150 * math.sin(math.pi * (k / 10 - 0.5)) for k in range(11)]
    for k in range(10):
        colour = panels[k % 3]
        slab = Image.new("L", image.size)
        pen = ImageDraw.Draw(slab)
        pen.ellipse((10, 6, 310, 286), fill=255)
        pen.polygon([(24, 190), (296, 190), (192, 320), (128, 320)], fill=255)
        keep = Image.new("L", image.size)
        lower = [160 + (e - 160) * 0.24 for e in edges[k : k + 2]]
        ImageDraw.Draw(keep).polygon(
            [(edges[k], 0), (edges[k + 1], 0), (edges[k + 1], 170), (lower[1], 322), (lower[0], 322), (edges[k], 170)],
            fill=255,
        )
        mask = Image.fromarray(np.minimum(np.asarray(slab), np.asarray(keep)))
        round_light = 0.72 + 0.42 * math.cos((k - 3.2) / 10 * math.pi * 0.9)
        image.paste(Image.new("RGBA", image.size, (*_darker(colour, min(round_light, 1.0)), 255)), mask=mask)
    draw.rectangle((24, 148, 296, 160), fill=(240, 236, 226))
    draw.rectangle((128, 318, 192, 328), fill=(60, 50, 44))
    draw.rounded_rectangle((130, 370, 190, 424), 6, fill=(140, 98, 58))
    for y in range(378, 424, 9):
        draw.line((131, y, 189, y), fill=(108, 74, 42), width=3)
    pixels = np.asarray(image).copy()
    pixels[..., 3][(pixels[..., 3] > 0) & (np.asarray(image)[..., :3].sum(2) == 0)] = 0
    return _finish(Image.fromarray(pixels), rng)


def sailboat(rng: np.random.Generator) -> Image.Image:
    """A sailing boat with a numbered sail."""
    image = Image.new("RGBA", (400, 480))
    draw = ImageDraw.Draw(image)
    draw.rectangle((196, 12, 204, 400), fill=(96, 74, 56))
    draw.polygon([(190, 20), (190, 372), (42, 352)], fill=(244, 240, 226))
    draw.polygon([(210, 40), (354, 372), (210, 372)], fill=(226, 96, 48))
    for t in (0.3, 0.5, 0.7):
        draw.line((190 - 148 * t + 4, 20 + 332 * t, 190, 20 + 352 * t), fill=(206, 200, 186), width=4)
    draw.polygon([(210, 190), (275, 190), (300, 248), (210, 248)], fill=(250, 246, 236))
    draw.rectangle((112, 214, 120, 258), fill=(60, 60, 70))
    draw.ellipse((132, 214, 164, 258), outline=(60, 60, 70), width=7)
    draw.polygon([(22, 392), (384, 384), (336, 458), (72, 460)], fill=(38, 60, 104))
    draw.polygon([(22, 392), (384, 384), (380, 398), (28, 406)], fill=(236, 232, 220))
    draw.polygon([(62, 446), (344, 444), (334, 460), (74, 462)], fill=(158, 44, 40))
    draw.rounded_rectangle((236, 364, 300, 390), 6, fill=(214, 204, 186))
    return _finish(image, rng)


OBJECTS: tuple[Callable[[np.random.Generator], Image.Image], ...] = (van, balloon, sailboat)
