"""The trainer as the agent sees it: a child process, started, listened to, restarted, told when nothing more comes."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from fogline.common.errors import ConfigError, InputError, InternalError
from fogline.common.files import replace_file
from fogline.edge_agent.config import CaptureConfig, EdgeConfig, TrainConfig
from fogline.edge_agent.workers import Stop

_log = logging.getLogger(__name__)
_STOP_S = 2.5  # for the child to write its checkpoint
_MAX_LINE = 1 << 16


class Progress(msgspec.Struct, frozen=True):
    """One line of the child's standard output."""

    step: int = 0
    loss: float | None = None  # running mean
    score: float | None = None  # the configured metric on the held-out frames
    pool: int = 0  # images to learn from
    seconds: float = 0.0  # spent in steps since the start of the child
    published: bool = False  # weights were left for the registry
    done: bool = False  # all steps were made and nothing more came
    damaged: int = 0  # records of the pool that can't be decoded


@dataclass
class TrainState:
    """What the agent knows of the training."""

    state: str = "off"  # off, starting, running, done, or why it failed
    progress: Progress = field(default_factory=Progress)
    score: float | None = None  # of the last evaluation
    restarts: int = 0
    trouble: str = ""  # why there is no training although there should be


def wanted(config: TrainConfig) -> bool:
    """Whether to train. Finds torch without importing it. Raises ConfigError when it must train and can't."""
    if config.enabled is False:
        return False
    missing = [name for name in ("torch", "safetensors") if importlib.util.find_spec(name) is None]
    if not missing:
        return True
    text = f"{' and '.join(missing)} not installed; install fogline[torch]"
    if config.enabled is True:
        raise ConfigError(f"train.enabled is true and {text}, or set train.enabled to auto")
    _log.info("no training: %s", text)
    return False


class TrainerProcess:
    """The task that keeps the child alive. Its thread must stay: the kernel kills the child with the thread."""

    def __init__(
        self, config: EdgeConfig, stop: Stop, quiet: Callable[[], bool], on_progress: Callable[[Progress], None]
    ) -> None:
        """`quiet` says whether no image is to be expected."""
        self._config, self._stop, self._quiet, self._on_progress = config, stop, quiet, on_progress
        self.state = TrainState()

    def run(self) -> None:
        """Until the child is done or the order to stop. Raises InternalError when it dies (and is to be restarted)."""
        file = self._config.data_dir / "train" / "config.json"
        # Without the camera: the trainer has no use for its password.
        told = msgspec.structs.replace(self._config, capture=CaptureConfig())
        replace_file(file, msgspec.json.encode(told, enc_hook=str))
        self.state.state = "starting"
        command = [sys.executable, "-m", "fogline.edge_agent.train_process", "--config", str(file)]
        command += ["--parent", str(os.getpid())]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        teller = threading.Thread(target=self._tell, args=(child,), name="train-quiet", daemon=True)
        teller.start()
        try:
            self._listen(child)
            code = child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
            teller.join()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        if self._stop or self.state.state == "done":
            return
        self.state.restarts += 1
        self.state.state = f"ended with code {code}"
        if code in (ConfigError.exit_code, InputError.exit_code):
            # It would end in the same way again.
            self.state.trouble = "the training process refused its settings; its log line above says why"
            _log.error("training is off: %s", self.state.trouble)
            return
        raise InternalError(f"the training process ended with code {code}; it is started again")

    def _listen(self, child: subprocess.Popen[bytes]) -> None:
        if child.stdout is None:
            raise InternalError("the training process has no standard output")
        with self._stop.calling(child.terminate):
            while line := child.stdout.readline(_MAX_LINE):
                try:
                    progress = msgspec.json.decode(line, type=Progress)
                except msgspec.MsgspecError:
                    _log.warning("training process: %s", line[:200].decode("utf-8", "replace").rstrip())
                    continue
                self.state.state = "done" if progress.done else "running"
                self.state.progress = progress
                if progress.score is not None:
                    self.state.score = progress.score
                self._on_progress(progress)

    def _tell(self, child: subprocess.Popen[bytes]) -> None:
        """Tell the child whether images are still to be expected; the end of this pipe ends the child."""
        told: bool | None = None
        while child.poll() is None and child.stdin is not None:
            quiet = self._quiet()
            if quiet != told:
                try:
                    child.stdin.write(json.dumps({"quiet": quiet}).encode() + b"\n")
                    child.stdin.flush()
                except OSError:  # it has just ended
                    return
                told = quiet
            time.sleep(0.2)


def outgoing(data_dir: Path) -> Path:
    """Where the child leaves weights for the registry."""
    return data_dir / "train" / "outgoing"
