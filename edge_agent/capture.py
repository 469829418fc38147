"""Capture: from the sources into the outbox, at the configured rate, each frame once, also over restarts."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fogline.common.config import LogConfig
from fogline.common.errors import CapacityError, InputError
from fogline.edge_agent.clock import FogClock
from fogline.edge_agent.config import CaptureConfig
from fogline.edge_agent.outbox import Outbox
from fogline.edge_agent.workers import Stop

if TYPE_CHECKING:
    from fogline.edge_agent.live import LiveCamera
    from fogline.edge_agent.sources import Shot

_log = logging.getLogger(__name__)
_FULL_PAUSE_S = 1.0  # between looks at a full disk; a full outbox wakes us itself
MAX_IMAGE_BYTES = 64 << 20  # before reading a file; the fog node's own limit is lower


class Capture:
    """The capture task. `refused` counts frames that were bad and skipped; `done` says that nothing is left."""

    def __init__(
        self, config: CaptureConfig, outbox: Outbox, clock: FogClock, stop: Stop, log: LogConfig | None = None
    ) -> None:
        self._config, self._outbox, self._clock, self._stop = config, outbox, clock, stop
        self._log = log or LogConfig()
        self._refusals: set[str] = set()
        self._camera: LiveCamera | None = None
        self.done = config.source == "none"
        self.waiting = False  # for room in the outbox
        self.missed = 0  # frames of a live camera that found no room: it does not wait

    @property
    def trouble(self) -> str:
        """Why a live camera gives no frames; empty while it does."""
        return self._camera.error if self._camera is not None else ""

    @property
    def refused(self) -> int:
        """Bad frames and annotations skipped since the start."""
        return len(self._refusals)

    def run(self) -> None:
        """Until the sources are exhausted (`sequence`) or the order to stop (others)."""
        if self._config.source == "sequence":
            self._replay()
        elif self._config.source == "folder":
            self._watch()
        elif self._config.source in ("camera", "rtsp"):
            self._film()

    def _film(self) -> None:
        # Each source is imported where it is used: an agent that only receives stays small.
        from fogline.edge_agent.live import LiveCamera

        self._camera = LiveCamera(self._config, self._log, self._stop)
        for frame in self._camera.frames():
            now = self._clock.stamp()
            taken = replace(now, wall_us=now.wall_us - frame.age_us, boot_us=now.boot_us - frame.age_us)
            source = f"{self._config.source}:{self._camera.name}"
            try:
                self._outbox.add(frame.data, frame.boxes, self._camera.name, taken, source, None)
                self.waiting = False
            except InputError as error:
                self._refuse(str(error))
            except CapacityError as error:
                self._full(error)
                self.missed += 1

    def _replay(self) -> None:
        from fogline.edge_agent.sources import SequenceSource

        due = time.monotonic()
        for run in self._config.runs:
            try:
                source = SequenceSource(run, run.camera or self._config.camera, self._config.label)
            except InputError as error:
                self._refuse(str(error))
                continue
            self._refuse(*source.refused)
            for shot in source.shots(self._outbox.captured(source.name)):
                if self._stop.wait(max(0.0, due - time.monotonic())):
                    return
                self._take(shot)
                if self._config.fps > 0:
                    # A camera that had to wait does not catch up in a burst.
                    due = max(due + 1 / self._config.fps, time.monotonic() - 1 / self._config.fps)
        self.done = not self._stop

    def _watch(self) -> None:
        from fogline.edge_agent.sources import FolderSource

        sources = [FolderSource(r, r.camera or self._config.camera, self._config.label) for r in self._config.runs]
        while not self._stop:
            started = time.monotonic()
            new = 0
            for source in sources:
                for shot in source.scan(partial(self._outbox.captured, source.name)):
                    new += 1
                    self._take(shot)
                    if self._stop:
                        return
                self._refuse(*source.refused)
            self.done = not new
            # Looking through a large folder on a small board must not become all that it does.
            self._stop.wait(max(self._config.poll_s, 5 * (time.monotonic() - started)))

    def _take(self, shot: Shot) -> None:
        captured = self._clock.stamp()
        try:
            data = _read(shot.path)
        except InputError as error:
            self._refuse(str(error))
            return
        while not self._stop:
            with self._outbox.changed:
                try:
                    self._outbox.add(data, shot.boxes, shot.camera, captured, shot.source, shot.key)
                    self.waiting = False
                    return
                except InputError as error:
                    self._refuse(str(error))
                    return
                except CapacityError as error:
                    self._full(error)
                    self._outbox.changed.wait(_FULL_PAUSE_S)

    def _full(self, error: CapacityError) -> None:
        if not self.waiting:
            _log.warning("capture waits: %s", error)
        self.waiting = True

    def _refuse(self, *messages: str) -> None:
        for message in messages:
            if message not in self._refusals:
                self._refusals.add(message)
                _log.warning("skipped: %s", message)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); check it and its permissions") from error
    if len(data) > MAX_IMAGE_BYTES:
        raise InputError(f"{path}: larger than {MAX_IMAGE_BYTES} bytes; send a smaller image")
    if data[:3] != b"\xff\xd8\xff":
        raise InputError(f"{path}: not a JPEG; convert it")
    return data
