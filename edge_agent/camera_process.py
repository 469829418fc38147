"""The process of a live camera: opens it, reads frames, makes JPEGs, finds boxes, and writes both to the agent.

Run as `python -m fogline.edge_agent.camera_process PARENT_PID` with `capture` of the configuration (JSON) on stdin,
which is in no argument list because of the password. FFmpeg and the user's function stay out of the agent: what hangs
or crashes in them costs a restart of this process. On stdout: a line of JSON (`Head`), then `size` bytes of JPEG, and
so on.
"""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from fogline.common import logs, process
from fogline.common.config import LogConfig
from fogline.common.errors import ConfigError, FoglineError, UnavailableError
from fogline.edge_agent.annotate import Annotator
from fogline.edge_agent.camera_open import Opening, explained, openings
from fogline.edge_agent.config import CaptureConfig

if TYPE_CHECKING:
    import av.container

_HUFFMAN, _SCAN = b"\xff\xc4", b"\xff\xda"


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """What comes before a JPEG, or instead of one."""

    size: int = 0  # bytes of JPEG that follow
    age_us: int = 0  # of the frame, when this was written
    boxes: tuple[tuple[float, float, float, float, str], ...] = ()  # x, y, width, height, label
    error: str = ""  # nothing follows: why there are no frames
    final: bool = False  # trying again would not help


class Settings(msgspec.Struct, frozen=True):
    """What the agent sends."""

    capture: CaptureConfig
    log: LogConfig


class Pacer:
    """Lets through as many frames a second as are wanted, spread evenly."""

    def __init__(self, fps: float) -> None:
        self._period = 1 / fps if fps > 0 else 0.0
        self._due = 0.0

    def due(self, now: float) -> bool:
        """Whether the frame that came now is wanted."""
        # A camera's frames jitter: one that comes a little early is the one that was meant.
        early = 0.2 * self._period
        if now < self._due - early:
            return False
        self._due = max(self._due, now - early) + self._period  # what was late is not made up for in a burst
        return True


class Reader:
    """Frames of one opened camera, as JPEGs with boxes."""

    def __init__(self, config: CaptureConfig, annotator: Annotator | None) -> None:
        self._config, self._annotator = config, annotator
        self._pacer = Pacer(config.fps)

    def write(self, opening: Opening, out: BinaryIO) -> None:
        """Until the stream ends. Raises an error of the tree, or _Refused where it can't be opened."""
        with opened(opening, self._config.stall_s) as (container, program):
            if not container.streams.video:
                text = f"{opening.name}: the stream has no video; correct the path in capture.url"
                raise UnavailableError(text, number=807)
            video = container.streams.video[0]
            video.thread_type = "SLICE"  # threads by frame would hold frames back
            try:
                for packet in container.demux(video):
                    self._packet(packet, out)
            except BrokenPipeError:  # the agent has ended; of streams it is told as an end
                raise
            except _failures() as error:
                raise explained(error, opening) from None  # its own text may hold the URL
            raise _ended(opening, program)

    def _packet(self, packet: Any, out: BinaryIO) -> None:
        now = time.monotonic()
        name = packet.stream.codec_context.name
        if name == "mjpeg" and packet.size:
            if not self._pacer.due(now):
                return
            data = bytes(packet)
            if self._annotator is None and not self._config.width and whole(data):
                _send(out, data, now, ())
                return
        try:
            frames = packet.decode()
        except _damage():  # a packet that was lost on the way; who gets no whole frame for long is started again
            return
        for frame in frames:
            if name == "mjpeg" or self._pacer.due(now):
                self._frame(frame, now, out)

    def _frame(self, frame: Any, now: float, out: BinaryIO) -> None:
        config = self._config
        picture = frame.reformat(config.width or None, config.height or None, format="rgb24")
        boxes: tuple[tuple[float, float, float, float, str], ...] = ()
        if self._annotator is not None:
            found = self._annotator.boxes(picture.to_ndarray())
            boxes = tuple((box.x, box.y, box.w, box.h, box.label) for box in found)
        jpeg = io.BytesIO()
        picture.to_image().save(jpeg, "JPEG", quality=config.quality)
        _send(out, jpeg.getvalue(), now, boxes)


def main(argv: list[str]) -> int:
    """Serve one camera until it fails or the agent ends us; return the exit code."""
    process.die_with_parent(int(argv[1]))
    # A user's function may print: that must not land among the frames.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return process.run_main(lambda: _run(out))


def _run(out: BinaryIO) -> int:
    data = sys.stdin.buffer.read()
    settings = msgspec.json.decode(data, type=Settings, dec_hook=lambda kind, value: kind(value))
    logs.setup(settings.log, "edge-camera")
    try:
        _serve(settings.capture, out)
    except BrokenPipeError:  # the agent has ended
        return 0
    except FoglineError as error:
        _write(out, Head(error=str(error), final=isinstance(error, ConfigError)))
        return error.exit_code
    return 0


def _serve(config: CaptureConfig, out: BinaryIO) -> None:
    ways = openings(config)
    try:
        import av.logging
    except ModuleNotFoundError as error:
        raise ConfigError(f"capture.source {config.source!r} needs PyAV; install fogline[camera]") from error
    av.logging.set_level(None)  # its lines hold addresses with passwords
    reader = Reader(config, Annotator(config.annotate, config.label) if config.annotate else None)
    for number, opening in enumerate(ways, 1):
        try:
            reader.write(opening, out)
        except _Refused as refused:
            if number == len(ways) or not refused.other_way:
                raise refused.error from None


class _Refused(Exception):
    """A camera that could not be opened, and whether another way may do."""

    def __init__(self, error: FoglineError, other_way: bool) -> None:
        super().__init__(str(error))
        self.error, self.other_way = error, other_way


@contextmanager
def opened(
    opening: Opening, timeout_s: float
) -> Iterator[tuple[av.container.InputContainer, subprocess.Popen[bytes] | None]]:
    """An opened camera, and the program that reads it where there is one. Raises _Refused."""
    import av

    program: subprocess.Popen[bytes] | None = None
    file: Any = opening.file
    if opening.command:
        parent = os.getpid()
        program = subprocess.Popen(
            opening.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            preexec_fn=lambda: process.die_with_parent(parent),
        )  # fmt: skip
        file = program.stdout
    try:
        try:
            container = av.open(file, "r", opening.format, opening.options, timeout=timeout_s)
        except _failures() as error:
            if program is not None:
                raise _Refused(_ended(opening, program), other_way=False) from None
            other_way = opening.format == "v4l2" and getattr(error, "errno", None) == errno.EINVAL
            raise _Refused(explained(error, opening), other_way) from None
        with container:
            yield container, program
    finally:
        if program is not None:
            program.kill()
            program.wait()
            if program.stdout is not None:
                program.stdout.close()


def _ended(opening: Opening, program: subprocess.Popen[bytes] | None) -> UnavailableError:
    if program is None:
        return UnavailableError(f"{opening.name}: the stream ended")
    text = f"{opening.name}: {os.path.basename(opening.command[0])} gives no frames"
    with suppress(subprocess.TimeoutExpired):
        text += f" and ended with code {program.wait(1.0)}"
    return UnavailableError(f"{text}; its own message is above; check the cable and the camera's driver", number=806)


def whole(data: bytes) -> bool:
    """Whether a frame of motion JPEG is a JPEG as it is: many cameras leave out the Huffman tables."""
    head, found, _ = data.partition(_SCAN)
    return head.startswith(b"\xff\xd8\xff") and bool(found) and _HUFFMAN in head


def _failures() -> tuple[type[BaseException], ...]:
    import av

    return (av.error.FFmpegError, OSError, ValueError)


def _damage() -> tuple[type[BaseException], ...]:
    import av

    return (av.error.InvalidDataError,)


def _send(out: BinaryIO, data: bytes, taken: float, boxes: tuple[tuple[float, float, float, float, str], ...]) -> None:
    age = int((time.monotonic() - taken) * 1e6)
    _write(out, Head(size=len(data), age_us=age, boxes=boxes), data)


def _write(out: BinaryIO, head: Head, data: bytes = b"") -> None:
    out.write(msgspec.json.encode(head) + b"\n" + data)
    out.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
