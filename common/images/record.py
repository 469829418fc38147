"""One compressed image: what it is made of. The bytes on the wire are in `container.py`."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fogline.common.boxes import Box


class LayerKind(enum.IntEnum):
    """What a layer codes."""

    BACKGROUND = 0
    OBJECT = 1


@dataclass(frozen=True)
class Layer:
    """One coded layer. A background covers the frame; an object layer covers `region`."""

    kind: LayerKind
    codec: int  # number in the codec registry
    version: int  # of the codec's payload format
    region: tuple[int, int, int, int]  # x, y, w, h in pixels of the coded frame
    scale: float  # multiplies what the codec decodes (the residual's range Q); 1.0 where unused. Stored as float32
    payload: bytes


@dataclass(frozen=True)
class SharedState:
    """A blob that several records need (a camera's base network, a scene decoder); sent once to each device."""

    digest: bytes  # SHA-256 of `data`
    data: bytes


@dataclass(frozen=True)
class ImageRecord:
    """A compressed image with its annotation, ready to be stored, sent and decoded at any size."""

    content_id: bytes  # SHA-256 of the captured JPEG
    capture_time_us: int  # microseconds since the Unix epoch, fog node's clock
    camera: str
    source_size: tuple[int, int]  # width, height of the captured frame
    size: tuple[int, int]  # width, height of the coded frame
    boxes: tuple[Box, ...]  # in pixels of the captured frame
    layers: tuple[Layer, ...]  # background first, then objects
    shared: tuple[bytes, ...] = ()  # digests of the shared state that decoding needs
