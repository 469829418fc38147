"""Split and unsplit models compute the same bits, at every valid cut of models that nobody here wrote."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from fogline import cuts, split
from fogline.common.errors import InputError
from fogline.common.split.layout import pack, unpack


@pytest.fixture(params=[pytest.param(False, id="some"), pytest.param(True, id="every", marks=pytest.mark.slow)])
def chosen(request):
    """Of a table: a few cuts spread over it, and in the slow tests every one."""

    def choose(table):
        step = 1 if request.param else max(1, -(-len(table) // 3))
        return sorted({*table[::step], table[-1]}, key=table.index)

    return choose


def test_forward_at_every_cut(family, same, chosen):
    model = family.build().eval()
    example = family.example()
    table = cuts(model, example, max_tensors=family.max_tensors)
    assert len(table) >= 5
    with torch.no_grad():
        whole = model(**example)
        for cut in chosen(table):
            for name in (cut.name, *cut.aliases):
                head, tail = split(model, name, max_tensors=family.max_tensors)
                sent = head(**example)
                assert same(tail(sent), whole), name
                given = sent if isinstance(sent, tuple) else (sent,)
                assert [(tuple(t.shape), t.dtype) for t in given] == [(t.shape, t.dtype) for t in cut.tensors]
                # As after a link: dense in C order, whatever the strides were.
                wire = tuple(t.clone(memory_format=torch.contiguous_format) for t in given)
                assert same(tail(wire), whole), name


def test_other_batch_sizes_and_sequence_lengths(family, same, chosen):
    model = family.build().eval()
    table = cuts(model, family.example(), max_tensors=family.max_tensors)
    untold = set()
    with torch.no_grad():
        for batch, length in ((1, 7), (5, 7), (3, 12)):
            example = family.example(batch, length)
            whole = model(**example)
            for cut in chosen(table):
                head, tail = split(model, cut, max_tensors=family.max_tensors)
                try:
                    sent = head(**example)
                except InputError:
                    untold.add((cut.name, length))
                    continue
                assert same(tail(sent), whole), (cut.name, batch, length)
    # What crosses after pooling doesn't tell the length, so the head refuses another one than the example's.
    assert {name for name, _ in untold} <= {
        "bert.pooler",
        "bert.pooler.dense",
        "bert.pooler.activation",
        "bert",
        "dropout",
    }
    assert 7 not in {length for _, length in untold}


@pytest.mark.parametrize("at_three", [False, True])
def test_training_at_every_cut(family, at_three, chosen):
    """Loss, gradients, buffers after three steps, with dropout and batch norm in training mode."""
    start = family.build().train()
    example = family.example(4)
    table = [c for c in cuts(start, example, max_tensors=family.max_tensors) if c.trainable]
    if family.name == "gpt2-tied":
        assert not table
        return
    assert table
    for cut in chosen(table):
        later = [c for c in table if c.head_macs > cut.head_macs]
        if at_three and not later:
            continue
        at = (cut.name, later[len(later) // 2].name) if at_three else cut.name
        whole, parted = copy.deepcopy(start), copy.deepcopy(start)
        parts = [p for p in split(parted, at, example=example, max_tensors=family.max_tensors) if p]
        torch.manual_seed(3)
        for _ in range(2):
            out = whole(**example)[0]
            loss = out.square().mean()
            loss.backward()
        torch.manual_seed(3)
        for _ in range(2):
            boundaries, sent, gradients = [], parts[0](**example), {}
            for part in parts[1:]:
                given = sent if isinstance(sent, tuple) else (sent,)
                received = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in given)
                # The gradient as autograd made it: `.grad` would have the memory layout of its tensor.
                for one in received:
                    if one.requires_grad:
                        one.register_hook(partial(gradients.__setitem__, one))
                boundaries.append((given, received))
                sent = part(*received)
            parted_loss = sent[0].square().mean()
            parted_loss.backward()
            for given, received in reversed(boundaries):
                pairs = [(g, gradients[r]) for g, r in zip(given, received, strict=True) if g.requires_grad]
                # Over a link and back.
                sent_back = [unpack(*pack(gradient)) for _, gradient in pairs]
                torch.autograd.backward([g for g, _ in pairs], sent_back)
        assert torch.equal(loss, parted_loss), at
        seen = set()
        for part in parts:
            for name, parameter in part.named_parameters():
                seen.add(name)
                known = whole.get_parameter(name).grad
                assert (known is None) == (parameter.grad is None), (at, name)
                assert known is None or torch.equal(known, parameter.grad), (at, name)
            for name, buffer in part.named_buffers():
                assert torch.equal(whole.get_buffer(name), buffer), (at, name)
        assert seen == {name for name, _ in whole.named_parameters()}
