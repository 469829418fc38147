"""The filter's probe: what it gains where there is something to learn, and what its bytes cost."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from fogline.benchmarks.latent_filter import Filter, Pairs, gain, row, train  # noqa: E402


def pairs(offset: int) -> Pairs:
    """Frames that lack `offset` grey levels of what they should be, objects apart."""
    random = torch.Generator().manual_seed(0)
    original = torch.randint(40, 200, (4, 3, 64, 67), dtype=torch.uint8, generator=random)
    background = torch.ones(4, 64, 67, dtype=torch.bool)
    background[:, :20, :20] = False
    decoded = original - offset
    decoded[:, :, :20, :20] = 255  # is not looked at
    return Pairs(decoded, original, background)


def test_an_untrained_filter_changes_nothing_and_costs_its_bytes() -> None:
    held_out = pairs(8)
    assert gain(Filter(), held_out) == 0
    found = row(Filter(), held_out, 1000.0, 0.2, sent=True)
    assert found["saved"]["120"] == pytest.approx(-found["filter_bytes"] / 120 / 1000)
    assert row(Filter(), held_out, 1000.0, 0.2, sent=False)["saved"] == {"120": 0, "1000": 0}


def test_a_filter_learns_what_all_frames_lack() -> None:
    made = train([pairs(8)], 40)
    found = row(made, pairs(8), 1000.0, 0.2, sent=True)
    assert found["gain_db"] > 1
    assert 1000 < found["filter_bytes"] < 6000
    assert found["saved"]["1000"] > found["saved"]["120"]
