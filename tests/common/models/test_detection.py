import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fogline.common.boxes import Box
from fogline.common.errors import InputError
from fogline.common.models.detection import Target, cell_boxes, decode, detection_loss, paired_iou, to_target
from fogline.common.models.detector import Detector


def perfect_output(target: Target, labels: int, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a detector that is right would answer, for boxes whose centres lie in different cells."""
    score, box = torch.full((1, labels, height, width), -9.0), torch.zeros(1, 4, height, width)
    for (x0, y0, x1, y1), label in zip(target.boxes.tolist(), target.labels.tolist(), strict=True):
        cx, cy = (x0 + x1) / 2 * width, (y0 + y1) / 2 * height
        column, row = min(int(cx), width - 1), min(int(cy), height - 1)
        score[0, label, row, column] = 9.0
        size = torch.tensor([(x1 - x0) * width, (y1 - y0) * height]).log()
        box[0, :, row, column] = torch.tensor([cx - column - 0.5, cy - row - 0.5, *size.tolist()])
    return score, box


def test_iou_by_hand() -> None:
    a = torch.tensor([0.0, 0.0, 0.4, 0.4])
    assert paired_iou(a, a) == 1
    assert paired_iou(a, torch.tensor([0.5, 0.5, 0.6, 0.6])) == 0
    # 0.2 x 0.4 common of 0.16 + 0.16 - 0.08
    assert float(paired_iou(a, torch.tensor([0.2, 0.0, 0.6, 0.4]))) == pytest.approx(1 / 3)
    assert float(paired_iou(a, torch.zeros(4))) == 0


def test_boxes_in_pixels_become_targets() -> None:
    boxes = (Box(16, 8, 32, 16, "cat"), Box(0, 0, 64, 48, "dog"))
    target = to_target(boxes, 64, 48, ("cat", "dog"))
    assert torch.allclose(target.boxes, torch.tensor([[0.25, 1 / 6, 0.75, 0.5], [0, 0, 1, 1]]))
    assert target.labels.tolist() == [0, 1]
    assert to_target(boxes, 64, 48).labels.tolist() == [0, 0]
    assert to_target((), 64, 48).boxes.shape == (0, 4)
    with pytest.raises(InputError, match="'dog' is none of"):
        to_target(boxes, 64, 48, ("cat",))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_decoding_undoes_encoding(data: st.DataObject) -> None:
    # A box in each of up to six far-apart places of a 12 x 8 grid.
    boxes, labels = [], []
    for slot in range(data.draw(st.integers(1, 6))):
        cx, cy = (slot % 3 + 0.5) / 3, (slot // 3 + 0.5) / 2
        w, h = data.draw(st.floats(0.05, 0.3)), data.draw(st.floats(0.05, 0.4))
        boxes.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
        labels.append(data.draw(st.integers(0, 1)))
    target = Target(torch.tensor(boxes), torch.tensor(labels))
    (found,) = decode(*perfect_output(target, 2, 12, 8), threshold=0.5)
    assert sorted(found.labels.tolist()) == sorted(labels)
    for box, label in zip(target.boxes, labels, strict=True):
        assert paired_iou(box[None], found.boxes[found.labels == label]).max() > 0.999


def test_the_loss_is_small_for_the_right_answer_and_large_for_a_wrong_one() -> None:
    target = Target(torch.tensor([[0.1, 0.1, 0.4, 0.5]]), torch.tensor([0]))
    score, box = perfect_output(target, 1, 12, 8)
    # Every cell that answers for the object has the right box.
    corners = cell_boxes(torch.zeros(1, 4, 8, 12))
    middle = (corners[..., :2] + corners[..., 2:])[0] / 2
    box[0, 0], box[0, 1] = (0.25 - middle[..., 0]) * 12, (0.3 - middle[..., 1]) * 8
    box[0, 2], box[0, 3] = torch.tensor(0.3 * 12).log(), torch.tensor(0.4 * 8).log()
    right = detection_loss(score, box, [target])
    assert float(right) < 0.02
    assert detection_loss(-score, box, [target]) > 5
    assert detection_loss(score, box + 1, [target]) > right + 1


def test_images_without_objects_and_with_200() -> None:
    model = Detector()
    score, box = model(torch.rand(2, 3, 64, 96))
    many = torch.rand(200, 2) * 0.8
    crowd = Target(torch.cat((many, many + 0.1), 1), torch.zeros(200, dtype=torch.int64))
    none = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    for targets in ([none, none], [none, crowd], [crowd, crowd]):
        loss = detection_loss(score, box, targets)
        assert torch.isfinite(loss)
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)


def test_a_single_object_user_always_has_an_answer_and_overlapping_answers_are_one() -> None:
    score, box = torch.full((1, 1, 4, 6), -9.0), torch.zeros(1, 4, 4, 6)
    (found,) = decode(score, box)
    assert len(found.boxes) == 1
    score[0, 0, 1, 1], score[0, 0, 1, 3] = 4.0, 3.0
    box[0, 2:], box[0, 0, 1, 1], box[0, 0, 1, 3] = 1.2, 1.0, -1.0  # both say the box around column 2
    (found,) = decode(score, box)
    assert len(found.boxes) == 1
    assert float(found.scores[0]) == pytest.approx(torch.sigmoid(torch.tensor(4.0)).item())


@pytest.mark.parametrize(("width", "height"), [(96, 64), (320, 208), (64, 160)])
def test_the_detector_is_small_and_takes_any_size(width: int, height: int) -> None:
    model = Detector(labels=3).eval()
    assert sum(p.numel() for p in model.parameters()) < 350_000
    score, box = model(torch.rand(1, 3, height, width))
    assert score.shape == (1, 3, height // 8, width // 8)
    assert box.shape == (1, 4, height // 8, width // 8)
