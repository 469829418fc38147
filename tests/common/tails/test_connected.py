"""A connection can't be copied, pickled or shared with forked processes, and says so at once."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from typing import Any

import pytest
import torch
from tail_parts import EXAMPLE, OPTIMIZERS, HostProcess, batches, fresh
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fogline import split
from fogline.common.errors import InputError
from fogline.common.tails.remote import RemoteTail


class Features(Dataset[torch.Tensor]):
    """A mistake that is easily made: activations computed where data are loaded."""

    def __init__(self, remote: RemoteTail, h: torch.Tensor) -> None:
        self.remote, self.h = remote, h

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return self.remote(self.h)[0]


def test_copies_and_pickles(host: HostProcess) -> None:
    head, tail = split(fresh(), at="first", example=EXAMPLE)
    with host.connect(tail, optimizer=OPTIMIZERS["sgd"]) as remote:
        whole = nn.Sequential(head, remote)
        for copied in (copy.deepcopy, copy.copy, pickle.dumps, lambda m: torch.save(m, io.BytesIO())):
            with pytest.raises(InputError, match="holds a connection and can't be"):
                copied(whole if copied is not copy.copy else remote)
        spawned = DataLoader(Features(remote, EXAMPLE), num_workers=1, multiprocessing_context="spawn")
        with pytest.raises(InputError, match="connect in the process that uses it"):
            iter(spawned)
        copy.deepcopy(head)
        copy.deepcopy(remote.state_dict())
        copy.deepcopy(remote.optimizer.state_dict())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_forked_workers(host: HostProcess) -> None:
    """Also where a thread of the parent held the lock that codecs are used under."""
    head, tail = split(fresh(), at="first", example=EXAMPLE)
    [(x, y)] = batches(1)
    with host.connect(tail, optimizer=OPTIMIZERS["sgd"]) as remote:
        out = remote(head(x))
        forked = DataLoader(Features(remote, head(x).detach()), num_workers=1, multiprocessing_context="fork")
        with remote._encoding, pytest.raises(InputError, match="is a fork, and connections do not come along"):
            next(iter(forked))
        context = multiprocessing.get_context("fork")
        told = context.SimpleQueue()
        with remote._encoding:
            child = context.Process(target=_all_of_it, args=(remote, out, head(x).detach(), y, told))
            child.start()
            child.join(60)
        assert child.exitcode == 0
        assert told.get() == ["InputError"] * 7
        nn.functional.cross_entropy(out, y).backward()
        remote.optimizer.step()
        assert remote.weights()


def _all_of_it(remote: RemoteTail, out: torch.Tensor, h: torch.Tensor, y: torch.Tensor, told: Any) -> None:
    found = []
    for call in (
        lambda: remote(h),
        lambda: remote.loss(h, y, loss="cross_entropy"),
        lambda: remote.eval().submit(h),
        lambda: out.sum().backward(),
        remote.optimizer.step,
        remote.checkpoint,
        remote.weights,
    ):
        try:
            call()
            found.append("nothing")
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told
            found.append(type(error).__name__)
    remote.close()
    remote.abandon()
    told.put(found)
