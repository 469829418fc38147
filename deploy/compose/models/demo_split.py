"""A small model, and a program that splits it: it trains one half beside the other, and infers wherever it is faster.

It is there so that the tensor plane's dashboard shows something. Put modules of your own beside it, and name their
functions in config/tail.yaml.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import torch
from torch import nn

MODEL = "demo_split:net"
CUT = "first"
PAUSE_S = 0.5


class Net(nn.Module):
    """A convolution on the device, the rest on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.last = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, height, width) to (n, 5)."""
        out: torch.Tensor = self.last(self.first(x).mean((2, 3)))
        return out


def net() -> nn.Module:
    """The same on both sides."""
    torch.manual_seed(1)
    return Net()


def main(address: str) -> None:
    """Work with the host at `address` until the process is ended. Identity: what `fogline-start` exports."""
    import prometheus_client

    from fogline import AdaptiveModel, RemoteTail, SplitMetrics, split
    from fogline.common.config import TlsConfig
    from fogline.common.process import stop_event
    from fogline.common.split.measure import Calibration, Effort, measure
    from fogline.common.split.profile import hardware_id

    torch.set_num_threads(1)
    stop: threading.Event = stop_event()
    metrics = SplitMetrics()
    ca, cert, key = (Path(os.environ[f"FOGLINE_TLS__{name}"]) for name in ("CA", "CERT", "KEY"))
    tls = TlsConfig(ca=ca, cert=cert, key=key)
    head, tail = split(net(), at=CUT, example=torch.zeros(1, 3, 32, 32))
    assert head is not None
    assert tail is not None
    metrics.watch(head)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01)
    whole = net().eval()
    profile = measure(
        whole, Calibration(torch.randn(4, 3, 32, 32)), name=MODEL, batches=(1,), codecs=("raw", "int8"),
        cut_names=(CUT,), effort=Effort(rounds=1, repeats=1, samples=1),
    )  # fmt: skip
    # Called slow, so that the host is asked: a model this small would stay on any device.
    device = profile.scaled(1e5, hardware_id(1))
    with (
        RemoteTail.connect(
            address, model=MODEL, weights=tail, optimizer={"name": "sgd", "lr": 0.01}, codec="fp16", tls=tls,
            metrics=metrics,
        ) as remote,
        AdaptiveModel(
            whole, address, profile=device, host_profile=profile, policy="fixed", params={"cut": CUT},
            codec="int8", deadline_s=10.0, tls=tls, metrics=metrics,
        ) as model,
    ):  # fmt: skip
        prometheus_client.start_http_server(9100)
        while not stop.wait(PAUSE_S):
            x, y = torch.randn(4, 3, 32, 32), torch.randint(5, (4,))
            remote.loss(head(x), y, loss="cross_entropy").backward()  # type: ignore[no-untyped-call]
            nn.functional.cross_entropy(remote(head(x)), y).backward()  # type: ignore[no-untyped-call]
            for one in (optimizer, remote.optimizer):
                one.step()
                one.zero_grad()
            model(x[:1])
