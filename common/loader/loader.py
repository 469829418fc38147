"""`DecodedLoader`: a `torch.utils.data.DataLoader` whose images are records, decoded on the training device."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fogline.common.errors import CapacityError, ConfigError, FormatError, InputError
from fogline.common.images.decode import BatchDecoder
from fogline.common.loader.choice import CACHES, Cache, Candidate, choose, describe
from fogline.common.loader.dataset import Annotation, RecordDataset
from fogline.common.loader.pixels import PixelCache
from fogline.common.loader.render import Renderer, Substitute
from fogline.common.loader.source import Source
from fogline.common.models.augment import DRAWS, Augment, Cuts, boxes_in_view, draw_cuts, expose

_log = logging.getLogger(__name__)

Sample = tuple[Tensor, Any]  # image (3, H, W), target


class DecodedLoader:
    """Iterate over batches (images, targets) of records, one pass for each `for` loop.

    Images are float32 (B, 3, H, W) on `device`: in [0, 1], or less `mean` and divided by `std`. Targets are a list of
    `Annotation`, or of what `target_transform` makes of each; their boxes are those of the view. With `augment` every
    image is seen through a random view (crop, scale, mirror, light), and only that is decoded: pixels and layers out of
    view are never computed. Order and views depend on `seed`, the epoch and the image alone, not on
    batches, threads or the cache.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: tuple[int, int],
        batch_size: int = 32,
        shuffle: bool = False,
        drop_last: bool = False,
        augment: Augment | None = None,
        labels: Sequence[str] = (),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        target_transform: Callable[[Annotation], Any] | None = None,
        collate_fn: Callable[[list[Sample]], Any] | None = None,
        device: str | torch.device | None = None,
        cache: Cache | None = None,
        cache_dir: Path | str | None = None,
        cache_bytes: int | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        prefetch: int | None = None,
        skip_damaged: bool = False,
        shared: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """Read and parse the records of `source`; see `read_source` for what that may be.

        `size` is (width, height). Boxes with a label that is not among `labels` are left out; with none given, all are
        of kind 0. `cache` keeps decoded pixels as uint8: on the `device`, in `ram`, on `disk` (in `cache_dir`), or
        not at all (`none`); None measures which is fastest, when iteration starts, among those that fit (into
        `cache_bytes`). A `generator` gives the seed, as it does for torch's loader. `prefetch` batches are made ahead
        in a thread; None: 1 on a GPU, 0 on a CPU, where they would take the training's cores. `shared` is shared state
        by digest that the source itself does not hold; decoded, up to 256 MiB of it are kept. With `skip_damaged`, a
        damaged record is left out, or replaced by another when only decoding shows it. Raises ConfigError for
        impossible settings, InputError for a source without records, FormatError for a damaged record, CapacityError
        when a cache has no room.
        """
        if min(size) < 1 or batch_size < 1 or (prefetch or 0) < 0:
            raise ConfigError(f"size {size}, batch_size {batch_size}, prefetch {prefetch}: give numbers above 0")
        if cache not in (None, *CACHES):
            raise ConfigError(f"cache {cache!r} is none of {', '.join(CACHES)}; leave it out to have it measured")
        self.device = _device(device)
        self.size, self.batch_size, self.shuffle, self.drop_last = size, batch_size, shuffle, drop_last
        self.augment, self.cache, self.seed = augment, cache, seed
        if generator is not None:
            self.seed = int(torch.randint(1 << 62, (), generator=generator))
        self.candidates: tuple[Candidate, ...] = ()  # what was measured to choose the cache
        self._target_transform, self._collate = target_transform, collate_fn
        self._cache_dir = Path(cache_dir) if cache_dir is not None else None
        self._cache_bytes = cache_bytes
        self._prefetch = prefetch if prefetch is not None else int(self.device.type == "cuda")
        self._shift, self._factor = _normalisation(mean, std, self.device)
        decoder = BatchDecoder(self.device)
        self.dataset = RecordDataset(source, decoder, labels, shared, skip_damaged)
        self._renderer = Renderer(self.dataset, decoder, size)
        self._substitute = Substitute(self._renderer) if skip_damaged else None
        self._frames = torch.tensor([image.size for image in self.dataset], dtype=torch.float32)
        self._at = self._next = (0, 0)  # epoch, and batches of it handed out: where iteration is, and the next starts
        if cache is not None:
            self._open(cache)

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Iterator[Any]:
        """The rest of this epoch: all of it, unless a state was loaded from the middle. The next loop is the next."""
        if self.cache is None:
            self._measure()
        self._at, self._next = self._next, (self._next[0] + 1, 0)
        return self._batches(*self._at)

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the next one; without, they count up from 0. The position within that very epoch stays."""
        if epoch != self._next[0]:
            self._at = self._next = (epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where iteration is, in plain values: taken after a batch, the next one comes first when it is loaded."""
        return {
            "version": 1,
            "seed": self.seed,
            "epoch": self._at[0],
            "batch": self._at[1],
            "batch_size": self.batch_size,
            "records": self.dataset.fingerprint(),
            "cache": self.cache,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a loader of the same records and batch size, in the same order with the same views.

        A cache that was chosen by measurement is taken over, since pixels differ a little between caches. Raises
        InputError for a state of other records or another batch size.
        """
        mine = self.state_dict()
        for key in ("version", "records", "batch_size"):
            if state.get(key) != mine[key]:
                raise InputError(
                    f"the loader's state has {key} {state.get(key)!r}, this loader {mine[key]!r}; use the same"
                )
        seed, epoch, batch, cache = (state.get(key) for key in ("seed", "epoch", "batch", "cache"))
        numbers = [value for value in (seed, epoch, batch) if isinstance(value, int) and not isinstance(value, bool)]
        if len(numbers) != 3 or min(numbers[1:]) < 0 or cache not in (None, *CACHES):
            raise InputError(f"the loader's state is malformed: {dict(state)}; use what state_dict returned")
        self.seed = numbers[0]
        self._at = self._next = (numbers[1], numbers[2])
        if self.cache is None and cache is not None:
            self._open(cache)

    @property
    def cache_bytes_held(self) -> int:
        """Bytes that the cache of decoded images takes, where it lies."""
        return self._renderer.cache.bytes if self._renderer.cache is not None else 0

    @property
    def shared_bytes_held(self) -> int:
        """Bytes of decoded shared state (reference pictures) that are kept at this moment, on the device."""
        return self._renderer.decoder.shared_bytes_held

    @property
    def damaged(self) -> tuple[int, ...]:
        """Images that turned out not to be decodable and are replaced by others, with `skip_damaged`."""
        return self._substitute.damaged if self._substitute else ()

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        order, draws = self._draw(epoch)
        stop = len(self) * self.batch_size
        parts = [order[at : at + self.batch_size] for at in range(start * self.batch_size, stop, self.batch_size)]
        made = (self._make(part, draws) for part in parts)
        for number, batch in enumerate(self._ahead(parts, draws) if self._prefetch else made, start + 1):
            self._at = (epoch, number)
            yield batch
        self._at = (epoch + 1, 0)

    def _ahead(self, parts: Sequence[Tensor], draws: Tensor | None) -> Iterator[Any]:
        """Batches made in a thread, on the stream of the loop's own thread, so that nothing has to be waited for."""
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

        def make(part: Tensor) -> Any:
            with torch.cuda.stream(stream) if stream is not None else nullcontext():
                return self._make(part, draws)

        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(1, "decoded-loader") as executor:
            try:
                for part in parts:
                    waiting.append(executor.submit(make, part))
                    if len(waiting) > self._prefetch:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """The order of an epoch, and the numbers that decide each image's view."""
        digest = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        count = len(self.dataset)
        order = torch.randperm(count, generator=random) if self.shuffle else torch.arange(count)
        return order, torch.rand(count, DRAWS, generator=random) if self.augment is not None else None

    def _make(self, part: Tensor, draws: Tensor | None) -> Any:
        indices = torch.tensor(self._substitute.resolve(part.tolist())) if self._substitute else part
        try:
            images, targets = self._render(indices, draws)
        except FormatError:
            if self._substitute is None:
                raise
            self._substitute.find(indices.tolist())
            images, targets = self._render(torch.tensor(self._substitute.resolve(indices.tolist())), draws)
        made = [self._target_transform(target) for target in targets] if self._target_transform else targets
        if self._collate is None:
            return images, made
        return self._collate(list(zip(images.unbind(), made, strict=True)))

    def _render(self, indices: Tensor, draws: Tensor | None) -> tuple[Tensor, list[Annotation]]:
        boxes, kinds, owner = self.dataset.boxes_of(indices)
        cuts = None
        if self.augment is not None and draws is not None:
            cuts = self._cuts(indices, draws, boxes, owner)
            boxes, keep = boxes_in_view(boxes, owner, cuts, self.augment.visible)
            boxes, kinds, owner = boxes[keep], kinds[keep], owner[keep]
        images = self._renderer.render(indices.tolist(), cuts)
        if self.augment is not None and draws is not None and self.augment.light:
            images = expose(images, draws[indices], self.augment)
        if self._shift is not None:
            images = images.sub_(self._shift)
        if self._factor is not None:
            images = images.mul_(self._factor)
        counts = torch.bincount(owner, minlength=len(indices)).tolist()
        parts = zip(
            indices.tolist(),
            torch.split(boxes.to(self.device, non_blocking=True), counts),
            torch.split(kinds.to(self.device, non_blocking=True), counts),
            strict=True,
        )
        known = self.dataset
        return images, [Annotation(b, k, i, known.cameras[i], known.content_ids[i]) for i, b, k in parts]

    def _cuts(self, indices: Tensor, draws: Tensor, boxes: Tensor, owner: Tensor) -> Cuts:
        assert self.augment is not None
        frames = self._frames[indices]
        extent = self.size[0] / frames[:, 0], self.size[1] / frames[:, 1]
        return draw_cuts(draws[indices], extent, boxes, owner, self.augment)

    def _open(self, cache: Cache) -> None:
        self.cache = cache
        if cache != "none":
            sizes = self._renderer.sizes(self.augment is not None)
            self._renderer.cache = PixelCache(cache, sizes, self.device, self._cache_dir)

    def _measure(self) -> None:
        """Choose the cache by what is fastest here."""
        indices, draws = self._draw(0)
        sample = indices[torch.linspace(0, len(indices) - 1, min(self.batch_size, len(indices))).long()]
        if self._substitute is not None:
            self._substitute.find(sample.tolist())
            sample = torch.tensor(self._substitute.resolve(sample.tolist()))
        boxes, _, owner = self.dataset.boxes_of(sample)
        cuts = self._cuts(sample, draws, boxes, owner) if draws is not None else None
        cache, self.candidates = choose(self._renderer, sample.tolist(), cuts, self._cache_dir, self._cache_bytes)
        _log.info("decoded images: cache %s of %s", cache, describe(self.candidates))
        try:
            self._open(cache)
        except CapacityError as error:  # someone else took the room just now
            _log.warning("images are decoded anew in each epoch: %s", error)
            self._open("none")


def _device(device: str | torch.device | None) -> torch.device:
    name = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    return torch.empty(0, device=name).device  # with its index, as the tensors on it say


def _normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """What to subtract and to multiply by, (1, 3, 1, 1) each."""
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and (len(values) != 3 or (name == "std" and min(values) <= 0)):
            raise ConfigError(f"{name} {values}: give three numbers, for red, green and blue")
    shift, factor = (torch.tensor(v, dtype=torch.float32).view(1, 3, 1, 1) if v else None for v in (mean, std))
    return (
        shift.to(device) if shift is not None else None,
        factor.reciprocal().to(device) if factor is not None else None,
    )
