"""What one session does is not felt by another, whatever its client sends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tail_parts import EXAMPLE, OPTIMIZERS, HostProcess, batches, fresh

from fogline import split
from fogline.common.errors import FormatError, IdentityError, InputError, ProtocolError
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.split import weights
from fogline.common.tails import remote as remote_module
from fogline.common.tails.tensors import raw
from fogline.common.wire.tensors import Role

Hosts = Callable[..., HostProcess]


def test_weights_that_sessions_share_are_not_replaced(host: HostProcess) -> None:
    model = fresh(21)
    head, tail = split(model, at="first", example=EXAMPLE)
    h = head.eval()(EXAMPLE + 1).detach()
    other = weights.save(split(fresh(22), at="first", example=EXAMPLE)[1])
    with host.connect(tail, name="victim") as victim, host.connect(tail, name="rogue") as rogue, torch.no_grad():
        before = victim(h)
        with pytest.raises(FormatError, match="not those that the session was opened for"):
            rogue.load_weights([other])
        assert torch.equal(victim(h), before)


def test_an_inference_session_never_runs_in_training_mode(host: HostProcess) -> None:
    model = fresh(23)
    head, tail = split(model, at="first", example=EXAMPLE)
    h = head.eval()(EXAMPLE + 1).detach()
    with host.connect(tail, name="victim") as victim, host.connect(tail, name="rogue") as rogue, torch.no_grad():
        before = victim(h)
        sent = raw(Role.ACTIVATION, h, "0")
        with pytest.raises(ProtocolError, match="inference"):
            rogue._wait(rogue._submit(pb.Forward(training=True), [sent]))
        labels = [sent, raw(Role.LABELS, torch.zeros(2, dtype=torch.int64))]
        with pytest.raises(ProtocolError, match="inference"):
            rogue._wait(rogue._submit(pb.ForwardLoss(training=True, loss="cross_entropy"), labels))
        assert torch.equal(victim(h), before)


def test_nobody_removes_the_checkpoints_of_another(host: HostProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    _head, tail = split(fresh(24), at="first", example=EXAMPLE)
    remote = host.connect(tail, optimizer=OPTIMIZERS["sgd"], name="owner")
    token = remote.checkpoint()
    remote.abandon()
    host.restart()  # so that only the checkpoint tells whose the session is
    monkeypatch.setattr(remote_module, "_resumed", lambda resume: (bytes.fromhex(token["session"]), 0))
    with pytest.raises(IdentityError, match="is not of rogue"):
        host.connect(tail, name="rogue")
    monkeypatch.undo()
    with host.connect(tail, optimizer=OPTIMIZERS["sgd"], name="owner", resume=token) as again:
        assert again.weights().keys()


def test_a_forward_whose_answer_can_not_be_coded_changes_nothing(host: HostProcess) -> None:
    head, tail = split(fresh(25), at="first", example=EXAMPLE)
    [(x, _)] = batches(1)
    with host.connect(tail, optimizer=OPTIMIZERS["sgd"], output_codec="topk(share=0.5)", carry_rng=False) as remote:
        before = remote.weights()
        h = head(x).detach()
        h[0] = torch.inf
        with pytest.raises(InputError, match="NaN or infinity"):
            remote(h)
        after = remote.weights()
        assert all(torch.equal(before[name], after[name]) for name in before)
