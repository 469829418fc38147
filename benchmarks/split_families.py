"""Models that nobody here wrote: seven families of transformers from configurations, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@dataclass(frozen=True)
class Family:
    """`build(full)` makes the model, of the library's default size or a small one.

    `example(full, batch, length)` makes what it takes: keyword arguments.
    """

    name: str
    build: Callable[[bool], nn.Module]
    example: Callable[[bool, int, int], dict[str, Any]]
    max_tensors: int = 1


def _pixels(full: bool, batch: int, length: int) -> dict[str, Any]:
    side = 224 if full else 64
    return {"pixel_values": torch.randn(batch, 3, side, side)}


def _ids(full: bool, batch: int, length: int) -> dict[str, Any]:
    return {"input_ids": torch.randint(0, 100, (batch, length))}


def _masked(full: bool, batch: int, length: int) -> dict[str, Any]:
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, length // 2 :] = 0
    return _ids(full, batch, length) | {"attention_mask": mask}


def _uncached(full: bool, batch: int, length: int) -> dict[str, Any]:
    return _ids(full, batch, length) | {"use_cache": False}


def _resnet(full: bool) -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    small = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**({} if full else small)))


def _mobilenet(full: bool) -> Any:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(
        MobileNetV2Config(**({} if full else {"image_size": 64, "depth_multiplier": 0.35}))
    )


def _bert(full: bool) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**({} if full else _SMALL | {"vocab_size": 100})))


def _efficientnet(full: bool) -> Any:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    # Full: B0. The library's default is B7.
    b0 = {"image_size": 224, "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
    small = {"image_size": 64, "width_coefficient": 0.35, "depth_coefficient": 0.35, "hidden_dim": 448}
    return EfficientNetForImageClassification(EfficientNetConfig(**(b0 if full else small)))


def _convnext(full: bool) -> Any:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    small = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "drop_path_rate": 0.2}
    return ConvNextForImageClassification(ConvNextConfig(**({} if full else small)))


def _vit(full: bool) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    small = {"image_size": 64, "patch_size": 16, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    return ViTForImageClassification(ViTConfig(**({} if full else _SMALL | small)))


def _gpt2(full: bool, tied: bool) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    small = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 100, "n_positions": 32}
    special = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": tied}
    return GPT2LMHeadModel(GPT2Config(**({} if full else small), **special))


FAMILIES = (
    Family("resnet", _resnet, _pixels),
    Family("mobilenet", _mobilenet, _pixels),
    Family("bert", _bert, _ids),
    Family("bert-masked", _bert, _masked, max_tensors=2),
    Family("efficientnet", _efficientnet, _pixels),
    Family("convnext", _convnext, _pixels),
    Family("vit", _vit, _pixels),
    Family("gpt2-tied", lambda full: _gpt2(full, True), _uncached),
    Family("gpt2", lambda full: _gpt2(full, False), _uncached),
)
