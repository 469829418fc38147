"""Decoded-once pixels: the same images as without, and what happens where there is no room."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from record_sets import equal, records  # noqa: E402

from fogline.common.errors import CapacityError, ConfigError  # noqa: E402
from fogline.common.images.decode import BatchDecoder  # noqa: E402
from fogline.common.loader import choice, pixels  # noqa: E402
from fogline.common.loader.loader import DecodedLoader  # noqa: E402
from fogline.common.loader.pixels import PixelCache  # noqa: E402
from fogline.common.loader.render import Renderer, cut_smooth  # noqa: E402
from fogline.common.models.augment import Augment, Cuts  # noqa: E402

SIZE = (48, 32)
CPU = torch.device("cpu")


def loader(source: Any = None, **options: Any) -> DecodedLoader:
    settings = {"size": SIZE, "batch_size": 4, "device": "cpu", **options}
    return DecodedLoader(records() if source is None else source, **settings)


@pytest.mark.parametrize("place", ["ram", "disk", "device"])
def test_what_is_put_in_comes_out(place: Any, tmp_path: Path) -> None:
    sizes = [(5, 4), (3, 7), (5, 4), (1, 1)]
    cache = PixelCache(place, sizes, CPU, tmp_path)
    assert cache.bytes == 3 * (20 + 21 + 20 + 1)
    assert cache.missing([3, 0, 0, 1]) == [3, 0, 1]
    first, second = torch.rand(2, 3, 4, 5), torch.rand(1, 3, 7, 3)
    cache.put([2, 0], first)
    cache.put([1], second)
    assert cache.missing([0, 1, 2, 3]) == [3]
    assert torch.equal(cache.get([0, 2, 0]), (first * 255).round().byte()[[1, 0, 1]].permute(0, 2, 3, 1))
    cache.evict()
    assert torch.equal(cache.get([1]), (second * 255).round().byte().permute(0, 2, 3, 1))
    assert list(tmp_path.iterdir()) == [], "the file has no name, so that none is left behind"


@pytest.mark.parametrize("cache", ["ram", "disk", "device"])
def test_whole_frames_are_the_same_with_and_without(cache: Any, tmp_path: Path) -> None:
    plain, cached = list(loader(cache="none")), loader(cache=cache, cache_dir=tmp_path)
    for _ in range(2):
        for (x, s), (y, u) in zip(plain, cached, strict=True):
            assert (x - y).abs().max() <= 0.51 / 255
            assert all(torch.equal(p.boxes, q.boxes) for p, q in zip(s, u, strict=True))


@pytest.mark.parametrize("target", [(96, 64), (40, 30), (13, 90)])
def test_views_are_cut_on_a_device_as_pillow_cuts_them(target: tuple[int, int]) -> None:
    """Antialiased where they are reduced, whichever way they are made."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 64, 96, 3), dtype=torch.uint8, generator=random)
    wide, tall = 0.2 + 0.8 * torch.rand(2, 6, generator=random)
    x0, y0 = torch.rand(6, generator=random) * (1 - wide), torch.rand(6, generator=random) * (1 - tall)
    cuts = Cuts(x0, y0, wide, tall, torch.tensor([True, False] * 3))
    renderer = Renderer([], BatchDecoder(), target)
    theirs = renderer._cut_by_pillow([(range(6), pixels)], cuts)
    ours = cut_smooth(pixels.permute(0, 3, 1, 2).float() / 255, cuts, target)
    assert ours.shape == (6, 3, target[1], target[0])
    assert (ours - theirs).abs().max() < 1.1 / 255


@pytest.mark.parametrize("codec", ["siren", "jpeg2"])
def test_views_are_nearly_the_same_with_and_without(codec: str) -> None:
    options = {"shuffle": True, "augment": Augment(zoom=(1.0, 2.0)), "batch_size": 10}
    ((plain, s),) = list(loader(records(codec), cache="none", **options))
    ((cached, u),) = list(loader(records(codec), cache="ram", **options))
    assert all(torch.equal(p.boxes, q.boxes) for p, q in zip(s, u, strict=True))
    # One is the codec's own resampling, the other bilinear between its pixels; object layers have sharp edges.
    assert (plain - cached).abs().mean() < 6 / 255


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_a_cached_loader_resumes_to_the_bit(cache: Any, tmp_path: Path) -> None:
    options = {"shuffle": True, "augment": Augment(), "cache": cache, "cache_dir": tmp_path}
    undisturbed = loader(**options)
    expected = [*undisturbed, *undisturbed]
    first = loader(**options)
    batches = iter(first)
    seen = [next(batches), next(batches)]
    resumed = loader(**{**options, "cache": None})
    resumed.load_state_dict(first.state_dict())
    assert resumed.cache == cache
    assert equal([*seen, *resumed, *resumed], expected)


def test_a_full_disk_is_an_error_that_says_so(small_disk: Path) -> None:
    with pytest.raises(CapacityError, match=r"cache='disk'.*make room"):
        loader(size=(2000, 1000), cache="disk", cache_dir=small_disk)
    assert shutil.disk_usage(small_disk).used < 1 << 20


def test_a_folder_that_can_not_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cache_dir"):
        loader(cache="disk", cache_dir=tmp_path / "nowhere")


def test_too_little_memory_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "room", lambda *_: 1000)
    with pytest.raises(CapacityError, match=r"'ram'.*1000 are free"):
        loader(cache="ram")


def test_unset_it_is_measured(tmp_path: Path) -> None:
    made = loader(records("siren"), cache_dir=tmp_path, augment=Augment())
    list(made)
    rates = {c.cache: c.images_per_s for c in made.candidates}
    assert set(rates) == {"none", "ram", "disk"}
    assert all(rate is not None and rate > 0 for rate in rates.values())
    best = max(rates.values())  # type: ignore[type-var]
    assert made.cache is not None
    assert rates[made.cache] >= best / 1.2  # type: ignore[operator]
    assert made.state_dict()["cache"] == made.cache


def test_where_decoding_is_slow_and_memory_short_the_disk_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The one invented thing is how much memory is free; the times are measured."""
    free = pixels.room
    monkeypatch.setattr(choice, "room", lambda place, *rest: 1000 if place == "ram" else free(place, *rest))
    made = loader(records("siren", 6, ((320, 240),)), size=(320, 240), cache_dir=tmp_path)
    list(made)
    assert made.cache == "disk"
    assert "may be used" in made.candidates[1].note


def test_where_nothing_has_room_images_are_decoded_anew(tmp_path: Path) -> None:
    made = loader(records("siren"), cache_dir=tmp_path / "nowhere", cache_bytes=0)
    assert len(list(made)) == 3
    assert made.cache == "none"
    assert [c.images_per_s is None for c in made.candidates] == [False, True, True]
    assert "no longer" not in choice.describe(made.candidates)


def test_room_that_someone_else_took_meanwhile(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample fits, the whole does not: that shows only when it is reserved."""
    monkeypatch.setattr(choice, "room", lambda place, *_: 0 if place == "ram" else 1 << 40)
    made = loader(records("siren"), size=(500, 400), batch_size=2, cache_dir=small_disk)
    assert len(list(made)) == 5
    assert made.cache == "none"
