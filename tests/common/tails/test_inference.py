"""What comes back over the wire is what the unsplit model returns: bits, structures, classes; one at a time or many."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import tail_models
import torch
from tail_parts import EXAMPLE, HostProcess, fresh
from tensor_parts import Line
from torch import nn

from fogline import cuts, split
from fogline.common.split.structure import tensors
from fogline.common.tails.remote import RemoteTail

SLOW = ("mobilenet", "efficientnet", "vit", "gpt2", "gpt2-tied", "bert-masked")
FAMILIES = [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in ("resnet", "bert", "convnext", *SLOW)]


def same(one: Any, other: Any) -> bool:
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    return type(one) is type(other) and bool(pairs) and all(torch.equal(a.tensor, b.tensor) for a, b in pairs)


@pytest.mark.parametrize("name", FAMILIES)
def test_families(host: HostProcess, name: str) -> None:
    family = tail_models.families()[name]
    model = tail_models.family(name).eval()
    example = family.example(False, 2, 7)
    table = cuts(model, example, max_tensors=family.max_tensors)
    chosen = [table[0], table[len(table) // 2], table[-1]]
    with torch.no_grad():
        for cut in chosen:
            head, tail = split(model, cut, max_tensors=family.max_tensors)
            assert head is not None
            with host.connect(tail, model="tail_models:family", kwargs={"name": name}, at=cut) as remote:
                for batch in (2, 1, 5):
                    given = family.example(False, batch, 7)
                    whole = model(**given)
                    sent = head(**given)
                    found = remote(*sent) if isinstance(sent, tuple) else remote(sent)
                    assert same(found, whole), (cut.name, batch)
                    assert list(found.keys()) == list(whole.keys())


@pytest.mark.parametrize("name", ["resnet", "convnext", "bert"])
def test_training_of_families(host: HostProcess, name: str) -> None:
    """Gradients come back in the layout that they had, or kernels of the head would sum in another order."""
    family = tail_models.families()[name]
    example = family.example(False, 4, 7)
    for number in range(2):
        whole, parted = (tail_models.family(name).train() for _ in range(2))
        table = [c for c in cuts(parted, example) if c.trainable]
        head, tail = split(parted, table[(2 * number + 1) * len(table) // 4])
        assert head is not None
        optimizers: list[Any] = [torch.optim.AdamW(whole.parameters(), lr=0.01)]
        spec = {"name": "adamw", "lr": 0.01}
        with host.connect(tail, model="tail_models:family", kwargs={"name": name}, optimizer=spec) as remote:
            optimizers += [torch.optim.AdamW(head.parameters(), lr=0.01), remote.optimizer]
            for step in range(3):
                losses = []
                for first, then in ((whole, None), (head, remote)):
                    torch.manual_seed(step)
                    out = first(**example)
                    loss = (out if then is None else then(out))[0].square().mean()
                    loss.backward()
                    losses.append(loss.item())
                assert losses[0] == losses[1]
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            state = remote.state_dict() | dict(head.state_dict())
            for key, tensor in whole.state_dict().items():
                assert torch.equal(state[key], tensor), key


def test_dicts_keywords_and_a_head_that_is_empty(host: HostProcess) -> None:
    model = tail_models.dicts().eval()
    x = torch.randn(3, 4)
    for at in (None, "a"):
        for double in (False, True):
            head, tail = split(model, at, example={"x": torch.randn(2, 4), "double": double})
            with torch.no_grad(), host.connect(tail, model="tail_models:dicts") as remote:
                whole = model(x, double=double)
                found = remote(x, double=double) if head is None else remote(head(x=x, double=double))
                assert same(found, whole)
                assert (type(found), found["name"]) == (dict, "dicts")
                assert isinstance(found["aux"], tuple)


def test_many_under_way_over_a_line_that_drops(host: HostProcess) -> None:
    model = fresh().eval()
    head, tail = split(model, "first", example=EXAMPLE)
    line = Line(host.port)
    inputs = [torch.randn(1 + n % 3, 3, 8, 8) for n in range(60)]
    try:
        with torch.no_grad(), host.connect(tail, port=line.port) as remote:
            line.budget = 100_000
            futures = [remote.submit(head(x)) for x in inputs]
            found = [future.result(60) for future in futures]
            assert line.connections > 1
            assert all(torch.equal(f, model(x)) for f, x in zip(found, inputs, strict=True))

            async def gather() -> list[Any]:
                return await asyncio.gather(*(remote.ainfer(head(x)) for x in inputs[:9]))

            again = asyncio.run(gather())
            assert all(torch.equal(f, model(x)) for f, x in zip(again, inputs, strict=False))
    finally:
        line.close()


def test_inference_goes_on_after_the_host_was_killed(hosts: Any) -> None:
    model = fresh().eval()
    head, tail = split(model, "first", example=EXAMPLE)
    host = hosts()
    with torch.no_grad(), host.connect(tail) as remote, host.connect(tail) as second:
        for number in range(6):
            x = torch.randn(2, 3, 8, 8)
            if number in (2, 4):
                host.restart()
            futures = [remote.submit(head(x)) for _ in range(3)]
            assert torch.equal(second(head(x)), model(x))
            assert all(torch.equal(f.result(60), model(x)) for f in futures)


def test_the_cut_of_each_request(host: HostProcess) -> None:
    model = fresh().eval()
    parts = {at: split(model, at, example=EXAMPLE) for at in (None, "first", "early", "second")}
    weights = [tail for _, tail in parts.values()]
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad(), host.connect(weights) as remote:
        for at in ("second", None, "early", "first", "second"):
            head = parts[at][0]
            assert torch.equal(remote(x if head is None else head(x), at=at), model(x))


@pytest.mark.parametrize("codec", ["zstd", "fp16", "int8+zstd", "errbound(epsilon=0.01)+zstd", "topk(share=0.25)"])
def test_codecs_lose_what_they_say(host: HostProcess, codec: str) -> None:
    model = fresh()
    head, tail = split(model, "first", example=EXAMPLE)
    x, y = torch.randn(8, 3, 8, 8), torch.randint(0, 5, (8,))
    with host.connect(tail, codec=codec, optimizer={"name": "sgd", "lr": 0.02}) as remote:
        model.eval()
        head.eval()
        remote.eval()
        with torch.no_grad():
            error = (remote(head(x)) - model(x)).abs().max()
            assert (error == 0) if codec == "zstd" else (0 < error < (2.0 if codec.startswith("topk") else 0.05))
        head.train()
        remote.train()
        optimizer = torch.optim.SGD(head.parameters(), lr=0.02)
        losses = []
        for _ in range(30):
            loss = nn.functional.cross_entropy(remote(head(x)), y)
            loss.backward()
            optimizer.step()
            remote.optimizer.step()
            optimizer.zero_grad()
            remote.optimizer.zero_grad()
            losses.append(loss.item())
        assert sum(losses[-5:]) < sum(losses[:5])


def test_shapes_that_are_all_right(host: HostProcess) -> None:
    """Not contiguous, a batch of none, NaN and infinity: what the model makes of them, the remote tail does."""
    model = fresh().eval()
    head, tail = split(model, "first", example=EXAMPLE)
    with torch.no_grad(), host.connect(tail) as remote:
        _, local = split(model, "first", example=EXAMPLE)
        h = head(torch.randn(4, 3, 8, 8))
        for given in (
            h.to(memory_format=torch.channels_last),
            h.permute(0, 1, 3, 2),
            h[::2],
            h[:1].expand(3, -1, -1, -1),
            h[:0],
            h.index_fill(0, torch.tensor([1]), float("nan")),
            h.index_fill(0, torch.tensor([2]), float("-inf")),
        ):
            found, expected = remote(given), local(given)
            assert torch.equal(found.isnan(), expected.isnan())
            assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    with host.connect(tail, optimizer={"name": "sgd", "lr": 0.1}) as remote:
        remote.eval()
        h = head(torch.randn(0, 3, 8, 8)).detach().requires_grad_()
        remote(h).sum().backward()
        assert h.grad is not None
        assert h.grad.shape == h.shape


def test_a_remote_tail_is_a_module(host: HostProcess) -> None:
    model = fresh().eval()
    head, tail = split(model, "first", example=EXAMPLE)
    with host.connect(tail) as remote, torch.no_grad():
        assert isinstance(remote, RemoteTail)
        whole = nn.Sequential(head, remote)
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(whole(x), model(x))
        assert list(remote.parameters()) == []
        assert {k.removeprefix("1.") for k in whole.state_dict() if k.startswith("1.")} == set(tail.state_dict())
