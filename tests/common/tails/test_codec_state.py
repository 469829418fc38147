"""Codecs with a memory go on from checkpoints, too: a broken run computes what an unbroken one does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tail_parts import EXAMPLE, OPTIMIZERS, Split, batches, fresh

from fogline import split

SGD = OPTIMIZERS["sgd"]
CODECS = ("topk(share=0.25)", "errbound(epsilon=0.1, sigma_ratio=0.05, window=3)", "c3sl(ratio=2)+fp16")


def script(host: Any, codec: str, seed: int = 1, resume: Any = None) -> Split:
    head, tail = split(fresh(seed), "first", example=EXAMPLE)
    return Split(head, host.connect(tail, optimizer=SGD, codec=codec, resume=resume), SGD)


def test_host_and_client_start_again(hosts: Any) -> None:
    """All codecs on one host, since what takes the time is its starts."""
    host = hosts()
    steps = list(enumerate(batches(14)))
    wanted = {}
    for codec in CODECS:
        whole = script(host, codec)
        torch.manual_seed(5)
        whole.run(iter(steps))
        wanted[codec] = (whole.losses, whole.remote.weights())
        whole.remote.close()

    broken = {codec: script(host, codec) for codec in CODECS}
    random = {}
    for codec, one in broken.items():
        torch.manual_seed(5)
        one.run(iter(steps[:6]))
        random[codec] = torch.get_rng_state()
    host.restart()  # only the log knows of these
    saved: dict[str, Any] = {}
    for codec, one in broken.items():
        torch.set_rng_state(random[codec])
        one.run(iter(steps[6:8]))
        assert one.head is not None
        saved[codec] = copy.deepcopy(
            (
                one.remote.checkpoint(),
                one.head.state_dict(),
                one.optimizers[0].state_dict(),
                [s.state_dict() for s in one.schedulers],
                torch.get_rng_state(),
            )
        )
        one.run(iter(steps[8:11]))
        one.remote.abandon()
    host.restart()
    for codec, (remote, head, optimizer, schedulers, state) in saved.items():
        again = script(host, codec, seed=99, resume=remote)
        assert again.head is not None
        again.head.load_state_dict(head)
        again.optimizers[0].load_state_dict(optimizer)
        again.remote.optimizer.load_state_dict(remote["optimizer"])
        for scheduler, values in zip(again.schedulers, schedulers, strict=True):
            scheduler.load_state_dict(values)
        torch.set_rng_state(state)
        again.run(iter(steps[8:]))
        losses, weights = wanted[codec]
        assert broken[codec].losses[:8] + again.losses == losses, codec
        found = again.remote.weights()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items()), codec
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
