"""Split training through codecs, as the benchmark counts it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
from fogline.benchmarks.tensor_training import CONFIGURATIONS, Run, train


@pytest.mark.data
@pytest.mark.parametrize(("up", "down"), [CONFIGURATIONS[0], CONFIGURATIONS[2], ("c3sl(ratio=4)", "c3sl(ratio=4)")])
def test_bytes_of_both_directions_are_counted(data_root: Path, up: str, down: str) -> None:
    if not (data_root / "cifar10").is_dir():
        pytest.skip(f"no cifar10 in {data_root}")
    ratio = 1 if up == "raw" else 4
    run = train(data_root, Run(up, down, 0), images=128, epochs=1)
    plain = 64 * 16 * 16 * 16 * 4
    logits = 64 * 10 * 4
    assert run["steps"] == 2
    for direction in ("up", "down"):
        assert plain / ratio + logits < run[f"{direction}_bytes_per_step"] < (plain / ratio + logits) * 1.01
    assert 0 <= run["accuracy"] <= 1


@pytest.mark.data
def test_the_same_seed_gives_the_same_training(data_root: Path) -> None:
    if not (data_root / "cifar10").is_dir():
        pytest.skip(f"no cifar10 in {data_root}")
    first, second = (train(data_root, Run("int8", "int8", 3), images=128, epochs=1) for _ in range(2))
    assert {**first, "cpu_s": 0} == {**second, "cpu_s": 0}
