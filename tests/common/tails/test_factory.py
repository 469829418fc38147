"""Sessions as a host makes them, without a process or a wire."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tail_models
import torch
from tail_parts import EXAMPLE, INSECURE, MODELS, OPTIMIZERS, fresh
from torch import nn

from fogline import split
from fogline.common.errors import CapacityError, FormatError, InputError
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.peer import Peer
from fogline.common.tails.config import TensorsConfig
from fogline.common.tails.factory import SessionFactory
from fogline.common.tails.graphs import Graph
from fogline.common.tails.parts import Parts, digest
from fogline.common.tails.setup import Setup
from fogline.common.tails.tensors import raw
from fogline.common.wire.tensors import Frame, Role

EDGE = Peer("cam-1", "edge")
SESSION = b"s" * 16


def factory(folder: Path, **settings: Any) -> SessionFactory:
    config = TensorsConfig(enabled=True, models=MODELS, device="cpu", threads=1, **settings)
    return SessionFactory(config, folder, Peer("fog", "fog"), INSECURE, LinkMeter("fog-cloud"))


def opening(model: nn.Module, files: list[bytes], at: str = "first", rollback_to: int = 0) -> pb.OpenSession:
    """What a client says; `files` gets the weights."""
    made = Parts.of(split(model, at=at, example=EXAMPLE)[1])
    files[:] = made.files()
    setup = Setup(
        model="tail_models:net",
        architecture=made.architecture,
        weights=digest(files),
        cuts=made.cuts,
        call=made.call,
        inputs=made.inputs,
        optimizer=OPTIMIZERS["sgd"],
    )
    return pb.OpenSession(session=SESSION, mode=pb.SESSION_MODE_TRAINING, setup=setup.pack(), rollback_to=rollback_to)


def run(hosted: Any, seq: int, body: Any, *sent: Any) -> Any:
    return hosted.execute(body, Frame(seq, body, tuple(h for h, _ in sent), tuple(p for _, p in sent)))


def weights(data: bytes) -> Any:
    return raw(Role.WEIGHTS, torch.frombuffer(bytearray(data), dtype=torch.uint8))


@pytest.mark.parametrize("fault", ["the model fails", "it is damaged", "its state does not fit"])
def test_going_back_forgets_what_came_later_only_once_it_has_worked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    files: list[bytes] = []
    made = factory(tmp_path)
    begun = made.open(EDGE, opening(fresh(), files))
    assert begun is not None
    run(begun.hosted, 1, pb.LoadWeights(), weights(files[0]))
    for seq in (2, 3):
        run(begun.hosted, seq, pb.Checkpoint(keep=True))
        begun.hosted.save(seq, ())
    begun.hosted.close(forget=False)
    back = opening(fresh(), files, rollback_to=2)
    with monkeypatch.context() as patch:
        if fault == "the model fails":
            patch.setattr(tail_models, "net", tail_models.broken)
        elif fault == "it is damaged":
            path = made.checkpoints._path(SESSION, 2)
            assert path is not None
            data = path.read_bytes()
            path.write_bytes(data[:-1])
        else:
            patch.setattr("fogline.common.tails.hosted.restore_optimizer", _refuses)
        with pytest.raises((InputError, FormatError)):
            made.open(EDGE, back)
    if fault == "it is damaged":
        path.write_bytes(data)
    assert made.checkpoints.steps(SESSION) == [2, 3]
    again = made.open(EDGE, back)
    assert again is not None
    assert again.executed == 2
    assert made.checkpoints.steps(SESSION) == [2]


def activation(batch: int, **named: Any) -> Any:
    return raw(Role.ACTIVATION, torch.randn(batch, 8, 8, 8), "0")


def test_graphs_are_bounded_by_their_bytes(tmp_path: Path) -> None:
    """Over all sessions of a host. One that has no room has changed nothing, and what is let go makes room."""
    files: list[bytes] = []
    made = factory(tmp_path, max_graph_bytes=100_000)
    sessions = []
    for _ in range(2):
        begun = made.open(EDGE, opening(fresh(), files))
        assert begun is not None
        run(begun.hosted, 1, pb.LoadWeights(), weights(files[0]))
        sessions.append(begun.hosted)
    first, second = sessions
    forward = pb.Forward(training=True, keep_graph=True)
    run(first, 2, forward, activation(4))
    held = made._graphs.held
    assert 4 * 8 * 8 * 8 * 4 * 2 < held < 60_000, "its input, and what ReLU and batch norm keep"
    buffers = {n: t.clone() for n, t in second._state().items()}
    random = second._executor.generator.cpu
    with pytest.raises(CapacityError, match=r"max_graph_bytes.*smaller batches"):
        run(second, 2, forward, activation(8))
    assert made._graphs.held == held
    assert all(torch.equal(buffers[n], t) for n, t in second._state().items())
    assert torch.equal(second._executor.generator.cpu, random)
    run(second, 3, forward, activation(4))
    run(first, 3, pb.Release(forward=2))
    run(first, 4, forward, activation(2))
    out = run(second, 4, pb.Backward(forward=3), raw(Role.OUTPUT_GRADIENT, torch.ones(4, 5), "0"))
    assert len(out.tensors) == 1
    for session in sessions:
        session.close(forget=True)
    assert made._graphs.held == 0


def test_what_a_graph_holds_is_what_hooks_on_saved_tensors_count() -> None:
    model = fresh()
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    weights = [*model.parameters(), *model.buffers()]
    known, seen = {t.untyped_storage().data_ptr() for t in weights}, {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x)
    expected = sum(t.untyped_storage().nbytes() for at, t in seen.items() if at not in known | {out.data_ptr()})
    torch.manual_seed(0)
    assert Graph([x], [True], [model(x)]).held_bytes(weights) == expected + out.nbytes


def _refuses(*given: Any) -> None:
    raise FormatError("the checkpoint is of another optimizer")
