"""The small parts, without a host: optimizers, clipping, outputs, checkpoints, tensors."""

from __future__ import annotations

import collections
import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fogline.common.codecs import Chain
from fogline.common.errors import CapacityError, ConfigError, FormatError, InputError, ProtocolError
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.tails import clipping, losses, optimizer, outputs
from fogline.common.tails.checkpoint import Checkpoints, Header, parse, saved_answers
from fogline.common.tails.remote_optimizer import RemoteOptimizer
from fogline.common.tails.tensors import Receiver, Sender, raw, read_raw
from fogline.common.wire.tensors import Frame, Role


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("name", sorted(optimizer.OPTIMIZERS))
def test_every_optimizer_has_torch_s_defaults_and_steps_alike(name: str) -> None:
    kind = optimizer.OPTIMIZERS[name].optimizer
    one, other = model(), model()
    ours = optimizer.build({"name": name}, list(one.named_parameters()))
    theirs = kind(other.parameters(), lr=optimizer.OPTIMIZERS[name]().lr)
    for key, value in optimizer.flat(ours.param_groups[0], {"name": name}).items():
        stem, _, index = key.partition(".")
        expected = theirs.param_groups[0][stem]
        assert value == float(expected[int(index)] if index else expected), key
    for _ in range(3):
        for each, stepped in ((one, ours), (other, theirs)):
            torch.manual_seed(1)
            each(torch.randn(5, 4)).square().sum().backward()
            stepped.step()
            stepped.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_groups_by_pattern_and_changes_between_steps() -> None:
    spec = {"name": "adam", "lr": 0.1, "groups": [{"parameters": ["2.*"], "lr": 0.01, "betas": [0.8, 0.9]}]}
    made = optimizer.build(spec, list(model().named_parameters()))
    assert [len(g["params"]) for g in made.param_groups] == [2, 2]
    assert [g["lr"] for g in made.param_groups] == [0.1, 0.01]
    optimizer.change(made, spec, [(1, {"lr": 0.5, "betas.1": 0.99, "maximize": 1.0})])
    assert made.param_groups[1]["betas"] == (0.8, 0.99)
    assert made.param_groups[1]["maximize"] is True
    before = copy.deepcopy([{k: v for k, v in g.items() if k != "params"} for g in made.param_groups])
    for changes in (
        [(0, {"lr": 0.2}), (2, {})],
        [(0, {"lr": 0.2}), (1, {"betas.2": 0.1})],
        [(0, {"lr": float("nan")})],
    ):
        with pytest.raises(ProtocolError):
            optimizer.change(made, spec, changes)  # type: ignore[arg-type]
        assert before == [{k: v for k, v in g.items() if k != "params"} for g in made.param_groups]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({}, "None is unknown"),
        ({"name": "adamx"}, "did you mean 'adam"),
        ({"name": ["sgd"]}, "unknown"),
        ({"name": "sgd", "groups": "all"}, "must be a list"),
        ({"name": "sgd", "groups": [{"lr": 1}]}, "must list patterns"),
        ({"name": "sgd", "nesterov": True, "momentum": 0}, "Nesterov"),
        ({"name": "sgd", "lr": "0.1"}, "float"),
    ],
)
def test_optimizers_that_are_refused(spec: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        optimizer.build(spec, list(model().named_parameters()))


class Recorder:
    def __init__(self) -> None:
        self.steps: list[Any] = []

    def zero_grad(self) -> None:
        self.steps.append("zero")

    def step(self, changes: Any) -> None:
        self.steps.append(list(changes))


def test_torch_s_schedulers_drive_a_remote_optimizer() -> None:
    recorder = Recorder()
    made = RemoteOptimizer(recorder, {"name": "sgd", "lr": 1.0, "momentum": 0.5})
    scheduler = torch.optim.lr_scheduler.OneCycleLR(made, max_lr=2.0, total_steps=5)
    local = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.5)
    twin = torch.optim.lr_scheduler.OneCycleLR(local, max_lr=2.0, total_steps=5)
    seen = {"lr": 1.0, "momentum": 0.5}
    for _ in range(4):
        assert made.step(lambda: 7) == 7
        local.step()
        for _, values in recorder.steps.pop():
            seen |= values
        assert (seen["lr"], seen["momentum"]) == (local.param_groups[0]["lr"], local.param_groups[0]["momentum"])
        scheduler.step()
        twin.step()
    made.step()
    recorder.steps.clear()
    made.step()
    assert recorder.steps == [[]], "what did not change does not travel"
    state = json.loads(json.dumps(made.state_dict()))
    made.param_groups[0]["lr"] = 9.0
    made.load_state_dict(state)
    made.resend()
    made.step()
    assert recorder.steps[-1][0][1]["lr"] == state["param_groups"][0]["lr"]


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, float("inf")])
@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_clipping_over_two_parts_is_that_of_the_whole(norm_type: float, max_norm: float) -> None:
    torch.manual_seed(2)
    whole = nn.ModuleDict({n: nn.Linear(17, 23) for n in "abcdef"})
    names = [n for n, _ in whole.named_parameters()]
    for n, p in whole.named_parameters():
        if n != "c.bias":
            p.grad = torch.randn_like(p)
    parted = copy.deepcopy(whole)
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        other.grad = None if one.grad is None else one.grad.clone()
    expected = nn.utils.clip_grad_norm_(whole.parameters(), max_norm, norm_type)
    tail = {n for n in names if n[0] in "bdf"}  # neither part is a run of parameters
    of = dict(parted.named_parameters())
    norms = {n: clipping.norms_of([of[n]], norm_type)[0] for n in names}
    norm = clipping.total(
        names,
        [(n, v) for n, v in norms.items() if n not in tail and v is not None],
        {n: v for n, v in norms.items() if n in tail and v is not None},
        norm_type,
    )
    assert torch.equal(norm, expected)
    factor = clipping.coefficient(max_norm, norm)
    for p in parted.parameters():
        if p.grad is not None:
            p.grad.mul_(float(factor))
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)
    assert float(clipping.total([], [], {}, 2.0)) == 0.0


def test_losses_are_torch_s() -> None:
    scores, classes, values = torch.randn(6, 4), torch.randint(0, 4, (6,)), torch.randn(6, 4)
    classes[0] = -100
    for name, options, labels in (
        ("cross_entropy", {"label_smoothing": 0.1}, classes),
        ("cross_entropy", {}, scores.softmax(1)),
        ("nll", {}, classes),
        ("mse", {}, values),
        ("huber", {"delta": 0.5}, values),
        ("binary_cross_entropy", {}, values.sigmoid()),
    ):
        assert torch.equal(
            losses.compute(name, options, scores, labels), losses.LOSSES[name][0](scores, labels, **options)
        )


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Result:
    logits: Any
    hidden: Any = None


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2),
        (torch.ones(1), [torch.zeros(2), None, 3, "four", 0.5, True]),
        {"a": torch.ones(1), "b": {"c": (torch.zeros(3),)}},
        Point(torch.ones(1), {"z": torch.zeros(1)}),
        Result(torch.ones(1), (torch.zeros(1), torch.ones(2))),
        collections.OrderedDict(a=torch.ones(1)),
        {},
    ],
)
def test_outputs_come_back_as_they_were(value: Any) -> None:
    data, found = outputs.describe(value)
    made = outputs.rebuild(data, len(found), lambda i: found[i], outputs.classes_of(value))
    assert type(made) is type(value)
    assert repr(made) == repr(value)
    plain = outputs.rebuild(data, len(found), lambda i: found[i], {})
    assert type(plain) in (torch.Tensor, tuple, list, dict), "nothing is made of a class that is not known here"


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b"7",
        b"true",
        b'{"value": [1]}',
        b'{"kind": "dict", "fields": []}',
        b'{"kind": "list", "items": [0, 0]}',
        b'{"kind": "list", "items": [1]}',
        b'{"kind": "set", "items": [0]}',
        b'{"kind":"list","items":[' * 40 + b"0" + b"]}" * 40,
        b" " * 300_000,
    ],
)
def test_structures_that_are_forged(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        outputs.rebuild(data, 1, lambda i: torch.ones(1), {})


def test_what_can_not_be_described() -> None:
    with pytest.raises(InputError, match=r"output\.a is a object"):
        outputs.describe({"a": object()})
    deep: Any = torch.ones(1)
    for _ in range(20):
        deep = [deep]
    with pytest.raises(InputError, match="deep"):
        outputs.describe(deep)


@given(
    st.lists(st.integers(0, 4), max_size=5),
    st.integers(0, 1000),
    st.sampled_from(["float32", "float16", "bfloat16", "int64", "bool"]),
)
def test_a_gradient_arrives_with_the_strides_that_it_had(shape: list[int], seed: int, dtype: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(shape), generator=generator).tolist()
    tensor = (torch.randn([shape[d] for d in order], generator=generator) * 3).to(getattr(torch, dtype))
    tensor = tensor.permute([order.index(d) for d in range(len(shape))])
    for dim in range(len(shape)):
        if shape[dim] and int(torch.randint(0, 3, (), generator=generator)) == 0:
            tensor = tensor.narrow(dim, 0, 1).expand([shape[dim] if d == dim else -1 for d in range(len(shape))])
    for role, like in ((Role.GRADIENT, tensor), (Role.ACTIVATION, None)):
        header, part = Sender(Chain.parse("raw")).send(role, 3, tensor, training=True)
        number, found = Receiver(Chain.parse("raw")).receive(header, bytearray(part), like)
        assert number == 3
        assert torch.equal(found, tensor)
        if like is not None and tensor.numel():
            kept = [(s, t) for s, t, n in zip(found.stride(), tensor.stride(), tensor.shape, strict=True) if n > 1]
            assert [s == 0 for s, _ in kept] == [t == 0 for _, t in kept]
            ranks = [sorted(range(len(kept)), key=lambda d: -kept[d][i]) for i in (0, 1)]
            assert ranks[0] == ranks[1] or 0 in [s for s, _ in kept]


def test_raw_tensors_are_checked() -> None:
    header, part = raw(Role.LABELS, torch.tensor([True, False]))
    assert read_raw(header, bytes(part)).tolist() == [True, False]
    with pytest.raises(ProtocolError, match="bool"):
        read_raw(header, b"\x02\x00")
    with pytest.raises(ProtocolError, match="coded"):
        read_raw(dataclasses.replace(header, stages=(1,)), part)  # type: ignore[arg-type]


def checkpoint(
    folder: Path,
    through: int = 5,
    quota: int | None = None,
    session: bytes = b"s" * 16,
    keep: bool = True,
    hold: Sequence[int] = (),
) -> Checkpoints:
    answer = raw(Role.OUTPUT, torch.arange(3.0), "0")
    saved, parts = saved_answers([Frame(through, pb.Answer(seq=through), (answer[0],), (answer[1],))])
    header = Header("edge", "edge", 2, b"{}", through, ({"lr": 0.1},), {"seq": 100 + through}, saved)
    made = Checkpoints(folder, quota)
    made.write(
        session, header, {"state/w": torch.ones(2, 2).t(), "empty": torch.empty(0, 3)}, parts, keep=keep, hold=hold
    )
    return made


def test_checkpoints_keep_the_last_two(tmp_path: Path) -> None:
    for through in (5, 7, 9):
        kept = checkpoint(tmp_path, through)
    session = b"s" * 16
    assert kept.steps(session) == [7, 9]
    last, first = kept.read(session), kept.read(session, 7)
    assert last is not None
    assert first is not None
    assert (last.header.through, first.header.through) == (9, 7)
    assert torch.equal(last.tensors["state/w"], torch.ones(2, 2))
    assert bytes(last.answers[0].parts[0]) == torch.arange(3.0).numpy().tobytes()
    assert kept.read(session, 5) is None
    assert kept.read(b"t" * 16) is None
    path = tmp_path / session.hex() / f"{9:020d}.kept"
    path.write_bytes(path.read_bytes()[:-1])
    passed = kept.read(session)
    assert passed is not None
    assert passed.header.through == 7
    kept.rewind(session, 7)
    assert kept.steps(session) == [7]
    assert kept.sweep(3600.0) == 0
    assert kept.sweep(-1.0) == 1
    assert not list(tmp_path.iterdir())


def test_checkpoints_for_restarts_push_out_none_that_a_client_asked_for(tmp_path: Path) -> None:
    session = b"s" * 16
    for through, keep, expected in (
        (2, False, [2]),
        (5, True, [5]),
        (8, False, [5, 8]),
        (9, False, [5, 9]),
        (11, True, [5, 11]),
        (12, False, [5, 11, 12]),
        (14, True, [11, 14]),
    ):
        assert checkpoint(tmp_path, through, keep=keep).steps(session) == expected


def test_checkpoints_that_others_go_on_from_stay(tmp_path: Path) -> None:
    session = b"s" * 16
    for through, keep, hold, expected in (
        (2, False, (), [2]),
        (5, False, (2,), [2, 5]),
        (7, True, (2, 5), [2, 5, 7]),
        (8, True, (5, 7), [5, 7, 8]),
        (9, True, (5, 7, 8), [5, 7, 8, 9]),
        (10, False, (9,), [8, 9, 10]),
        (11, True, (), [9, 11]),
    ):
        made = checkpoint(tmp_path, through, keep=keep, hold=hold)
        assert made.steps(session) == expected
        assert made.upstreams(session) == {step: 100 + step for step in expected}
    (tmp_path / session.hex() / f"{11:020d}.kept").write_bytes(b"FOG")
    assert made.upstreams(session) == {9: 109}


def test_checkpoints_have_a_quota(tmp_path: Path) -> None:
    size = checkpoint(tmp_path).held_bytes()
    checkpoint(tmp_path, 6, quota=3 * size)
    with pytest.raises(CapacityError, match="close sessions"):
        checkpoint(tmp_path, 6, quota=4 * size, session=b"t" * 16)


def test_every_byte_of_a_checkpoint_counts(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (path,) = (tmp_path / (b"s" * 16).hex()).iterdir()
    data = path.read_bytes()
    parse(data)
    for at in range(len(data)):
        with pytest.raises(FormatError):
            parse(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(FormatError):
            parse(data[:at])
    with pytest.raises(FormatError):
        parse(data + b"\0")
