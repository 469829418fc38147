"""`DecodedLoader` in the place of `torch.utils.data.DataLoader`."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from record_sets import BOXES, SIZES, equal, records, rotten, unknown_codec  # noqa: E402
from torch.utils.data import DataLoader, Dataset, default_collate  # noqa: E402

import fogline  # noqa: E402
from fogline.common.boxes import Box  # noqa: E402
from fogline.common.errors import ConfigError, FormatError, InputError  # noqa: E402
from fogline.common.images.decode import BatchDecoder  # noqa: E402
from fogline.common.loader.dataset import Annotation  # noqa: E402
from fogline.common.loader.loader import DecodedLoader  # noqa: E402
from fogline.common.models.augment import Augment  # noqa: E402

SIZE = (48, 32)


def loader(source: Any = None, **options: Any) -> DecodedLoader:
    settings = {"size": SIZE, "batch_size": 4, "cache": "none", "device": "cpu", **options}
    return DecodedLoader(records() if source is None else source, **settings)


class Decoded(Dataset):  # type: ignore[type-arg]
    """What a user of torch's loader would write."""

    def __init__(self) -> None:
        decoder = BatchDecoder()
        images = [decoder.prepare(record, {}) for record in records()]
        self.pixels = decoder.decode(images, SIZE)
        self.counts = [len(image.boxes) for image in images]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.pixels[index], self.counts[index]


def objects(target: Annotation) -> int:
    return len(target.labels)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 16])
def test_in_order_it_yields_what_torchs_loader_does(batch_size: int, drop_last: bool) -> None:
    theirs = DataLoader(Decoded(), batch_size=batch_size, drop_last=drop_last)
    ours = loader(batch_size=batch_size, drop_last=drop_last, target_transform=objects, collate_fn=default_collate)
    assert len(ours) == len(theirs)
    assert len(ours.dataset) == len(theirs.dataset)  # type: ignore[arg-type]
    pairs = list(zip(ours, theirs, strict=True))
    assert len(pairs) == len(theirs)
    for (x, n), (y, m) in pairs:
        assert torch.allclose(x, y, atol=1e-6)
        assert torch.equal(n, m)


def test_shuffled_it_shows_every_image_once_in_an_order_of_each_epoch() -> None:
    made = loader(shuffle=True)
    orders = [[t.index for _, targets in made for t in targets] for _ in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    again = loader(shuffle=True)
    again.set_epoch(2)
    assert [t.index for _, targets in again for t in targets] == orders[2]
    assert [t.index for _, targets in again for t in targets] not in orders


def test_the_seed_may_come_from_a_generator() -> None:
    def order(seed: int) -> list[int]:
        made = loader(shuffle=True, generator=torch.Generator().manual_seed(seed))
        return [t.index for _, targets in made for t in targets]

    assert order(1) == order(1) != order(2)


@pytest.mark.parametrize("codec", ["siren", "jpeg2"])
def test_equal_seeds_give_equal_batches(codec: str) -> None:
    source = records(codec)
    first, second, other = (loader(source, shuffle=True, augment=Augment(), seed=seed) for seed in (5, 5, 6))
    epochs = [list(first), list(first)]
    assert equal(epochs[0], list(second))
    assert equal(epochs[1], list(second))
    assert not equal(epochs[0], epochs[1])
    assert not equal(epochs[0], list(other))


def test_a_view_depends_on_seed_epoch_and_image_not_on_the_batch() -> None:
    small, large = (loader(shuffle=True, augment=Augment(), batch_size=size) for size in (3, 10))
    ((images, targets),) = list(large)
    at = {target.index: (image, target) for image, target in zip(images, targets, strict=True)}
    for part, found in small:
        for image, target in zip(part, found, strict=True):
            assert torch.allclose(image, at[target.index][0], atol=1e-5)
            assert torch.equal(target.boxes, at[target.index][1].boxes)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_resume(after: int, prefetch: int) -> None:
    options = {"shuffle": True, "augment": Augment(), "seed": 3, "prefetch": prefetch}
    undisturbed = loader(**options)
    expected = [*undisturbed, *undisturbed]
    interrupted = loader(**options)
    seen = []
    for number, batch in enumerate(interrupted):
        if number == after:
            break
        seen.append(batch)
        state = interrupted.state_dict()
    if after == 0:
        state = loader(**options).state_dict()
    resumed = loader(**{**options, "seed": 99})
    resumed.load_state_dict(state)
    assert equal([*seen, *resumed, *resumed], expected)


def test_resume_keeps_its_place_when_the_script_sets_the_epoch() -> None:
    first = loader(shuffle=True)
    list(first)
    batches = iter(first)
    next(batches)
    resumed = loader(shuffle=True)
    resumed.load_state_dict(first.state_dict())
    resumed.set_epoch(1)
    assert equal(list(resumed), list(batches))
    resumed.set_epoch(1)
    assert len(list(resumed)) == len(resumed) == 3


def test_a_loop_that_was_left_is_not_gone_on_with() -> None:
    made = loader(shuffle=True)
    for _ in made:
        break
    rest = [t.index for _, targets in made for t in targets]
    made.set_epoch(1)
    assert rest == [t.index for _, targets in made for t in targets]


def test_a_state_of_other_records_is_refused() -> None:
    state = loader().state_dict()
    with pytest.raises(InputError, match="records"):
        loader(records()[:9]).load_state_dict(state)
    with pytest.raises(InputError, match="batch_size"):
        loader(batch_size=5).load_state_dict(state)
    with pytest.raises(InputError, match="malformed"):
        loader().load_state_dict({**state, "batch": -1})
    with pytest.raises(InputError, match="malformed"):
        loader().load_state_dict({**state, "cache": "tape"})
    with pytest.raises(InputError, match="version"):
        loader().load_state_dict({})


def test_a_seed_below_zero_comes_back_from_a_state() -> None:
    made = loader(seed=-3, shuffle=True)
    again = loader(shuffle=True)
    again.load_state_dict(made.state_dict())
    assert again.seed == -3
    assert equal(list(again), list(made))
    with pytest.raises(InputError, match="malformed"):
        loader().load_state_dict({**made.state_dict(), "seed": True})


def test_whole_frames_have_their_boxes() -> None:
    ((images, targets),) = list(loader(batch_size=10, labels=("cat", "dog")))
    assert images.shape == (10, 3, 32, 48)
    for i, target in enumerate(targets):
        (width, height), boxes = SIZES[i % 3], BOXES[i % 3]
        assert target.labels.tolist() == [1, 0, 1][: len(boxes)]
        expected = [(x / width, y / height, (x + w) / width, (y + h) / height) for x, y, w, h in boxes]
        assert np.allclose(target.boxes.numpy().reshape(-1, 4), np.array(expected).reshape(-1, 4), atol=1e-6)
        assert (target.index, target.camera) == (i, f"cam{i % 2}")
        assert target.content_id == records()[i].content_id
    ((_, dogs),) = list(loader(batch_size=10, labels=("dog",)))
    assert [len(t.labels) for t in dogs] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def bright(x: int, y: int, w: int, h: int) -> Any:
    """A record whose one object is white on black."""
    from fogline.common.images.codec import SourceImage
    from fogline.fog_node.encoders import build_encoder

    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[y : y + h, x : x + w] = 255
    quality = {"background_quality": 95, "object_quality": 95}
    (image,) = build_encoder("jpeg2", quality).encode([SourceImage(pixels, ((x, y, w, h),))])
    return replace(records()[0], source_size=(96, 64), size=(96, 64), boxes=(Box(x, y, w, h),), layers=image.layers)


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_boxes_follow_their_pixels_and_are_cut_at_the_edge(cache: Any) -> None:
    augment = Augment(zoom=(1.0, 3.0), towards_object=0.5, visible=0.3, light=0.0)
    made = loader([bright(30, 20, 24, 16)], augment=augment, cache=cache, batch_size=1)
    seen = cut_at = 0
    for epoch in range(60):
        made.set_epoch(epoch)
        ((images, (target,)),) = list(made)
        grey = images[0].mean(0)
        if not len(target.boxes):
            assert (grey > 0.5).float().mean() < 0.95, "an object that fills the view is in its targets"
            continue
        seen += 1
        x0, y0, x1, y1 = (target.boxes[0] * torch.tensor([48, 32, 48, 32])).tolist()
        cut_at += x0 == 0 or y0 == 0 or x1 == 48 or y1 == 32
        y, x = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(48) + 0.5, indexing="ij")
        inside = (x > x0 + 2) & (x < x1 - 2) & (y > y0 + 2) & (y < y1 - 2)
        outside = (x < x0 - 2) | (x > x1 + 2) | (y < y0 - 2) | (y > y1 + 2)
        assert grey[inside].min() > 0.6
        assert not outside.any() or grey[outside].max() < 0.4
    assert seen > 20
    assert cut_at > 5


def test_normalisation_and_light() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    ((plain, _),) = list(loader(batch_size=10))
    ((scaled, _),) = list(loader(batch_size=10, mean=mean, std=std))
    wanted = (plain - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(scaled, wanted, atol=1e-5)
    dark, light = (loader(batch_size=10, augment=Augment(light=light)) for light in (0.0, 1.0))
    ((a, _),), ((b, _),) = list(dark), list(light)
    assert 0.01 < (a - b).abs().mean() < 0.2
    assert 0 <= b.min() <= b.max() <= 1


def test_gradients_flow_through_what_is_learned_from_it() -> None:
    layer = torch.nn.Conv2d(3, 2, 3)
    for images, _ in loader(records("siren"), augment=Augment()):
        layer(images).mean().backward()
    assert layer.weight.grad is not None
    assert not images.requires_grad


def test_decoding_stays_in_float32_under_autocast() -> None:
    plain = list(loader(records("siren")))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = list(loader(records("siren")))
    assert equal(plain, mixed)


@pytest.mark.parametrize("prefetch", [1, 3])
def test_batches_made_ahead_are_the_same_and_leave_no_thread(prefetch: int) -> None:
    options = {"shuffle": True, "augment": Augment()}
    assert equal(list(loader(**options)), list(loader(**options, prefetch=prefetch)))
    before = threading.active_count()
    batches = iter(loader(prefetch=prefetch))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_an_error_in_a_thread_reaches_the_loop() -> None:
    with pytest.raises(FormatError, match="can't be decoded"):
        list(loader([*records(), rotten()], prefetch=2))


def test_numbers_of_threads_agree_within_one_grey_level() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(list(loader(records("siren"), shuffle=True, augment=Augment())))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for (x, s), (y, u) in zip(found[0], other, strict=True):
            assert (x - y).abs().max() <= 1.5 / 255, "one level, and what the light makes of it"
            assert all(torch.equal(p.boxes, q.boxes) for p, q in zip(s, u, strict=True))


def test_records_that_do_not_parse() -> None:
    source = [*records()[:3], unknown_codec(records()[3]), replace(records()[4], shared=(b"\x07" * 32,))]
    with pytest.raises(FormatError, match="codec 99"):
        loader(source)
    with pytest.raises(FormatError, match="0707"):
        loader([source[0], source[4]])
    assert len(loader([source[0], source[4]], shared={b"\x07" * 32: b"state"}).dataset) == 2
    made = loader(source, skip_damaged=True)
    assert len(made.dataset) == 3
    assert ["codec 99" in str(error) for error in made.dataset.refused] == [True, False]
    with pytest.raises(InputError, match="no usable record among 1"):
        loader(source[3:4], skip_damaged=True)
    with pytest.raises(InputError, match="no usable record"):
        loader([])


@pytest.mark.parametrize("cache", ["none", "ram", None])
def test_records_that_do_not_decode(cache: Any) -> None:
    source = [records()[1], rotten(), records()[2]]
    with pytest.raises(FormatError, match="can't be decoded"):
        list(loader(source, cache=cache))
    made = loader(source, cache=cache, skip_damaged=True, batch_size=3)
    for _ in range(2):
        ((images, targets),) = list(made)
        assert [t.index for t in targets] == [0, 2, 2]
        assert torch.equal(images[1], images[2])
    assert made.damaged == (1,)
    with pytest.raises(FormatError, match="none of 1 images"):
        list(loader([rotten()], cache=cache, skip_damaged=True))


def test_one_pixel() -> None:
    source = records("jpeg2", 3, ((1, 1),))
    made = loader([replace(record, boxes=(Box(0, 0, 2, 2),)) for record in source], augment=Augment(), batch_size=3)
    ((images, targets),) = list(made)
    assert images.shape == (3, 3, 32, 48)
    assert [t.boxes.tolist() for t in targets] == [[[0, 0, 1, 1]]] * 3


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"size": (0, 32)},
        {"prefetch": -1},
        {"cache": "tape"},
        {"mean": (0.5,)},
        {"std": (0.0, 1.0, 1.0)},
    ],
)
def test_impossible_settings(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        loader(**options)


@pytest.mark.parametrize("options", [{"zoom": (2.0, 1.0)}, {"aspect": 1.0}, {"flip": 2.0}, {"light": float("nan")}])
def test_impossible_augmentation(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="zoom must"):
        Augment(**options)


def test_it_is_fogline_s_and_the_package_alone_needs_no_torch() -> None:
    assert fogline.DecodedLoader is DecodedLoader
    assert fogline.Augment is Augment
    with pytest.raises(AttributeError, match="Loader"):
        fogline.Loader  # noqa: B018
    code = "import fogline, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for codec in ("siren", "jpeg2"):
        options = {"shuffle": True, "augment": Augment()}
        here = list(loader(records(codec), **options))
        for cache in ("none", "device", "ram", "disk"):
            made = loader(records(codec), **options, device="cuda", cache=cache)
            for (x, s), (y, u) in zip(here, made, strict=True):
                assert y.device.type == "cuda"
                limit = 1.5 / 255 if cache == "none" else 0.5
                assert (x - y.cpu()).abs().max() <= limit
                assert all(torch.equal(p.boxes, q.boxes.cpu()) for p, q in zip(s, u, strict=True))
