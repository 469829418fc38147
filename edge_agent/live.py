"""A live camera as the agent sees it: a child process, its frames, and opening the camera anew when it falls silent."""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from fogline.common.boxes import Box
from fogline.common.config import LogConfig
from fogline.common.errors import UnavailableError
from fogline.common.rpc.retry import Backoff
from fogline.edge_agent.camera_open import camera_name
from fogline.edge_agent.camera_process import Head, Settings
from fogline.edge_agent.config import CaptureConfig
from fogline.edge_agent.workers import Stop

_log = logging.getLogger(__name__)
_START_S = 30.0  # for the process to start and the camera to deliver, on a small board
_STEADY_S = 10.0  # frames for so long: the next trouble starts with a short wait
_MAX_HEAD = 1 << 18
_MAX_FRAME = 64 << 20
_READ = 1 << 20


@dataclass(frozen=True)
class LiveFrame:
    """One frame of a live camera."""

    data: bytes  # JPEG
    boxes: tuple[Box, ...]
    age_us: int  # since the camera gave it


class LiveCamera:
    """Frames until the order to stop. The thread that iterates must stay: the kernel kills the child with it."""

    def __init__(self, config: CaptureConfig, log: LogConfig, stop: Stop) -> None:
        self._config, self._stop = config, stop
        self._settings = msgspec.json.encode(Settings(config, log), enc_hook=str)
        self._backoff = Backoff(1.0, 30.0)
        self.name = camera_name(config)
        self.error = "not opened yet"  # empty while frames come

    def frames(self) -> Iterator[LiveFrame]:
        """Opens the camera, again and again where needed; ends with the order to stop, or where trying is no use."""
        while not self._stop:
            started = time.monotonic()
            try:
                for frame in self._one_process():
                    if self.error:
                        _log.info("camera %s delivers", self.name)
                        self.error = ""
                    if time.monotonic() - started > _STEADY_S:
                        self._backoff.reset()
                    yield frame
            except _Final as error:
                self.error = str(error)
                _log.error("capture ends: %s", error)
                return
            except UnavailableError as error:
                if self._stop:
                    return
                if str(error) != self.error:
                    _log.warning("%s; trying again", error)
                self.error = str(error)
            self._backoff.wait(self._stop.event)

    def _one_process(self) -> Iterator[LiveFrame]:
        command = [sys.executable, "-m", "fogline.edge_agent.camera_process", str(os.getpid())]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            with self._stop.calling(child.kill):
                yield from self._listen(child)
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()

    def _listen(self, child: subprocess.Popen[bytes]) -> Iterator[LiveFrame]:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(self._settings)
            child.stdin.close()
        except OSError as error:
            raise UnavailableError(f"camera {self.name}: its process ended at once ({error.strerror})") from error
        pipe, patience = _Pipe(child.stdout.fileno(), self.name), _START_S + self._config.stall_s
        while (line := pipe.line(patience)) is not None:
            try:
                head = msgspec.json.decode(line, type=Head)
            except msgspec.MsgspecError as error:
                raise UnavailableError(f"camera {self.name}: its process wrote {line[:80]!r} ({error})") from error
            if head.error:
                raise _Final(head.error) if head.final else UnavailableError(head.error)
            if not 0 < head.size <= _MAX_FRAME:
                raise UnavailableError(f"camera {self.name}: a frame of {head.size} bytes; lower capture.width")
            data = pipe.exactly(head.size, patience)
            yield LiveFrame(data, tuple(Box(*box) for box in head.boxes), max(0, head.age_us))
            patience = self._config.stall_s
        raise UnavailableError(f"camera {self.name}: its process ended with code {child.wait()}")


class _Final(Exception):
    """Trying again would not help."""


class _Pipe:
    """Lines and counted bytes from a descriptor, each within a time. Raises UnavailableError."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd, self._name, self._held = fd, name, bytearray()

    def line(self, seconds: float) -> bytes | None:
        """One line without its end; None at the end of the pipe."""
        until = time.monotonic() + seconds
        while (end := self._held.find(b"\n")) < 0:
            if len(self._held) > _MAX_HEAD:
                raise UnavailableError(f"camera {self._name}: its process wrote {len(self._held)} bytes, no frame")
            if not self._more(until):
                return None
        found = bytes(self._held[:end])
        del self._held[: end + 1]
        return found

    def exactly(self, count: int, seconds: float) -> bytes:
        """So many bytes."""
        until = time.monotonic() + seconds
        while len(self._held) < count:
            if not self._more(until):
                raise UnavailableError(f"camera {self._name}: its process ended within a frame")
        found = bytes(self._held[:count])
        del self._held[:count]
        return found

    def _more(self, until: float) -> bool:
        if not select.select([self._fd], [], [], max(0.0, until - time.monotonic()))[0]:
            raise UnavailableError(f"camera {self._name}: no frame in time; it is opened again")
        data = os.read(self._fd, _READ)
        self._held += data
        return bool(data)
