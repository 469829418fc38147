"""A real tail host as a process, and the unsplit training that split training is held against."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tail_models
import torch
from torch import Tensor, nn

from fogline.common.config import MetricsConfig, TlsConfig
from fogline.common.tails.config import TailHostConfig, TensorsConfig
from fogline.common.tails.remote import RemoteTail
from fogline.common.tails.supervisor import encode

HERE = Path(__file__).parent
MODELS = (
    "tail_models:net",
    "tail_models:dicts",
    "tail_models:family",
    "tail_models:broken",
    "tail_models:absent",
    "tail_models:picky",
    "tail_models:always",
)
INSECURE = TlsConfig(insecure=True)


class HostProcess:
    """One process; `restart` is a kill and a new start on the same port and folder."""

    def __init__(
        self,
        folder: Path,
        tls: TlsConfig = INSECURE,
        role: str = "fog",
        models: Sequence[str] = MODELS,
        inside: Sequence[str] = (),
        **tensors: Any,
    ) -> None:
        """`inside`: words before the command, as to run it in another namespace."""
        settings = {
            "listen": "127.0.0.1:0",
            "threads": 1,
            "device": "cpu",
            "metrics": MetricsConfig(port=-1),
            **tensors,
        }
        self.config = TailHostConfig(
            data_dir=folder,
            role=role,  # type: ignore[arg-type]
            tls=tls,
            tensors=TensorsConfig(enabled=True, models=tuple(models), **settings),
        )
        self.inside = tuple(inside)
        self.port = 0
        self._start()

    def _start(self) -> None:
        config = self.config
        if self.port:
            fields = {f: getattr(config.tensors, f) for f in config.tensors.__struct_fields__}
            tensors = TensorsConfig(**{**fields, "listen": f"127.0.0.1:{self.port}"})
            fields = {f: getattr(config, f) for f in config.__struct_fields__}
            config = TailHostConfig(**{**fields, "tensors": tensors})
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", ""), *sys.path])
        self.process = subprocess.Popen(
            [*self.inside, sys.executable, "-m", "fogline.common.tails.host", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(encode(config))
        self.process.stdin.close()
        line = self.process.stdout.readline().decode()
        if not line.startswith("ready "):
            raise AssertionError(f"the host ended with {self._wait()}")
        self.port = json.loads(line.removeprefix("ready "))["port"]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        if self.process.returncode is not None:
            return
        self.process.send_signal(signal.SIGKILL)
        self._wait()

    def restart(self) -> None:
        self.kill()
        self._start()

    def stop(self) -> int:
        """End it as an operator does; returns its exit code."""
        self.process.terminate()
        return self._wait()

    def _wait(self) -> int:
        code = self.process.wait(90)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def connect(self, weights: Any, port: int = 0, **options: Any) -> RemoteTail:
        address = f"127.0.0.1:{port}" if port else self.address
        return RemoteTail.connect(
            address, **{"model": "tail_models:net", "weights": weights, "give_up_s": 60.0, **options}
        )


Batch = tuple[Tensor, Tensor]

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3},
    "adam": {"name": "adam", "lr": 0.01},
}


def local_optimizer(spec: dict[str, Any], parameters: Any) -> torch.optim.Optimizer:
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[spec["name"]]
    return kind(parameters, **{k: v for k, v in spec.items() if k != "name"})


def batches(steps: int, size: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(11)
    return [
        (torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 5, (size,), generator=generator))
        for _ in range(steps)
    ]


def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.7)


class Unsplit:
    """What a script without splitting computes: dropout on, accumulation over two batches, clipping, a scheduler."""

    def __init__(self, model: nn.Module, spec: dict[str, Any], steps: int, seed: int = 5) -> None:
        self.model = copy.deepcopy(model).train()
        optimizer = local_optimizer(spec, self.model.parameters())
        scheduler = schedule(optimizer)
        self.losses: list[float] = []
        self.norms: list[float] = []
        torch.manual_seed(seed)
        for number, (x, y) in enumerate(batches(steps)):
            loss = nn.functional.cross_entropy(self.model(x), y) * 0.5
            loss.backward()
            self.losses.append(loss.item())
            if number % 2:
                self.norms.append(float(nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)))
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
        self.random = torch.get_rng_state()


class Split:
    """The same script over a remote tail, a step at a time; `labels`: the mode in which labels travel."""

    def __init__(self, head: nn.Module | None, remote: RemoteTail, spec: dict[str, Any], labels: bool = False) -> None:
        self.head, self.remote, self.labels = head, remote, labels
        parameters = list(head.parameters()) if head is not None else []
        self.optimizers = [local_optimizer(spec, parameters)] if parameters else []
        self.parameters = parameters
        self.optimizers.append(remote.optimizer)
        self.schedulers = [schedule(optimizer) for optimizer in self.optimizers]
        self.losses: list[float] = []
        self.norms: list[float] = []

    def run(self, steps: Iterator[tuple[int, Batch]], before: Callable[[int], None] = lambda number: None) -> None:
        for number, (x, y) in steps:
            before(number)
            h = self.head(x) if self.head is not None else x
            if self.labels:
                loss = self.remote.loss(h, y, loss="cross_entropy", scale=0.5)
            else:
                loss = nn.functional.cross_entropy(self.remote(h), y) * 0.5
            loss.backward()
            self.losses.append(loss.item())
            if number % 2:
                self.norms.append(float(self.remote.clip_grad_norm_(self.parameters, 0.5)))
                for optimizer in self.optimizers:
                    optimizer.step()
                for optimizer in self.optimizers:
                    optimizer.zero_grad()
                for scheduler in self.schedulers:
                    scheduler.step()

    def agrees(self, whole: Unsplit) -> None:
        """Losses, norms, weights, buffers and the state of the generator are the same to the bit."""
        assert self.losses == whole.losses
        assert self.norms == whole.norms
        state = dict(self.remote.state_dict())
        if self.head is not None:
            state |= {k: v for k, v in self.head.state_dict().items() if k not in state}
        expected = whole.model.state_dict()
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(state[name], tensor), name
        assert torch.equal(torch.get_rng_state(), whole.random)


@dataclass
class Saved:
    """What a script writes down to start again from."""

    remote: dict[str, Any]
    head: dict[str, Any]
    optimizer: dict[str, Any]
    schedulers: list[dict[str, Any]]
    random: Tensor
    losses: list[float]
    norms: list[float]

    @classmethod
    def of(cls, script: Split) -> Saved:
        assert script.head is not None
        return cls(
            script.remote.checkpoint(),
            *copy.deepcopy((script.head.state_dict(), script.optimizers[0].state_dict())),
            copy.deepcopy([s.state_dict() for s in script.schedulers]),
            torch.get_rng_state(),
            list(script.losses),
            list(script.norms),
        )

    @property
    def steps(self) -> int:
        return len(self.losses)

    def resume(self, head: nn.Module | None, remote: RemoteTail, spec: dict[str, Any]) -> Split:
        assert head is not None
        head.load_state_dict(self.head)
        script = Split(head, remote, spec)
        script.optimizers[0].load_state_dict(self.optimizer)
        remote.optimizer.load_state_dict(self.remote["optimizer"])
        for scheduler, state in zip(script.schedulers, self.schedulers, strict=True):
            scheduler.load_state_dict(state)
        script.losses, script.norms = list(self.losses), list(self.norms)
        torch.set_rng_state(self.random)
        return script


def fresh(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return tail_models.net()


EXAMPLE = torch.zeros(2, 3, 8, 8)
