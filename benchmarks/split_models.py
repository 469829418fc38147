"""Models for the benchmarks of split inference: Hugging Face architectures from their configurations, at 224 pixels.

    fogline split explain --model fogline.benchmarks.split_models:mobilenet_v2 --rate 2Mbit/s

Nothing is downloaded, so weights are random (one seed). Times don't depend on them, and sizes only in how well
activations compress. Batch norm takes its statistics from painted inputs, so that outputs differ between inputs; an
accuracy measured on these models says whether a codec changes the class that an untrained network gives, no more.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

SIZE = 224


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 1.0: 300 million multiply-adds."""
    return _settled("MobileNetV2")


def resnet18() -> nn.Module:
    """ResNet-18: 1.8 billion multiply-adds."""
    return _settled("ResNet", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")


def resnet50() -> nn.Module:
    """ResNet-50: 4.1 billion multiply-adds."""
    return _settled("ResNet")


def painted(count: int, seed: int = 0) -> Tensor:
    """Smooth coloured noise, float32 (count, 3, 224, 224) in 0..1: stands for pictures where none are at hand."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 7, 7, generator=random)
    fine = torch.rand(count, 3, 56, 56, generator=random)
    grown = [nn.functional.interpolate(one, size=(SIZE, SIZE), mode="bicubic") for one in (coarse, fine)]
    return (0.8 * grown[0] + 0.2 * grown[1]).clamp(0, 1)


def _settled(family: str, **shape: Any) -> nn.Module:
    """The same weights each time, batch norm settled on painted inputs, in eval mode; the caller's seed stays."""
    transformers: Any = importlib.import_module("transformers")
    config = getattr(transformers, f"{family}Config")(num_labels=1000, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, f"{family}ForImageClassification")(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain mean
    model.train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model(painted(8))
    return model.eval()
