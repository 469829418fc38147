"""Graphs at the host that their client lost sight of are dropped there, so that training goes on."""

from __future__ import annotations

import pytest
import torch
from tail_parts import EXAMPLE, OPTIMIZERS, HostProcess, batches, fresh

from fogline import split
from fogline.common.errors import InputError
from fogline.common.tails.remote import RemoteTail


def test_a_forward_interrupted_by_the_user(host: HostProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    head, tail = split(fresh(31), at="first", example=EXAMPLE)
    [(x, y)] = batches(1)
    with host.connect(tail, optimizer=OPTIMIZERS["sgd"]) as remote:

        def interrupt(self: RemoteTail, future: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(RemoteTail, "_wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                remote(head(x))
        torch.nn.functional.cross_entropy(remote(head(x)), y).backward()
        remote.optimizer.step()
        remote.checkpoint()


def test_gradients_that_can_not_be_coded(host: HostProcess) -> None:
    head, tail = split(fresh(32), at="first", example=EXAMPLE)
    [(x, y)] = batches(1)
    with host.connect(tail, optimizer=OPTIMIZERS["sgd"], output_gradient_codec="topk(share=0.5)") as remote:
        out = remote(head(x))
        with pytest.raises(InputError, match="NaN or infinity"):
            (out * torch.nan).sum().backward()
        del out
        torch.nn.functional.cross_entropy(remote(head(x)), y).backward()
        remote.optimizer.step()
        remote.checkpoint()
