"""How good detections are: IoU of the best one, AP50 of all; and the predictor that looks at nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fogline.common.errors import InputError
from fogline.common.models.detection import Detections, Target, paired_iou


def top1_iou(found: Sequence[Detections], wanted: Sequence[Target]) -> list[float]:
    """For each image with objects, the IoU of the best-scored detection with the object that it overlaps most."""
    return [_best(f.boxes[:1], w.boxes) for f, w in zip(found, wanted, strict=True) if len(w.boxes)]


def _best(box: Tensor, boxes: Tensor) -> float:
    return float(paired_iou(box[:, None], boxes[None]).max()) if len(box) else 0.0


def average_precision(found: Sequence[Detections], wanted: Sequence[Target], threshold: float = 0.5) -> float:
    """Mean over labels of the area under the precision-recall curve (VOC 2010: every point, no interpolation grid).

    A detection is right when it overlaps an object of its label that no better one has claimed by `threshold`.
    Labels without an object are left out. Raises InputError when there is no object at all.
    """
    labels = sorted({int(label) for target in wanted for label in target.labels})
    if not labels:
        raise InputError("no image has an object, so precision and recall mean nothing; evaluate on annotated frames")
    return sum(_label_ap(found, wanted, label, threshold) for label in labels) / len(labels)


def _label_ap(found: Sequence[Detections], wanted: Sequence[Target], label: int, threshold: float) -> float:
    objects = 0
    scores: list[float] = []
    right: list[bool] = []
    for f, w in zip(found, wanted, strict=True):
        boxes, truth = f.boxes[f.labels == label], w.boxes[w.labels == label]
        objects += len(truth)
        scores += f.scores[f.labels == label].tolist()
        claimed = torch.zeros(len(truth), dtype=torch.bool)
        for box in boxes:  # best first
            overlap = paired_iou(box[None], truth)
            best = int(overlap.argmax()) if len(truth) else -1
            hit = best >= 0 and float(overlap[best]) >= threshold and not claimed[best]
            if hit:
                claimed[best] = True
            right.append(bool(hit))
    if not right:
        return 0.0
    order = torch.tensor(scores).argsort(descending=True, stable=True)
    hits = torch.tensor(right, dtype=torch.float64)[order].cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    precision = precision.flip(0).cummax(0).values.flip(0)  # the envelope: best precision at this recall or beyond
    gained = torch.diff(hits, prepend=torch.zeros(1, dtype=torch.float64)) / objects
    return float((precision * gained).sum())


def constant_box(train: Sequence[Target]) -> Tensor:
    """The box (4) among the training boxes and their mean that overlaps the training boxes best on average.

    Raises InputError when no training image has a box.
    """
    boxes = torch.cat([t.boxes for t in train]) if train else torch.zeros(0, 4)
    if not len(boxes):
        raise InputError(
            "no training image has a box, so there is no constant box to compare with; add annotated frames"
        )
    candidates = torch.cat((boxes.mean(0, keepdim=True), boxes))
    gain = torch.stack([paired_iou(c[None], boxes).mean() for c in candidates])
    return candidates[gain.argmax()]


def constant_predictions(box: Tensor, count: int) -> list[Detections]:
    """The same box, as the sole detection, for `count` images."""
    return [Detections(box[None], torch.zeros(1, dtype=torch.int64), torch.ones(1)) for _ in range(count)]
