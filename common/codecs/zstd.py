"""`zstd`: lossless compression where a sample says that it pays.

As dask's workers do: compress a few pieces first and leave the whole alone where they hardly shrink, because float32
noise would cost time and gain nothing. The decompressed size is in the parameters; it is checked against the header's
limit and against the zstd frame's own before anything is allocated, and bounds the window.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, ClassVar, cast

import zstandard
from msgspec import Meta

from fogline.common.codecs.base import Buffer, Compressor, Options, Params, register
from fogline.common.errors import FormatError

_SMALL = 512  # bytes; a smaller payload gains less than it costs
_PIECE, _PIECES = 8 * 1024, 4  # a sample, of payloads that are several times as large
MAX_ASKED_LEVEL = 9  # of what another host encodes for us
_MIN_WINDOW = 1024  # bytes; zstd's own least


class ZstdOptions(Options, frozen=True):
    """`level` as zstd has them; `gain`: the share that must be saved, or the payload is sent as it is."""

    level: Annotated[int, Meta(ge=-7, le=19)] = 3
    gain: Annotated[float, Meta(ge=0, le=0.9)] = 0.1


class ZstdParams(Params, frozen=True):
    """`size`: bytes once decompressed."""

    size: Annotated[int, Meta(ge=1, le=1 << 40)]


@register
class Zstd(Compressor):
    """Zstandard, skipped where it does not pay."""

    number = 2
    name = "zstd"
    rank = 40
    training_safe = True
    options_type: ClassVar[type[Options]] = ZstdOptions
    params_type: ClassVar[type[Params]] = ZstdParams
    summary = "Zstandard on the coded bytes; a sample is tried first, and what hardly shrinks is sent as it is"
    ratio = "1 to 10, by content"
    error = "none"

    def __init__(self, options: Options) -> None:
        """Options are `ZstdOptions`."""
        self._options = cast(ZstdOptions, options)

    def heavy(self) -> str:
        """Levels above 9 take many times as long for a few percent."""
        level = self._options.level
        return f"zstd level {level} takes too long for it; at most {MAX_ASKED_LEVEL}" if level > MAX_ASKED_LEVEL else ""

    @cached_property
    def _compressor(self) -> zstandard.ZstdCompressor:
        return zstandard.ZstdCompressor(level=self._options.level)

    def _pays(self, before: int, after: int) -> bool:
        return after <= before * (1 - self._options.gain)

    def compress(self, data: Buffer) -> tuple[Buffer, Params] | None:
        """A zstd frame, or None where less than `gain` would be saved."""
        view = memoryview(data)
        if view.nbytes < _SMALL:
            return None
        if view.nbytes >= 4 * _PIECE * _PIECES:
            gap = (view.nbytes - _PIECE) // (_PIECES - 1)
            tried = sum(len(self._compressor.compress(view[i * gap : i * gap + _PIECE])) for i in range(_PIECES))
            if not self._pays(_PIECE * _PIECES, tried):
                return None
        small = self._compressor.compress(view)
        return (small, ZstdParams(view.nbytes)) if self._pays(view.nbytes, len(small)) else None

    def expand(self, data: memoryview, params: ZstdParams, limit: int) -> bytearray:
        """Exactly `params.size` bytes. Raises FormatError for more than `limit`, or another frame than announced."""
        size = params.size
        if size > limit:
            raise FormatError(f"zstd: {size} bytes announced; such a tensor has at most {limit}")
        try:
            if zstandard.frame_content_size(data) != size:
                raise FormatError(f"zstd: the frame does not hold the {size} bytes that were announced")
            window = max(size, _MIN_WINDOW)
            out = bytearray(size)
            reader = zstandard.ZstdDecompressor(max_window_size=window).stream_reader(data, read_across_frames=False)
            filled = 0
            while filled < size and (step := reader.readinto(memoryview(out)[filled:])):
                filled += step
            extra = reader.read(1)
        except zstandard.ZstdError as error:
            raise FormatError(f"zstd: a damaged frame of {data.nbytes} bytes: {error}") from error
        if filled != size or extra:
            raise FormatError(f"zstd: {filled} bytes came out where {size} were announced")
        return out
