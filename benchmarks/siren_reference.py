"""The published fit of sine networks, run to its end on one frame of a sequence; its float32 weights are kept.

    python -m fogline.benchmarks.siren_reference --data DIR --sequence NAME --out DIR

`siren_encode` compares with what this writes, one JSON file per sequence, so that the hours are spent once. Backgrounds
only: objects are fitted where they are compared. The frame is the middle one, at its native size up to 640 wide.

The arithmetic is the reference's, step by step, in another order: blocks of pixels that stay in a core's cache, units
before pixels, and a gradient written by hand. That takes about 0.4 of the time of the published form, which is the one
whose rate is measured.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fogline.benchmarks.frames import spread
from fogline.benchmarks.hardware import describe
from fogline.common.images.siren import Weights, evaluate
from fogline.fog_node.encoders.siren import LayerSource, SirenEncoder
from fogline.fog_node.encoders.siren_batches import Signal
from fogline.fog_node.encoders.siren_params import SirenParams
from fogline.fog_node.encoders.siren_reference import W0, ReferenceFit

SCHEMA = 1
SEQUENCES = ("OTB_Car1", "OTB_Crossing", "OTB_Human7", "UAV123_boat1", "VOT15_bag")
STEPS = 10_000
WIDTH = 640
_BLOCK = 2560  # pixels


class BlockedReference(ReferenceFit):
    """The reference on a CPU, its full-image gradient gathered from blocks of pixels."""

    def __init__(self, signal: Signal, steps: int, seed: int) -> None:
        super().__init__(signal, steps, seed, torch.device("cpu"))
        self._columns = self._positions.T.contiguous(), self._targets.T.contiguous()
        width, depth = signal.shape.width, signal.shape.depth
        self._values, self._slopes = (torch.empty(depth, width, _BLOCK) for _ in range(2))
        self._back = torch.empty(width, _BLOCK)

    def step(self) -> None:
        """One step over every pixel."""
        with torch.no_grad():
            folded = [((w * W0).T.contiguous(), (b * W0)[:, None]) for w, b in self._layers[:-1]]
            folded.append((self._layers[-1][0].T.contiguous(), self._layers[-1][1][:, None]))
            sums = [(torch.zeros_like(w), torch.zeros_like(b)) for w, b in folded]
            positions, targets = self._columns
            loss = torch.zeros(())
            for start in range(0, positions.shape[1], _BLOCK):
                block = slice(start, start + _BLOCK)
                loss += self._block(folded, sums, positions[:, block], targets[:, block], 1 / targets.numel())
            for index, ((w, b), (dw, db)) in enumerate(zip(self._layers, sums, strict=True)):
                factor = W0 if index < len(sums) - 1 else 1.0
                w.grad, b.grad = dw.T * factor, db[:, 0] * factor
        self._keep(loss)
        self._optimiser.step()
        self._schedule.step()
        self._done += 1

    def _block(
        self, layers: Weights, sums: Weights, positions: torch.Tensor, targets: torch.Tensor, share: float
    ) -> torch.Tensor:
        """Add a block's gradient to `sums`; returns its part of the mean squared error."""
        count, values = positions.shape[1], positions
        for (w, b), kept, slopes in zip(layers[:-1], self._values, self._slopes, strict=True):
            value, slope = kept[:, :count], slopes[:, :count]
            torch.addmm(b, w, values, out=slope)
            np.sin(slope.numpy(), out=value.numpy())
            np.cos(slope.numpy(), out=slope.numpy())
            values = value
        error = torch.addmm(layers[-1][1], layers[-1][0], values).sub_(targets)
        loss = error.square().sum() * share
        back = error.mul_(2 * share)
        for index in range(len(layers) - 1, -1, -1):
            before = self._values[index - 1][:, :count] if index else positions
            sums[index][0].addmm_(back, before.T)
            sums[index][1].add_(back.sum(1, keepdim=True))
            if index:
                torch.mm(layers[index][0].T, back, out=self._back[:, :count])
                back = self._slopes[index - 1][:, :count].mul_(self._back[:, :count])
        return loss


def frame_source(data: Path, sequence: str) -> LayerSource:
    """What the reference's background network has to learn of a sequence's middle frame."""
    (image,) = spread(data, sequence, 1, WIDTH)
    return SirenEncoder(SirenParams(profile="reference"), "cpu").frame_source(0, image)


def render(layers: Weights, source: LayerSource) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What float32 weights (outputs, inputs), (outputs, 1) give for a layer of one network: (h, w, 3), unclamped."""
    (signal,) = source.signals
    axes = [torch.tensor(axis)[None] for axis in (signal.xs, signal.ys)]
    return evaluate([(w[None], b[None]) for w, b in layers], *axes)[0].permute(1, 2, 0).numpy()


def saved(layers: Weights) -> str:
    """Weights as text: base64 of their float32, each layer's weights before its biases."""
    flat = np.concatenate([t.numpy().ravel() for layer in layers for t in layer]).astype("<f4")
    return base64.b64encode(flat.tobytes()).decode()


def loaded(text: str, source: LayerSource) -> Weights:
    """The weights again."""
    flat = torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").copy())
    out, start = [], 0
    for inputs, outputs in source.shape.layers:
        middle, end = start + inputs * outputs, start + (inputs + 1) * outputs
        out.append((flat[start:middle].view(outputs, inputs), flat[middle:end].view(outputs, 1)))
        start = end
    return out


def main() -> None:
    """Parse the command line, fit, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sequences' folders")
    parser.add_argument("--sequence", action="append", required=True, help="may be given several times")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for sequence in options.sequence:
        source = frame_source(options.data, sequence)
        fit, curve, start = BlockedReference(source.signals[0], STEPS, 0), {}, time.process_time()
        for step in range(1, STEPS + 1):
            fit.step()
            if step % 500 == 0:
                curve[step] = psnr(render(fit.folded(), source), source)
                print(f"{sequence} step {step}: {curve[step]:.2f} dB, {time.process_time() - start:.0f} s", flush=True)
        result = {"schema": SCHEMA, "hardware": describe(), "sequence": sequence, "size": source.region[2:]}
        result |= {"steps": STEPS, "seconds_of_a_core": time.process_time() - start, "db_by_step": curve}
        result |= {"db": psnr(render(fit.folded(), source), source), "weights": saved(fit.folded())}
        (options.out / f"{sequence}.json").write_text(json.dumps(result, indent=2) + "\n")


def psnr(values: np.ndarray[Any, np.dtype[np.float32]], source: LayerSource) -> float:
    """Of a background's values (h, w, 3) in -1 to 1, clamped, against its source, over the frame."""
    error = (np.clip(values, -1, 1).astype(np.float64) - source.values) / 2
    return float(-10 * np.log10(np.mean(error**2)))


if __name__ == "__main__":
    main()
