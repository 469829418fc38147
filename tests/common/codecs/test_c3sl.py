"""C3-SL: the cosine law, the adjoint, what becomes of the batch's end, and keys that agree."""

from __future__ import annotations

import hashlib
import math
from contextlib import suppress
from functools import reduce

import pytest
import torch
from codec_tensors import tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from fogline.common.codecs import Chain
from fogline.common.codecs.c3sl_keys import integers, make_keys
from fogline.common.errors import ConfigError, FormatError, InputError

PINNED = [950388781, 4191683972, 3734599066, -5829228868]
PINNED_HASH = "d021c4756f2a3381"


def round_trip(spec: str, tensor: torch.Tensor) -> torch.Tensor:
    chain = Chain.parse(spec)
    coded = chain.encoder().encode(tensor)
    return chain.decoder().decode(coded.stages, bytearray(coded.payload), coded.dtype, coded.shape)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@pytest.mark.parametrize("ratio", [1, 2, 4, 8, 16])
def test_the_cosine_law(ratio: int) -> None:
    torch.manual_seed(ratio)
    gaussian, unitary = [], []
    for seed in range(5):
        z = torch.randn(64, 4096)
        gaussian.append(cosine(z, round_trip(f"c3sl(ratio={ratio}, seed={seed})", z)))
        unitary.append(cosine(z, round_trip(f"c3sl(ratio={ratio}, seed={seed}, keys=unitary)", z)))
    assert sum(gaussian) / 5 == pytest.approx(1 / math.sqrt(1 + ratio), abs=0.01)
    assert sum(unitary) / 5 == pytest.approx(1 / math.sqrt(ratio), abs=0.01)


def test_unitary_keys_lose_nothing_at_ratio_one() -> None:
    z = torch.randn(5, 33)
    assert torch.allclose(round_trip("c3sl(ratio=1, keys=unitary)", z), z, atol=1e-5)


def test_it_is_a_circular_convolution() -> None:
    length, ratio = 12, 3
    spectra = make_keys(7, ratio, length, "gaussian").spectra
    keys = torch.fft.irfft(spectra, n=length)
    assert torch.allclose(keys.norm(dim=1), torch.ones(ratio, dtype=torch.float64))
    z = torch.randn(ratio, length, dtype=torch.float64)
    slow = torch.zeros(length, dtype=torch.float64)
    for i in range(ratio):
        for n in range(length):
            slow[n] += sum(keys[i, m] * z[i, (n - m) % length] for m in range(length))
    coded = Chain.parse(f"c3sl(ratio={ratio}, seed=7)").encoder().encode(z)
    assert torch.allclose(torch.frombuffer(bytearray(coded.payload), dtype=torch.float64), slow)


@pytest.mark.parametrize("center", ["false", "true"])
@pytest.mark.parametrize("kind", ["gaussian", "unitary"])
@pytest.mark.parametrize("batch", [1, 3, 8, 11])
def test_gradients_through_the_same_stage_are_exact(center: str, kind: str, batch: int) -> None:
    """<A z, g> = <z, A g>: what the tail sends back is the derivative of what it was given."""
    spec = f"c3sl(ratio=4, keys={kind}, center={center})"
    z, g = torch.randn(batch, 3, 7, dtype=torch.float64), torch.randn(batch, 3, 7, dtype=torch.float64)
    left = float((round_trip(spec, z) * g).sum())
    right = float((z * round_trip(spec, g)).sum())
    assert left == pytest.approx(right, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 63])
def test_the_end_of_a_batch_is_padded_and_never_dropped(batch: int) -> None:
    z = torch.randn(batch, 2048)
    chain = Chain.parse("c3sl(ratio=4, keys=unitary)")
    coded = chain.encoder().encode(z)
    assert memoryview(coded.payload).nbytes == math.ceil(batch / 4) * 2048 * 4
    back = chain.decoder().decode(coded.stages, bytearray(coded.payload), coded.dtype, coded.shape)
    assert back.shape == z.shape
    alone = batch % 4 == 1
    assert cosine(z[-1], back[-1]) == pytest.approx(1.0 if alone else 1 / math.sqrt(batch % 4 or 4), abs=0.05)


def test_centring_restores_the_law_for_features_that_have_a_mean() -> None:
    z = torch.randn(64, 1024).relu() + 2.0
    centred = z - z.mean(dim=1, keepdim=True)
    back = round_trip("c3sl(ratio=4, center=true)", z)
    assert cosine(centred, back - z.mean(dim=1, keepdim=True)) == pytest.approx(1 / math.sqrt(5), abs=0.02)
    plain = round_trip("c3sl(ratio=4)", z)
    assert float((plain - z).norm()) > 2 * float((back - z).norm())


@given(tensors(finite=True, empty=False), st.booleans(), st.integers(1, 5))
@settings(max_examples=200)
def test_any_tensor_keeps_its_shape_or_is_refused(tensor: torch.Tensor, center: bool, ratio: int) -> None:
    spec = f"c3sl(ratio={ratio}, center={str(center).lower()})"
    if not tensor.dim():
        with pytest.raises(InputError, match="no batch"):
            round_trip(spec, tensor)
        return
    if float(tensor.double().abs().max()) > float(torch.finfo(tensor.dtype).max) / 1000:
        with suppress(InputError):  # sums may leave the range
            round_trip(spec, tensor)
        return
    back = round_trip(spec, tensor)
    assert back.shape == tensor.shape
    assert back.dtype == tensor.dtype


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_value_is_refused_and_spoils_no_group(bad: float) -> None:
    z = torch.zeros(8, 16)
    z[5, 5] = bad
    with pytest.raises(InputError, match="whole group"):
        round_trip("c3sl", z)


def test_keys_never_change() -> None:
    """Of integers, so that this holds on every machine and for every version of numpy and torch."""
    assert integers(0, 0, 4).tolist() == PINNED
    pieces = (integers(5, i, 1000).astype("<i8").tobytes() for i in range(3))
    assert hashlib.sha256(reduce(bytes.__add__, pieces)).hexdigest()[:16] == PINNED_HASH


def test_keys_are_about_normal() -> None:
    values = torch.from_numpy(integers(1, 0, 100_000)).double() / 2**32
    assert float(values.mean()) == pytest.approx(0, abs=0.02)
    assert float(values.var()) == pytest.approx(1, abs=0.02)
    assert float(((values - values.mean()) ** 4).mean() / values.var() ** 2) == pytest.approx(2.9, abs=0.1)


@pytest.mark.parametrize("other", ["ratio=4, seed=1", "ratio=2", "ratio=4, keys=unitary"])
def test_other_keys_are_told_apart(other: str) -> None:
    mine, theirs = Chain.parse("c3sl(ratio=4)"), Chain.parse(f"c3sl({other})")
    assert mine.fingerprint() != theirs.fingerprint()
    coded = mine.encoder().encode(torch.randn(8, 16))
    with pytest.raises(FormatError, match="bytes" if other == "ratio=2" else "keys"):
        theirs.decoder().decode(coded.stages, coded.payload, coded.dtype, coded.shape)
    with pytest.raises(ConfigError, match="gradients' chain"):
        mine.check_gradients(theirs)


def test_gradients_must_return_through_the_same_stage() -> None:
    up = Chain.parse("c3sl(ratio=4)+fp16")
    up.check_gradients(Chain.parse("c3sl+bf16"))
    assert up.adjoint == "self"
    for down in ("raw", "fp16", "c3sl(ratio=8)"):
        with pytest.raises(ConfigError, match="c3sl"):
            up.check_gradients(Chain.parse(down))
    with pytest.raises(ConfigError, match="c3sl"):
        Chain.parse("raw").check_gradients(up)


def test_a_checkpoint_goes_on_with_its_keys() -> None:
    chain = Chain.parse("c3sl(ratio=2, seed=9)")
    encoder = chain.encoder()
    encoder.encode(torch.randn(4, 16))
    state = encoder.state_dict()
    chain.encoder().load_state_dict(state)
    with pytest.raises(FormatError, match="other keys"):
        Chain.parse("c3sl(ratio=2, seed=8)").encoder().load_state_dict(state)
    for bad in ({"0.c3sl.length": torch.tensor(3)}, {**state, "0.c3sl.length": torch.tensor(1 << 50)}):
        with pytest.raises(FormatError):
            chain.encoder().load_state_dict(bad)


def test_a_header_with_endless_samples_makes_no_keys() -> None:
    coded = Chain.parse("c3sl").encoder().encode(torch.randn(4, 16))
    with pytest.raises(FormatError, match="too long"):
        Chain.parse("c3sl").decoder().decode(coded.stages, b"", torch.float32, (1, 1 << 40))
