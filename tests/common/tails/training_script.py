"""A user's training script: goes on from its last checkpoint when it is started again, whatever ended it."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from tail_parts import EXAMPLE, OPTIMIZERS, Saved, Split, batches, fresh

from fogline import RemoteTail, split


def main(address: str, folder: Path, steps: int, every: int, optimizer: str) -> None:
    torch.set_num_threads(1)
    spec = OPTIMIZERS[optimizer]
    kept = folder / "checkpoint"
    saved = Saved(**torch.load(kept, weights_only=True)) if kept.exists() else None
    head, tail = split(fresh(), at="first", example=EXAMPLE)
    remote = RemoteTail.connect(
        address,
        model="tail_models:net",
        weights=tail,
        optimizer=spec,
        resume=None if saved is None else saved.remote,
        give_up_s=60.0,
    )
    torch.manual_seed(5)
    script = Split(head, remote, spec) if saved is None else saved.resume(head, remote, spec)

    def before(number: int) -> None:
        if number % every == 0 and number > (saved.steps if saved else -1):
            _write(kept, asdict(Saved.of(script)))
        sys.stdout.write(f"step {number}\n")
        sys.stdout.flush()

    script.run(iter(list(enumerate(batches(steps)))[len(script.losses) :]), before)
    assert script.head is not None
    state = dict(script.head.state_dict()) | dict(remote.state_dict())
    _write(
        folder / "result",
        {"losses": script.losses, "norms": script.norms, "state": state, "random": torch.get_rng_state()},
    )
    remote.close()


def _write(path: Path, what: object) -> None:
    torch.save(what, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
