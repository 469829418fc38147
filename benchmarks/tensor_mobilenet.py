"""MobileNetV2, cut by `split` and unchanged otherwise, through the tensor codecs: bytes, error, and a short training.

    python -m fogline.benchmarks.tensor_mobilenet --data DIR [--images 1536] [--epochs 4] [--seeds 2] [--json FILE]

DIR holds cifar10/. The transformers library's MobileNetV2 of width 1 for 32 x 32 pixels and ten classes, cut after
`--cut`. Training is from scratch, in one process, through the real encoders and decoders; bytes are those of the
stream's messages in both directions, outputs and their gradients included. Accuracy is of `--test-images` images, whose
activations go through the codec, too. Ratio and error are of 64 test images' activations in the network that was
trained with raw tensors. So short a training tells what a codec breaks, and not what it costs in the end.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fogline import split
from fogline.benchmarks import cifar
from fogline.benchmarks.hardware import describe
from fogline.benchmarks.tensor_codecs import CHAINS, through
from fogline.benchmarks.tensor_training import Link
from fogline.common.codecs import Chain
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.wire.tensors import Role

SCHEMA = 1
BATCH = 64
# (activations up, gradients down)
CONFIGURATIONS = (
    ("raw", "raw"),
    ("fp16", "fp16"),
    ("int8+zstd", "int8+zstd"),
    ("int4(per=channel)", "int8"),
    ("topk(share=0.1, feedback=false)+fp16", "topk(share=0.1)+fp16"),
    ("errbound(relative=true, epsilon=0.05)+zstd", "fp16"),
    ("c3sl(ratio=4)", "c3sl(ratio=4)"),
)


def network(seed: int) -> nn.Module:
    """With random weights."""
    transformers: Any = importlib.import_module("transformers")
    torch.manual_seed(seed)
    config = transformers.MobileNetV2Config(image_size=32, num_labels=10, classifier_dropout_prob=0.2)
    model: nn.Module = transformers.MobileNetV2ForImageClassification(config)
    return model


def train(root: Path, up_spec: str, down_spec: str, seed: int, options: argparse.Namespace) -> tuple[Any, nn.Module]:
    """One training: its figures, and the head."""
    pixels, labels = cifar.images(root, "train", options.images)
    head, tail = split(network(seed).train(), at=options.cut, example={"pixel_values": pixels[:2]})
    assert head is not None
    assert tail is not None
    up = Link(Chain.parse(up_spec), Role.ACTIVATION, pb.Forward(training=True, keep_graph=True))
    down = Link(Chain.parse(down_spec), Role.GRADIENT, pb.Backward(forward=1000))
    up.encoder.chain.check_gradients(down.encoder.chain)
    out = Link(Chain.parse("raw"), Role.OUTPUT, pb.Forward(training=True))
    back = Link(Chain.parse("raw"), Role.OUTPUT_GRADIENT, pb.Backward(forward=1000))
    halves = [torch.optim.SGD(half.parameters(), 0.05, momentum=0.9, weight_decay=5e-4) for half in (head, tail)]
    steps = options.epochs * (len(pixels) // BATCH)
    schedules = [torch.optim.lr_scheduler.OneCycleLR(half, 0.1, total_steps=steps) for half in halves]
    order = torch.Generator().manual_seed(seed)
    begun, losses = time.process_time(), []
    for _ in range(options.epochs):
        shuffled = torch.randperm(len(pixels), generator=order)[: len(pixels) // BATCH * BATCH]
        for rows in torch.split(shuffled, BATCH):
            h = head(pixel_values=pixels[rows])
            received = up(h.detach()).requires_grad_(True)
            logits = tail(received).logits
            seen = out(logits.detach()).requires_grad_(True)
            loss = nn.functional.cross_entropy(seen, labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            assert seen.grad is not None
            logits.backward(back(seen.grad))
            assert received.grad is not None
            h.backward(down(received.grad))
            for half, schedule in zip(halves, schedules, strict=True):
                half.step()
                schedule.step()
                half.zero_grad()
            losses.append(float(loss.detach()))
    last = losses[-(len(losses) // options.epochs) :]
    found = {
        "activations": up_spec,
        "gradients": down_spec,
        "seed": seed,
        "accuracy": accuracy(root, head, tail, up, options.test_images),
        "last_epoch_loss": statistics.fmean(last),
        "up_bytes_per_step": (up.bytes + back.bytes) / steps,
        "down_bytes_per_step": (down.bytes + out.bytes) / steps,
        "steps": steps,
        "cpu_s": time.process_time() - begun,
    }
    return found, head


@torch.no_grad()
def accuracy(root: Path, head: nn.Module, tail: nn.Module, up: Link, count: int) -> float:
    """Through the codec, as the split model would be used."""
    pixels, labels = cifar.images(root, "test", count)
    head.eval()
    tail.eval()
    right = 0
    for part, wanted in zip(torch.split(pixels, BATCH), torch.split(labels, BATCH), strict=True):
        right += int((tail(up(head(pixel_values=part), training=False)).logits.argmax(1) == wanted).sum())
    return right / len(pixels)


def coding(spec: str, tensor: Tensor) -> dict[str, Any]:
    """Ratio and error of one chain on one tensor."""
    coded, decoded = through(Chain.parse(spec), tensor)
    size = memoryview(coded.payload).nbytes + sum(len(stage.params) for stage in coded.stages)
    error = (decoded - tensor).abs()
    return {
        "codec": spec,
        "bytes": size,
        "ratio": tensor.nbytes / size,
        "max_error": float(error.max()),
        "relative_rms_error": float((error.double() ** 2).mean().sqrt() / tensor.double().std()),
    }


def main() -> None:
    """Parse the command line, measure, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cut", default="mobilenet_v2.layer.1")
    parser.add_argument("--images", type=int, default=1536)
    parser.add_argument("--test-images", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"schema": SCHEMA, "hardware": describe(), "coding": [], "training": []}
    result["settings"] = {k: v for k, v in vars(options).items() if k not in ("data", "json")}
    for seed in range(options.seeds):
        for up, down in CONFIGURATIONS:
            found, head = train(options.data, up, down, seed, options)
            result["training"].append(found)
            print(json.dumps(found), flush=True)
            if up == "raw" and not seed:
                with torch.no_grad():
                    h = head(pixel_values=cifar.images(options.data, "test", 64)[0])
                result |= {"shape": list(h.shape), "coding": [coding(spec, h) for spec in CHAINS]}
            if options.json:
                options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["coding"], indent=1))


if __name__ == "__main__":
    main()
