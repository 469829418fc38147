"""topk: the largest values, compact indices, and error feedback that loses nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from codec_tensors import same_bits, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from fogline.common.codecs import Chain, elias_fano
from fogline.common.codecs.chain import Decoder, Encoder
from fogline.common.errors import ConfigError, FormatError, InputError


def send(encoder: Encoder, decoder: Decoder, tensor: torch.Tensor, *, training: bool = True) -> torch.Tensor:
    coded = encoder.encode(tensor, training=training)
    return decoder.decode(coded.stages, bytes(coded.payload), coded.dtype, coded.shape)


def ends(spec: str) -> tuple[Encoder, Decoder]:
    chain = Chain.parse(spec)
    return chain.encoder(), chain.decoder()


@given(tensors(finite=True, empty=False), st.floats(0.001, 1))
@settings(max_examples=300, deadline=None)
def test_the_largest_values_arrive_unchanged(tensor: torch.Tensor, share: float) -> None:
    back = send(*ends(f"topk(share={share!r})"), tensor)
    count = min(max(1, round(share * tensor.numel())), tensor.numel())
    arrived = back != 0
    assert torch.equal(back[arrived], tensor[arrived])
    kept = torch.topk(tensor.reshape(-1).abs(), count).values
    assert int(arrived.sum()) == int((kept > 0).sum())
    assert torch.equal(back.reshape(-1).abs().sort(descending=True).values[:count], kept)


@pytest.mark.parametrize("tail", ["", "+fp16", "+int8", "+int4+zstd", "+bf16"])
def test_what_was_sent_and_what_is_left_sum_to_what_was_given(tail: str) -> None:
    """Losses of the later stages are made up for as well; batches differ in size."""
    torch.manual_seed(0)
    encoder, decoder = ends(f"topk(share=0.05){tail}")
    given_, sent = torch.zeros(16, 40, dtype=torch.float64), torch.zeros(16, 40, dtype=torch.float64)
    for step in range(50):
        rows = (16, 16, 9, 1)[step % 4]
        tensor = torch.randn(rows, 40, dtype=torch.float64)
        given_[:rows] += tensor
        sent[:rows] += send(encoder, decoder, tensor)
    residual = encoder.state_dict()["0.topk.residual"]
    assert torch.allclose(sent + residual, given_, atol=1e-10)
    assert float(residual.norm()) > 0


def test_a_value_that_is_always_small_arrives_in_the_end() -> None:
    encoder, decoder = ends("topk(share=0.1)")
    tensor = torch.ones(10)
    tensor[3] = 0.3
    total = sum(float(send(encoder, decoder, tensor)[3]) for _ in range(200))
    assert total == pytest.approx(200 * 0.3, rel=0.1)


def test_inference_leaves_the_residual_alone() -> None:
    encoder, decoder = ends("topk(share=0.1)")
    tensor = torch.randn(4, 10)
    send(encoder, decoder, tensor)
    before = encoder.state_dict()
    alone = send(*ends("topk(share=0.1)"), tensor)
    assert torch.equal(send(encoder, decoder, tensor, training=False), alone)
    assert torch.equal(encoder.state_dict()["0.topk.residual"], before["0.topk.residual"])


def test_without_feedback_nothing_is_kept_and_shapes_may_vary() -> None:
    encoder, decoder = ends("topk(share=0.1, feedback=false)")
    for shape in ((3, 4), (5,), (2, 3, 4)):
        send(encoder, decoder, torch.randn(shape))
    assert encoder.state_dict() == {}


def test_a_shape_that_does_not_fit_the_residual_is_refused_and_changes_nothing() -> None:
    encoder, decoder = ends("topk")
    send(encoder, decoder, torch.randn(4, 10))
    before = encoder.state_dict()["0.topk.residual"]
    for bad in (torch.randn(4, 11), torch.randn(40), torch.full((4, 10), float("nan"))):
        with pytest.raises(InputError):
            encoder.encode(bad)
    assert torch.equal(encoder.state_dict()["0.topk.residual"], before)


def test_a_later_stage_that_fails_leaves_the_residual_alone() -> None:
    encoder, decoder = ends("topk(share=0.5)+bf16")
    send(encoder, decoder, torch.randn(2, 4))
    before = encoder.state_dict()["0.topk.residual"]
    with pytest.raises(InputError, match="bfloat16"):
        encoder.encode(torch.full((2, 4), 3.4028e38))
    send(encoder, decoder, torch.zeros(2, 4), training=False)
    assert torch.equal(encoder.state_dict()["0.topk.residual"], before)


def test_a_checkpoint_goes_on_with_the_residual() -> None:
    encoder, decoder = ends("topk+fp16")
    send(encoder, decoder, torch.randn(4, 10))
    other = Chain.parse("topk+fp16").encoder()
    other.load_state_dict(encoder.state_dict())
    tensor = torch.randn(4, 10)
    assert same_bits(send(encoder, decoder, tensor), send(other, decoder, tensor))
    for bad in ({"0.topk.residual": torch.zeros(3, dtype=torch.int64)}, {"0.topk.other": torch.zeros(1)}):
        with pytest.raises(FormatError):
            other.load_state_dict(bad)


@pytest.mark.parametrize(("share", "bits"), [(0.001, 12.0), (0.01, 8.7), (0.1, 5.4), (0.5, 2.1), (1.0, 1.1)])
def test_indices_are_compact(share: float, bits: float) -> None:
    size = 1 << 20
    count = round(size * share)
    assert 8 * elias_fano.coded_bytes(count, size) / count < bits


@given(st.integers(1, 2000), st.data())
@settings(max_examples=300, deadline=None)
def test_indices_come_back(size: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, size - 1), min_size=1))
    indices = np.array(sorted(chosen), np.int64)
    coded = elias_fano.encode(indices, size)
    assert len(coded) == elias_fano.coded_bytes(len(indices), size) <= -(-size // 8)
    assert np.array_equal(elias_fano.decode(memoryview(coded), len(indices), size), indices)


@given(st.integers(1, 200), st.integers(1, 50), st.binary(max_size=60))
@settings(max_examples=500, deadline=None)
def test_forged_indices_rise_and_stay_inside_or_are_refused(size: int, count: int, noise: bytes) -> None:
    count = min(count, size)
    wanted = elias_fano.coded_bytes(count, size)
    data = (noise * (wanted // max(len(noise), 1) + 1))[:wanted]
    try:
        indices = elias_fano.decode(memoryview(data), count, size)
    except FormatError:
        return
    assert len(indices) == count
    assert indices[0] >= 0
    assert indices[-1] < size
    assert (np.diff(indices) > 0).all()


@pytest.mark.parametrize("spec", ["topk(share=0)", "topk(share=1.5)", "topk(share=nan)", "topk+c3sl", "fp16+topk"])
def test_wrong_options_and_orders_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError):
        Chain.parse(spec)
