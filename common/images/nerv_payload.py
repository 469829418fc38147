"""What `nerv` sends: the network of a run of frames, once, and a small grid of integers for each frame.

Network, version 1: `FGN`, version u8; width, height, frames u16; channels of a frame's latents, of the static grid and
of the last stage u8; for each of the five tensors a step number and an entropy table u8; for each latent channel three
entropy tables u8; the weights as one rANS stream (`rans`); CRC-32 of all before it. All little-endian.

Frame, version 1: which of the record's shared blobs u8; frame index u16; its latents as one rANS stream
(`static_rans`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from fogline.common.errors import FormatError
from fogline.common.images import rans, static_rans

STRIDE = 16  # of the latents, in pixels
GRID_STRIDE = 8  # of the static grid
TIME_CHANNELS = 8  # sine and cosine of four frequencies
CONTEXTS = 3  # of a latent, by the three above it
MAX_SIDE = 16384
MAX_FRAMES = 4096
MAX_LATENT_CHANNELS, MAX_GRID_CHANNELS, MAX_WIDTH = 16, 32, 64
MAX_PARAMETERS = 1 << 21
MAX_ACTIVATIONS = 1 << 28  # pixels times channels of the last stage: bounds the memory of decoding
MAX_LATENT = 255
MAX_STEP = 224  # step number: a step of 16
STEPS: NDArray[np.float32] = np.exp2(np.arange(MAX_STEP + 1) / 8 - 24).astype(np.float32)
_MAGIC = b"FGN\x01"
_HEAD, _CHECK, _FRAME = struct.Struct("<4sHHHBBB"), struct.Struct("<I"), struct.Struct("<BH")


@dataclass(frozen=True)
class Shape:
    """What frames a network shows, and its channels."""

    width: int
    height: int
    frames: int
    latents: int  # channels of a frame's latents
    grid: int  # channels of the static grid
    channels: int  # of the last stage; the first has twice and the second one and a half times as many

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Channels, rows, columns of a frame's latents."""
        return self.latents, -(-self.height // STRIDE), -(-self.width // STRIDE)

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """Channels, rows, columns of the static grid."""
        factor = STRIDE // GRID_STRIDE
        _, rows, columns = self.latent_size
        return self.grid, factor * rows, factor * columns

    @property
    def convolutions(self) -> tuple[tuple[int, int], ...]:
        """Input and output channels of the 3x3 convolutions; each is followed by a pixel shuffle of 2."""
        first, second = 2 * self.channels, -(-3 * self.channels // 2)
        return (
            (self.latents + TIME_CHANNELS, 4 * first),
            (first + self.grid, 4 * second),
            (second, 4 * self.channels),
            (self.channels, 4 * 3),
        )

    @property
    def tensors(self) -> tuple[int, ...]:
        """Numbers in each tensor: weights and biases of every convolution, then the static grid."""
        return (*((9 * inputs + 1) * outputs for inputs, outputs in self.convolutions), prod(self.grid_size))

    def problem(self) -> str | None:
        """Why there can be no such network; None where there can."""
        if not (0 < self.width <= MAX_SIDE and 0 < self.height <= MAX_SIDE):
            return f"frames of {self.width}x{self.height} pixels; sides are 1 to {MAX_SIDE}"
        if not 0 < self.frames <= MAX_FRAMES:
            return f"{self.frames} frames; it takes 1 to {MAX_FRAMES}"
        if self.latents > MAX_LATENT_CHANNELS or self.grid > MAX_GRID_CHANNELS or not 0 < self.channels <= MAX_WIDTH:
            return f"{self.latents} latent, {self.grid} grid and {self.channels} last channels"
        if (count := sum(self.tensors)) > MAX_PARAMETERS:
            return f"{count} parameters; the most is {MAX_PARAMETERS}"
        _, rows, columns = self.latent_size
        if (count := rows * columns * STRIDE**2 * self.channels) > MAX_ACTIVATIONS:
            return f"{count} activations; the most is {MAX_ACTIVATIONS}"
        return None


@dataclass(frozen=True)
class Network:
    """A network as it is sent."""

    shape: Shape
    steps: tuple[int, ...]  # step number of each tensor
    tensors: tuple[NDArray[np.int8], ...]  # flat
    tables: tuple[tuple[int, ...], ...]  # of each latent channel: one for each context


@dataclass(frozen=True)
class Frame:
    """A frame as it is sent."""

    blob: int  # which of the record's shared blobs
    index: int
    latents: NDArray[np.int16]  # (channels, rows, columns)


def pack_network(network: Network) -> bytes:
    """The blob."""
    shape = network.shape
    tables = [rans.best_table(tensor) for tensor in network.tensors]
    head = _HEAD.pack(_MAGIC, shape.width, shape.height, shape.frames, shape.latents, shape.grid, shape.channels)
    numbers = bytes(value for pair in zip(network.steps, tables, strict=True) for value in pair)
    contexts = bytes(table for of_channel in network.tables for table in of_channel)
    body = head + numbers + contexts + rans.encode(list(zip(tables, network.tensors, strict=True)))
    return body + _CHECK.pack(zlib.crc32(body))


def unpack_network(blob: bytes) -> Network:
    """Parse a blob. Raises FormatError for a malformed one, before anything of its size is allocated."""
    if len(blob) < _HEAD.size + _CHECK.size or blob[:3] != _MAGIC[:3]:
        raise _bad("it does not begin as one; the shared state is of another codec")
    magic, *fields = _HEAD.unpack_from(blob)
    if magic != _MAGIC:
        raise FormatError(f"nerv network of version {magic[3]}: this build reads version {_MAGIC[3]}; update")
    body = blob[: -_CHECK.size]
    if _CHECK.unpack_from(blob, len(body))[0] != zlib.crc32(body):
        raise _bad("its checksum does not match")
    shape = Shape(*fields)
    if (problem := shape.problem()) is not None:
        raise _bad(f"it has {problem}")
    sizes = shape.tensors
    middle = _HEAD.size + 2 * len(sizes)
    end = middle + CONTEXTS * shape.latents
    if len(body) < end:
        raise _bad("it ends before its tables")
    steps, tables = tuple(body[_HEAD.size : middle : 2]), tuple(body[_HEAD.size + 1 : middle : 2])
    if max(steps) > MAX_STEP:
        raise _bad(f"step number {max(steps)}; the largest is {MAX_STEP}")
    tensors = tuple(rans.decode(body[end:], list(zip(tables, sizes, strict=True))))
    contexts = tuple(tuple(body[at : at + CONTEXTS]) for at in range(middle, end, CONTEXTS))
    return Network(shape, steps, tensors, contexts)


def pack_frame(frame: Frame, tables: Sequence[Sequence[int]]) -> bytes:
    """The payload. `tables` are the network's. Raises StreamTooLongError."""
    encoder = static_rans.Encoder()
    chosen = np.array(tables, np.int64).reshape(-1, CONTEXTS)
    magnitudes = np.abs(frame.latents)
    for row in range(frame.latents.shape[1]):
        encoder.values(_tables(chosen, contexts(magnitudes, row)), magnitudes[:, row])
    encoder.signs(frame.latents[magnitudes > 0] < 0)
    return _FRAME.pack(frame.blob, frame.index) + encoder.finish()


def which(payload: bytes) -> int:
    """The number of the shared blob that a payload needs. Raises FormatError."""
    if len(payload) < _FRAME.size:
        raise FormatError(f"nerv layer of {len(payload)} bytes is too short; fetch the record again")
    return payload[0]


def unpack_frame(payload: bytes, network: Network) -> Frame:
    """Parse a payload. Raises FormatError for a malformed one, or a frame that the network does not have."""
    which(payload)
    blob, index = _FRAME.unpack_from(payload)
    shape = network.shape
    if index >= shape.frames:
        raise FormatError(f"nerv layer shows frame {index} of a network of {shape.frames}; encode the image again")
    decoder = static_rans.Decoder(payload[_FRAME.size :])
    chosen = np.array(network.tables, np.int64).reshape(-1, CONTEXTS)
    magnitudes = np.zeros(shape.latent_size, np.int64)
    for row in range(magnitudes.shape[1]):
        magnitudes[:, row] = decoder.values(_tables(chosen, contexts(magnitudes, row)))
    if magnitudes.max(initial=0) > MAX_LATENT:
        raise FormatError(f"nerv layer has a latent of {magnitudes.max()}, the most is {MAX_LATENT}; fetch it again")
    present = magnitudes > 0
    magnitudes[present] *= 1 - 2 * decoder.signs(int(present.sum())).astype(np.int64)
    decoder.finish()
    return Frame(blob, index, magnitudes.astype(np.int16))


def contexts(magnitudes: NDArray[np.integer], row: int) -> NDArray[np.int64]:
    """Of each latent of a row (channels, columns): 0 to 2, by the sum of the three above it."""
    channels, _, columns = magnitudes.shape
    if row == 0:
        return np.zeros((channels, columns), np.int64)
    above = np.pad(magnitudes[:, row - 1].astype(np.int64), ((0, 0), (1, 1)))
    total = above[:, :-2] + above[:, 1:-1] + above[:, 2:]
    found: NDArray[np.int64] = (total > 0).astype(np.int64) + (total > 2)
    return found


def _tables(chosen: NDArray[np.int64], context: NDArray[np.int64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.take_along_axis(chosen, context, axis=1)
    return found


def _bad(what: str) -> FormatError:
    return FormatError(f"nerv network is malformed: {what}; fetch the shared state again, or encode anew")
