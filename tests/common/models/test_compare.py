import dataclasses

import pytest
import torch
from scenes import squares

from fogline.common.errors import InputError
from fogline.common.models.compare import Annotated, compare_training
from fogline.common.models.training import Recipe

RECIPE = Recipe(steps=100, batch=8, view=(64, 48), warmup=10)


def test_what_a_comparison_tells() -> None:
    source, held_out = squares(12, 1), squares(8, 2)
    seen: list[tuple[str, int, int]] = []
    result = compare_training(
        source,
        {"same": source},
        held_out,
        recipe=dataclasses.replace(RECIPE, steps=16),
        seeds=(0, 1),
        progress=lambda name, seed, step, loss: seen.append((name, seed, step)),
    )
    assert result.differences("same") == (0.0, 0.0)
    assert result.scores("source")[0] != result.scores("source")[1]
    assert result.epochs == 16 * 8 / 12
    assert result.seconds("source") > 0
    for run in result.runs:
        assert [p.step for p in run.curve] == list(range(2, 17, 2))
        assert run.curve[-1].score == run.score
    runs = [(name, seed) for seed in (0, 1) for name in ("source", "same")]
    assert seen == [(*run, step) for run in runs for step in range(2, 17, 2)]


def test_a_detector_beats_the_constant_box_and_ruined_images_fail() -> None:
    source, held_out = squares(16, 1), squares(16, 2)
    grey = dataclasses.replace(source, images=torch.full_like(source.images, 60))
    result = compare_training(source, {"ruined": grey}, held_out, recipe=RECIPE, seeds=(0,))
    assert result.scores("source")[0] > 0.55 > result.constant_box_per_camera
    assert result.scores("source")[0] > 0.55 > result.untrained
    assert result.differences("ruined")[0] < -0.2


def test_what_can_not_be_compared_is_refused() -> None:
    source, held_out = squares(4, 1), squares(4, 2)
    fewer = squares(3, 1)
    with pytest.raises(InputError, match=r"decoded images 'x' are \(3, 3, 64, 96\) but the source is \(4, 3, 64, 96\)"):
        compare_training(source, {"x": fewer}, held_out, recipe=RECIPE)
    with pytest.raises(InputError, match=r"set Recipe\.steps"):
        compare_training(source, {}, held_out, recipe=Recipe())
    empty = Annotated(source.images, (), ())
    with pytest.raises(InputError, match="decode every training frame"):
        compare_training(source, {"x": empty}, held_out, recipe=RECIPE)
