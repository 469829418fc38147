"""Codecs with a memory go on from checkpoints, too: a broken run computes what an unbroken one does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tail_parts import EXAMPLE, OPTIMIZERS, Split, batches, fresh

from fogline import split

SGD = OPTIMIZERS["sgd"]
SMALL = "topk(share=0.25)"


def script(host: Any, codec: str, seed: int = 1, resume: Any = None) -> Split:
    head, tail = split(fresh(seed), "first", example=EXAMPLE)
    return Split(head, host.connect(tail, optimizer=SGD, codec=codec, resume=resume), SGD)


@pytest.mark.parametrize("codec", [SMALL, "errbound(epsilon=0.1, sigma_ratio=0.05, window=3)", "c3sl(ratio=2)+fp16"])
def test_host_and_client_start_again(hosts: Any, codec: str) -> None:
    host = hosts()
    steps = list(enumerate(batches(14)))
    whole = script(host, codec)
    torch.manual_seed(5)
    whole.run(iter(steps))
    weights = whole.remote.weights()
    whole.remote.close()

    broken = script(host, codec)
    torch.manual_seed(5)
    broken.run(iter(steps[:6]))
    host.restart()  # only the log knows of these
    broken.run(iter(steps[6:8]))
    assert broken.head is not None
    saved = copy.deepcopy(
        (
            broken.remote.checkpoint(),
            broken.head.state_dict(),
            broken.optimizers[0].state_dict(),
            [s.state_dict() for s in broken.schedulers],
            torch.get_rng_state(),
        )
    )
    broken.run(iter(steps[8:11]))
    broken.remote.abandon()
    host.restart()
    again = script(host, codec, seed=99, resume=saved[0])
    assert again.head is not None
    again.head.load_state_dict(saved[1])
    again.optimizers[0].load_state_dict(saved[2])
    again.remote.optimizer.load_state_dict(saved[0]["optimizer"])
    for scheduler, state in zip(again.schedulers, saved[3], strict=True):
        scheduler.load_state_dict(state)
    torch.set_rng_state(saved[4])
    again.run(iter(steps[8:]))
    assert broken.losses[:8] + again.losses == whole.losses
    found = again.remote.weights()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    again.remote.close()


def test_an_adaptive_bound_follows_the_host_s_gradients(host: Any) -> None:
    made = script(host, "errbound(epsilon=0.1, sigma_ratio=0.05, window=3)")
    stage = made.remote._activations.first._stages[0]
    before = stage.epsilon
    made.run(enumerate(batches(10)))
    assert stage.epsilon != before
    made.remote.close()


def test_a_folder_is_of_one_host(hosts: Any) -> None:
    first = hosts()
    with pytest.raises(AssertionError, match="ended with 2"):
        type(first)(first.config.data_dir)
