"""Decoded-once pixels, kept as uint8 on the device, in memory or on disk: 3 W H bytes an image, reserved at once."""

from __future__ import annotations

import os
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor

from fogline.common.errors import CapacityError, ConfigError, InternalError
from fogline.common.files import FULL

Place = Literal["device", "ram", "disk"]
Size = tuple[int, int]  # width, height


class PixelCache:
    """Images of mixed sizes; those of one size lie side by side, so that a batch of them is one gather."""

    def __init__(self, place: Place, sizes: Sequence[Size], device: torch.device, folder: Path | None = None) -> None:
        """Room for images of `sizes`; on `disk` in an unnamed file in `folder`, which is gone when this object is.

        Raises CapacityError where they don't fit, ConfigError for a folder that can't be written to.
        """
        self.place, self.bytes = place, cache_bytes(sizes)
        self._filled = bytearray(len(sizes))
        counts: dict[Size, int] = {}
        self._rows = []
        for size in sizes:
            self._rows.append((size, counts.get(size, 0)))
            counts[size] = counts.get(size, 0) + 1
        self._store: _Store = (
            _Disk(counts, device, folder) if place == "disk" else _Memory(counts, device, pinned=place == "ram")
        )

    def missing(self, indices: Sequence[int]) -> list[int]:
        """Those among `indices` that are not held yet, each once."""
        return [index for index in dict.fromkeys(indices) if not self._filled[index]]

    def put(self, indices: Sequence[int], images: Tensor) -> None:
        """Hold images (B, 3, H, W), float in [0, 1], all of one size. Raises CapacityError when the disk refuses."""
        pixels = images.mul(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        self._store.write(*self._where(indices), pixels)
        for index in indices:
            self._filled[index] = 1

    def get(self, indices: Sequence[int]) -> Tensor:
        """Images of one size on the device, uint8 (B, H, W, 3)."""
        return self._store.read(*self._where(indices))

    def evict(self) -> None:
        """Have the next `get` read the disk, not what the system holds of the file in memory."""
        self._store.evict()

    def _where(self, indices: Sequence[int]) -> tuple[Size, list[int]]:
        return self._rows[indices[0]][0], [self._rows[index][1] for index in indices]


def cache_bytes(sizes: Sequence[Size]) -> int:
    """What images of `sizes` take."""
    return sum(3 * width * height for width, height in sizes)


def room(place: Place, device: torch.device, folder: Path | None = None) -> int:
    """Bytes that are free now for a cache at this place, without what the training itself will take."""
    if place == "disk":
        return int(psutil.disk_usage(str(folder or tempfile.gettempdir())).free)
    if place == "device" and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    with suppress(OSError, ValueError):  # a container's own limit, where there is one
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)


class _Store(ABC):
    """Rows of pixels (H, W, 3) of each size."""

    @abstractmethod
    def write(self, size: Size, rows: list[int], pixels: Tensor) -> None: ...

    @abstractmethod
    def read(self, size: Size, rows: list[int]) -> Tensor: ...

    def evict(self) -> None:
        return


class _Memory(_Store):
    def __init__(self, counts: dict[Size, int], device: torch.device, pinned: bool) -> None:
        self._device = device
        place: Place = "ram" if pinned else "device"
        total = sum(3 * width * height * count for (width, height), count in counts.items())
        if total > (free := room(place, device)):
            raise CapacityError(
                f"cache={place!r}: {total} bytes of decoded images, {free} are free; choose 'disk' or 'none'"
            )
        try:
            self._of = {
                (width, height): torch.empty((count, height, width, 3), dtype=torch.uint8, pin_memory=True)
                if pinned and device.type == "cuda"
                else torch.empty((count, height, width, 3), dtype=torch.uint8, device="cpu" if pinned else device)
                for (width, height), count in counts.items()
            }
        except RuntimeError as error:  # what torch raises when an allocator gives up
            raise CapacityError(
                f"cache={place!r}: {total} bytes can't be had ({str(error)[:200]}); choose 'disk' or 'none'"
            ) from error

    def write(self, size: Size, rows: list[int], pixels: Tensor) -> None:
        store = self._of[size]
        store.index_copy_(0, torch.tensor(rows).to(store.device), pixels.to(store.device))

    def read(self, size: Size, rows: list[int]) -> Tensor:
        store = self._of[size]
        chosen = torch.tensor(rows).to(store.device, non_blocking=True)
        if store.device == self._device:
            return store.index_select(0, chosen)
        staging = _staging((len(rows), *store.shape[1:]), self._device)
        return torch.index_select(store, 0, chosen, out=staging).to(self._device, non_blocking=True)


class _Disk(_Store):
    """Read by whole images: faulting in a map's pages one by one takes ten times as long on a cold file."""

    def __init__(self, counts: dict[Size, int], device: torch.device, folder: Path | None) -> None:
        self._device = device
        self._start: dict[Size, int] = {}
        total = 0
        for (width, height), count in counts.items():
            self._start[width, height] = total
            total += 3 * width * height * count
        self._folder = Path(folder or tempfile.gettempdir())
        file = None
        try:
            file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  # lives as long as this object
            os.posix_fallocate(file.fileno(), 0, total)
        except OSError as error:
            if file is not None:
                file.close()
            raise self._refused(error, total) from error
        self._file = file.fileno()
        weakref.finalize(self, file.close)

    def write(self, size: Size, rows: list[int], pixels: Tensor) -> None:
        try:
            for row, image in zip(rows, pixels.cpu().numpy(), strict=True):
                os.pwrite(self._file, image, self._start[size] + row * image.nbytes)
        except OSError as error:
            raise self._refused(error, pixels.numel()) from error

    def read(self, size: Size, rows: list[int]) -> Tensor:
        pixels = _staging((len(rows), size[1], size[0], 3), self._device)
        for row, image in zip(rows, pixels.numpy(), strict=True):
            if os.preadv(self._file, [image], self._start[size] + row * image.nbytes) != image.nbytes:
                raise InternalError(f"the cache in {self._folder} is shorter than was reserved; check the disk")
        return pixels.to(self._device, non_blocking=True)

    def evict(self) -> None:
        os.fdatasync(self._file)
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)

    def _refused(self, error: OSError, size: int) -> CapacityError | ConfigError:
        if error.errno in FULL:
            return CapacityError(
                f"cache='disk': {size} bytes don't fit in {self._folder} ({error.strerror}); make room, "
                "name another cache_dir or choose 'none'"
            )
        return ConfigError(f"cache_dir {self._folder} can't be written to: {error.strerror}; choose another")


def _staging(shape: Sequence[int], device: torch.device) -> Tensor:
    """Host memory; for a GPU pinned, so that the copy need not be waited for. torch reuses it once it is copied."""
    return torch.empty(tuple(shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
