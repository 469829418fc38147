"""Everything that a comparison found, and its JSON (docs/comparing-codecs.md)."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from fogline import __version__
from fogline.common.models.compare import SOURCE, Comparison
from fogline.compare.curves import Cost
from fogline.compare.detector import Task
from fogline.compare.equal import Equal
from fogline.compare.frames import Folder
from fogline.compare.ms_ssim import Similarity
from fogline.compare.run import Point

SCHEMA = 1


@dataclass(frozen=True)
class Summary:
    """What is said of a folder besides its points."""

    name: str
    path: str
    frames: int
    sizes: tuple[tuple[int, int], ...]  # coded, width and height
    source_bytes: float  # mean of a JPEG as captured
    boxes: float  # mean of a frame

    @classmethod
    def of(cls, folder: Folder) -> Summary:
        """Of a loaded folder."""
        frames = folder.frames
        return cls(
            name=folder.name,
            path=str(folder.path),
            frames=len(frames),
            sizes=tuple(sorted({(f.source.pixels.shape[1], f.source.pixels.shape[0]) for f in frames})),
            source_bytes=statistics.fmean(f.source_bytes for f in frames),
            boxes=statistics.fmean(len(f.source.boxes) for f in frames),
        )


@dataclass(frozen=True)
class Learned:
    """A detector trained on what one codec decodes to at one setting, over all folders."""

    codec: str
    params: dict[str, Any]
    bytes: float  # delivered, mean of an image of all folders
    scores: tuple[float, ...]  # by seed
    differences: tuple[float, ...]  # from training on source, by seed


@dataclass(frozen=True)
class Training:
    """All detectors."""

    task: Task
    comparison: Comparison
    learned: tuple[Learned, ...]

    @property
    def on_source(self) -> float:
        """Mean score of training on captured frames."""
        return statistics.fmean(self.comparison.scores(SOURCE))


@dataclass
class Results:
    """A comparison as it grows, folder by folder."""

    width: int
    object_db: float
    device: str
    folders: list[Summary] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    equal: list[Equal] = field(default_factory=list)
    training: Training | None = None

    def points_of(self, folder: str) -> list[Point]:
        """The points of one folder."""
        return [point for point in self.points if point.folder == folder]


def document(results: Results, hardware: dict[str, object]) -> dict[str, Any]:
    """The JSON document; every key is explained in docs/comparing-codecs.md."""
    return {
        "schema": SCHEMA,
        "fogline": __version__,
        "hardware": hardware,
        "width": results.width,
        "device": results.device,
        "folders": [
            {
                "name": folder.name,
                "path": folder.path,
                "images": folder.frames,
                "coded_sizes": [list(size) for size in folder.sizes],
                "source_bytes_per_image": folder.source_bytes,
                "boxes_per_image": folder.boxes,
            }
            for folder in results.folders
        ],
        "points": [_point(point) for point in results.points],
        "equal_quality": [_equal(equal) for equal in results.equal],
        "detector": None if results.training is None else _training(results.training),
    }


def _point(point: Point) -> dict[str, Any]:
    out: dict[str, Any] = {
        "folder": point.folder,
        "codec": point.codec,
        "params": point.params,
        "error": None if point.error is None else f"{type(point.error).__name__}: {point.error}",
    }
    m = point.measured
    if m is None:
        return out
    return out | {
        "images": m.images,
        "bytes_per_image": m.bytes,
        "bytes_per_image_with_shared": m.delivered_bytes,
        "shared_bytes": m.shared_bytes,
        "background_payload_bytes_per_image": m.background_bytes,
        "object_payload_bytes_per_image": m.object_bytes,
        "full_psnr_db": m.full_db,
        "background_psnr_db": m.background_db,
        "object_psnr_db": m.object_db,
        "full_ms_ssim": _similarity(m.full_similarity),
        "background_ms_ssim": _similarity(m.background_similarity),
        "object_ms_ssim": _similarity(m.object_similarity),
        "encode_images_per_s": rate(m.images, m.encode_s),
        "prepare_images_per_s": rate(m.images, m.prepare_s),
        "decode_images_per_s": rate(m.images, m.decode_s),
    }


def rate(images: int, seconds: float) -> float | None:
    """Images a second; None for no time at all."""
    return images / seconds if seconds > 0 else None


def _similarity(found: Similarity | None) -> dict[str, Any] | None:
    return None if found is None else {"value": found.value, "scales": found.scales}


def _equal(equal: Equal) -> dict[str, Any]:
    return {
        "folder": equal.folder,
        "reference": equal.reference,
        "object_psnr_db_at_least": equal.object_db,
        "levels": [
            {
                "background_psnr_db": level.background_db,
                "usual": level.usual,
                "codecs": {
                    codec: _cost(cost, level.ratio(codec, equal.reference)) for codec, cost in level.costs.items()
                },
            }
            for level in equal.levels
        ],
        "mean_ratio": {
            codec: None
            if r is None
            else {"ratio": r.ratio, "from_background_db": r.from_db, "to_background_db": r.to_db}
            for codec, r in equal.ratios.items()
        },
    }


def _cost(cost: Cost | str, ratio: float | None) -> dict[str, Any]:
    if isinstance(cost, str):
        return {"bytes_per_image": None, "why": cost}
    return {"bytes_per_image": cost.bytes, "at_most": cost.at_most, "ratio": ratio}


def _training(training: Training) -> dict[str, Any]:
    found = training.comparison
    return {
        "metric": found.metric,
        "steps": found.steps,
        "epochs": found.epochs,
        "seeds": list(training.task.seeds),
        "size": list(training.task.size),
        "held_out_images": len(training.task.held_out.targets),
        "untrained": found.untrained,
        "constant_box": found.constant_box,
        "constant_box_per_camera": found.constant_box_per_camera,
        "source": list(found.scores(SOURCE)),
        "points": [
            {
                "codec": one.codec,
                "params": one.params,
                "bytes_per_image_with_shared": one.bytes,
                "scores": list(one.scores),
                "differences": list(one.differences),
            }
            for one in training.learned
        ],
    }
