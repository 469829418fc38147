"""Split training computes the bits of unsplit training, whatever breaks on the way."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from tail_parts import EXAMPLE, OPTIMIZERS, HostProcess, Split, Unsplit, batches, fresh
from tensor_parts import Line
from torch import nn

from fogline import split
from fogline.common.errors import UnavailableError
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.tails.remote import RemoteTail

STEPS = 50
Hosts = Callable[..., HostProcess]


@pytest.fixture(params=sorted(OPTIMIZERS))
def spec(request: pytest.FixtureRequest) -> dict[str, object]:
    return OPTIMIZERS[request.param]


@pytest.fixture
def line(host: HostProcess) -> Iterator[Line]:
    made = Line(host.port)
    yield made
    made.close()


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("at", ["first", "second", None])
def test_fifty_steps(host: HostProcess, spec: dict[str, object], labels: bool, at: str | None) -> None:
    model = fresh()
    whole = Unsplit(model, spec, STEPS)
    head, tail = split(model, at=at, example=EXAMPLE)
    with host.connect(tail, at=at, optimizer=spec) as remote:
        script = Split(head, remote, spec, labels)
        torch.manual_seed(5)
        script.run(enumerate(batches(STEPS)))
        script.agrees(whole)


@pytest.mark.parametrize("labels", [False, True])
def test_the_connection_drops_again_and_again(host: HostProcess, line: Line, labels: bool) -> None:
    spec = OPTIMIZERS["sgd"]
    model = fresh()
    whole = Unsplit(model, spec, STEPS)
    head, tail = split(model, at="first", example=EXAMPLE)
    with host.connect(tail, port=line.port, optimizer=spec) as remote:

        def before(number: int) -> None:
            if number % 10 == 3:
                line.cut()
            elif number % 10 == 7:
                line.budget = 5000  # in the middle of a frame

        script = Split(head, remote, spec, labels)
        torch.manual_seed(5)
        script.run(enumerate(batches(STEPS)), before)
        script.agrees(whole)
    assert line.connections > 5


def test_the_host_is_killed_and_started_again(hosts: Hosts, spec: dict[str, object]) -> None:
    model = fresh()
    whole = Unsplit(model, spec, STEPS)
    head, tail = split(model, at="first", example=EXAMPLE)
    host = hosts()
    with host.connect(tail, optimizer=spec) as remote:

        def before(number: int) -> None:
            if number in (11, 12, 31):  # between the two batches of a step, and after a checkpoint too
                host.restart()
            if number == 20:
                remote.checkpoint()
            if number == 21:
                assert remote._client.session.log_size < 300_000, "a checkpoint empties the log"

        script = Split(head, remote, spec)
        torch.manual_seed(5)
        script.run(enumerate(batches(STEPS)), before)
        script.agrees(whole)


def test_the_host_is_killed_before_its_first_checkpoint(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = OPTIMIZERS["sgd"]
    model = fresh()
    whole = Unsplit(model, spec, 10)
    head, tail = split(model, at="first", example=EXAMPLE)
    host = hosts()
    later = RemoteTail._later
    monkeypatch.setattr(RemoteTail, "_later", lambda s, b: None if isinstance(b, pb.Checkpoint) else later(s, b))
    with host.connect(tail, optimizer=spec) as remote:
        script = Split(head, remote, spec)
        torch.manual_seed(5)
        script.run(enumerate(batches(10)), lambda number: host.restart() if number == 6 else None)
        script.agrees(whole)
        assert remote._client.session.durable == 0


def test_a_host_that_lost_its_folder_says_so(hosts: Hosts) -> None:
    spec = OPTIMIZERS["sgd"]
    head, tail = split(fresh(), at="first", example=EXAMPLE)
    host = hosts()
    remote = host.connect(tail, optimizer=spec)
    script = Split(head, remote, spec)
    script.run(enumerate(batches(2)))
    remote.checkpoint()
    host.kill()
    shutil.rmtree(host.config.data_dir)
    host.restart()
    with pytest.raises(UnavailableError, match="session is lost"):
        script.run(enumerate(batches(2)))
    remote.abandon()


def test_a_log_that_is_full_makes_room_by_itself(hosts: Hosts) -> None:
    spec = OPTIMIZERS["sgd"]
    model = fresh()
    whole = Unsplit(model, spec, 30)
    head, tail = split(model, at="first", example=EXAMPLE)
    host = hosts()
    with host.connect(tail, optimizer=spec, log_bytes=100_000) as remote:
        script = Split(head, remote, spec)
        torch.manual_seed(5)

        def before(number: int) -> None:
            if number == 10:
                kept.append(remote.checkpoint())
            if number == 25:
                assert remote._client.session.durable > 20
                host.restart()

        kept: list[dict[str, object]] = []
        script.run(enumerate(batches(30)), before)
        script.agrees(whole)
        remote.abandon()
    with host.connect(split(fresh(), at="first", example=EXAMPLE)[1], optimizer=spec, resume=kept[0]) as remote:
        assert remote.gradient_norms() == {}, "the checkpoint that was asked for is still there"


def test_the_client_starts_again_from_a_checkpoint(hosts: Hosts, spec: dict[str, object]) -> None:
    model = fresh()
    whole = Unsplit(model, spec, STEPS)
    head, tail = split(model, at="first", example=EXAMPLE)
    host = hosts()
    remote = host.connect(tail, optimizer=spec)
    script = Split(head, remote, spec)
    steps = list(enumerate(batches(STEPS)))
    torch.manual_seed(5)
    script.run(iter(steps[:24]))
    saved = copy.deepcopy(
        {
            "remote": remote.checkpoint(),
            "head": head.state_dict(),
            "optimizer": script.optimizers[0].state_dict(),
            "schedulers": [s.state_dict() for s in script.schedulers],
            "random": torch.get_rng_state(),
            "losses": script.losses,
            "norms": script.norms,
        }
    )
    script.run(iter(steps[24:31]))  # which nobody will know of
    remote.abandon()
    host.restart()

    # Another process, as it were: a model with other weights, and what was saved.
    head, tail = split(fresh(seed=99), at="first", example=EXAMPLE)
    head.load_state_dict(saved["head"])
    with host.connect(tail, optimizer=spec, resume=saved["remote"]) as remote:
        script = Split(head, remote, spec)
        script.optimizers[0].load_state_dict(saved["optimizer"])
        remote.optimizer.load_state_dict(saved["remote"]["optimizer"])
        for scheduler, state in zip(script.schedulers, saved["schedulers"], strict=True):
            scheduler.load_state_dict(state)
        script.losses, script.norms = saved["losses"], saved["norms"]
        torch.set_rng_state(saved["random"])
        script.run(iter(steps[24:]))
        script.agrees(whole)


def test_evaluation_between_steps_and_forwards_that_nobody_goes_back_through(host: HostProcess) -> None:
    spec = OPTIMIZERS["sgd"]
    model = fresh()
    twin = copy.deepcopy(model).train()
    head, tail = split(model, at="first", example=EXAMPLE)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    with host.connect(tail, optimizer=spec) as remote:
        script = Split(head, remote, spec)
        for number, (x, y) in enumerate(batches(70)):
            torch.manual_seed(number)
            loss = nn.functional.cross_entropy(twin(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            twin.eval()
            with torch.no_grad():
                expected = twin(x)
            twin.train()

            torch.manual_seed(number)
            nn.functional.cross_entropy(remote(head(x)), y).backward()
            for each in script.optimizers:
                each.step()
                each.zero_grad()
            head.eval()
            remote.eval()
            with torch.no_grad():
                assert torch.equal(remote(head(x)), expected)
            remote(head(x))  # keeps a graph at the host, which goes when this is collected
            head.train()
            remote.train()


def test_two_sessions_of_one_host_draw_from_streams_of_their_own(host: HostProcess) -> None:
    spec = OPTIMIZERS["sgd"]
    model = fresh()
    whole = Unsplit(model, spec, 10)
    remotes: list[RemoteTail] = []
    scripts: list[Split] = []
    states = []
    for _ in range(2):
        head, tail = split(copy.deepcopy(model), at="first", example=EXAMPLE)
        remotes.append(host.connect(tail, optimizer=spec))
        scripts.append(Split(head, remotes[-1], spec))
        states.append(torch.manual_seed(5).get_state())
    for step in enumerate(batches(10)):
        for n, script in enumerate(scripts):
            torch.set_rng_state(states[n])
            script.run(iter([step]))
            states[n] = torch.get_rng_state()
    for script in scripts:
        script.agrees(whole)
    for remote in remotes:
        remote.close()
