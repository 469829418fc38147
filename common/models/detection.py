"""What a detector learns from boxes, and how its output becomes boxes again. Boxes here are x0, y0, x1, y1 in 0..1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fogline.common.boxes import Box
from fogline.common.errors import InputError

_CENTRE = 0.18  # radius, in box sizes, of the cells that answer for an object
_GAUSS = 0.09  # deviation, in box sizes, of the heat map around a centre
_NMS_IOU = 0.5
_VOTERS = 2  # cells to each side of a peak whose boxes are averaged into its own


@dataclass(frozen=True)
class Target:
    """The objects of one image: `boxes` float32 (n, 4) as x0, y0, x1, y1 in 0..1, `labels` int64 (n)."""

    boxes: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first: a Target's fields and `scores` float32 (n) in 0..1."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def to_target(boxes: Sequence[Box], width: int, height: int, labels: Sequence[str] = ()) -> Target:
    """Boxes in pixels of a `width` x `height` frame as a Target. With no `labels` every object is of one kind.

    Raises InputError for a label that is not among `labels`.
    """
    kinds = []
    for box in boxes:
        if labels and box.label not in labels:
            raise InputError(f"label {box.label!r} is none of {list(labels)}; add it to the labels or drop the box")
        kinds.append(labels.index(box.label) if labels else 0)
    corners = [(b.x / width, b.y / height, (b.x + b.w) / width, (b.y + b.h) / height) for b in boxes]
    return Target(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4), torch.tensor(kinds, dtype=torch.int64))


def flat(targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    """All boxes of a batch, float32 (n, 4), and the index of the image that each is in, int64 (n)."""
    counts = torch.tensor([len(t.boxes) for t in targets], dtype=torch.int64)
    boxes = torch.cat([t.boxes for t in targets]) if len(targets) else torch.zeros(0, 4)
    return boxes, torch.repeat_interleave(torch.arange(len(counts)), counts)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4) with boxes (..., 4), broadcast."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inside = (high - low).clamp(min=0).prod(-1)
    return inside / (_area(a) + _area(b) - inside).clamp(min=1e-9)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def detection_loss(score: Tensor, box: Tensor, targets: Sequence[Target]) -> Tensor:
    """Loss of a batch, a scalar: penalty-reduced focal loss on the heat map, and complete overlap (GIoU) of the boxes.

    `score` (B, L, h, w) and `box` (B, 4, h, w) are the detector's output; targets outside of 0..1 are out of view.
    """
    heat, images, cells_y, cells_x, wanted, weight = _assign(score, targets)
    p = score.sigmoid()
    logp, logn = F.logsigmoid(score), F.logsigmoid(-score)
    positive = heat >= 0.999
    loss = torch.where(positive, -logp * (1 - p) ** 2, -logn * p**2 * (1 - heat) ** 4)
    count = max(1, sum(len(t.boxes) for t in targets))
    total = loss.sum() / count
    if len(images):
        found = cell_boxes(box)[images, cells_y, cells_x]
        low, high = torch.minimum(found[:, :2], wanted[:, :2]), torch.maximum(found[:, 2:], wanted[:, 2:])
        hull = (high - low).prod(-1).clamp(min=1e-9)
        iou = paired_iou(found, wanted)
        union = _area(found) + _area(wanted)
        union = union / (1 + iou)  # |A| + |B| = union + intersection
        giou = iou - (hull - union) / hull
        total = total + 2 * ((1 - giou) * weight).sum() / weight.sum()
    return total


def _assign(score: Tensor, targets: Sequence[Target]) -> tuple[Tensor, ...]:
    """Heat map (B, L, h, w), and for each answering cell its image, row, column, box and weight."""
    batch, labels, height, width = score.shape
    heat = torch.zeros(batch, labels, height, width, device=score.device)
    y = (torch.arange(height, device=score.device) + 0.5) / height
    x = (torch.arange(width, device=score.device) + 0.5) / width
    parts = []
    for i, target in enumerate(targets):
        if not len(target.boxes):
            continue
        boxes = target.boxes.to(score.device)
        middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2])
        dx = (x[None, :] - middle[:, :1]) / size[:, :1]
        dy = (y[None, :] - middle[:, 1:]) / size[:, 1:]
        # At least about a cell wide, so that the smallest object still lights its own cell.
        sx, sy = (_GAUSS * size[:, 0]).clamp(min=0.5 / width), (_GAUSS * size[:, 1]).clamp(min=0.5 / height)
        gx, gy = -((dx * size[:, :1] / sx[:, None]) ** 2) / 2, -((dy * size[:, 1:] / sy[:, None]) ** 2) / 2
        glow = (gy[:, :, None] + gx[:, None, :]).exp()  # (n, h, w)
        peak_x = (middle[:, 0] * width).long().clamp(0, width - 1)
        peak_y = (middle[:, 1] * height).long().clamp(0, height - 1)
        glow[torch.arange(len(boxes)), peak_y, peak_x] = 1.0
        for label in set(target.labels.tolist()):
            heat[i, label] = glow[target.labels == label].amax(0)
        near = (dx.abs()[:, None, :] < _CENTRE) & (dy.abs()[:, :, None] < _CENTRE)
        near[torch.arange(len(boxes)), peak_y, peak_x] = True
        best, owner = torch.where(near, glow, glow.new_zeros(())).max(0)  # a cell answers for its nearest object
        rows, columns = torch.nonzero(best > 0, as_tuple=True)
        own = owner[rows, columns]
        share = 1 / torch.bincount(own, minlength=len(boxes)).clamp(min=1)[own]
        parts.append((torch.full_like(rows, i), rows, columns, boxes[own], share))
    if not parts:
        empty = torch.zeros(0, dtype=torch.int64, device=score.device)
        return heat, empty, empty, empty, score.new_zeros(0, 4), score.new_zeros(0)
    return heat, *(torch.cat(part) for part in zip(*parts, strict=True))


def cell_boxes(box: Tensor) -> Tensor:
    """The detector's box output (B, 4, h, w) as boxes (B, h, w, 4) in 0..1."""
    height, width = box.shape[2:]
    x = torch.arange(width, device=box.device) + 0.5
    y = (torch.arange(height, device=box.device) + 0.5)[:, None]
    cx, cy = (x + box[:, 0]) / width, (y + box[:, 1]) / height
    w, h = box[:, 2].clamp(-4, 5).exp() / width, box[:, 3].clamp(-4, 5).exp() / height
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)


def decode(score: Tensor, box: Tensor, *, limit: int = 100, threshold: float = 0.02) -> list[Detections]:
    """The detector's output as at most `limit` Detections for each image; boxes are clipped to the frame.

    The best one is kept whatever its score, so that a single-object user always has an answer.
    """
    p = score.sigmoid()
    peaks = torch.where(p >= F.max_pool2d(p, 3, 1, 1), p, p.new_zeros(()))
    boxes = cell_boxes(box).clamp(0, 1)
    labels, _, width = score.shape[1:]
    results = []
    for i in range(len(score)):
        flat = peaks[i].flatten()
        top, where = flat.topk(min(4 * limit, len(flat)))
        keep = top >= threshold
        keep[0] = True
        top, where = top[keep], where[keep]
        kind, cell = where // (len(flat) // labels), where % (len(flat) // labels)
        found = _vote(boxes[i], p[i], kind, cell // width, cell % width)
        chosen = _suppress(found, kind)[:limit]
        results.append(Detections(found[chosen], kind[chosen], top[chosen]))
    return results


def _vote(boxes: Tensor, p: Tensor, kind: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The boxes (n, 4) at peaks, each averaged by score with those around it that mean the same object.

    Neighbours' errors differ, so their mean is nearer (about 0.01 of IoU, and less scatter between trainings).
    """
    height, width = boxes.shape[:2]
    step = torch.arange(-_VOTERS, _VOTERS + 1, device=boxes.device)
    rows = (row[:, None, None] + step[:, None]).clamp(0, height - 1)  # (n, 5, 1)
    columns = (column[:, None, None] + step).clamp(0, width - 1)  # (n, 1, 5)
    around, own = boxes[rows, columns], boxes[row, column]
    weight = p[kind[:, None, None], rows, columns] * (paired_iou(around, own[:, None, None]) > _NMS_IOU)
    weight = weight.flatten(1)[..., None]
    voted: Tensor = (around.flatten(1, 2) * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
    return torch.where(weight.sum(1) > 0, voted, own)


def _suppress(boxes: Tensor, labels: Tensor) -> Tensor:
    """Indices that greedy non-maximum suppression keeps, label by label; boxes come best first."""
    overlap = paired_iou(boxes[:, None], boxes[None]) > _NMS_IOU
    overlap &= labels[:, None] == labels[None]
    alive = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for i in range(len(boxes) - 1):
        if alive[i]:
            alive[i + 1 :] &= ~overlap[i, i + 1 :]
    return torch.nonzero(alive).flatten()
