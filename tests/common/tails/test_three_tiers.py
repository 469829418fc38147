"""Edge, fog and cloud as real processes: what breaks at one of them is felt by none of the others' bits."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import pytest
import torch
from tail_parts import EXAMPLE, OPTIMIZERS, HostProcess, Saved, Split, Unsplit, batches, fresh

from fogline import split
from fogline.common.errors import UnavailableError

STEPS = 44
CUTS = ("first", "second")
SGD = OPTIMIZERS["sgd"]
Hosts = Callable[..., HostProcess]


def tiers(hosts: Hosts, **fog: Any) -> tuple[HostProcess, HostProcess]:
    cloud = hosts(role="cloud")
    return hosts(upstream=cloud.address, **fog), cloud


@pytest.mark.slow
@pytest.mark.timeout(900)  # eleven processes are started
def test_checkpoints_that_a_client_may_go_back_to_outlive_those_for_restarts(hosts: Hosts) -> None:
    """Also with a middle whose own log is so short that it empties it by checkpoints further up, again and again."""
    fog, cloud = tiers(hosts, upstream_log_bytes=40_000)
    model = fresh()
    whole = Unsplit(model, SGD, STEPS)
    head, middle, tail = split(model, at=CUTS, example=EXAMPLE)
    remote = fog.connect((middle, tail), optimizer=SGD, log_bytes=150_000)
    script = Split(head, remote, SGD)
    saved: list[Saved] = []

    def before(number: int) -> None:
        if number in (4, 8):
            saved.append(Saved.of(script))
        if number == 15:
            cloud.restart()
        if number == 21:
            fog.restart()
        if number == 27:
            cloud.kill()
            fog.restart()
            cloud.restart()

    torch.manual_seed(5)
    script.run(enumerate(batches(STEPS)), before)
    script.agrees(whole)
    assert remote._client.session.durable > 100, "the client's log was emptied by itself, more than once"
    remote.abandon()
    fog.restart()
    cloud.restart()
    for state in reversed(saved):  # the older one last: it is there too, and what came after it is forgotten
        head, middle, tail = split(fresh(seed=99), at=CUTS, example=EXAMPLE)
        again = state.resume(head, fog.connect((middle, tail), optimizer=SGD, resume=state.remote), SGD)
        again.run(iter(list(enumerate(batches(STEPS)))[state.steps :]))
        again.agrees(whole)
        again.remote.abandon()


@pytest.mark.parametrize("labels", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_dead_top_is_told_of_and_hinders_nobody_else(hosts: Hosts, labels: bool) -> None:
    """Others draw random numbers, too, and there is one place for operations: neither may be held by who waits."""
    fog, cloud = tiers(hosts, upstream_give_up_s=3.0, parallel=1)
    model = fresh()
    head, middle, tail = split(model, at=CUTS, example=EXAMPLE)
    other_head, other_tail = split(fresh(), at="first", example=EXAMPLE)
    with (
        fog.connect((middle, tail), optimizer=SGD) as remote,
        fog.connect(other_tail, optimizer=SGD) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        script = Split(head, remote, SGD, labels)
        script.run(enumerate(batches(2)))
        cloud.kill()
        waits = pool.submit(script.run, enumerate(batches(2)))
        Split(other_head, other, SGD).run(enumerate(batches(6)))
        assert not waits.done()
        with pytest.raises(UnavailableError, match="the host further up"):
            waits.result(20)
        with pytest.raises(UnavailableError, match="the host further up"):
            script.run(enumerate(batches(2)))


@pytest.mark.parametrize("phase", ["running", "resuming"])
def test_a_host_that_is_told_to_end_does_not_wait_for_a_dead_top(hosts: Hosts, phase: str) -> None:
    fog, cloud = tiers(hosts)
    head, middle, tail = split(fresh(), at=CUTS, example=EXAMPLE)
    with fog.connect((middle, tail), optimizer=SGD) as remote, ThreadPoolExecutor(1) as pool:
        script = Split(head, remote, SGD)
        script.run(enumerate(batches(2)))
        cloud.kill()
        if phase == "resuming":
            fog.restart()
        waits = pool.submit(script.run, enumerate(batches(2)))
        with pytest.raises(FutureTimeout):
            waits.result(1.0)
        began = time.monotonic()
        assert fog.stop() == 0
        assert time.monotonic() - began < 12.0, "it would be 20 s, or 120"
        remote.abandon()
        with pytest.raises(UnavailableError):
            waits.result(20)


@pytest.mark.parametrize(
    "at", [CUTS, *(pytest.param(at, marks=pytest.mark.slow) for at in (("first", "first"), (None, "first")))]
)
def test_inference_goes_on_after_restarts_of_middle_and_top(hosts: Hosts, at: tuple[str | None, str]) -> None:
    fog, cloud = tiers(hosts)
    model = fresh().eval()
    head, middle, tail = split(model, at=at, example=EXAMPLE)
    with torch.no_grad(), fog.connect((middle, tail), at=at) as remote:
        for number in range(5):
            x = torch.randn(2, 3, 8, 8)
            if number in (1, 3):
                fog.restart()
            if number in (2, 3):
                cloud.restart()
            futures = [remote.submit(x if head is None else head(x)) for _ in range(3)]
            assert all(torch.equal(f.result(60), model(x)) for f in futures)
