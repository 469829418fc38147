"""A user's own trainer in place of the built-in detector's: `train.trainer: package.module:function`.

    def train(job: fogline.Training) -> None:
        for images, targets in job.loader(size=(320, 176), batch_size=8, shuffle=True):
            ...
            job.report(step, loss=loss.item())

It runs in the agent's training child. It returns when it is done; the agent then starts it no more. While it runs,
`job.stopping` says when the agent ends or is restarted: it then has a second or two to save what it wants to keep.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from fogline.common.errors import FoglineError
from fogline.common.files import replace_file
from fogline.common.functions import import_function, told
from fogline.edge_agent.config import EdgeConfig, TrainConfig
from fogline.edge_agent.trainer import Progress, outgoing

if TYPE_CHECKING:
    from torch import Tensor

    from fogline.common.data import AnnotatedSequence
    from fogline.common.loader.loader import DecodedLoader

_log = logging.getLogger(__name__)


class Training:
    """What the function is called with."""

    def __init__(self, settings: EdgeConfig, stop: threading.Event, quiet: Callable[[], bool], out: BinaryIO) -> None:
        self._settings, self._stop, self._quiet, self._out = settings, stop, quiet, out
        self._started = time.monotonic()
        self._step, self._reported = 0, Progress()
        self._folder = settings.data_dir / "train" / "own"
        self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def settings(self) -> TrainConfig:
        """The section `train` of the agent's configuration: sizes, batch, device, labels, seed, …"""
        return self._settings.train

    @property
    def library(self) -> Path:
        """The folder of what the agent received, for `fogline.DecodedLoader`; it grows meanwhile."""
        return self._settings.data_dir / "library"

    @property
    def folder(self) -> Path:
        """A folder for checkpoints, there since the last run; it lasts as long as the agent's `data_dir`."""
        return self._folder

    @property
    def stopping(self) -> bool:
        """Whether the agent ends: save and return."""
        return self._stop.is_set()

    @property
    def quiet(self) -> bool:
        """Whether nothing more is to be expected: all captured, all uploaded, and nothing came for `train.quiet_s`."""
        return self._quiet()

    @property
    def images(self) -> int:
        """Records in the library now."""
        file = self.library / "library.sqlite"
        if not file.exists():
            return 0
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as db:
            return int(db.execute("SELECT COUNT(*) FROM records").fetchone()[0])

    def wait(self, seconds: float) -> bool:
        """Sleep, say for more images; whether the agent ends."""
        return self._stop.wait(seconds)

    def wait_for(self, images: int) -> bool:
        """Sleep until the library holds so many records, or nothing more is to be expected; whether the agent ends."""
        while self.images < images and not self.quiet:
            if self._stop.wait(0.5):
                return True
        return self._stop.is_set()

    def loader(self, **options: Any) -> DecodedLoader:
        """A `fogline.DecodedLoader` over what is there now, with its options; make a new one to see what came since."""
        from fogline.common.loader.loader import DecodedLoader

        return DecodedLoader(self.library, **{"device": self.settings.device} | options)

    def evaluation(self) -> list[AnnotatedSequence]:
        """The held-out sequences of `train.evaluate`."""
        from fogline.common.data import AnnotatedSequence, load_sequence
        from fogline.edge_agent.sources import frames_of

        found = []
        for run in self.settings.evaluate:
            sequence = load_sequence(run.path)
            found.append(AnnotatedSequence(sequence.name, tuple(frames_of(sequence, run))))
        return found

    def report(self, step: int, *, loss: float | None = None, score: float | None = None) -> None:
        """Tell the agent, for its metrics, `/healthz` and the fleet's status; once a second is often enough."""
        self._step = step
        self._say(Progress(step, loss, score, self.images, round(time.monotonic() - self._started, 3)))

    def publish(self, weights: Mapping[str, Tensor]) -> None:
        """Send weights to the cloud server's registry as a new version of `train.model`. Copies; returns at once."""
        from safetensors.torch import save

        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
        replace_file(outgoing(self._settings.data_dir) / f"{self._step:012d}.safetensors", data)
        self._say(msgspec.structs.replace(self._reported, published=True))

    def _say(self, progress: Progress) -> None:
        self._reported = msgspec.structs.replace(progress, published=False)
        self._out.write(msgspec.json.encode(progress) + b"\n")
        self._out.flush()


def run(settings: EdgeConfig, stop: threading.Event, quiet: Callable[[], bool]) -> None:
    """Call the user's function. Raises ConfigError for one that is not there, FoglineError for what it raises."""
    # The function, and what it imports, may print: that goes to the log, not among our lines.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    name = settings.train.trainer
    function = import_function(name, f"train.trainer {name!r}")
    job = Training(settings, stop, quiet, out)
    job.report(0)
    try:
        function(job)
    except FoglineError:
        raise
    except Exception as error:
        _log.exception("the trainer %s failed", name)
        raise FoglineError(f"train.trainer {name!r}: {told(error)}; it is started again") from error
    if not stop.is_set():
        job._say(msgspec.structs.replace(job._reported, done=True))
        _log.info("training is done", extra={"step": job._step})
