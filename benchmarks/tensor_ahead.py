"""What sending micro-batches ahead gains over a link with a delay, in steps per second against a loop that waits.

    python -m fogline.benchmarks.tensor_ahead [--delay 20] [--steps 6] [--repeats 5] [--quick] [--json FILE]

A ResNet of 64 x 64 pixels without dropout, cut early; a step is eight micro-batches of four images, over mutual TLS
through a relay that holds every byte back for `--delay` milliseconds each way (and through one that holds none back).
Every way starts from the same weights and must end with the same ones to the bit.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fogline import RemoteTail, split
from fogline.benchmarks.hardware import describe
from fogline.benchmarks.tensor_sessions import host
from fogline.benchmarks.tensor_transport import enrol
from fogline.common.config import TlsConfig

SCHEMA = 1
MODEL = "fogline.benchmarks.tensor_ahead:network"
CUT, PIXELS, MICRO, SIZE = "resnet.encoder.stages.0", 64, 8, 4
OPTIMIZER = {"name": "sgd", "lr": 0.01, "momentum": 0.9}
# name: (labels travel, how far ahead; 0: a loop as without splitting)
WAYS = {
    "loop": (False, 0),
    "ahead 2": (False, 2),
    "ahead 4": (False, 4),
    "ahead 8": (False, 8),
    "labels loop": (True, 0),
    "labels ahead 2": (True, 2),
    "labels ahead 4": (True, 4),
    "labels ahead 8": (True, 8),
}


def network() -> nn.Module:
    """The same weights each time."""
    transformers: Any = importlib.import_module("transformers")
    torch.manual_seed(0)
    shape = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1], "embedding_size": 16, "layer_type": "basic"}
    model: nn.Module = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=10, **shape))
    return model


def mean(out: Any, labels: Tensor) -> Tensor:
    """The micro-batch's share of a step's loss."""
    return nn.functional.cross_entropy(out.logits, labels) * (1 / MICRO)


def step(head: nn.Module, remote: RemoteTail, optimizer: torch.optim.Optimizer, labels: bool, ahead: int) -> None:
    """One, in one of the ways."""
    generator = torch.Generator().manual_seed(1)
    batches = [
        (
            {"pixel_values": torch.randn(SIZE, 3, PIXELS, PIXELS, generator=generator)},
            torch.randint(0, 10, (SIZE,), generator=generator),
        )
        for _ in range(MICRO)
    ]
    if ahead and labels:
        list(remote.accumulate(head, batches, "cross_entropy", ahead=ahead, scale=1 / MICRO))
    elif ahead:
        list(remote.accumulate(head, batches, mean, ahead=ahead))
    else:
        for x, y in batches:
            h = head(**x)
            loss = remote.loss(h, y, loss="cross_entropy", scale=1 / MICRO) if labels else mean(remote(h), y)
            loss.backward()  # type: ignore[no-untyped-call]
    for each in (optimizer, remote.optimizer):
        each.step()
        each.zero_grad()


def run(address: str, folder: Path, labels: bool, ahead: int, steps: int) -> tuple[float, str]:
    """Steps per second, and a digest of the weights afterwards."""
    head, tail = split(network().train(), at=CUT, example={"pixel_values": torch.zeros(2, 3, PIXELS, PIXELS)})
    assert head is not None
    assert tail is not None
    tls = TlsConfig(ca=folder / "ca.pem", cert=folder / "edge-1.pem", key=folder / "edge-1.key")
    with RemoteTail.connect(address, model=MODEL, weights=tail, optimizer=OPTIMIZER, tls=tls) as remote:
        optimizer = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9)
        step(head, remote, optimizer, labels, ahead)
        remote.gradient_norms()  # so that all before is done
        began = time.perf_counter()
        for _ in range(steps):
            step(head, remote, optimizer, labels, ahead)
        remote.gradient_norms()
        seconds = time.perf_counter() - began
        digest = hashlib.sha256()
        for _, tensor in sorted((dict(head.state_dict()) | dict(remote.state_dict())).items()):
            digest.update(tensor.contiguous().numpy().tobytes())
    return steps / seconds, digest.hexdigest()


# -- the relay, in a process of its own


async def relay(port: int, delay_s: float) -> None:
    """Every byte comes out `delay_s` after it came in, in both directions, at any rate."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def out() -> None:
            while True:
                due, data = await held.get()
                await asyncio.sleep(due - loop.time())
                writer.write(data)
                if not data:
                    writer.close()
                    return
                await writer.drain()

        task = asyncio.create_task(out())
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                held.put_nowait((loop.time() + delay_s, data))
        held.put_nowait((loop.time() + delay_s, b""))
        with suppress(ConnectionError):
            await task

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def link(address: str, delay_ms: float) -> Iterator[str]:
    """The address of a relay to `address`."""
    command = [sys.executable, "-m", "fogline.benchmarks.tensor_ahead", "relay", "--delay", str(delay_ms)]
    process = subprocess.Popen([*command, "--port", address.rpartition(":")[2]], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every way in turns, so that what else goes on hits all alike."""
    rates: dict[str, dict[str, list[float]]] = {}
    digests: set[str] = set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        enrol(folder)
        with host(folder, MODEL) as (address, _):
            for delay in (options.delay, 0.0):
                with link(address, delay) as relayed:
                    found = rates.setdefault(f"{delay:g} ms", {way: [] for way in WAYS})
                    for turn in range(options.repeats):
                        for way, (labels, ahead) in WAYS.items():
                            rate, digest = run(relayed, folder, labels, ahead, options.steps)
                            found[way].append(rate)
                            digests.add(f"{labels} {digest}")
                        print(f"{delay:g} ms, turn {turn}: " + ", ".join(f"{w} {r[-1]:.2f}" for w, r in found.items()))
    loops = {"labels": "labels loop", "outputs": "loop"}
    return {
        "schema": SCHEMA,
        "hardware": describe(),
        "model": MODEL,
        "cut": CUT,
        "micro_batches": MICRO,
        "images_each": SIZE,
        "delay_ms_each_way": options.delay,
        "steps": options.steps,
        "repeats": options.repeats,
        "load": os.getloadavg()[1],
        "same_bits": len(digests) == 2,
        "steps_per_s": {delay: {w: statistics.median(r) for w, r in found.items()} for delay, found in rates.items()},
        "times_the_loop": {
            delay: {
                way: statistics.median(
                    mine / base
                    for mine, base in zip(made, found[loops["labels" if WAYS[way][0] else "outputs"]], strict=True)
                )
                for way, made in found.items()
            }
            for delay, found in rates.items()
        },
    }


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="?", default="all", choices=["all", "relay"])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=20.0, help="milliseconds, each way")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="once: a check that it works")
    parser.add_argument("--data", help="not used; every benchmark takes it")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.what == "relay":
        asyncio.run(relay(options.port, options.delay / 1000))
        return
    torch.set_num_threads(1)
    if options.quick:
        options.steps, options.repeats = 1, 1
    made = measure(options)
    print(json.dumps({key: made[key] for key in ("same_bits", "steps_per_s", "times_the_loop")}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
