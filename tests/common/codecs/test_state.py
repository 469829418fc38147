"""Every chain goes on from a checkpoint as if nothing had happened."""

from __future__ import annotations

import pytest
import torch
from codec_tensors import same_bits

from fogline.common.codecs import Chain
from fogline.common.codecs.chain import Decoder, Encoder

CHAINS = [
    "raw",
    "fp16+zstd",
    "int8(per=channel)",
    "topk(share=0.05)+int4",
    "c3sl(ratio=3)+topk+fp16",
    "errbound(epsilon=0.01, sigma_ratio=0.01, window=2)+zstd",
]


def step(encoder: Encoder, decoder: Decoder, n: int) -> torch.Tensor:
    tensor = torch.randn(12, 40, generator=torch.Generator().manual_seed(n)).relu()
    coded = encoder.encode(tensor)
    back = decoder.decode(coded.stages, bytes(coded.payload), coded.dtype, coded.shape)
    decoder.observe(gradient_norm=0.1 * (n + 1), momentum=0.05)
    encoder.apply(decoder.feedback())
    return back


@pytest.mark.parametrize("spec", CHAINS)
@pytest.mark.parametrize("at", [0, 1, 4])
def test_both_ends_go_on(spec: str, at: int) -> None:
    chain = Chain.parse(spec)
    encoder, decoder = chain.encoder(), chain.decoder()
    for n in range(at):
        step(encoder, decoder, n)
    again, received = chain.encoder(), chain.decoder()
    again.load_state_dict({key: value.clone() for key, value in encoder.state_dict().items()})
    received.load_state_dict({key: value.clone() for key, value in decoder.state_dict().items()})
    for n in range(at, at + 5):
        assert same_bits(step(encoder, decoder, n), step(again, received, n))
    for mine, theirs in ((encoder, again), (decoder, received)):
        assert mine.state_dict().keys() == theirs.state_dict().keys()
        assert all(same_bits(value, theirs.state_dict()[key]) for key, value in mine.state_dict().items())


@pytest.mark.parametrize("spec", CHAINS)
def test_a_kept_state_does_not_change_with_the_session(spec: str) -> None:
    chain = Chain.parse(spec)
    encoder, decoder = chain.encoder(), chain.decoder()
    step(encoder, decoder, 0)
    kept = encoder.state_dict()
    before = {key: value.clone() for key, value in kept.items()}
    for n in range(1, 4):
        step(encoder, decoder, n)
    assert all(same_bits(kept[key], value) for key, value in before.items())
