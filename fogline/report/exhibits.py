"""The pictures of the report: what a few images became, good ones and the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fogline.deploy.local.plan import PlannedImage
from fogline.report.findings import Score
from fogline.report.frames import boxes_at
from fogline.report.measure import Received, Rendering
from fogline.report.pictures import Exhibit, Panel, crop_around, data_uri, difference
from fogline.report.trials import Trial

_GAIN = 3  # of difference pictures
_THUMBNAIL = 240  # pixels wide


def choose(scores: Sequence[Score]) -> list[tuple[str, Score]]:
    """A good image, an ordinary one and the worst, by the PSNR of their objects (of the frame where none has one)."""
    if not scores:
        return []
    key = "of its object" if any(s.object_db is not None for s in scores) else "of the frame"
    ranked = sorted(
        (s for s in scores if s.object_db is not None) if key == "of its object" else scores,
        key=lambda s: s.full_db if s.object_db is None else s.object_db,
    )
    picks = [("The best", ranked[-1]), ("The median", ranked[len(ranked) // 2]), ("The worst", ranked[0])]
    named: dict[bytes, tuple[str, Score]] = {}
    for name, figures in picks:
        named.setdefault(figures.content_id, (f"{name} by PSNR {key}", figures))
    return list(named.values())


def exhibit(name: str, image: Received, pixels: Rendering, figures: Score) -> Exhibit:
    """The frame in four steps, and its largest object before and after."""
    source = image.captured
    panels = (
        Panel(
            "Original",
            data_uri(pixels.original),
            f"{source.frame.width}x{source.frame.height} JPEG of {source.size:,} bytes, "
            f"here at {image.size[0]}x{image.size[1]}",
        ),
        Panel(
            "Background layer",
            data_uri(pixels.background),
            f"{figures.background_bytes:,} bytes; {_db(figures.background_db)} outside the objects",
        ),
        Panel(
            f"What object layers add, x{_GAIN}",
            data_uri(difference(pixels.decoded, pixels.background, _GAIN)),
            f"{figures.object_bytes:,} bytes in {_layers(len(image.record.layers) - 1)}",
        ),
        Panel("Decoded", data_uri(pixels.decoded), f"record of {figures.record_bytes:,} bytes; {_db(figures.full_db)}"),
    )
    title = f"{name}: {source.camera}, frame {source.frame.path.name}"
    return Exhibit(title, panels, _crops(image, pixels, figures))


def _crops(image: Received, pixels: Rendering, figures: Score) -> tuple[Panel, ...]:
    boxes = boxes_at(image.captured, image.size)
    if not boxes:
        return ()
    box = max(boxes, key=lambda b: b[2] * b[3])
    which = "" if len(boxes) == 1 else f" (largest of {len(boxes)})"
    before, after = crop_around(pixels.original, box), crop_around(pixels.decoded, box)
    return (
        Panel(f"Object, original{which}", data_uri(before), f"box of {box[2]:.0f}x{box[3]:.0f} pixels"),
        Panel(
            "Object, background layer alone",
            data_uri(crop_around(pixels.background, box)),
            f"{_db(figures.object_background_db)} inside the boxes",
        ),
        Panel("Object, decoded", data_uri(after), f"{_db(figures.object_db)} inside the boxes"),
        Panel(f"What is still wrong, x{_GAIN}", data_uri(difference(after, before, _GAIN)), "decoded minus original"),
    )


def codec_strips(
    images: Sequence[PlannedImage], originals: Mapping[bytes, NDArray[np.uint8]], trials: Sequence[Trial]
) -> list[list[Panel]]:
    """One row per frame: the original, then each codec's rendering."""
    rows = []
    for image in images:
        row = [Panel("Original", _thumbnail(originals[image.content_id]), f"JPEG, {image.size:,} bytes")]
        for trial in trials:
            pixels, figures = trial.decoded[image.content_id]
            caption = f"{figures.record_bytes:,} bytes; {_db(figures.full_db)}"
            if figures.object_db is not None:
                caption += f", object {_db(figures.object_db)}"
            row.append(Panel(trial.figures.codec, _thumbnail(pixels), caption))
        rows.append(row)
    return rows


def _thumbnail(pixels: NDArray[np.uint8]) -> str:
    height = round(pixels.shape[0] * _THUMBNAIL / pixels.shape[1])
    if pixels.shape[1] <= _THUMBNAIL:
        return data_uri(pixels)
    return data_uri(np.asarray(Image.fromarray(pixels).resize((_THUMBNAIL, height), Image.Resampling.LANCZOS)))


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _db(value: float | None) -> str:
    return "no PSNR" if value is None else f"{value:.1f} dB"
