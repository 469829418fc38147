"""The one interface of image codecs, and their registry.

A codec has a decoding half, which every edge carries, and an encoding half, which may live at the fog node
(`fog_node/encoders`) where it needs a fit. The batch is the unit of work on both sides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from fogline.common.errors import FormatError
from fogline.common.images.record import Layer, LayerKind, SharedState
from fogline.common.images.shared_cache import SharedCache

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """Where a layer lands in a target image: the pixels `x, y, w, h` that it must fill at the target size.

    `source` is the same rectangle in coordinates of the layer's own region, which is 0..1 in both axes, for
    a codec to resample. Centres of target pixels lie within the region; at another scale than the coded one, edges may
    lie half a target pixel outside.
    """

    x: int
    y: int
    w: int
    h: int
    source: tuple[float, float, float, float]  # x0, y0, x1, y1 within the layer's region


class SharedBlobs(Mapping[bytes, bytes]):
    """The shared state that one record names, in its order, each blob parsed once for all records that need it."""

    def __init__(
        self,
        blobs: Mapping[bytes, bytes],
        digests: Sequence[bytes],
        cache: SharedCache,
        frame: tuple[int, int] | None = None,
    ) -> None:
        """`cache` keeps what `open` made; `frame` is the record's size."""
        self.frame, self.cache = frame, cache
        self._blobs = {digest: blobs[digest] for digest in digests}
        self._order = tuple(self._blobs)

    @classmethod
    def of(cls, shared: Mapping[bytes, bytes]) -> SharedBlobs:
        """These blobs themselves, or any mapping's, in its order and kept by nobody."""
        return shared if isinstance(shared, SharedBlobs) else cls(shared, list(shared), SharedCache())

    def __getitem__(self, digest: bytes) -> bytes:
        return self._blobs[digest]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._blobs)

    def __len__(self) -> int:
        return len(self._blobs)

    def open(self, index: int, kind: str, parse: Callable[[bytes], T]) -> T:
        """The record's blob number `index`, parsed as a `kind`: what one codec reads in a blob is nothing to another.

        Raises FormatError where the record names fewer blobs.
        """
        if index >= len(self._order):
            raise FormatError(f"a layer needs the record's shared blob {index}, and it names {len(self._order)}")
        digest = self._order[index]
        return self.cache.parsed((kind, digest), lambda: parse(self._blobs[digest]))


class LayerCodec(ABC):
    """Decodes the layers of one codec. Stateless; instances are shared."""

    number: ClassVar[int]  # in the container; never reused
    version: ClassVar[int]  # of the payload that the encoder writes; older ones may still decode
    name: ClassVar[str]
    additive: ClassVar[bool]  # object layers are added to the background (a residual), else they replace it

    @abstractmethod
    def prepare(self, layer: Layer, shared: Mapping[bytes, bytes]) -> Any:
        """Parse and entropy-decode a payload, once, on arrival; integers only. `shared`: the record's blobs, in order.

        Raises FormatError for anything but a well-formed payload, before large allocations.
        """

    @abstractmethod
    def render(
        self, prepared: Sequence[Any], kinds: Sequence[LayerKind], places: Sequence[Placement], device: torch.device
    ) -> list[torch.Tensor]:
        """Decode layers of any mix of shapes in as few tensor calls as their shapes allow.

        Returns one float32 tensor (3, h, w) per layer: background and replacing objects in [0, 1] RGB, additive
        objects as a residual in [-1, 1] before `Layer.scale`.
        """


@dataclass(frozen=True)
class SourceImage:
    """What an encoder is given: pixels at the coded size, and object boxes in those pixels."""

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB
    boxes: tuple[tuple[float, float, float, float], ...]  # x, y, w, h
    camera: str = ""


@dataclass(frozen=True)
class EncodedImage:
    """What an encoder returns for one image: layers, background first, and the shared state that they need."""

    layers: tuple[Layer, ...]
    shared: tuple[SharedState, ...] = ()


class ImageEncoder(ABC):
    """Encodes batches of images. May hold state (a device, a camera's base network); one per encoding process."""

    together: int = 1  # images that a batch should have at least, where there are as many

    @abstractmethod
    def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        """Encode a batch; the images may differ in size. One result for each, in order."""


_CODECS: dict[int, LayerCodec] = {}
C = TypeVar("C", bound=type[LayerCodec])


def register(cls: C) -> C:
    """Class decorator: add a codec to the registry under its number."""
    if cls.number in _CODECS:
        raise ValueError(f"codec number {cls.number} is taken by {_CODECS[cls.number].name}")
    _CODECS[cls.number] = cls()
    return cls


def codec_of(number: int, version: int) -> LayerCodec:
    """The codec for a layer. Raises FormatError for a number or version that this build does not know."""
    codec = _CODECS.get(number)
    if codec is None:
        raise FormatError(f"codec {number} is unknown to this version of Fogline; known: {sorted(_CODECS)}; update")
    if not 1 <= version <= codec.version:
        raise FormatError(f"codec {codec.name} version {version}: this build reads 1 to {codec.version}; update")
    return codec


EncoderFactory = Callable[[Mapping[str, Any], str], ImageEncoder]  # parameters, device
