"""Split training in one process, through real encoders and decoders, counting what the stream would carry."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fogline.benchmarks import cifar
from fogline.common.codecs import Chain, Decoder, Encoder
from fogline.common.codecs.adaptive import gradient_norm, mean_momentum
from fogline.common.rpc import tensor_messages
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.wire.session_client import Step
from fogline.common.wire.tensors import CHUNK_BYTES, Dtype, Role, Stage, Start, TensorHeader

GRPC_PREFIX = 5  # bytes before every message
CHUNK_FIELDS = 20  # bytes of a chunk besides its data

_JPEG = f"jpeg-input({cifar.NORMALISED})"
_FEEDBACK, _FORGETFUL = "topk(share=0.1)+fp16", "topk(share=0.1, feedback=false)+fp16"
# (activations up, gradients down)
CONFIGURATIONS = (
    ("raw", "raw"),
    ("fp16", "fp16"),
    ("int8", "int8"),
    ("int8", "int4"),
    ("int4", "int8"),
    ("int4", "int4"),
    (_FORGETFUL, _FORGETFUL),
    (_FORGETFUL, _FEEDBACK),
    (_FEEDBACK, _FEEDBACK),
    ("errbound(epsilon=0.05)+zstd", "fp16"),
    ("errbound(epsilon=0.2)+zstd", "fp16"),
    ("errbound(epsilon=0.05, sigma_ratio=0.01)+zstd", "fp16"),
    ("c3sl(ratio=2)", "c3sl(ratio=2)"),
    ("c3sl(ratio=4)", "c3sl(ratio=4)"),
    ("c3sl(ratio=8)", "c3sl(ratio=8)"),
    ("c3sl(ratio=16)", "c3sl(ratio=16)"),
    ("c3sl(ratio=4)+fp16", "c3sl(ratio=4)+fp16"),
    ("c3sl(ratio=4, keys=unitary)", "c3sl(ratio=4, keys=unitary)"),
    ("c3sl(ratio=4, center=true)", "c3sl(ratio=4, center=true)"),
    (_JPEG, ""),
)
BATCH, RATE, MOMENTUM = 64, 0.05, 0.9


@dataclass(frozen=True)
class Run:
    """One training."""

    activations: str
    gradients: str
    seed: int


class Link:
    """One direction of one kind of tensor: codes, decodes, and adds up the messages' bytes."""

    def __init__(self, chain: Chain, role: Role, body: object) -> None:
        self.encoder: Encoder = chain.encoder()
        self.decoder: Decoder = chain.decoder()
        self._role, self._body = role, body
        self.bytes = 0

    def __call__(self, tensor: torch.Tensor, *, training: bool = True) -> torch.Tensor:
        """What the other end gets."""
        coded = self.encoder.encode(tensor, training=training)
        if training:
            size = memoryview(coded.payload).nbytes
            stages = tuple(Stage(*stage) for stage in coded.stages)
            header = TensorHeader(self._role, Dtype.FLOAT32, tuple(coded.shape), size, stages)
            step = Step(Start(1000, self._body, (header,), b"", 1), 1000)
            messages = max(1, -(-size // CHUNK_BYTES))
            self.bytes += tensor_messages.operation_of(step).ByteSize() + size
            self.bytes += messages * (GRPC_PREFIX + CHUNK_FIELDS)
        return self.decoder.decode(coded.stages, bytearray(coded.payload), coded.dtype, coded.shape)


def train(root: Path, run: Run, images: int, epochs: int) -> dict[str, Any]:
    """Train from scratch and test; one thread. Bytes are per step and direction, means over the training."""
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    begun = time.process_time()
    pixels, labels = cifar.images(root, "train", images)
    at_input = run.activations.startswith("jpeg")
    head, tail = cifar.small_head(), cifar.small_tail()
    up = Link(Chain.parse(run.activations), Role.ACTIVATION, pb.Forward(training=True, keep_graph=True))
    down = Link(Chain.parse(run.gradients or "raw"), Role.GRADIENT, pb.Backward(forward=1000))
    if not at_input:
        up.encoder.chain.check_gradients(down.encoder.chain)
    out = Link(Chain.parse("raw"), Role.OUTPUT, pb.Forward(training=True))
    back = Link(Chain.parse("raw"), Role.OUTPUT_GRADIENT, pb.Backward(forward=1000))
    halves = [torch.optim.SGD(half.parameters(), RATE, momentum=MOMENTUM, weight_decay=5e-4) for half in (head, tail)]
    steps = epochs * (len(pixels) // BATCH)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(half, steps) for half in halves]
    order = torch.Generator().manual_seed(run.seed)
    epsilons: list[float] = []
    first = cast(nn.Conv2d, tail[0])  # the layer behind the cut, whose output's gradient sets an adaptive bound
    norms: list[float] = []

    def measure(_layer: nn.Module, _inputs: object, outputs: tuple[torch.Tensor, ...] | torch.Tensor) -> None:
        norms.append(gradient_norm(outputs[0]))

    first.register_full_backward_hook(measure)
    loss_sum = 0.0
    for step, rows in enumerate(_batches(len(pixels), epochs, order)):
        flipped = torch.rand(BATCH, generator=order) < 0.5
        x = torch.where(flipped.reshape(-1, 1, 1, 1), pixels[rows].flip(3), pixels[rows])
        for half in halves:
            half.zero_grad()
        if at_input:
            h, received = None, head(up(x))
        else:
            h = head(x)
            received = up(h.detach()).requires_grad_(True)
        logits = tail(received)
        seen = out(logits.detach()).requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(seen, labels[rows])
        torch.autograd.backward(loss)
        assert seen.grad is not None
        torch.autograd.backward(logits, back(seen.grad))
        if h is not None:
            assert received.grad is not None
            torch.autograd.backward(h, down(received.grad))
        for half, schedule in zip(halves, schedules, strict=True):
            half.step()
            schedule.step()
        if "sigma_ratio" in run.activations:
            up.decoder.observe(gradient_norm=norms[-1], momentum=mean_momentum(halves[1], first.parameters()))
            told = up.decoder.feedback()
            up.encoder.apply(told)
            epsilons.extend(values["epsilon"] for values in told.values())
        if step >= steps - steps // epochs:
            loss_sum += float(loss.detach())
    counted = {"up": up.bytes + back.bytes, "down": down.bytes * (not at_input) + out.bytes}
    return {
        **asdict(run),
        "accuracy": _test(root, head, tail, up, at_input),
        "last_epoch_loss": loss_sum / (steps // epochs),
        "up_bytes_per_step": counted["up"] / steps,
        "down_bytes_per_step": counted["down"] / steps,
        "activation_bytes_per_step": up.bytes / steps,
        "gradient_bytes_per_step": 0.0 if at_input else down.bytes / steps,
        "epsilons": epsilons,
        "steps": steps,
        "cpu_s": time.process_time() - begun,
    }


def _batches(count: int, epochs: int, order: torch.Generator) -> Iterable[torch.Tensor]:
    for _ in range(epochs):
        yield from torch.split(torch.randperm(count, generator=order)[: count // BATCH * BATCH], BATCH)


@torch.no_grad()
def _test(root: Path, head: torch.nn.Module, tail: torch.nn.Module, up: Link, at_input: bool) -> float:
    """Accuracy on 2,000 test images through the same codec, as the split model would be used."""
    pixels, labels = cifar.images(root, "test", 2000)
    head.eval()
    tail.eval()
    right = 0
    for i in range(0, len(pixels), BATCH):
        x = pixels[i : i + BATCH]
        h = head(up(x, training=False)) if at_input else up(head(x), training=False)
        right += int((tail(h).argmax(1) == labels[i : i + BATCH]).sum())
    return right / len(pixels)
