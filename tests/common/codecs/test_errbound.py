"""errbound: the bound holds for every finite value, zeros are zeros, and the receiver can set the bound."""

from __future__ import annotations

import math
from fractions import Fraction

import msgspec
import numpy as np
import pytest
import torch
from codec_tensors import FLOATS, same_bits, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from fogline.common.codecs import Chain, CodedStage, Encoded
from fogline.common.codecs.adaptive import bound, gradient_norm, mean_momentum, noise
from fogline.common.errors import ConfigError, FormatError, InputError


def code(spec: str, tensor: torch.Tensor) -> tuple[Encoded, torch.Tensor]:
    chain = Chain.parse(spec)
    coded = chain.encoder().encode(tensor)
    return coded, chain.decoder().decode(coded.stages, bytes(coded.payload), coded.dtype, coded.shape)


def check(tensor: torch.Tensor, back: torch.Tensor, epsilon: float) -> None:
    """In float64 where that is exact, in fractions where it may not be."""
    finite = torch.isfinite(tensor)
    assert same_bits(back[~finite], tensor[~finite])
    x, y = tensor[finite].double(), back[finite].double()
    assert bool((y[x == 0] == 0).all())
    doubtful = (x - y).abs() >= epsilon * (1 - 1e-12)
    for a, b in zip(x[doubtful].tolist(), y[doubtful].tolist(), strict=True):
        assert abs(Fraction(a) - Fraction(b)) <= Fraction(epsilon), (a, b, epsilon)


EPSILONS = st.sampled_from([1e-3, 0.01, 0.1, 1.0, 1e-7, 1e-12, 1e5, 1e-35, 1e-300, 1e35, 1 / 3, 0.1 + 1e-17])


@given(tensors(), EPSILONS, st.sampled_from(["", "+zstd"]))
@settings(max_examples=2000, deadline=None)
def test_the_bound_holds(tensor: torch.Tensor, epsilon: float, tail: str) -> None:
    coded, back = code(f"errbound(epsilon={epsilon!r}){tail}", tensor)
    assert back.shape == tensor.shape
    assert memoryview(coded.payload).nbytes <= tensor.nbytes
    check(tensor, back, epsilon)


@given(
    st.sampled_from(FLOATS),
    st.floats(1e-9, 1e9),
    st.lists(st.tuples(st.integers(-(1 << 24), 1 << 24), st.integers(-3, 3)), min_size=1, max_size=30),
)
@settings(max_examples=1000, deadline=None)
def test_the_bound_holds_at_the_edges_between_grid_points(
    dtype: torch.dtype, epsilon: float, places: list[tuple[int, int]]
) -> None:
    """Odd multiples of ε and their neighbours: where a quantiser that does not check breaks its bound."""
    values = torch.tensor([(2 * n + 1) * epsilon for n, _ in places], dtype=torch.float64).to(dtype)
    toward = torch.tensor([math.copysign(math.inf, ulps) for _, ulps in places], dtype=dtype)
    tensor = values
    for step in range(3):
        far = torch.tensor([abs(ulps) > step for _, ulps in places])
        tensor = torch.where(far, torch.nextafter(tensor, toward), tensor)
    _, back = code(f"errbound(epsilon={epsilon!r})", tensor)
    check(tensor, back, epsilon)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_bound_holds_over_a_million_tensors() -> None:
    """Small tensors, random and at the edges of the grid, all dtypes, NaN and infinity among them."""
    random = np.random.default_rng(1)
    for n in range(1_000_000):
        dtype = FLOATS[n % 4]
        epsilon = float(10.0 ** random.uniform(-9, 4))
        size = int(random.integers(1, 9))
        values = random.standard_normal(size) * 10.0 ** random.uniform(-6, 6)
        if n % 3 == 0:
            values = (2 * np.round(values) + 1) * epsilon
        tensor = torch.from_numpy(values).to(dtype)
        if n % 5 == 0:
            tensor[int(random.integers(size))] = (0.0, -0.0, math.nan, math.inf, -math.inf)[n // 5 % 5]
        _, back = code(f"errbound(epsilon={epsilon!r})", tensor)
        check(tensor, back, epsilon)


def test_activations_shrink() -> None:
    torch.manual_seed(0)
    tensor = torch.randn(32, 16, 8, 8).relu()
    for epsilon, ratio in ((0.1, 10), (0.01, 5)):
        coded, back = code(f"errbound(epsilon={epsilon})+zstd", tensor)
        check(tensor, back, epsilon)
        assert tensor.nbytes / memoryview(coded.payload).nbytes > ratio


def test_one_outlier_does_not_widen_every_code() -> None:
    tensor = torch.rand(10_000) + 0.5
    tensor[7] = 1e6
    coded, back = code("errbound(epsilon=0.01)", tensor)
    assert memoryview(coded.payload).nbytes < 10_100
    assert float(back[7]) == 1e6


def test_noise_too_fine_for_the_grid_goes_raw() -> None:
    tensor = torch.randn(1000) * 1e9
    coded, back = code("errbound(epsilon=1e-9)", tensor)
    assert memoryview(coded.payload).nbytes == tensor.nbytes
    assert torch.equal(back, tensor)


def test_a_relative_bound_follows_the_tensor() -> None:
    for scale in (1e-30, 1.0, 1e30):
        tensor = torch.randn(1000) * scale
        _, back = code("errbound(epsilon=0.01, relative=true)", tensor)
        check(tensor, back, 0.01 * float(tensor.abs().max()))
    for tensor in (torch.zeros(5), torch.full((5,), 1e-45), torch.tensor([math.nan, math.inf])):
        _, back = code("errbound(epsilon=0.01, relative=true)", tensor)
        assert same_bits(back, tensor)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_values_are_refused_on_demand(bad: float) -> None:
    tensor = torch.tensor([0.0, bad, 1.0])
    with pytest.raises(InputError, match="nonfinite=escape"):
        code("errbound(nonfinite=refuse)", tensor)


def test_the_sigma_law() -> None:
    """Measured on convolutions through the real codec: within 10 %, for any density, size of batch and map."""
    torch.manual_seed(3)
    for batch, channels, side, epsilon in ((16, 8, 12, 0.05), (4, 16, 8, 0.01), (32, 4, 16, 0.1), (8, 8, 10, 0.003)):
        x = torch.randn(batch, channels, side + 2, side + 2).relu() * 3
        g = torch.randn(batch, 32, side, side) * 0.01
        _, back = code(f"errbound(epsilon={epsilon})", x)
        density = float((x > 0).double().mean())
        exact = torch.nn.grad.conv2d_weight(x, (32, channels, 3, 3), g)
        error = torch.nn.grad.conv2d_weight(back, (32, channels, 3, 3), g) - exact
        measured = float(error.double().std())
        assert noise(epsilon, gradient_norm(g), density) == pytest.approx(measured, rel=0.1)
        assert bound(measured, gradient_norm(g), density) == pytest.approx(epsilon, rel=0.1)


ADAPTIVE = "errbound(epsilon=0.01, sigma_ratio=0.01, window=3, epsilon_max=0.5)"


def test_the_receiver_sets_the_bound() -> None:
    chain = Chain.parse(ADAPTIVE)
    encoder, decoder = chain.encoder(), chain.decoder()
    tensor = torch.randn(64, 32).relu()
    density = float((tensor > 0.01).double().mean())
    for step in range(3):
        assert decoder.feedback() == {}
        coded = encoder.encode(tensor)
        decoder.decode(coded.stages, coded.payload, coded.dtype, coded.shape)
        decoder.observe(gradient_norm=0.0, momentum=0.1)  # no gradient: says nothing
        decoder.observe(gradient_norm=math.nan, momentum=0.1)
        decoder.observe(gradient_norm=0.2, momentum=0.1 + 0.01 * step)
    told = decoder.feedback()
    wanted = math.sqrt(3) * 0.01 * 0.11 / (0.2 * math.sqrt(density))
    assert told == {"errbound": {"epsilon": pytest.approx(wanted, rel=1e-3)}}
    assert decoder.feedback() == {}
    encoder.apply(told)
    coded = encoder.encode(tensor)
    back = decoder.decode(coded.stages, coded.payload, coded.dtype, coded.shape)
    check(tensor, back, told["errbound"]["epsilon"])
    assert float((tensor - back).abs().max()) > 0.01


def test_an_adaptive_bound_stays_within_its_limits() -> None:
    decoder = Chain.parse(ADAPTIVE).decoder()
    for momentum, limit in ((1e9, 0.5), (1e-30, 1e-6)):
        for _ in range(3):
            decoder.observe(gradient_norm=1.0, momentum=momentum)
        assert decoder.feedback() == {"errbound": {"epsilon": limit}}


@pytest.mark.parametrize(
    "told", [{"epsilon": math.nan}, {"epsilon": 0.0}, {"epsilon": 1.0}, {"epsilon": "x"}, {"x": 1.0}, {"epsilon": -0.1}]
)
def test_a_bound_outside_the_limits_is_refused(told: dict[str, float]) -> None:
    with pytest.raises(FormatError):
        Chain.parse(ADAPTIVE).encoder().apply({"errbound": told})


def test_a_fixed_bound_takes_no_feedback_and_no_looser_coding() -> None:
    with pytest.raises(FormatError, match="adaptive"):
        Chain.parse("errbound").encoder().apply({"errbound": {"epsilon": 0.01}})
    coded, _ = code("errbound(epsilon=0.1)", torch.randn(100))
    with pytest.raises(FormatError, match="agreed"):
        Chain.parse("errbound(epsilon=0.01)").decoder().decode(coded.stages, coded.payload, coded.dtype, coded.shape)


def test_a_checkpoint_goes_on_where_the_bound_was() -> None:
    chain = Chain.parse(ADAPTIVE)
    decoder = chain.decoder()
    for _ in range(4):
        decoder.observe(gradient_norm=0.2, momentum=0.1)
    other = chain.decoder()
    other.load_state_dict(decoder.state_dict())
    for end in (decoder, other):
        for _ in range(2):
            end.observe(gradient_norm=0.3, momentum=0.1)
    assert other.feedback() == decoder.feedback() != {}
    assert all(
        torch.equal(a, b) for a, b in zip(other.state_dict().values(), decoder.state_dict().values(), strict=True)
    )
    for bad in (torch.zeros(3), torch.full((7,), math.nan), torch.zeros(7)):
        with pytest.raises(FormatError):
            chain.decoder().load_state_dict({"0.errbound.adaptive": bad})
    with pytest.raises(FormatError):
        Chain.parse("errbound").decoder().load_state_dict(decoder.state_dict())


@pytest.mark.parametrize(
    "params",
    [
        [0.0],
        [math.nan],
        [-1.0],
        [math.inf],
        [0.01, 3],
        [0.01, 1, 101, 0],
        [0.01, 1, 50, 51],
        [0.01, 1, 50, 0],
        [0.01, 1, -1, 0],
    ],
)
def test_forged_counts_are_refused(params: list[float]) -> None:
    stage = CodedStage(8, 1, msgspec.msgpack.encode(params))
    for size in (0, 13, 63, 400):
        payload = b"\xff" * 13 + b"\x02" * 50 if size == 63 else bytes(size)  # a bitmap that marks more than 50
        with pytest.raises(FormatError):
            Chain.parse("errbound(epsilon=0.01)").decoder().decode((stage,), payload, torch.float32, (100,))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("errbound(epsilon=0)", "epsilon"),
        ("errbound(epsilon=-1)", "epsilon"),
        ("errbound(epsilon=nan)", "epsilon"),
        ("errbound(epsilon=5, sigma_ratio=0.01)", "widen"),
        ("errbound(relative=true, sigma_ratio=0.01)", "leave relative out"),
        ("fp16+errbound", "alone"),
        ("c3sl+errbound", "alone"),
        ("errbound+int8", "choose one"),
        ("zstd+errbound", "write errbound\\+zstd"),
    ],
)
def test_wrong_options_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Chain.parse(spec)


def test_momentum_of_both_kinds_of_optimisers() -> None:
    layer = torch.nn.Linear(3, 2, bias=False)
    for optimizer in (torch.optim.SGD([layer.weight], 0.1, momentum=0.9), torch.optim.Adam([layer.weight], 0.1)):
        assert mean_momentum(optimizer, layer.parameters()) == 0.0
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
        assert mean_momentum(optimizer, layer.parameters()) == pytest.approx(
            1.0 if "momentum" in str(optimizer) else 0.1
        )
