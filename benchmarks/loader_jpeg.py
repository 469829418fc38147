"""What `DecodedLoader` is measured against: torch's DataLoader, which decodes JPEGs with Pillow in worker processes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fogline.common.boxes import Box
from fogline.common.images.codec import SourceImage
from fogline.common.images.jpeg import encode_jpeg
from fogline.common.models.augment import DRAWS, Augment, draw_cuts, expose, seen
from fogline.common.models.detection import Target, flat, to_target

QUALITY = 75
Sample = tuple[Tensor, Target, Tensor]


class Jpegs(Dataset[Sample]):
    """JPEG files in memory; each item decoded, cut and resized by Pillow, as a user of torch would write it."""

    def __init__(
        self,
        images: Sequence[SourceImage],
        files: Sequence[bytes],
        copies: int,
        size: tuple[int, int],
        augment: Augment | None,
    ) -> None:
        self.files = copies * list(files)
        frames = [image.pixels.shape[1::-1] for image in images]
        self.targets = copies * [
            to_target([Box(*box) for box in image.boxes], *frame) for image, frame in zip(images, frames, strict=True)
        ]
        self.size, self.augment = size, augment
        self.draws = torch.zeros(len(self.files), DRAWS)  # of this epoch
        self.draws.share_memory_()  # type: ignore[no-untyped-call]  # workers see them

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        target, draws = self.targets[index], self.draws[index : index + 1]
        with Image.open(io.BytesIO(self.files[index])) as image:
            if self.augment is None:
                return _tensor(image.resize(self.size, Image.Resampling.BILINEAR)), target, draws
            extent = self.size[0] / image.width, self.size[1] / image.height
            cuts = draw_cuts(draws, extent, *flat([target]), self.augment)
            x0, y0, wide, tall = (float(t[0]) for t in (cuts.x0, cuts.y0, cuts.wide, cuts.tall))
            box = (x0 * image.width, y0 * image.height, (x0 + wide) * image.width, (y0 + tall) * image.height)
            box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
            view = image.resize(self.size, Image.Resampling.BILINEAR, box)
            if bool(cuts.flip[0]):
                view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return _tensor(view), seen([target], cuts, self.augment)[0], draws


def jpegs(images: Sequence[SourceImage]) -> list[bytes]:
    """The images as files."""
    return [encode_jpeg(image.pixels, QUALITY) for image in images]


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _collate(samples: list[Sample]) -> tuple[Tensor, list[Target], Tensor]:
    images, targets, draws = zip(*samples, strict=True)
    return torch.stack(images), list(targets), torch.cat(draws)


class JpegLoader:
    """Batches (images, targets) as `DecodedLoader` gives them. uint8 travels to the device and becomes float there."""

    def __init__(
        self,
        images: Sequence[SourceImage],
        files: Sequence[bytes],
        copies: int,
        size: tuple[int, int],
        batch: int,
        augment: Augment | None,
        device: torch.device,
        seed: int = 0,
        *,
        workers: int,
    ) -> None:
        """`files` are the images as JPEGs (`jpegs`): they are there before anyone trains."""
        self._data = Jpegs(images, files, copies, size, augment)
        self._device, self._augment, self._seed, self._epoch = device, augment, seed, 0
        self._loader = DataLoader(
            self._data,
            batch_size=batch,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            collate_fn=_collate,
            generator=torch.Generator().manual_seed(seed),
            multiprocessing_context="forkserver" if workers else None,
        )
        self.image_bytes = sum(len(file) for file in self._data.files) / len(self._data)

    def worker_pids(self) -> list[int]:
        """Its worker processes."""
        iterator = self._loader._iterator
        return [worker.pid for worker in getattr(iterator, "_workers", ())]

    def close(self) -> None:
        """End the worker processes."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if (shut_down := getattr(iterator, "_shutdown_workers", None)) is not None:
            shut_down()

    def __iter__(self) -> Iterator[tuple[Tensor, list[Target]]]:
        digest = hashlib.sha256(f"{self._seed} {self._epoch}".encode()).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        self._epoch += 1
        self._data.draws.copy_(torch.rand(len(self._data), DRAWS, generator=random))
        for images, targets, draws in self._loader:
            pixels = images.to(self._device, non_blocking=True).float().div_(255)
            if self._augment is not None:
                pixels = expose(pixels, draws, self._augment)
            yield pixels, targets
