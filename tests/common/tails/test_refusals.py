"""What is wrong is refused by name, on the side that can know it first, and hurts nobody else."""

from __future__ import annotations

import copy
import socket
from typing import Any

import msgspec
import pytest
import tail_models
import torch
from tail_parts import EXAMPLE, OPTIMIZERS, HostProcess, Split, batches, fresh
from torch import nn

from fogline import split
from fogline.common.errors import (
    CapacityError,
    ConfigError,
    FoglineError,
    FormatError,
    IdentityError,
    InputError,
    ProtocolError,
    UnavailableError,
)
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.tails import parts
from fogline.common.tails.remote import RemoteTail
from fogline.common.tails.setup import Setup
from fogline.common.tails.tensors import raw
from fogline.common.wire.tensors import Dtype, Role, Stage, TensorHeader

SGD = OPTIMIZERS["sgd"]


def tail_of(at: str | None = "first", model: nn.Module | None = None) -> Any:
    return split(model or fresh(), at, example=EXAMPLE)[1]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"model": "os:system"}, IdentityError, "not allowed here; its host's operator adds it to tensors.models"),
        ({"model": "tail_models:Net"}, IdentityError, "not allowed"),
        ({"model": "tail_models:broken"}, InputError, "no such luck"),
        ({"model": "tail_models:absent"}, ConfigError, "has no 'absent'"),
        ({"kwargs": {"width": 9}}, ConfigError, "builds another model here"),
        ({"kwargs": {"depth": 9}}, InputError, "unexpected keyword argument 'depth'"),
        ({"kwargs": {"width": object()}}, ConfigError, "kwargs of the model"),
        ({"codec": "fp15"}, ConfigError, "codec 'fp15' is unknown"),
        ({"codec": "c3sl(ratio=4)", "gradient_codec": "raw"}, ConfigError, "gradients"),
        ({"codec": "zstd(level=19)"}, ConfigError, r"gradient_codec.* at most 9"),
        ({"at": "second"}, ConfigError, "cut at"),
        ({"optimizer": {"name": "sdg", "lr": 0.1}}, ConfigError, "did you mean 'sgd'"),
        ({"optimizer": {"name": "sgd", "momentun": 0.1}}, ConfigError, "did you mean 'momentum'"),
        ({"optimizer": {"name": "adam", "lr": -1}}, ConfigError, "lr"),
        ({"resume": {"session": "00", "seq": 1}}, ConfigError, "not what checkpoint"),
        ({"resume": {"session": "00" * 16, "seq": 7}, "optimizer": SGD}, ConfigError, "no checkpoint of step 7"),
    ],
)
def test_what_connect_refuses(host: HostProcess, options: dict[str, Any], error: type[FoglineError], says: str) -> None:
    with pytest.raises(error, match=says):
        host.connect(tail_of(), **options)


def test_weights_that_are_none(host: HostProcess) -> None:
    _, middle, tail = split(fresh(), ("first", "second"), example=EXAMPLE)
    for weights, says in (((), "pass the tail"), ((None, None), "pass the tail"), (middle, "nothing that follows it")):
        with pytest.raises(ConfigError, match=says):
            host.connect(weights)
    untraced = split(fresh(), "first")[1]
    with pytest.raises(InputError, match="not traced yet"):
        host.connect(untraced)
    with pytest.raises(ConfigError, match="nobody further up"):
        host.connect((middle, tail))


def test_nobody_listens_there(host: HostProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(UnavailableError, match=str(port)):
        host.connect(tail_of(), port=port, connect_s=1.0, give_up_s=0.5)
    with pytest.raises(ConfigError, match="loopback"):
        RemoteTail.connect("10.1.2.3:7443", model="tail_models:net", weights=tail_of())


def test_a_full_host_says_so_and_takes_another_when_one_leaves(hosts: Any) -> None:
    host = hosts(max_sessions=3, max_sessions_per_peer=2)
    open_ones = [host.connect(tail_of()) for _ in range(2)]
    with pytest.raises((CapacityError, UnavailableError), match="at most 3 and 2"):
        host.connect(tail_of(), give_up_s=0.1)
    other = host.connect(tail_of(), name="cam-9")
    open_ones.pop().close()
    open_ones.append(host.connect(tail_of()))
    for each in (*open_ones, other):
        each.close()


@pytest.mark.parametrize(
    "given",
    [
        torch.randn(2, 7, 8, 8),
        torch.randn(2, 8, 8),
        torch.randn(2, 8, 8, 8, dtype=torch.float64),
        torch.zeros(2, 8, 8, 8, dtype=torch.int32),
    ],
)
def test_shapes_and_dtypes_other_than_agreed_leave_the_session_as_it_was(
    host: HostProcess, given: torch.Tensor
) -> None:
    model = fresh()
    head, tail = split(model, "first", example=EXAMPLE)
    twin = copy.deepcopy(model).train()
    with host.connect(tail, optimizer=SGD) as remote:
        with pytest.raises(InputError):
            remote(given)
        with pytest.raises(InputError):
            remote.loss(given, torch.zeros(2, dtype=torch.int64), loss="cross_entropy")
        x = torch.randn(3, 3, 8, 8)
        torch.manual_seed(0)
        found = remote(head(x))
        torch.manual_seed(0)
        assert torch.equal(found, twin(x))


def test_what_forward_refuses(host: HostProcess) -> None:
    head, tail = split(fresh(), "first", example=EXAMPLE)
    h = head(torch.randn(2, 3, 8, 8))
    with host.connect(tail) as remote:
        with pytest.raises(InputError, match="for inference"):
            remote(h)
        for given in ((h, h), ("text",), ()):
            with pytest.raises(InputError, match="pass what the head returned"):
                remote(*given)
        with pytest.raises(InputError, match="pass what the head returned"), torch.no_grad():
            remote(h, scale=1)
        with pytest.raises(InputError, match="at='last'"), torch.no_grad():
            remote(h, at="last")
        with pytest.raises(InputError, match="can't travel"), torch.no_grad():
            remote(h.to(torch.complex64))
        with pytest.raises(ConfigError, match="no optimizer"):
            remote.optimizer.step()
        with pytest.raises(ProtocolError, match="inference session"):
            remote.checkpoint()
        with torch.no_grad():
            assert remote(h).shape == (2, 5)
    with pytest.raises(UnavailableError, match="closed"), torch.no_grad():
        remote(h)


def test_what_training_refuses(host: HostProcess) -> None:
    head, tail = split(fresh(), "first", example=EXAMPLE)
    x, y = batches(1)[0]
    with host.connect(tail, optimizer=SGD) as remote:
        out = remote(head(x))
        loss = nn.functional.cross_entropy(out, y)
        loss.backward(retain_graph=True)
        with pytest.raises(InputError, match="a second time"):
            loss.backward()
        out = remote(head(x))
        with pytest.raises(InputError, match="between steps"):
            remote.checkpoint()
        with pytest.raises(InputError, match=r"scale=0\.5"):
            (remote.loss(head(x), y, loss="cross_entropy") * 0.5).backward()
        with pytest.raises(InputError, match="did you mean 'cross_entropy'"):
            remote.loss(head(x), y, loss="crossentropy")
        with pytest.raises(InputError, match="unknown option 'gamma'"):
            remote.loss(head(x), y, loss="cross_entropy", gamma=2)
        with pytest.raises(InputError, match="the output has 5"):
            remote.loss(head(x), y + 10, loss="cross_entropy")
        with pytest.raises(InputError, match="labels"):
            remote.loss(head(x), y[:1], loss="mse")
        with pytest.raises(InputError, match="submit is for inference"):
            remote.submit(head(x))
        with pytest.raises(InputError, match="set_to_none"):
            remote.optimizer.zero_grad(set_to_none=False)
        with pytest.raises(ConfigError, match="given to connect"):
            remote.optimizer.add_param_group({"params": []})
        remote.optimizer.param_groups[0]["lr"] = -1.0
        remote.optimizer.step()
        with pytest.raises(ProtocolError, match="lr"):
            remote.gradient_norms()
        remote.optimizer.param_groups[0]["lr"] = 0.1
        remote.optimizer.step()
        remote.gradient_norms()
        for _ in range(2):  # the weights that it needs were stepped over; then the session is over
            with pytest.raises(InputError, match="modified by an inplace operation"):
                remote(head(x)) if out is None else out.sum().backward()
            out = None


def test_a_tail_that_fails_leaves_buffers_and_random_numbers_alone(host: HostProcess) -> None:
    torch.manual_seed(3)
    model = tail_models.picky()
    twin = copy.deepcopy(model).train()
    head, tail = split(model, "first", example=torch.randn(2, 4))
    with host.connect(tail, model="tail_models:picky", optimizer=SGD) as remote:
        for number in range(4):
            x = torch.randn(3, 4)
            torch.manual_seed(number)
            before = torch.get_rng_state()
            if number % 2:
                with pytest.raises(InputError, match="fails on this input: ArithmeticError: not finite"):
                    remote(head(x) * float("inf"))
                assert torch.equal(torch.get_rng_state(), before)
            found = remote(head(x))
            torch.set_rng_state(before)
            assert torch.equal(found, twin(x))
        state = remote.state_dict()
        assert all(torch.equal(state[k], v) for k, v in twin.state_dict().items() if k in state)


def test_too_many_forwards_without_a_backward(host: HostProcess) -> None:
    head, tail = split(fresh(), "first", example=EXAMPLE)
    x, _ = batches(1)[0]
    with host.connect(tail, optimizer=SGD) as remote:
        kept = [remote(head(x)) for _ in range(64)]
        with pytest.raises(CapacityError, match="64 forwards wait"):
            remote(head(x))
        kept.pop()  # its graph goes with it
        kept.append(remote(head(x)))


class Raw:
    """Operations as no client of ours would make them."""

    def __init__(self, host: HostProcess, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        monkeypatch.setattr(
            Setup,
            "pack",
            lambda setup: (
                msgspec.json.encode(msgspec.to_builtins(setup) | changes) if changes else msgspec.json.encode(setup)
            ),
        )
        self.remote = host.connect(tail_of(), optimizer=SGD)

    def send(self, body: Any, *tensors: Any) -> Any:
        return self.remote._client.submit(body, tuple(h for h, _ in tensors), tuple(p for _, p in tensors)).result(20)


def activation(**changes: Any) -> tuple[TensorHeader, bytes]:
    fields: dict[str, Any] = {
        "role": Role.ACTIVATION, "dtype": Dtype.FLOAT32, "shape": (1, 8, 8, 8), "coded_bytes": 2048, "name": "0",
    }  # fmt: skip
    return TensorHeader(**{**fields, **changes}), bytes(changes.get("coded_bytes", 2048))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"model": 3}, ProtocolError, "malformed"),
        ({"surplus": 1}, ProtocolError, "malformed"),
        ({"weights": "0" * 64}, FormatError, "not those that the session was opened for"),
        ({"architecture": "0" * 64}, ConfigError, "builds another model"),
        ({"cuts": []}, ProtocolError, "malformed"),
        ({"cuts": [["first", "second"]]}, ProtocolError, "nothing that follows"),
        ({"cuts": [["first", None], ["second", None]]}, ConfigError, "it has one"),
        ({"cuts": [["nowhere", None]]}, InputError, "no module of that name"),
        ({"inputs": [{"dtype": 1, "shape": [1 << 20, 1 << 20]}]}, ProtocolError, "at most"),
        ({"inputs": [{"dtype": 1, "shape": [0, *[1 << 24] * 7]}]}, ProtocolError, "at most"),
        ({"inputs": []}, ProtocolError, "structure|malformed"),
        ({"call": "{"}, ProtocolError, "malformed"),
        ({"optimizer": {"name": "lion"}}, ConfigError, "unknown"),
        ({"optimizer": {"name": "sgd", "groups": [1]}}, ConfigError, "group"),
        ({"codecs": {"activations": "gzip"}}, ConfigError, "unknown"),
        ({"codecs": {"activations": "fp16", "fingerprints": ["00", "", "", ""]}}, ConfigError, "other versions"),
        ({"codecs": {"gradients": "zstd(level=19)"}}, ConfigError, "level 19 .* at most 9"),
        ({"codecs": {"outputs": "fp16+zstd(level=10)"}}, ConfigError, "level 10 .* at most 9"),
        ({"upstream": True}, ConfigError, "nobody further up"),
    ],
)
def test_a_setup_that_is_forged(
    host: HostProcess, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], error: type[FoglineError], says: str
) -> None:
    with pytest.raises(error, match=says):
        Raw(host, monkeypatch, **changes)


def test_operations_that_are_forged(host: HostProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Raw(host, monkeypatch)
    state = raw(Role.GENERATOR, torch.zeros(5056, dtype=torch.uint8))
    short = raw(Role.GENERATOR, torch.zeros(10, dtype=torch.uint8))
    labels = raw(Role.LABELS, torch.zeros(1, dtype=torch.int64))
    for body, tensors, error, says in (
        (pb.Forward(), [], ProtocolError, "without activations"),
        (pb.Forward(cut=3), [activation()], ProtocolError, "cut 3"),
        (pb.Forward(), [activation(name="x")], ProtocolError, "numbered"),
        (pb.Forward(), [activation(name="1")], ProtocolError, "comes where 0 should"),
        (pb.Forward(), [activation(name="0:0011")], ProtocolError, "layout"),
        (pb.Forward(), [activation(name="0:0123:9")], ProtocolError, "numbered|expanded"),
        (pb.Forward(), [activation(name="0:0123:1")], ProtocolError, "expanded"),
        (pb.Forward(), [activation(), activation(name="1")], InputError, "takes 1 tensors"),
        (pb.Forward(), [activation(stages=(Stage(99, 1),))], FormatError, "coded by stages"),
        (pb.Forward(), [activation(stages=(Stage(2, 1),), coded_bytes=9)], FormatError, "coded by stages"),
        (pb.Forward(), [activation(), state], ProtocolError, "refuses"),
        (pb.Forward(), [activation(), short], ProtocolError, "5056 bytes"),
        (pb.Forward(), [activation(), state, state], ProtocolError, "generator"),
        (pb.Backward(forward=999), [], InputError, "no graph"),
        (pb.Release(forward=999), [], InputError, "no graph"),
        (pb.ForwardLoss(loss="cross_entropy"), [activation()], ProtocolError, "labels"),
        (pb.ForwardLoss(loss="eval"), [activation(), labels], InputError, "unknown"),
        (pb.OptimizerStep(changes=[pb.GroupChange(group=9)]), [], ProtocolError, "group 9"),
        (pb.OptimizerStep(changes=[pb.GroupChange(values={"params": 1.0})]), [], ProtocolError, "'params'"),
        (pb.OptimizerStep(changes=[pb.GroupChange(values={"lr.0": 1.0})]), [], ProtocolError, "'lr.0'"),
        (pb.GradientNorms(norm_type=-1.0), [], ProtocolError, "norm"),
        (pb.GradientNorms(norm_type=float("nan")), [], ProtocolError, "norm"),
        (pb.LoadWeights(), [], ProtocolError, "0 files"),
        (pb.LoadWeights(), [raw(Role.WEIGHTS, torch.zeros(9, dtype=torch.uint8))], FormatError, "safetensors"),
    ):
        with pytest.raises(error, match=says):
            made.send(body, *tensors)
    answer = made.send(pb.Forward(keep_graph=True), activation())
    out = answer.frame.tensors[0]
    gradient = TensorHeader(Role.OUTPUT_GRADIENT, Dtype.FLOAT32, (1, 5), 20, (), "0")
    for header, says in (
        (TensorHeader(Role.OUTPUT_GRADIENT, Dtype.FLOAT32, (1, 4), 16, (), "0"), "is wanted"),
        (TensorHeader(Role.OUTPUT_GRADIENT, Dtype.FLOAT64, (1, 5), 40, (), "0"), "is wanted"),
        (TensorHeader(Role.OUTPUT_GRADIENT, Dtype.FLOAT32, (1, 5), 20, (), "4"), "gradient of output"),
    ):
        with pytest.raises(ProtocolError, match=says):
            made.send(pb.Backward(forward=answer.frame.seq), (header, bytes(header.coded_bytes)))
    assert out.shape == (1, 5)
    done = made.send(pb.Backward(forward=answer.frame.seq), (gradient, bytes(20)))
    assert done.frame.tensors[0].role is Role.GRADIENT, "the graph was still there"
    made.remote.close()


def test_a_damaged_checkpoint_is_passed_over_or_named(hosts: Any) -> None:
    host = hosts()
    head, tail = split(fresh(), "first", example=EXAMPLE)
    remote = host.connect(tail, optimizer=SGD)
    script = Split(head, remote, SGD)
    script.run(enumerate(batches(2)))
    first = remote.checkpoint()
    script.run(enumerate(batches(2)))
    second = remote.checkpoint()
    remote.abandon()
    host.kill()
    folder = host.config.data_dir / "tensors" / "sessions" / first["session"]
    files = sorted(folder.iterdir())
    assert len(files) == 2
    data = bytearray(files[1].read_bytes())
    data[len(data) // 2] ^= 1
    files[1].write_bytes(data)
    host.restart()
    with pytest.raises(FormatError, match="damaged"):
        host.connect(tail_of(), optimizer=SGD, resume=second)
    for change, says in (
        ({"model": "tail_models:family", "kwargs": {"name": "resnet"}}, "opened with model"),
        ({"codec": "fp16"}, "opened with codecs"),
        ({"optimizer": OPTIMIZERS["adam"]}, "opened with optimizer 'sgd'"),
    ):
        with pytest.raises(ConfigError, match=says):
            host.connect(tail_of(), **{"optimizer": SGD, "resume": first, **change})
    with pytest.raises(IdentityError, match="not of cam-9"):
        host.connect(tail_of(), optimizer=SGD, resume=first, name="cam-9")
    assert sorted(folder.iterdir()) == files, "a try that failed has cost no checkpoint"
    with host.connect(tail_of(), optimizer=SGD, resume=first) as remote:
        assert remote.gradient_norms() == {}
    assert not folder.exists(), "a closed session leaves nothing"


def test_weights_from_a_host_are_checked() -> None:
    with pytest.raises(ProtocolError, match="no safetensors"):
        parts.read_weights(b"\x00" * 40)
    assert tail_models.dicts() is not None
