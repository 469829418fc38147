from collections.abc import Sequence
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import SIZE, squares

from fogline.common.errors import CapacityError, ConfigError, FormatError, InputError
from fogline.common.models.augment import Augment, cut, expose, random_cuts, seen
from fogline.common.models.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from fogline.common.models.detection import Target
from fogline.common.models.pool import TensorPool
from fogline.common.models.training import Recipe, Trainer, detect, evaluate, fit

SMALL = Recipe(batch=4, view=(64, 48))


def pool_of(count: int, seed: int = 0) -> TensorPool:
    part = squares(count, seed)
    return TensorPool.of(list(part.images), part.targets)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [*trainer.model.state_dict().values(), *trainer.averaged.state_dict().values()]


def test_it_learns_where_squares_are() -> None:
    train, held_out = squares(24, 1), squares(16, 2)
    model = fit(
        TensorPool.of(list(train.images), train.targets), Recipe(steps=120, batch=8, view=(64, 48), warmup=10), 0
    )
    assert evaluate(model, held_out.images, held_out.targets, "iou") > 0.6


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    runs = []
    for seed in (1, 1, 2):
        trainer = Trainer(SMALL, pool_of(6), seed)
        runs.append(([trainer.step() for _ in range(3)], weights(trainer)))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_resumed_run_goes_on_to_the_bit(tmp_path: Path, stop: int) -> None:
    straight = Trainer(SMALL, pool_of(7), 3)
    losses = [straight.step() for _ in range(8)]
    stopped = Trainer(SMALL, pool_of(7), 3)
    seen = [stopped.step() for _ in range(stop)]
    save_checkpoint(stopped, tmp_path / "t.safetensors")
    torch.rand(5)  # nobody else's randomness matters
    resumed = Trainer(SMALL, pool_of(7), 3)
    load_checkpoint(resumed, tmp_path / "t.safetensors")
    seen += [resumed.step() for _ in range(8 - stop)]
    assert seen == losses
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_a_growing_pool_is_seen_from_the_next_round_on() -> None:
    pool = pool_of(4)
    trainer = Trainer(SMALL, pool, 0)
    with pytest.raises(InputError, match="no image to train on"):
        Trainer(SMALL, TensorPool(), 0).step()
    trainer.step()
    assert trainer.order == []
    extra = squares(4, 9)
    for image, target in zip(extra.images, extra.targets, strict=True):
        pool.add(image, target)
    trainer.step()
    assert len(trainer.order) == 4
    with pytest.raises(InputError, match="decode all to one size"):
        pool.add(torch.zeros(3, 32, 32, dtype=torch.uint8), extra.targets[0])


def test_a_bad_checkpoint_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, pool_of(5), 3)
    trainer.step()
    before = [w.clone() for w in weights(trainer)]
    path = tmp_path / "t.safetensors"
    save_checkpoint(trainer, path)
    good = path.read_bytes()
    with pytest.raises(InputError, match="was trained with seed 3"):
        load_checkpoint(Trainer(SMALL, pool_of(5), 4), path)
    with pytest.raises(InputError, match="use the same settings"):
        load_checkpoint(Trainer(Recipe(batch=5, view=(64, 48)), pool_of(5), 3), path)
    for bad in (b"", good[:100], good[:-40], b"\xff" * 200, good.replace(b"fogline-trainer-1", b"fogline-trainer-9")):
        path.write_bytes(bad)
        with pytest.raises(FormatError, match="start anew"):
            load_checkpoint(trainer, path)
    with pytest.raises(InputError, match="can't be read"):
        load_checkpoint(trainer, tmp_path / "none")
    with pytest.raises(CapacityError, match="can't be written"):
        save_checkpoint(trainer, tmp_path / "nowhere" / "t")
    assert all(torch.equal(a, b) for a, b in zip(weights(trainer), before, strict=True))


def test_a_checkpoint_outlives_images_that_are_gone(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, pool_of(9), 3)
    trainer.step()
    save_checkpoint(trainer, tmp_path / "t")
    shrunk = Trainer(SMALL, pool_of(2), 3)
    load_checkpoint(shrunk, tmp_path / "t")
    assert all(i < 2 for i in shrunk.order)
    shrunk.step()


def test_weights_travel_as_safetensors() -> None:
    trainer = Trainer(Recipe(labels=2, batch=4, view=(64, 48)), pool_of(4), 3)
    trainer.step()
    data = save_weights(trainer.averaged)
    image = torch.rand(1, 3, SIZE[1], SIZE[0])
    found, again = detect(trainer.averaged, image)[0], detect(load_weights(data), image)[0]
    assert torch.allclose(found.boxes, again.boxes, atol=1e-5)
    for bad in (b"", data[:50], data[:-4], save_weights(trainer.averaged).replace(b"score.bias", b"score.bais")):
        with pytest.raises(FormatError, match="send them again"):
            load_weights(bad)


@pytest.mark.parametrize("bias", [torch.zeros(0), torch.zeros(1025), torch.zeros(50_000_000), torch.tensor(1.0)])
def test_weights_of_impossible_size_make_no_detector(bias: torch.Tensor) -> None:
    with pytest.raises(FormatError, match="send them again"):
        load_weights(safetensors.torch.save({"score.bias": bias}))


def random_views(
    images: torch.Tensor, targets: Sequence[Target], size: tuple[int, int], generator: torch.Generator
) -> tuple[torch.Tensor, list[Target]]:
    frame = (images.shape[3], images.shape[2])
    draws, cuts = random_cuts(targets, frame, size, generator, Augment())
    return expose(cut(images, cuts, size), draws, Augment()), seen(targets, cuts, Augment())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3))
def test_views_keep_boxes_on_their_objects(seed: int, objects: int) -> None:
    part = squares(4, seed, objects)
    generator = torch.Generator().manual_seed(seed)
    views, targets = random_views(part.images.float() / 255, part.targets, (64, 48), generator)
    assert views.shape == (4, 3, 48, 64)
    assert float(views.min()) >= 0
    assert float(views.max()) <= 1
    for view, target in zip(views, targets, strict=True):
        for x0, y0, x1, y1 in target.boxes.tolist():
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
            if (x1 - x0) * 64 < 6 or (y1 - y0) * 48 < 6:
                continue
            # The squares are bright and yellow: inside of a box red is far above what noise reaches.
            inner = view[0, round(y0 * 48) + 2 : round(y1 * 48) - 1, round(x0 * 64) + 2 : round(x1 * 64) - 1]
            assert inner.numel() == 0 or float(inner.mean()) > 0.55


def test_views_of_images_without_objects() -> None:
    none = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    views, targets = random_views(torch.rand(2, 3, 64, 96), [none, none], (96, 64), torch.Generator().manual_seed(0))
    assert [len(t.boxes) for t in targets] == [0, 0]
    assert torch.isfinite(views).all()


def test_sizes_that_the_detector_can_not_take_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"view \(160, 100\).*multiples of 16"):
        Recipe(view=(160, 100))
    with pytest.raises(InputError, match="images of 100x64: decode them to multiples of 16"):
        detect(Trainer(SMALL, TensorPool(), 0).averaged, torch.zeros(1, 3, 64, 100))
