"""Micro-batches sent ahead leave the gradients, sums and running means that a loop over them leaves, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import tail_models
import torch
from tail_parts import EXAMPLE, OPTIMIZERS, HostProcess, batches, fresh
from tensor_parts import Line
from torch import Tensor, nn

from fogline import split
from fogline.common.errors import ConfigError, InputError
from fogline.common.tails.operations import Operations

SGD = OPTIMIZERS["sgd"]
MICRO = 6
PLAIN = {"kwargs": {"dropout": 0.0}}


def plain(seed: int = 1) -> nn.Module:
    """Without dropout, with batch norm."""
    torch.manual_seed(seed)
    return tail_models.net(dropout=0.0)


def steps(count: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    for number in range(count):
        yield batches((number + 1) * MICRO)[-MICRO:]


def mean(out: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(out, labels) / MICRO


class Whole:
    """The loop without splitting."""

    def __init__(self, model: nn.Module, count: int) -> None:
        self.model = copy.deepcopy(model)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        self.losses: list[float] = []
        for micro in steps(count):
            for x, y in micro:
                loss = mean(self.model(x), y)
                loss.backward()
                self.losses.append(loss.item())
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()


def run(head: Any, remote: Any, count: int, labels: bool, ahead: int, line: Line | None = None) -> list[float]:
    parameters = list(head.parameters()) if head is not None else []
    optimizers = [torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)] if parameters else []
    found: list[float] = []
    for number, micro in enumerate(steps(count)):
        if line is not None and number % 2:
            line.budget = 9000
        given: dict[str, Any] = {"loss": "cross_entropy", "scale": 1 / MICRO} if labels else {"loss": mean}
        found += [float(loss) for loss in remote.accumulate(head, micro, ahead=ahead, **given)]
        remote.clip_grad_norm_(parameters, 0.5)
        for each in (*optimizers, remote.optimizer):
            each.step()
            each.zero_grad()
    return found


@pytest.mark.parametrize(("at", "labels", "ahead"), [("first", False, 2), ("first", True, 3), (None, False, 9)])
def test_what_is_sent_ahead(host: HostProcess, at: str | None, labels: bool, ahead: int) -> None:
    """Over a line that drops meanwhile."""
    model = plain()
    whole = Whole(model, 4)
    head, tail = split(model, at=at, example=EXAMPLE)
    line = Line(host.port)
    with host.connect(tail, at=at, optimizer=SGD, port=line.port, **PLAIN) as remote:
        found = run(head, remote, 4, labels, ahead, line)
        # A mean of four that is divided by six is rounded twice, or once.
        assert found == (pytest.approx(whole.losses, rel=1e-6) if labels else whole.losses)
        state = dict(remote.state_dict()) | (dict(head.state_dict()) if head is not None else {})
        for name, tensor in whole.model.state_dict().items():
            assert torch.allclose(state[name], tensor, atol=1e-6) if labels else torch.equal(state[name], tensor), name
    assert line.connections > 1
    line.close()


def test_labels_sent_ahead_give_the_bits_of_labels_sent_one_by_one(host: HostProcess) -> None:
    states = []
    for ahead in (1, 5):
        head, tail = split(plain(), at="first", example=EXAMPLE)
        with host.connect(tail, optimizer=SGD, codec="topk(share=0.5)", **PLAIN) as remote:
            losses = run(head, remote, 3, True, ahead)
            states.append((losses, dict(remote.state_dict()) | dict(head.state_dict())))
    assert states[0][0] == states[1][0]
    assert all(torch.equal(states[0][1][name], tensor) for name, tensor in states[1][1].items())


def test_several_are_under_way(host: HostProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most = 0, 0
    begin, end = Operations.begin_kept, Operations.end_kept

    def count(change: int, call: Any) -> Any:
        def counted(*args: Any) -> Any:
            nonlocal under_way, most
            under_way += change
            most = max(most, under_way)
            return call(*args)

        return counted

    monkeypatch.setattr(Operations, "begin_kept", count(1, begin))
    monkeypatch.setattr(Operations, "end_kept", count(-1, end))
    head, tail = split(plain(), at="first", example=EXAMPLE)
    with host.connect(tail, optimizer=SGD, **PLAIN) as remote:
        run(head, remote, 1, False, 3)
    assert most == 4


def test_a_loop_that_is_left_or_fails_leaves_no_graph(host: HostProcess) -> None:
    head, tail = split(plain(), at="first", example=EXAMPLE)
    micro = batches(MICRO)
    with host.connect(tail, optimizer=SGD, **PLAIN) as remote:
        for _ in remote.accumulate(head, micro, mean, ahead=2):
            break
        remote.checkpoint()  # which is refused while a graph is kept
        with pytest.raises(InputError, match="does not depend"):
            list(remote.accumulate(head, micro, lambda out, y: torch.ones((), requires_grad=True), ahead=2))
        remote.checkpoint()
        with pytest.raises(ZeroDivisionError):
            list(remote.accumulate(head, micro, lambda out, y: out.sum() * (1 / 0), ahead=2))
        remote.checkpoint()
        with pytest.raises(InputError, match="at least one"):
            remote.accumulate(head, micro, mean, ahead=0)
        with pytest.raises(InputError, match="given by name"):
            remote.accumulate(head, micro, mean, label_smoothing=0.1)
        with pytest.raises(InputError, match="did you mean 'cross_entropy'"):
            remote.accumulate(head, micro, "crossentropy")
        assert not list(remote.accumulate(head, [], mean))
    _, tail = split(fresh(), at="first", example=EXAMPLE)
    with host.connect(tail, optimizer=SGD) as remote, pytest.raises(ConfigError, match="carry_rng=False"):
        remote.accumulate(head, micro, mean)
    with host.connect(tail) as remote, pytest.raises(InputError, match="for inference"):
        remote.accumulate(head, micro, mean)


def test_a_tail_with_a_stream_of_its_own_draws_in_the_order_of_the_micro_batches(host: HostProcess) -> None:
    losses = []
    for ahead in (1, 4):
        head, tail = split(fresh(), at="first", example=EXAMPLE)
        with host.connect(tail, optimizer=SGD, carry_rng=False, seed=3) as remote:
            torch.manual_seed(0)
            losses.append(run(head, remote, 2, False, ahead))
    assert losses[0] == losses[1]
