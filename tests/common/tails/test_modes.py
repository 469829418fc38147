"""Modules in another mode than the rest, and numbers drawn in evaluation: the tail computes what the model would."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tail_models
import torch
from tail_parts import EXAMPLE, OPTIMIZERS, HostProcess, batches, fresh
from tensor_parts import Line
from torch import nn

from fogline import split
from fogline.common.codecs import Chain
from fogline.common.errors import FormatError, InputError, ProtocolError
from fogline.common.tails.modes import MAX_FIXED, fixed_in
from fogline.common.tails.tensors import Receiver, Sender
from fogline.common.wire.tensors import Role

SGD = OPTIMIZERS["sgd"]


def mixed(training: bool) -> nn.Module:
    """Batch norm that is frozen in training, or dropout that goes on in evaluation."""
    model = fresh().train(training)
    assert isinstance(model, tail_models.Net)
    for module in (model.second[1],) if training else (model.early, model.drop):
        module.train(not training)
    return model


def test_frozen_batch_norm_stays_frozen(host: HostProcess) -> None:
    model = mixed(training=True)
    twin = copy.deepcopy(model)
    head, tail = split(model, "first", example=EXAMPLE)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3) for m in (twin, head)]
    with host.connect(tail, optimizer=SGD) as remote:
        for number, (x, y) in enumerate(batches(6)):
            losses = []
            for run in (twin, lambda given: remote(head(given))):
                torch.manual_seed(number)
                loss = nn.functional.cross_entropy(run(x), y)
                loss.backward()
                losses.append(loss.item())
            assert losses[0] == losses[1]
            for each in (*optimizers, remote.optimizer):
                each.step()
                each.zero_grad()
        state = head.state_dict() | remote.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in twin.state_dict().items())
        assert torch.equal(state["second.1.running_mean"], torch.zeros(8))
        for each in (head, remote, twin):
            each.eval()
        twin.second[1].eval()
        with torch.no_grad():
            assert torch.equal(remote(head(x)), twin(x))


@pytest.mark.parametrize("name", ["net", "always"])
def test_dropout_in_evaluation_draws_on_from_the_head_s_numbers(hosts: Any, name: str) -> None:
    """One stream through head and tail, also where the connection drops and the host starts again meanwhile."""
    host = hosts()
    model = mixed(training=False) if name == "net" else tail_models.always().eval()
    x = torch.randn(2, 3, 8, 8) if name == "net" else torch.randn(2, 4)
    at = "first" if name == "net" else "a"
    head, tail = split(model, at, example=x)
    line = Line(host.port)
    torch.manual_seed(3)
    with torch.no_grad(), host.connect(tail, model=f"tail_models:{name}", port=line.port) as remote:
        for number in range(6):
            before = torch.get_rng_state()
            if number == 2:
                line.cut()
            if number == 3:
                host.restart()
            found = remote(head(x))
            after = torch.get_rng_state()
            torch.set_rng_state(before)
            expected = model(x)
            assert torch.equal(torch.get_rng_state(), after)
            pairs = [(found, expected)] if name == "net" else list(zip(found, expected, strict=True))
            assert all(torch.equal(one, other) for one, other in pairs)
        with pytest.raises(InputError, match="draws random numbers in evaluation"):
            remote.submit(head(x))
    with torch.no_grad(), host.connect(tail, model=f"tail_models:{name}", carry_rng=False, seed=7) as remote:
        both = [remote.submit(head(x)).result(60) for _ in range(2)]
    if name == "net":
        assert not torch.equal(both[0], both[1]), "a stream of its own, which goes on"
    line.close()


def test_modes_that_no_host_can_be_told_of() -> None:
    _, middle, tail = split(fresh(), ("first", "second"), example=EXAMPLE)
    assert middle is not None
    assert tail is not None
    middle.train()
    tail.eval()
    middle.get_submodule("second").eval()
    tail.get_submodule("drop").train()
    with pytest.raises(InputError, match="in other modes than these"):
        fixed_in([middle, tail])
    assert fixed_in([tail]) == (("drop",), True)
    assert MAX_FIXED == 4096


def test_two_outputs_of_other_shapes_have_residuals_of_their_own(host: HostProcess) -> None:
    head, tail = split(tail_models.always(), "a", example=torch.randn(2, 4))
    codec = "topk(share=0.5)"
    with host.connect(tail, model="tail_models:always", optimizer=SGD, output_gradient_codec=codec) as remote:
        for _ in range(3):
            one, other = remote(head(torch.randn(5, 4)))
            (one.square().sum() + other.square().sum()).backward()
            remote.optimizer.step()
        kept = remote.checkpoint()["codecs"]["output_gradients"]
        assert {name.partition("/")[0]: tuple(t.shape) for name, t in kept.items()} == {"0": (5, 3), "1": (5, 7)}


def test_what_is_sent_and_what_is_kept_add_up_for_each_tensor_of_a_step() -> None:
    chain = Chain.parse("topk(share=0.3)")
    sender, receiver = Sender(chain), Receiver(chain)
    given = [torch.zeros(4, 6) for _ in range(2)]
    came = [torch.zeros(4, 6) for _ in range(2)]
    for _ in range(5):
        for number in (1, 0):
            tensor = torch.randn(4, 6) * (10 if number else 1)
            given[number] += tensor
            header, part = sender.send(Role.GRADIENT, number, tensor, training=True)
            came[number] += receiver.receive(header, bytearray(part))[1]
        state = sender.state_dict()
        sender = Sender(chain)
        sender.load_state_dict(state)
    for number in range(2):
        assert torch.allclose(came[number] + state[f"{number}/0.topk.residual"], given[number], atol=1e-5)
    for name in ("residual", "x/0.topk.residual", "64/0.topk.residual", "0/1.topk.residual"):
        with pytest.raises(FormatError):
            sender.load_state_dict({name: torch.zeros(2)})
    header, part = Sender(Chain.parse("raw")).send(Role.GRADIENT, 64, torch.zeros(2), training=True)
    with pytest.raises(ProtocolError, match="numbered 64"):
        Receiver(Chain.parse("raw")).receive(header, bytearray(part))
