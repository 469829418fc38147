"""Tensor codecs on real activations: ratio, speed, error, accuracy; and accuracy against bytes in split training.

    OMP_NUM_THREADS=1 python -m fogline.benchmarks.tensor_codecs --data DIR [--only coding|training] [--seeds 3]
        [--epochs 8] [--images 5000] [--jobs 1] [--resume] [--json FILE]

DIR holds cifar10/ and weights/resnet_cifar10/. `coding`: ResNet-20 with its published weights, cut behind layer1 and
layer2, activations and their gradients of 64 test images; encode and decode are medians over repeats, beside a copy of
the same raw tensor that takes turns with them. Accuracy is over test images whose activations went through the codec.
`training`: a small network from scratch, cut into head and tail in one process, through the real encoders and decoders;
bytes are those of the stream's messages in both directions, logits and their gradients included. Every run is written
to FILE as it ends; --resume keeps those that are there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from fogline.benchmarks import cifar
from fogline.benchmarks.hardware import describe
from fogline.benchmarks.tensor_training import CONFIGURATIONS, Run, train
from fogline.common.codecs import Chain, Encoded

SCHEMA = 1
JPEG = f"jpeg-input({cifar.NORMALISED})"
CHAINS = (
    "raw",
    "zstd",
    "fp16",
    "bf16",
    "fp16+zstd",
    "int8",
    "int8(per=channel)",
    "int8+zstd",
    "int4",
    "int4(per=channel)+zstd",
    "topk(share=0.1, feedback=false)",
    "topk(share=0.1, feedback=false)+fp16",
    "errbound(epsilon=0.01)+zstd",
    "errbound(epsilon=0.05)+zstd",
    "errbound(epsilon=0.2)+zstd",
    "c3sl(ratio=2)",
    "c3sl(ratio=4)",
    "c3sl(ratio=16)",
    "c3sl(ratio=4, keys=unitary, center=true)+fp16",
)


def medians(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each call, the calls taking turns; the first round is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            begun = time.process_time()
            call()
            if turn:
                taken[name].append(time.process_time() - begun)
    return {name: statistics.median(values) for name, values in taken.items()}


def through(chain: Chain, tensor: torch.Tensor) -> tuple[Encoded, torch.Tensor]:
    """A tensor by new ends of a chain."""
    coded = chain.encoder().encode(tensor)
    return coded, chain.decoder().decode(coded.stages, bytearray(coded.payload), coded.dtype, coded.shape)


def figures(spec: str, tensor: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Ratio, speed and error of one chain on one tensor."""
    chain = Chain.parse(spec)
    encoder, decoder = chain.encoder(), chain.decoder()
    coded, back = through(chain, tensor)
    payload = bytearray(coded.payload)
    spent = medians(
        {
            "copy": tensor.clone,
            "encode": lambda: encoder.encode(tensor),
            "decode": lambda: decoder.decode(coded.stages, payload, coded.dtype, coded.shape),
        },
        repeats,
    )
    size = memoryview(coded.payload).nbytes + sum(len(stage.params) for stage in coded.stages)
    error = (back - tensor).abs()
    return {
        "codec": spec,
        "ratio": tensor.nbytes / size,
        "encode_mb_s": tensor.nbytes / 1e6 / max(spent["encode"], 1e-9),
        "decode_mb_s": tensor.nbytes / 1e6 / max(spent["decode"], 1e-9),
        "copy_mb_s": tensor.nbytes / 1e6 / max(spent["copy"], 1e-9),
        "max_error": float(error.max()),
        "relative_rms_error": float((error.double() ** 2).mean().sqrt() / tensor.double().std()),
    }


@torch.no_grad()
def accuracy(model: cifar.ResNet20, at: str, spec: str, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images that are classified rightly when their activations go through a chain, 64 at a time."""
    chain, right = Chain.parse(spec), 0
    for i in range(0, len(pixels), 64):
        if spec.startswith("jpeg"):
            logits = model.tail(model.head(through(chain, pixels[i : i + 64])[1], at), at)
        else:
            logits = model.tail(through(chain, model.head(pixels[i : i + 64], at))[1], at)
        right += int((logits.argmax(1) == labels[i : i + 64]).sum())
    return right / len(pixels)


def coding(root: Path, images: int, repeats: int) -> list[dict[str, Any]]:
    """The figures of every chain, on activations behind two cuts and on gradients behind one."""
    model = cifar.pretrained(root)
    pixels, labels = cifar.images(root, "test", images)
    rows: list[dict[str, Any]] = []
    for at in ("layer1", "layer2"):
        h = model.head(pixels[:64], at).detach().requires_grad_(True)
        torch.autograd.backward(torch.nn.functional.cross_entropy(model.tail(h, at), labels[:64]))
        assert h.grad is not None
        tensors = {"activation": h.detach(), **({"gradient": h.grad} if at == "layer2" else {})}
        for kind, tensor in tensors.items():
            for spec in CHAINS:
                if kind == "gradient" and spec.startswith("errbound"):
                    spec = spec.replace("epsilon=", "relative=true, epsilon=")
                row = {"cut": at, "tensor": kind, "shape": list(tensor.shape), **figures(spec, tensor, repeats)}
                if kind == "activation" and at == "layer2":
                    row["accuracy"] = accuracy(model, at, spec, pixels, labels)
                rows.append(row)
                print(json.dumps(row), flush=True)
    row = {"cut": "input", "tensor": "image", "shape": [64, 3, 32, 32], **figures(JPEG, pixels[:64], repeats)}
    rows.append({**row, "accuracy": accuracy(model, "layer2", JPEG, pixels, labels)})
    print(json.dumps(rows[-1]), flush=True)
    return rows


def training(root: Path, runs: list[dict[str, Any]], options: argparse.Namespace, keep: Callable[[], None]) -> None:
    """Every configuration with every seed that is not among `runs`, appended there as they end."""
    done = {(run["activations"], run["gradients"], run["seed"]) for run in runs}
    wanted = [Run(up, down, seed) for seed in range(options.seeds) for up, down in CONFIGURATIONS]
    left = [run for run in wanted if (run.activations, run.gradients, run.seed) not in done]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for ended in as_completed([pool.submit(train, root, run, options.images, options.epochs) for run in left]):
            runs.append(ended.result())
            print(json.dumps(runs[-1]), flush=True)
            keep()


def main() -> None:
    """Parse the command line, measure, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", choices=["coding", "training"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=5000, help="training images")
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--resume", action="store_true", help="keep what FILE holds")
    parser.add_argument("--json", type=Path, help="result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"schema": SCHEMA, "coding": [], "training": []}
    if options.resume and options.json and options.json.exists():
        result = json.loads(options.json.read_text(encoding="utf-8"))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    result |= {"hardware": describe(), "settings": {k: v for k, v in settings.items() if k not in ("data", "json")}}

    def keep() -> None:
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    if options.only != "training" and not result["coding"]:
        result["coding"] = coding(options.data, options.test_images, options.repeats)
        keep()
    if options.only != "coding":
        training(options.data, result["training"], options, keep)
    keep()


if __name__ == "__main__":
    main()
