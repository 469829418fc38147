"""A user's program that splits a model: trains over a remote tail and infers adaptively until stdin ends.

Prints the port of its metrics once it has made every kind of call.
"""

from __future__ import annotations

import sys
import threading

import prometheus_client
import torch
from split_model import net
from torch import nn

from fogline import AdaptiveModel, RemoteTail, SplitMetrics, split
from fogline.common.split.measure import Calibration, Effort, measure
from fogline.common.split.profile import hardware_id

MODEL = "split_model:net"
CUT = "first"
EXAMPLE = torch.zeros(1, 3, 16, 16)


def adaptive(address: str, metrics: SplitMetrics) -> AdaptiveModel:
    """One whose device is called slow, so that the host is asked."""
    model = net().eval()
    profile = measure(
        model, Calibration(torch.randn(4, 3, 16, 16)), name=MODEL, batches=(1,), codecs=("raw", "int8"),
        cut_names=(CUT,), effort=Effort(rounds=1, repeats=1, samples=1),
    )  # fmt: skip
    device = profile.scaled(1e5, hardware_id(1))
    return AdaptiveModel(
        model, address, profile=device, host_profile=profile, policy="fixed", params={"cut": CUT}, codec="int8",
        deadline_s=10.0, metrics=metrics,
    )  # fmt: skip


def main(address: str) -> None:
    """Until stdin ends."""
    torch.set_num_threads(1)
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    metrics = SplitMetrics()
    head, tail = split(net(), at=CUT, example=EXAMPLE)
    assert head is not None
    assert tail is not None
    metrics.watch(head)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01)
    spec = {"name": "sgd", "lr": 0.01}
    with (
        RemoteTail.connect(address, model=MODEL, weights=tail, optimizer=spec, codec="fp16", metrics=metrics) as remote,
        adaptive(address, metrics) as model,
    ):
        model.wait_ready(120)
        server, _ = prometheus_client.start_http_server(0, "127.0.0.1")
        told = False
        while not stop.wait(0.05):
            x, y = torch.randn(4, 3, 16, 16), torch.randint(5, (4,))
            remote.loss(head(x), y, loss="cross_entropy").backward()
            nn.functional.cross_entropy(remote(head(x)), y).backward()
            for one in (optimizer, remote.optimizer):
                one.step()
                one.zero_grad()
            model(x[:1])
            if not told:
                sys.stdout.write(f"{server.server_port}\n")
                sys.stdout.flush()
                told = True


if __name__ == "__main__":
    main(sys.argv[1])
