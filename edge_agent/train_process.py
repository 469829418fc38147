"""`python -m fogline.edge_agent.train_process`: the agent's child that learns; the only one with torch.

It reads the library, trains while images arrive, and writes one JSON object a line on its standard output
(`trainer.Progress`). On its standard input the agent says whether more images are to be expected; the end of that
input, like SIGTERM, ends the child after a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fogline.common import config, logs, process
from fogline.common.errors import FoglineError
from fogline.edge_agent.config import EdgeConfig
from fogline.edge_agent.trainer import Progress

if TYPE_CHECKING:
    from fogline.edge_agent.train_run import TrainRun

_log = logging.getLogger(__name__)
_REFRESH_S = 0.5
_REPORT_S = 1.0
_LOSSES = 50  # that the reported loss is the mean of


def main() -> int:
    """Train; return the exit code."""
    parser = argparse.ArgumentParser(prog="train_process")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True, help="pid of the agent; the child ends with it")
    arguments = parser.parse_args()
    process.die_with_parent(arguments.parent)
    return process.run_main(lambda: _run(arguments.config))


def _run(path: Path) -> None:
    settings = config.load(EdgeConfig, path, {}, {})
    logs.setup(settings.log, "edge-trainer")
    os.nice(10)  # capture and upload come first on a small board
    told = _Told()
    for number in process.STOP_SIGNALS:
        signal.signal(number, lambda *_: told.stop.set())
    threading.Thread(target=told.listen, name="told", daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.train.threads))  # read when torch is first imported
    if settings.train.trainer:
        from fogline.edge_agent import user_training

        user_training.run(settings, told.stop, lambda: told.quiet)
        return
    from fogline.edge_agent.train_run import TrainRun

    with TrainRun(settings) as run:
        _train(run, settings, told)


class _Told:
    """What the agent has told us."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.quiet = False

    def listen(self) -> None:
        """Read the agent's lines to their end."""
        for line in sys.stdin:
            try:
                self.quiet = bool(json.loads(line)["quiet"])
            except (ValueError, KeyError, TypeError):
                _log.warning("the agent said something unknown: %s", line[:80])
        self.stop.set()


def _train(run: TrainRun, settings: EdgeConfig, told: _Told) -> None:
    train = settings.train
    losses: deque[float] = deque(maxlen=_LOSSES)
    seconds = 0.0
    refreshed = reported = float("-inf")
    _report(run, losses, seconds)
    while not told.stop.is_set():
        now = time.monotonic()
        if now - refreshed > _REFRESH_S:
            run.pool.refresh()
            refreshed = now
        if run.complete:
            break
        if not len(run.pool) or (run.holding and not told.quiet):
            told.stop.wait(0.2)
        else:
            started = time.perf_counter()
            losses.append(run.trainer.step())
            seconds += time.perf_counter() - started
            step = run.trainer.step_count
            if step % train.checkpoint_every == 0:
                run.checkpoint()
            if train.publish_every and step % train.publish_every == 0:
                run.publish()
                _report(run, losses, seconds, published=True)
            if step % train.evaluate_every == 0 and not run.complete:
                _report(run, losses, seconds, score=run.evaluate())
        if time.monotonic() - reported > _REPORT_S:
            _report(run, losses, seconds)
            reported = time.monotonic()
    _try_checkpoint(run)
    if run.complete:
        if train.publish_every:
            run.publish()
        score = run.evaluate()
        _log.info("training is done", extra={"step": run.trainer.step_count, "score": score, "pool": len(run.pool)})
        _report(run, losses, seconds, score=score, published=bool(train.publish_every), done=True)


def _try_checkpoint(run: TrainRun) -> None:
    try:
        run.checkpoint()
    except FoglineError as error:
        _log.error("the last steps are not saved: %s", error)


def _report(
    run: TrainRun,
    losses: deque[float],
    seconds: float,
    *,
    score: float | None = None,
    published: bool = False,
    done: bool = False,
) -> None:
    loss = sum(losses) / len(losses) if losses else None
    pool = run.pool
    line = Progress(run.trainer.step_count, loss, score, len(pool), round(seconds, 3), published, done, pool.damaged)
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
