import pytest
import torch

from fogline.common.errors import InputError
from fogline.common.models.detection import Detections, Target
from fogline.common.models.scores import average_precision, constant_boxes, constant_score, score, top1_iou

A, B, FAR = [0.0, 0.0, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9], [0.3, 0.0, 0.4, 0.1]


def truth(*boxes: list[float], labels: list[int] | None = None) -> Target:
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels or [0] * len(boxes), dtype=torch.int64))


def answer(*boxes: list[float], scores: list[float], labels: list[int] | None = None) -> Detections:
    target = truth(*boxes, labels=labels)
    return Detections(target.boxes, target.labels, torch.tensor(scores))


def test_average_precision_by_hand() -> None:
    assert average_precision([answer(A, B, scores=[0.9, 0.8])], [truth(A, B)]) == 1
    assert average_precision([answer(FAR, scores=[0.9])], [truth(A)]) == 0
    assert average_precision([answer(scores=[])], [truth(A)]) == 0
    # Right, wrong, right of 2: precision 1 up to recall 1/2, then 2/3.
    assert average_precision([answer(A, FAR, B, scores=[0.9, 0.8, 0.7])], [truth(A, B)]) == pytest.approx(5 / 6)
    # Wrong, right of 2: precision 1/2 up to recall 1/2.
    assert average_precision([answer(FAR, A, scores=[0.9, 0.8])], [truth(A, B)]) == pytest.approx(1 / 4)
    # A second answer for one object is wrong.
    assert average_precision([answer(A, A, B, scores=[0.9, 0.8, 0.7])], [truth(A, B)]) == pytest.approx(5 / 6)


def test_average_precision_ranks_over_all_images_and_averages_labels() -> None:
    found = [answer(FAR, scores=[0.95]), answer(A, scores=[0.9])]
    assert average_precision(found, [truth(), truth(A)]) == pytest.approx(1 / 2)
    found = [answer(A, B, scores=[0.9, 0.8], labels=[0, 0])]
    assert average_precision(found, [truth(A, B, labels=[0, 1])]) == pytest.approx(1 / 2)
    with pytest.raises(InputError, match="no image has an object"):
        average_precision([answer(scores=[])], [truth()])


def test_overlap_of_exactly_half_counts() -> None:
    half = [0.0, 0.0, 0.2, 0.1]
    assert average_precision([answer(half, scores=[0.9])], [truth(A)]) == 1


def test_top1_takes_the_best_scored_and_skips_images_without_objects() -> None:
    found = [answer(A, B, scores=[0.9, 0.8]), answer(A, scores=[0.5]), answer(FAR, A, scores=[0.9, 0.8])]
    assert top1_iou(found, [truth(B, A), truth(), truth(A)]) == [1.0, 0.0]
    assert score(found, [truth(B, A), truth(), truth(A)], "iou") == 0.5
    with pytest.raises(InputError, match="IoU means nothing"):
        score([answer(scores=[])], [truth()], "iou")
    with pytest.raises(InputError, match="use iou or ap50"):
        score(found, [truth(A)] * 3, "map")


def test_the_constant_answer_is_the_best_there_is_in_training() -> None:
    train = [truth(A), truth(A), truth(B)]
    assert torch.equal(constant_boxes(train).boxes, torch.tensor([A]))
    assert constant_score(train, [truth(A), truth(B)], "iou") == 0.5
    # Each camera with its own answer is the harder opponent.
    assert constant_score(train, [truth(A), truth(B)], "iou", (["a", "a", "b"], ["a", "b"])) == 1
    # A camera that saw nothing in training has the answer of all.
    assert constant_score([*train, truth()], [truth(A)], "iou", (["a", "a", "b", "c"], ["c"])) == 1
    near = [[0.0, 0.0, 0.2, 0.2], [0.02, 0.0, 0.22, 0.2], [0.04, 0.0, 0.24, 0.2]]
    assert torch.allclose(constant_boxes([truth(b) for b in near]).boxes, torch.tensor([near[1]]))
    with pytest.raises(InputError, match="nothing constant"):
        constant_boxes([truth()])


def test_the_constant_answer_for_many_objects_is_a_whole_annotation() -> None:
    train = [truth(A, B), truth(A, B), truth(FAR)]
    assert len(constant_boxes(train).boxes) == 2
    assert constant_score(train, [truth(A, B)], "ap50") == 1
