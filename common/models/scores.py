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


def constant_boxes(train: Sequence[Target]) -> Target:
    """What to answer without looking: the objects of the training image that suit the other training images best.

    Suits best: largest mean overlap of their objects with its nearest. Raises InputError when no image has a box.
    """
    annotated = [t for t in train if len(t.boxes)]
    if not annotated:
        raise InputError("no training image has a box, so there is nothing constant to compare with; annotate frames")
    candidates = list(annotated)
    if all(len(t.boxes) == 1 for t in annotated):
        candidates.append(Target(torch.stack([t.boxes[0] for t in annotated]).mean(0)[None], annotated[0].labels))
    every = torch.cat([t.boxes for t in annotated])

    def gain(candidate: Target) -> float:
        return float(paired_iou(every[:, None], candidate.boxes[None]).amax(1).mean())

    return max(candidates, key=gain)


def constant_score(
    train: Sequence[Target],
    held_out: Sequence[Target],
    metric: str,
    cameras: tuple[Sequence[str], Sequence[str]] | None = None,
) -> float:
    """What the constant answer scores on held-out images. With `cameras` (of both sets) each camera has its own.

    A camera without a box in training has that of all cameras.
    """
    names_train, names_held_out = cameras or ([""] * len(train), [""] * len(held_out))
    answers = {
        name: constant_boxes(
            [t for t, n in zip(train, names_train, strict=True) if n == name and len(t.boxes)] or train
        )
        for name in set(names_held_out)
    }
    found = [
        Detections(answers[n].boxes, answers[n].labels, torch.linspace(1, 0.5, len(answers[n].boxes)))
        for n in names_held_out
    ]
    return score(found, held_out, metric)


def score(found: Sequence[Detections], wanted: Sequence[Target], metric: str) -> float:
    """`iou`: mean IoU of the best detection over images with objects; `ap50`: average precision at an IoU of 0.5.

    Raises InputError for another metric, and when no image has an object.
    """
    if metric == "ap50":
        return average_precision(found, wanted)
    if metric != "iou":
        raise InputError(f"metric {metric!r} is unknown; use iou or ap50")
    values = top1_iou(found, wanted)
    if not values:
        raise InputError("no image has an object, so IoU means nothing; evaluate on annotated frames")
    return sum(values) / len(values)
