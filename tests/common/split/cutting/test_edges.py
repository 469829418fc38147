"""What makes a cut valid or not, what errors say, and models that do unusual things."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fogline import cuts, split
from fogline.common.errors import FormatError, InputError
from fogline.common.split import weights
from fogline.common.split.cuts import architecture_hash


def names(table: Any) -> list[str]:
    return [name for cut in table for name in (cut.name, *cut.aliases)]


def check(model: nn.Module, example: Any, cut_names: list[str], **options: Any) -> None:
    """Forward in evaluation and training mode at the cuts, against the unsplit model."""
    args = example if isinstance(example, tuple) else (example,)
    for name in cut_names:
        for training in (False, True):
            whole, parted = copy.deepcopy(model).train(training), copy.deepcopy(model).train(training)
            head, tail = split(parted, name, example=example, **options)
            torch.manual_seed(1)
            expected = whole(*[a.clone() for a in args])
            torch.manual_seed(1)
            assert torch.equal(tail(head(*[a.clone() for a in args])), expected), (name, training)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.outer(x + self.inner(x))


def test_a_skip_connection_is_named():
    model = Residual()
    assert names(cuts(model, torch.randn(2, 4))) == ["first"]
    with pytest.raises(InputError) as caught:
        split(model, "inner")
    assert "(2, 4) from 'first', used in 'the model itself'" in str(caught.value)
    assert "valid cuts: 'first'" in str(caught.value)


def test_unknown_names_get_near_ones():
    model = Residual()
    cuts(model, torch.randn(2, 4))
    with pytest.raises(InputError, match="near it: 'first'"):
        split(model, "frist")


def test_a_model_without_a_cut():
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            b = self.b(x + a)
            return self.c(a + b + x) + a + x

    model = Dense()
    table = cuts(model, torch.randn(2, 4))
    assert table == []
    assert "no valid cut" in str(table)
    with pytest.raises(InputError, match=r"2 tensors cross it \(output, x\).*Dense has no valid cut for max_tensors=1"):
        split(model, "a")
    # The whole model as a tail needs no cut.
    head, tail = split(model, None)
    x = torch.randn(2, 4)
    assert head is None
    assert torch.equal(tail(x), model(x))


def test_inputs_join_when_allowed():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, gain: Tensor) -> Tensor:
            factor = gain.float().unsqueeze(-1) + torch.arange(4)
            return self.b(self.a(x) * factor) * factor

    model, example = Scaled(), (torch.randn(3, 4), torch.arange(3))
    assert len(cuts(model, example)) == 0
    table = cuts(model, example, max_tensors=2)
    assert [(cut.name, cut.inputs) for cut in table] == [("a", ("gain",)), ("b", ("gain",))]
    check(model, example, ["a", "b"], max_tensors=2)
    with pytest.raises(InputError, match=r"2 tensors cross it \(output, gain\); pass max_tensors=2"):
        split(model, "a")


def test_a_module_called_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(torch.relu(self.other(self.shared(x))))

    model = Twice()
    table = cuts(model, torch.randn(2, 4))
    assert [(cut.name, cut.trainable) for cut in table] == [("shared#1", False), ("other", False)]
    assert "'shared." in table[0].untrainable
    check(model, torch.randn(2, 4), ["shared#1", "other"])
    with pytest.raises(InputError, match="called 2 times; say which, 'shared#1'"):
        split(model, "shared")
    head, tail = split(model, "other")
    assert {n for n, _ in tail.named_parameters()} == {"shared.weight", "shared.bias"}
    assert {n for n, _ in head.named_parameters()} == {"shared.weight", "shared.bias", "other.weight", "other.bias"}


def test_in_place_after_the_cut():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    check(model, torch.randn(2, 4), ["0", "1"])
    _, tail = split(model, "0", example=torch.randn(2, 4))
    received = torch.randn(2, 4, requires_grad=True)
    before = received.detach().clone()
    tail(received).sum().backward()
    assert torch.equal(received.detach(), before)
    assert received.grad is not None


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("unused", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.b(self.a(x)) * self.calls


def test_a_buffer_updated_before_and_read_after():
    model = Counting()
    with pytest.raises(InputError, match="buffer 'calls', updated before and read after"):
        split(model, "a", example=torch.randn(2, 4))
    assert model.calls == 0  # tracing updates nothing


def test_batch_norm_belongs_to_its_side_and_tracing_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    model.train()
    example = torch.randn(2, 3, 8, 8)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    head, tail = split(model, "2", example=example)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert {n for n, _ in head.named_buffers()} == {
        f"1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert set(tail.state_dict()) == {name for name in before if name[0] in "34"}
    for segment in (head, tail):
        plain = dict(segment.state_dict())  # as safetensors gives it back
        segment.load_state_dict(plain)
        assert dict(segment.state_dict()).keys() == plain.keys()
        with pytest.raises(RuntimeError, match="Missing key"):
            segment.load_state_dict(dict(list(plain.items())[1:]))
    assert head.draws_random
    assert not tail.draws_random
    assert all(module.training for module in model.modules())
    head.eval()
    assert not head.training
    assert tail.training


@dataclass
class Result:
    scores: Tensor
    parts: dict[str, Any]


class Structured(nn.Module):
    """Takes and returns structures; its blocks return tuples and dicts."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"hidden": torch.tanh(self.linear(x)), "unused": torch.zeros(2), "size": x.shape[0], "kind": "block"}

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.lstm, self.out = (
            self.Block(),
            self.Block(),
            nn.LSTM(4, 4, batch_first=True),
            nn.Linear(4, 2),
        )

    def forward(self, batch: dict[str, Tensor], *, scale: float = 1.0) -> Result:
        one = self.one(batch["x"])
        two = self.two(one["hidden"])
        hidden, _ = self.lstm(two["hidden"] / two["size"])
        return Result(self.out(hidden) * scale, {"mean": hidden.mean(), "names": ["a"]})


def test_structures_go_through():
    model = Structured().eval()
    example = {"batch": {"x": torch.randn(2, 5, 4)}, "scale": 2.0}
    table = cuts(model, example)
    # The blocks return a number that follows the batch size, so a tail can't make them up.
    assert names(table) == ["one.linear", "two.linear", "lstm"]
    for cut in table:
        head, tail = split(model, cut)
        for batch in (2, 3):
            given = {"batch": {"x": torch.randn(batch, 5, 4)}, "scale": 2.0}
            with torch.no_grad():
                out, expected = tail(head(**given)), model(**given)
            assert isinstance(out, Result)
            assert torch.equal(out.scores, expected.scores)
            assert torch.equal(out.parts["mean"], expected.parts["mean"])
            assert out.parts["names"] == ["a"]
    with pytest.raises(InputError, match=r"argument 'scale' is 3\.0, and was 2\.0 on the example"):
        head(batch=example["batch"], scale=3.0)
    with pytest.raises(InputError, match=r"batch\.y"):
        head(batch={**example["batch"], "y": torch.ones(2)}, scale=2.0)


def test_other_sizes_than_batch_and_length_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    head, tail = split(model, "0", example=torch.randn(2, 3, 8, 8))
    assert tail(head(torch.randn(7, 3, 8, 8))).shape == (7, 2)
    with pytest.raises(InputError, match="only the batch size and the sequence length"):
        head(torch.randn(2, 3, 9, 9))
    with pytest.raises(InputError, match="shape"):
        tail(torch.randn(2, 4, 5, 6))
    with pytest.raises(InputError, match="takes 1 tensors"):
        tail(torch.randn(2, 4, 6, 6), torch.randn(1))
    with pytest.raises(InputError, match="takes 1 tensors"):
        tail("x")


def test_zero_items():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    head, tail = split(model, "1", example=torch.randn(2, 4))
    assert tail(head(torch.randn(0, 4))).shape == (0, 2)
    assert len(cuts(model, torch.randn(0, 4))) == 2


def test_a_branch_on_values():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h = self.b(h) if h.mean() > 0 else -self.b(h)
            return self.c(h)

    model = Branching()
    # The code around the modules branches on what the head computes, so a tail could not follow.
    assert names(cuts(model, torch.randn(2, 4))) == ["a"]
    check(model, torch.randn(2, 4), ["a"])
    with pytest.raises(InputError, match="on whose values the code before the cut branches"):
        split(model, "b")


def test_another_path_than_on_the_example():
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.d, self.skip = nn.Linear(4, 4), False

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            kept = h
            h = h if self.skip else self.b(h)
            h = self.d(self.c(h))
            return h + kept if self.skip else h

    model = Optional()
    model(torch.randn(2, 4))
    head, tail = split(model, "b", example=torch.randn(2, 4))
    sent = head(torch.randn(2, 4))
    for part in (head, tail):
        part._model[0].skip = True
    with pytest.raises(InputError, match="another path"):
        head(torch.randn(2, 4))
    with pytest.raises(InputError, match="another path"):
        tail(sent)
    _, tail = split(Optional(), "c", example=torch.randn(2, 4))
    tail._model[0].skip = True
    with pytest.raises(InputError, match="another path"):
        tail(sent)


def test_random_numbers_between_the_modules_are_drawn_once():
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x + torch.rand(x.shape))
            return self.b(torch.dropout(h, 0.5, self.training)) + torch.rand(4)

    check(Noisy(), torch.randn(2, 4), ["a"])


def test_own_parameters_before_the_cut():
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 4))
            self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
            return self.out(self.inner(x)[:, 0])

    model = Token()
    check(model, torch.randn(2, 3, 4), ["inner"])
    head, tail = split(model, "inner", example=torch.randn(2, 3, 4))
    assert set(head.state_dict()) == {"token", "inner.weight", "inner.bias"}
    assert set(tail.state_dict()) == {"out.weight", "out.bias"}
    assert head.get_parameter("token") is model.token


@pytest.mark.parametrize(
    ("at", "present"),
    [(("0", "2"), "hmt"), ((None, "2"), "mt"), (("0", None), "hm"), (("0", "0"), "ht"), ((None, None), "m")],
)
def test_two_cuts_either_of_which_may_be_empty(at, present):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    parts = split(model, at, example=x)
    assert len(parts) == 3
    assert "".join(letter for letter, part in zip("hmt", parts, strict=True) if part) == present
    out, owned = x, []
    for part in parts:
        if part is not None:
            out = part(out)
            owned += [name for name, _ in part.named_parameters()]
    assert torch.equal(out, model(x))
    assert sorted(owned) == sorted(name for name, _ in model.named_parameters())


def test_cuts_in_the_wrong_order():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
    with pytest.raises(InputError, match="comes before"):
        split(model, ("2", "0"), example=torch.randn(2, 4))
    with pytest.raises(InputError, match="3 cuts"):
        split(model, ("0", "1", "2"), example=torch.randn(2, 4))


def test_without_an_example_the_first_call_traces():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    head, tail = split(model, "1")
    assert not head.resolved
    for use in (
        tail.state_dict,
        tail.parameters,
        lambda: tail(torch.randn(2, 4)),
        lambda: tail.input_spec,
        tail.double,
    ):
        with pytest.raises(InputError, match="was not traced yet"):
            list(use() or ())
    x = torch.randn(2, 4)
    assert torch.equal(tail(head(x)), model(x))
    assert tail.resolved
    # An analysis of before is not used once the architecture is another.
    model[2] = nn.Linear(4, 3)
    assert not split(model, "1")[1].resolved


def test_moving_and_copying():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).eval()
    x = torch.randn(3, 4)
    expected = copy.deepcopy(model).double()(x.double())
    head, tail = split(model, "2", example=x)
    assert tail.double()(head.double()(x.double())).dtype == torch.float64
    assert torch.equal(tail(head(x.double())), expected)
    assert model[3].weight.dtype == torch.float64  # parameters are shared with the model
    for copied in (copy.deepcopy(tail), pickle.loads(pickle.dumps(tail))):
        assert torch.equal(copied(head(x.double())), expected)
        with torch.no_grad():
            copied.get_parameter("3.weight").zero_()
        assert torch.equal(tail(head(x.double())), expected)
    copy.deepcopy(model)
    assert "_fogline_analysis" in model.__dict__
    assert torch.equal(pickle.loads(pickle.dumps(model)).double()(x.double()), expected)


def test_one_model_serves_several_cuts_and_threads():
    from concurrent.futures import ThreadPoolExecutor

    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(6)]).eval()
    x = torch.randn(5, 8)
    table = cuts(model, x)
    parts = [split(model, cut) for cut in table]
    with torch.no_grad():
        expected = model(x)

        def run(number: int) -> bool:
            with torch.no_grad():
                head, tail = parts[number % len(parts)]
                return torch.equal(tail(head(x)), expected)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(run, range(200)))
    assert all("_call_impl" not in vars(module) for module in model.modules())


def test_weights():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    other = copy.deepcopy(model)
    nn.init.zeros_(other[3].weight)
    x = torch.randn(3, 4)
    _, tail = split(model, "2", example=x)
    _, other_tail = split(other, "2", example=x)
    data = weights.save(tail)
    assert data == weights.save(tail)
    assert weights.digest(data) != weights.digest(weights.save(other_tail))
    weights.load(other_tail, data)
    assert weights.save(other_tail) == data
    assert torch.equal(other[3].weight, model[3].weight)
    assert architecture_hash(model) == architecture_hash(other)
    _, earlier = split(model, "0", example=x)
    kept = weights.save(earlier)
    with pytest.raises(FormatError, match=r"tensor '1\.bias' is absent"):
        weights.load(earlier, data)
    assert weights.save(earlier) == kept
    for bad in (b"", b"\0" * 100, data[:-1], b"\xff" * 8 + data[8:]):
        with pytest.raises(FormatError):
            weights.load(tail, bad)
    model[3] = nn.Linear(4, 3)
    assert architecture_hash(model) != architecture_hash(other)


def test_weights_of_tied_parameters(families):
    model = families["gpt2-tied"].build().eval()
    example = families["gpt2-tied"].example()
    _, tail = split(model, None, example=example)
    data = weights.save(tail)
    fresh = families["gpt2-tied"].build().eval()
    _, loaded = split(fresh, None, example=example)
    weights.load(loaded, data)
    with torch.no_grad():
        assert torch.equal(loaded(**example).logits, model(**example).logits)
    table = cuts(model, example)
    assert all("'lm_head.weight' is used on both sides" in cut.untrainable for cut in table)


def test_a_cache_of_keys_and_values_is_refused(families):
    model = families["gpt2"].build()
    example = families["gpt2"].example()
    cached = {"input_ids": example["input_ids"]}
    with pytest.raises(InputError, match=r"Pass use_cache=False with the example"):
        split(model, "transformer.h.0", example=cached)
    head, _ = split(model, "transformer.h.0", example=example)
    with pytest.raises(InputError, match="use_cache"):
        head(**cached)


def test_a_mask_with_and_without_padding(families, same):
    """The example had no padding, so its forward skipped the mask; a batch with padding takes the other branch."""
    model = families["bert"].build().eval()
    ids = families["bert"].example()["input_ids"]
    full = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    padded = families["bert-masked"].example()
    with torch.no_grad():
        for first, second in ((full, padded), (padded, full)):
            for cut in cuts(model, first, max_tensors=2):
                head, tail = split(model, cut, example=first, max_tensors=2)
                for example in (first, second):
                    assert same(tail(head(**example)), model(**example)), cut.name


def test_an_encoder_whose_fast_path_needs_no_hooks(same):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    x = torch.randn(2, 5, 16)
    table = cuts(model, x)
    assert names(table) == ["layers.0", "layers.1"]
    for cut in table:
        for batch, length in ((2, 5), (3, 9)):
            head, tail = split(model, cut)
            x = torch.randn(batch, length, 16)
            with torch.no_grad():
                assert same(tail(head(x)), model(x))
    check(model, x, names(table))


def test_what_can_not_be_traced():
    model = nn.Linear(4, 4)
    with pytest.raises(InputError, match="its forward fails on the example"):
        cuts(model, torch.randn(2, 5))
    with pytest.raises(InputError, match=r"Linear\.forward"):
        cuts(model, (torch.randn(2, 4), 1))
    model.lock = __import__("threading").Lock()
    with pytest.raises(InputError, match="can't be copied"):
        cuts(model, torch.randn(2, 4))
    with pytest.warns(DeprecationWarning, match=r"torch\.jit\.script"):
        scripted = torch.jit.script(nn.Linear(4, 4))
    with pytest.raises(InputError, match="scripted"):
        cuts(nn.Sequential(scripted, nn.Tanh()), torch.randn(2, 4))
