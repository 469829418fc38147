"""CIFAR-10 as the data folder has it, and the two small networks that codecs are measured on."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISED = f"mean={list(MEAN)}, std={list(STD)}"


def images(root: Path, split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` images of "train" or "test", shuffled: float32 (N, 3, 32, 32) normalised, and labels (N,)."""
    with np.load(root / "cifar10" / "cifar10_jpeg_dev.npz") as held:
        files, offsets, labels = held["jpeg"], held["offsets"], held["label"]
        chosen = np.flatnonzero(held["split"] == (1 if split == "test" else 0))
    chosen = np.random.default_rng(0).permutation(chosen)[:count]
    pixels = np.empty((len(chosen), 32, 32, 3), np.uint8)
    for row, i in enumerate(chosen):
        with Image.open(io.BytesIO(files[offsets[i] : offsets[i + 1]].tobytes())) as image:
            pixels[row] = np.asarray(image.convert("RGB"))
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    values = (values - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(STD).reshape(3, 1, 1)
    return values.contiguous(), torch.from_numpy(labels[chosen].astype(np.int64))


class _Block(nn.Module):
    """Two convolutions and a shortcut without parameters (option A of the ResNet paper)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.added:
            half = self.added // 2
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))
        return torch.relu(out + x)


class ResNet20(nn.Module):
    """CIFAR's ResNet-20, by the names that its published weights have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(_Block(16, 32, 2), _Block(32, 32, 1), _Block(32, 32, 1))
        self.layer3 = nn.Sequential(_Block(32, 64, 2), _Block(64, 64, 1), _Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def head(self, x: torch.Tensor, at: str) -> torch.Tensor:
        """Images to activations behind `at`."""
        x = self.layer1(torch.relu(self.bn1(self.conv1(x))))
        return x if at == "layer1" else self.layer2(x)

    def tail(self, h: torch.Tensor, at: str) -> torch.Tensor:
        """Activations behind `at` to logits."""
        h = self.layer3(self.layer2(h) if at == "layer1" else h)
        logits: torch.Tensor = self.linear(h.mean(dim=(2, 3)))
        return logits


def pretrained(root: Path) -> ResNet20:
    """ResNet-20 with its published weights, in eval mode."""
    model = ResNet20()
    held = load_file(root / "weights" / "resnet_cifar10" / "resnet20.safetensors")
    model.load_state_dict({key: value for key, value in held.items() if key in model.state_dict()})
    return model.eval()


def small_head() -> nn.Sequential:
    """The edge's half of a network that two cores can train: (B, 3, 32, 32) to (B, 16, 16, 16), D = 4096."""
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())


def small_tail() -> nn.Sequential:
    """The other half: to logits."""
    return nn.Sequential(
        nn.Conv2d(16, 32, 3, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
