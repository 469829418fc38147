"""What there is to choose from, what it costs, and what can be left out without ever losing the best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.common.errors import ConfigError, InputError
from fogline.common.split.link import LinkEstimate
from fogline.common.split.options import Load, Option, Power, Table, compressive, enumerate_options, pareto
from fogline.common.split.profile import Profile

Make = Callable[..., Profile]


def test_every_cut_and_codec_and_local(make_profile: Make) -> None:
    host = make_profile(0.1)
    options = enumerate_options([host.scaled(8.0), host], 4)
    assert len(options) == 1 + 5 * 2 + 1
    local, whole = options[0], next(one for one in options if one.name == "input int8")
    assert local.name == "local"
    assert local.hosts_s == pytest.approx((3.2,))
    assert whole.hosts_s == pytest.approx((4 * 8 * 0.002, 4 * (0.1 + 0.002)))
    assert whole.coded_bytes == (400_000,)
    middle = next(one for one in options if one.name == "b raw")
    assert middle.hosts_s == pytest.approx((0.4 * 3.2, 0.6 * 0.4))
    assert middle.rest_s == pytest.approx(0.6 * 3.2)


def test_the_terms_are_the_formula(make_profile: Make) -> None:
    host = make_profile(0.1)
    table = Table(enumerate_options([host.scaled(8.0), host], 1))
    link, load = LinkEstimate.stated(8e6, 0.05), Load((1.5, 2.0, 1.0), (0.0, 0.03, 0.0))
    power = Power(10.0, 2.0, 1.0)
    latency = table.latency_s([link], load)
    for index, one in enumerate(table.options):
        terms = table.terms(index, [link], load, power)
        assert terms.latency_s == pytest.approx(latency[index])
        assert terms.energy_j == pytest.approx(table.energy_j([link], load, power)[index])
        if one.name == "b int8":
            assert terms.device_s == pytest.approx(1.5 * (0.4 * 0.8 + 8 * 0.002))
            assert terms.transfer_s == pytest.approx(50_000 / 1e6)
            assert terms.round_trips_s == 0.05
            assert terms.waiting_s == pytest.approx(0.03)
            assert terms.hosts_s == pytest.approx(2 * (0.06 + 0.002))
            assert terms.energy_j == pytest.approx(10 * terms.device_s + 2 * 0.05 + (0.05 + 0.03 + terms.hosts_s))


def test_without_a_link_only_the_device_is_left(make_profile: Make) -> None:
    host = make_profile()
    table = Table(enumerate_options([host, host], 1))
    latency = table.latency_s([LinkEstimate.stated(0.0)], Load())
    assert latency[0] == pytest.approx(0.1)
    assert all(math.isinf(one) for one in latency[1:])
    assert math.isinf(table.terms(1, [LinkEstimate.stated(0.0)], Load(), Power()).latency_s)


def test_bytes_under_way_hold_up_what_is_sent_next(make_profile: Make) -> None:
    host = make_profile()
    table = Table(enumerate_options([host, host], 1))
    free = LinkEstimate.stated(8e6)
    busy = LinkEstimate(free.state, free.rate_bit_s, 0.0, 0.0, 0.0, 0.0, backlog_bytes=500_000)
    pairs = zip(table.latency_s([busy], Load()), table.latency_s([free], Load()), strict=True)
    assert [slow - fast for slow, fast in pairs] == pytest.approx([0.0] + [0.5] * (len(table.options) - 1))


def test_three_tiers(make_profile: Make) -> None:
    edge, fog, cloud = make_profile(0.8), make_profile(0.2), make_profile(0.1)
    options = enumerate_options([edge, fog, cloud], 1, codecs=["raw", "int8"])
    two = [one for one in options if len(one.cuts) == 2]
    assert len(two) == sum(range(1, 6)) * 4
    one = next(o for o in two if o.cuts == ("b", "d") and o.codecs == ("int8", "raw"))
    assert one.hosts_s == pytest.approx((0.4 * 0.8 + 0.002, 0.002 + 0.5 * 0.2, 0.1 * 0.1))
    assert one.coded_bytes == (50_000, 20_000)
    table = Table(options)
    slow, fast = LinkEstimate.stated(1e6, 0.01), LinkEstimate.stated(100e6, 0.02)
    index = options.index(one)
    expected = sum(one.hosts_s) + 50_000 * 8 / 1e6 + 0.01 + 20_000 * 8 / 100e6 + 0.02
    assert table.latency_s([slow, fast], Load())[index] == pytest.approx(expected)
    assert table.terms(index, [slow, fast], Load(), Power()).latency_s == pytest.approx(expected)
    assert math.isinf(table.latency_s([slow], Load())[index])  # nothing is known of the second hop
    through = next(o for o in two if o.cuts == ("b", "b") and o.codecs == ("raw", "raw"))
    assert through.hosts_s[1] == 0.0


def test_profiles_that_do_not_belong_together_are_refused(make_profile: Make) -> None:
    host = make_profile()
    with pytest.raises(ConfigError, match="stale"):
        enumerate_options([host, make_profile(architecture="b" * 64)], 1)
    with pytest.raises(ConfigError, match="different cuts"):
        enumerate_options([host, make_profile(cuts=host.cuts[:3])], 1)
    with pytest.raises(ConfigError, match="'zstd' is not in the profile"):
        enumerate_options([host, host], 1, codecs=["zstd"])
    with pytest.raises(InputError, match="batch of 17"):
        enumerate_options([host, host], 17)
    with pytest.raises(ConfigError, match="0 profiles"):
        enumerate_options([], 1)
    assert [one.name for one in enumerate_options([host], 1)] == ["local"]


def test_compressive_cuts_are_strict_new_minima_below_the_input(make_profile: Make) -> None:
    assert [cut.name for cut in compressive(make_profile().cuts)] == ["b", "d"]


def test_powers_are_checked() -> None:
    with pytest.raises(ConfigError, match="transmit_w nan"):
        Power(transmit_w=math.nan)


FIGURES = st.floats(0, 10)


@given(
    st.lists(st.tuples(FIGURES, FIGURES, FIGURES), min_size=1, max_size=12),
    st.floats(1e3, 1e9),
    st.floats(0, 1),
    st.floats(0.1, 10),
    st.floats(0.1, 10),
)
def test_leaving_out_what_is_beaten_never_loses_the_best(
    rows: list[tuple[float, float, float]], rate: float, rtt: float, slow_device: float, slow_host: float
) -> None:
    options = [Option(1, (), (), (5.0,), ())]
    options += [Option(1, (str(i),), ("raw",), (a, b), (1e5 * c,)) for i, (a, b, c) in enumerate(rows)]
    link, load = LinkEstimate.stated(rate, rtt), Load((slow_device, slow_host, 1.0))
    least = [min(Table(some).latency_s([link], load)) for some in (options, pareto(options))]
    assert least[0] == pytest.approx(least[1])
    # On hosts as profiled, what is left out for a tolerance loses no more than that.
    some = [min(Table(fit).latency_s([link], Load())) for fit in (options, pareto(options, 0.05))]
    assert some[0] <= some[1] + 1e-9
    assert some[1] <= some[0] * 1.05 + 1e-9
    for one, other in itertools.permutations(pareto(options), 2):
        assert (one.hosts_s, one.coded_bytes) != (other.hosts_s, other.coded_bytes)
