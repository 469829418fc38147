"""What a session of a split model costs the edge, and what one tail host does for 1, 8 and 64 clients.

    python -m fogline.benchmarks.tensor_sessions [--seconds 10] [--repeats 3] [--quick] [--json FILE]

MobileNetV2 and ResNet-18 of 128 x 128 pixels, cut early; mutual TLS on loopback; one CPU thread for each operation.
The edge: a process that holds the whole model against one that holds the head and a session, in turns. Memory is what
is resident above a process that has imported all there is to import. CPU seconds are the process's own, gRPC's threads
too. The host: sessions (of MobileNetV2) in threads of two client processes send activations as fast as answers come;
its CPU for a request is held against that of the same tail in one process without any network.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from fogline import RemoteTail, split
from fogline.benchmarks.hardware import describe
from fogline.benchmarks.tensor_side import memory
from fogline.benchmarks.tensor_transport import enrol
from fogline.common.config import TlsConfig

SCHEMA = 1
MODEL = "fogline.benchmarks.tensor_sessions:network"
CUTS = {"mobilenet_v2": "mobilenet_v2.layer.4", "resnet18": "resnet.encoder.stages.1"}
PIXELS = 128
BATCH = 8  # of training
CLIENTS = (1, 8, 64)
OPTIMIZER = {"name": "sgd", "lr": 0.01, "momentum": 0.9}


def network(name: str) -> nn.Module:
    """One of `CUTS` with ten classes, the same weights each time."""
    transformers: Any = importlib.import_module("transformers")
    torch.manual_seed(0)
    model: nn.Module
    if name == "resnet18":
        shape = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
        model = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=10, **shape))
    else:
        config = transformers.MobileNetV2Config(image_size=PIXELS, num_labels=10)
        model = transformers.MobileNetV2ForImageClassification(config)
    return model


def parts(name: str, training: bool) -> tuple[nn.Module, nn.Module]:
    """Head and tail."""
    head, tail = split(
        network(name).train(training), at=CUTS[name], example={"pixel_values": torch.zeros(2, 3, PIXELS, PIXELS)}
    )
    assert head is not None
    assert tail is not None
    return head, tail


def connect(name: str, address: str, folder: str, tail: nn.Module, training: bool) -> RemoteTail:
    """A session of the device that `enrol` made."""
    files = Path(folder)
    tls = TlsConfig(ca=files / "ca.pem", cert=files / "edge-1.pem", key=files / "edge-1.key")
    optimizer = OPTIMIZER if training else None
    return RemoteTail.connect(
        address,
        model=MODEL,
        kwargs={"name": name},
        weights=tail,  # type: ignore[arg-type]
        optimizer=optimizer,
        tls=tls,
    )


def settle() -> int:
    """Resident bytes, once what was freed is given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return memory("VmRSS")


# -- the edge, in a process of its own


def edge(options: argparse.Namespace) -> dict[str, float]:
    """The whole model (without an address) or its head with a session: memory, and CPU of an inference and a step."""
    importlib.import_module("fogline.common.tails.remote")
    importlib.import_module("transformers.models.mobilenet_v2.modeling_mobilenet_v2")
    importlib.import_module("transformers.models.resnet.modeling_resnet")
    base = settle()
    x, y = torch.randn(BATCH, 3, PIXELS, PIXELS), torch.randint(0, 10, (BATCH,))
    found: dict[str, float] = {}
    for training in (False, True):
        model: nn.Module
        remote: RemoteTail | None = None
        if options.address:
            model, tail = parts(options.model, training)
            remote = connect(options.model, options.address, options.folder, tail, training)
            del tail
        else:
            model = network(options.model).train(training)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def infer(model: nn.Module = model, remote: RemoteTail | None = remote) -> None:
            with torch.no_grad():
                h = model(pixel_values=x[:1])
                _ = h if remote is None else remote(h)

        def step(
            model: nn.Module = model, remote: RemoteTail | None = remote, optimizer: torch.optim.Optimizer = optimizer
        ) -> None:
            h = model(pixel_values=x)
            loss = (
                nn.functional.cross_entropy(h.logits, y) if remote is None else remote.loss(h, y, loss="cross_entropy")
            )
            loss.backward()  # type: ignore[no-untyped-call]
            for each in (optimizer, remote.optimizer) if remote is not None else (optimizer,):
                each.step()
                each.zero_grad()

        run: Callable[[], None] = step if training else infer
        for _ in range(3):
            run()
        name = "training" if training else "inference"
        found[f"{name}_resident_bytes"] = settle() - base
        Path("/proc/self/clear_refs").write_text("5")
        began, count = time.process_time(), options.rounds
        for _ in range(count):
            run()
        found[f"{name}_cpu_s"] = (time.process_time() - began) / count
        found[f"{name}_peak_bytes"] = memory("VmHWM") - base
        if remote is not None:
            remote.close()
        del model, remote, optimizer, infer, step, run
    return found


# -- clients, several in a process


def clients(options: argparse.Namespace) -> dict[str, Any]:
    """Sessions in threads, all open before any begins; on a line of input they run for so many seconds."""
    training = options.training
    head, tail = parts(options.model, training)
    batch = BATCH if training else 1
    x, y = torch.randn(batch, 3, PIXELS, PIXELS), torch.randint(0, 10, (batch,))
    with torch.no_grad():
        h = head(pixel_values=x).detach()
    remotes = [connect(options.model, options.address, options.folder, tail, training) for _ in range(options.clients)]
    for remote in remotes:
        _request(remote, h, y, training)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    start = time.perf_counter()
    until = start + options.seconds
    times: list[list[float]] = [[] for _ in remotes]

    def work(number: int) -> None:
        while (began := time.perf_counter()) < until:
            _request(remotes[number], h, y, training)
            times[number].append(time.perf_counter() - began)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(remotes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - start  # until the last answer, which may come long after
    for remote in remotes:
        remote.close()
    return {"elapsed_s": elapsed, "times_s": [t for each in times for t in each], "fewest": min(map(len, times))}


def _request(remote: RemoteTail, h: Tensor, y: Tensor, training: bool) -> None:
    if not training:
        with torch.no_grad():
            remote(h)
        return
    remote.loss(h.requires_grad_(), y, loss="cross_entropy").backward()  # type: ignore[no-untyped-call]
    h.grad = None
    remote.optimizer.step()
    remote.optimizer.zero_grad()


def direct(options: argparse.Namespace) -> dict[str, float]:
    """CPU seconds of the same tail without a network."""
    head, tail = parts(options.model, options.training)
    batch = BATCH if options.training else 1
    x, y = torch.randn(batch, 3, PIXELS, PIXELS), torch.randint(0, 10, (batch,))
    with torch.no_grad():
        h = head(pixel_values=x).detach()
    optimizer = torch.optim.SGD(tail.parameters(), lr=0.01, momentum=0.9)

    def run() -> None:
        if not options.training:
            with torch.no_grad():
                tail(h)
            return
        loss = nn.functional.cross_entropy(tail(h.detach().requires_grad_()).logits, y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        run()
    began, count = time.process_time(), options.rounds
    for _ in range(count):
        run()
    return {"cpu_s": (time.process_time() - began) / count}


# -- the whole


def child(*words: str) -> subprocess.Popen[str]:
    """This module as another process."""
    return subprocess.Popen(
        [sys.executable, "-m", "fogline.benchmarks.tensor_sessions", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it printed last, once it has ended."""
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(process.returncode)
    made: dict[str, Any] = json.loads(out.splitlines()[-1])
    return made


@contextmanager
def host(folder: Path, model: str = MODEL) -> Iterator[tuple[str, psutil.Process]]:
    """A tail host alone: its address and process."""
    (folder / "host.yaml").write_text(
        json.dumps(
            {
                "data_dir": str(folder / "data"),
                "tls": {
                    "ca": str(folder / "ca.pem"),
                    "cert": str(folder / "fog-1.pem"),
                    "key": str(folder / "fog-1.key"),
                },
                "log": {"level": "warning"},
                "tensors": {
                    "listen": "127.0.0.1:0",
                    "models": [model],
                    "device": "cpu",
                    "threads": 1,
                    "parallel": os.cpu_count() or 1,
                    "max_sessions": 80,
                    "max_sessions_per_peer": 80,
                },
            }
        )
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "fogline", "split", "serve", "--config", str(folder / "host.yaml")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready "):
            raise SystemExit("the host did not start; its log above says why")
        yield f"127.0.0.1:{json.loads(line[6:])['port']}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def serve(folder: Path, count: int, training: bool, options: argparse.Namespace) -> dict[str, float]:
    """One host for `count` clients."""
    mode = ["--training"] if training else []
    plain = answer(child("direct", "--rounds", str(options.rounds), *mode))["cpu_s"]
    with host(folder) as (address, process):
        shares = [count] if count == 1 else [count // 2, count - count // 2]
        common = ["--address", address, "--folder", str(folder), "--seconds", str(options.seconds), *mode]
        sides = [child("clients", "--clients", str(share), *common) for share in shares]
        for side in sides:
            assert side.stdout is not None
            if side.stdout.readline() != "ready\n":
                raise SystemExit("a client did not start")
        resident, before = process.memory_info().rss, process.cpu_times()
        for side in sides:
            assert side.stdin is not None
            side.stdin.write("\n")
            side.stdin.flush()
        found = [answer(side) for side in sides]
        after = process.cpu_times()
    times = sorted(t for each in found for t in each["times_s"])
    cpu = (after.user + after.system - before.user - before.system) / len(times)
    return {
        "requests_per_s": sum(len(each["times_s"]) / each["elapsed_s"] for each in found),
        "p50_s": times[len(times) // 2],
        "p99_s": times[len(times) * 99 // 100],
        "fewest_of_a_client": min(each["fewest"] for each in found),
        "host_cpu_s": cpu,
        "direct_cpu_s": plain,
        "cpu_ratio": cpu / plain,
        "host_resident_bytes": resident,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, each several times in turns."""
    edges: dict[str, list[dict[str, float]]] = {f"{n} {kind}": [] for n in CUTS for kind in ("whole", "head")}
    served: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        enrol(folder)
        for turn in range(options.repeats):
            with host(folder) as (address, _):
                for each in CUTS:
                    common = ["--rounds", str(options.rounds), "--model", each]
                    edges[f"{each} whole"].append(answer(child("edge", *common)))
                    edges[f"{each} head"].append(answer(child("edge", "--address", address, "--folder", name, *common)))
            for training in (False, True):
                for count in CLIENTS if not options.quick else (1, 4):
                    key = f"{'training' if training else 'inference'} {count}"
                    served.setdefault(key, []).append(serve(folder, count, training, options))
                    print(f"turn {turn}: {key}: {served[key][-1]['requests_per_s']:.1f} requests/s", flush=True)
    return {
        "schema": SCHEMA,
        "hardware": describe(),
        "model": MODEL,
        "cuts": CUTS,
        "pixels": PIXELS,
        "training_batch": BATCH,
        "seconds": options.seconds,
        "repeats": options.repeats,
        "load": os.getloadavg()[1],
        "edge": {kind: _medians(runs) for kind, runs in edges.items()},
        "head_to_whole": {n: _ratios(edges[f"{n} head"], edges[f"{n} whole"]) for n in CUTS},
        "host": {key: _medians(runs) for key, runs in served.items()},
    }


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def _ratios(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
    return {k: statistics.median(a[k] / b[k] for a, b in zip(ours, theirs, strict=True)) for k in ours[0]}


def main() -> None:
    """Parse the command line; a first word names the part that a child is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="?", default="all", choices=["all", "edge", "clients", "direct"])
    parser.add_argument("--address", default="")
    parser.add_argument("--folder", default="")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--model", default="mobilenet_v2", choices=CUTS)
    parser.add_argument("--rounds", type=int, default=30, help="requests that CPU seconds are averaged over")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long clients run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="few clients, once: a check that it works")
    parser.add_argument("--data", help="not used; every benchmark takes it")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what != "all":
        print(json.dumps({"edge": edge, "clients": clients, "direct": direct}[options.what](options)))
        return
    if options.quick:
        options.rounds, options.seconds, options.repeats = 3, 1.0, 1
    made = measure(options)
    print(json.dumps({key: made[key] for key in ("edge", "head_to_whole", "host")}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
