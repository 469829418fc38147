"""A small one-stage object detector for boards: SkyNet's ingredients in a fully convolutional, anchor-free form.

Depthwise-separable bottlenecks, ReLU6 and the reordering by-pass are from SkyNet (Zhang et al., MLSys 2020,
arXiv 1909.09709); the centre heat map with size and offset is from CenterNet (Zhou et al., 2019, arXiv 1904.07850).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 8  # pixels of the input to a cell of the output
_PRIOR = 0.01  # score of every cell before training; keeps the first steps from being swamped by background


class _Bottleneck(nn.Sequential):
    """Depthwise 3x3 or 5x5, then pointwise: a SkyNet bundle."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, inputs, kernel, stride, kernel // 2, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(inplace=True),
        )


class Detector(nn.Module):
    """Maps images (B, 3, H, W) in [0, 1], H and W multiples of 16, to a score for each label, and a box, per cell.

    One object or many, `labels` kinds of them; about 0.2 M parameters.
    """

    def __init__(self, labels: int = 1) -> None:
        super().__init__()
        self.labels = labels
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True))
        self.fine = nn.Sequential(_Bottleneck(16, 32, stride=2), _Bottleneck(32, 32))  # 1/4
        self.middle = nn.Sequential(_Bottleneck(32, 64, stride=2), _Bottleneck(64, 96), _Bottleneck(96, 96))  # 1/8
        self.coarse = nn.Sequential(  # 1/16: the surroundings
            _Bottleneck(96, 160, stride=2), _Bottleneck(160, 160, 5), _Bottleneck(160, 160, 5), _Bottleneck(160, 64)
        )
        self.join = nn.Sequential(_Bottleneck(32 * 4 + 96 + 64, 128), _Bottleneck(128, 128))
        self.score = nn.Conv2d(128, labels, 1)
        self.box = nn.Conv2d(128, 4, 1)
        nn.init.constant_(cast(Tensor, self.score.bias), torch.logit(torch.tensor(_PRIOR)).item())
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.normal_(self.box.weight, std=0.01)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Score logits (B, labels, H/8, W/8), and boxes (B, 4, H/8, W/8).

        A cell's box is the offset of its centre from the cell's middle (x, y, in cells) and the logarithm of its size
        (w, h, in cells).
        """
        fine = self.fine(self.stem((images - 0.45) * 4))
        middle = self.middle(fine)
        coarse = F.interpolate(self.coarse(middle), scale_factor=2.0, mode="nearest")
        joined = self.join(torch.cat((F.pixel_unshuffle(fine, 2), middle, coarse), 1))
        return self.score(joined), self.box(joined)
