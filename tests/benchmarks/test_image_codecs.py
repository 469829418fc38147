"""The arithmetic of the benchmark of image codecs."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from fogline.benchmarks.image_codecs import summarise
from fogline.compare.curves import Cost, Ratio
from fogline.compare.equal import Equal, Level


def folder(name: str, **costs: Cost | str) -> Equal:
    level = Level(29.5, True, {"avif2": Cost(2000.0), **costs})
    return Equal(name, "avif2", 35.0, (level,), {codec: Ratio(0.5, 26, 30) for codec in costs})


UPLOADS = {name: {"original": 20_000.0, "roi": 4_000.0} for name in ("a", "b", "c")}
CODECS = ["avif2", "siren", "latent"]


def test_ratios_gains_and_targets() -> None:
    found = [
        folder("a", latent=Cost(1000.0), siren=Cost(4000.0)),
        folder("b", latent=Cost(1600.0, at_most=True), siren=Cost(1000.0)),
        folder("c", latent=Cost(2600.0), siren="objects reach 33.00 dB, not 35"),
    ]
    summary = summarise(found, UPLOADS, CODECS)
    latent = summary["bytes_against_avif2"]["latent"]
    assert latent["sequences"] == pytest.approx({"a": 0.5, "b": 0.8, "c": 1.3})
    assert (latent["median"], latent["complete"], latent["at_most"]) == (0.8, True, ["b"])
    siren = summary["bytes_against_avif2"]["siren"]
    assert siren["sequences"] == {"a": 2.0, "b": 0.5, "c": None}
    assert siren["complete"] is False
    gains = summary["network"]["a"]["gain"]
    assert gains["original"]["latent"] == pytest.approx((20_000 + 18_000) / (20_000 + 9_000))
    assert gains["roi"]["siren"] == pytest.approx((4_000 + 18_000) / (4_000 + 36_000))
    targets = summary["targets"]
    assert targets["latent_bytes_against_avif2"] == {
        "value": 0.8,
        "must": 0.9,
        "met": True,
        "aim": 0.4,
        "aim_met": False,
    }
    # On every sequence, the best neural codec there: c has only latent, which is larger than avif2.
    worst = targets["network_gain_of_best_inr_or_latent_roi_uplink"]
    assert worst["value"] == pytest.approx((4_000 + 18_000) / (4_000 + 23_400))
    assert worst["met"] is False
    assert targets["network_gain_of_best_inr_roi_uplink"]["value"] is None  # siren has no figure on c


def test_what_is_not_measured_everywhere_meets_no_target() -> None:
    found = [folder("a", latent=Cost(100.0)), folder("b", latent=Cost(100.0)), folder("c", latent="no background")]
    summary = summarise(found, UPLOADS, CODECS)
    assert summary["bytes_against_avif2"]["latent"]["median"] == 0.05
    for target in summary["targets"].values():
        assert (target["value"], target["met"], target["aim_met"]) == (None, False, False)


def test_a_sequence_that_the_reference_does_not_reach_is_not_left_out() -> None:
    summary = summarise([folder("a", latent=Cost(100.0))], UPLOADS, CODECS)
    assert summary["bytes_against_avif2"]["latent"]["sequences"] == {"a": 0.05, "b": None, "c": None}
    assert summary["network"]["b"]["gain"]["original"] == {}
    assert summary["targets"]["latent_bytes_against_avif2"]["met"] is False
