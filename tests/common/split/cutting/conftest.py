"""Models that nobody here wrote: seven families of transformers from small configurations, with random weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """How to build a model, and what it takes for a batch size (and a sequence length)."""

    name: str
    build: Callable[[], nn.Module]
    example: Callable[..., dict[str, Any]]
    max_tensors: int = 1


def pixels(batch: int = 2, length: int = 0) -> dict[str, Any]:
    return {"pixel_values": torch.randn(batch, 3, 64, 64)}


def ids(batch: int = 2, length: int = 7) -> dict[str, Any]:
    return {"input_ids": torch.randint(0, 100, (batch, length))}


def masked(batch: int = 2, length: int = 7) -> dict[str, Any]:
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, length // 2 :] = 0
    return ids(batch, length) | {"attention_mask": mask}


def uncached(batch: int = 2, length: int = 7) -> dict[str, Any]:
    return ids(batch, length) | {"use_cache": False}


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(
        ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 1], layer_type="basic")
    )


def _mobilenet() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config(image_size=64, depth_multiplier=0.35))


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**SMALL, vocab_size=100))


def _efficientnet() -> nn.Module:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    return EfficientNetForImageClassification(
        EfficientNetConfig(image_size=64, width_coefficient=0.35, depth_coefficient=0.35, hidden_dim=448)
    )


def _convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], drop_path_rate=0.2)
    )


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(**SMALL, image_size=64, patch_size=16, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    )


def _gpt2(tied: bool) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            n_embd=32, n_layer=2, n_head=2, vocab_size=100, n_positions=32, bos_token_id=0, eos_token_id=0,
            tie_word_embeddings=tied,
        )  # fmt: skip
        return GPT2LMHeadModel(config)

    return build


FAMILIES = (
    Family("resnet", _resnet, pixels),
    Family("mobilenet", _mobilenet, pixels),
    Family("bert", _bert, ids),
    Family("bert-masked", _bert, masked, max_tensors=2),
    Family("efficientnet", _efficientnet, pixels),
    Family("convnext", _convnext, pixels),
    Family("vit", _vit, pixels),
    Family("gpt2-tied", _gpt2(True), uncached),
    Family("gpt2", _gpt2(False), uncached),
)


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def families() -> dict[str, Family]:
    return {f.name: f for f in FAMILIES}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    # It logs at import which optional image backends are missing.
    logging.getLogger("transformers").setLevel(logging.ERROR)


def outputs(value: Any) -> list[Tensor]:
    from fogline.common.split.structure import tensors

    return [found.tensor for found in tensors(value)]


@pytest.fixture
def same() -> Callable[[Any, Any], bool]:
    """Whether two outputs are of one kind and their tensors are equal bit for bit."""

    def compare(one: Any, other: Any) -> bool:
        pairs = list(zip(outputs(one), outputs(other), strict=True))
        return type(one) is type(other) and bool(pairs) and all(torch.equal(a, b) for a, b in pairs)

    return compare
