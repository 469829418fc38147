"""Each policy against its own definition, and what all refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from fogline.common.errors import ConfigError
from fogline.common.split.link import LinkEstimate, LinkState
from fogline.common.split.options import Load, Option, Table, enumerate_options
from fogline.common.split.policies.base import Choice, Policy, Situation, make, names
from fogline.common.split.profile import Profile

Make = Callable[..., Profile]
RATES = [1e3, 1e5, 1e6, 3e6, 1e7, 3e7, 1e8, 1e9]


@pytest.fixture
def options(make_profile: Make) -> list[Option]:
    host = make_profile(0.1)
    return enumerate_options([host.scaled(8.0), host], 1)


def at(rate: float, now: float = 0.0, rtt: float = 0.0, load: Load | None = None, pending: int = 1) -> Situation:
    return Situation(now, (LinkEstimate.stated(rate, rtt),), load or Load(), pending)


def names_of(policy: Policy, rates: list[float]) -> list[str]:
    return [policy.choose(at(rate)).option.name for rate in rates]


def test_there_are_these_and_an_unknown_one_names_the_nearest(options: list[Option]) -> None:
    assert set(names()) >= {"fixed", "local", "remote", "neurosurgeon", "dynamic", "joint"}
    with pytest.raises(ConfigError, match="did you mean 'neurosurgeon'"):
        make("neurosurgon", options)
    with pytest.raises(ConfigError, match="there are dynamic"):
        make("zzz", options)
    with pytest.raises(ConfigError, match=r"no parameter 'patients'.*patience"):
        make("joint", options, {"patients": 2})
    with pytest.raises(ConfigError, match="nothing to choose from"):
        make("joint", [])


def test_fixed_local_and_remote_look_at_nothing(options: list[Option]) -> None:
    assert set(names_of(make("fixed", options, {"cut": "b", "codec": "raw"}), RATES)) == {"b raw"}
    assert set(names_of(make("local", options), RATES)) == {"local"}
    assert set(names_of(make("remote", options), RATES)) == {"input int8"}
    assert set(names_of(make("remote", options, {"codec": "jpeg-input"}), RATES)) == {"input jpeg-input"}


def test_a_cut_or_codec_that_was_not_measured_names_the_nearest(options: list[Option]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'input'"):
        make("fixed", options, {"cut": "inptu"})
    with pytest.raises(ConfigError, match="'zstd' was not measured at b; there are raw, int8"):
        make("fixed", options, {"cut": "b", "codec": "zstd"})


def test_dynamic_is_the_papers_arg_min(options: list[Option]) -> None:
    policy = make("dynamic", options)
    assert {one.name for one in policy.table.options} == {"local", "input int8", "b raw", "d raw"}
    for rate in RATES:
        bytes_s = rate / 8
        expected = {
            "local": 0.8,
            "input int8": 0.1 + 100_000 / bytes_s,
            "b raw": 0.4 * 0.8 + 0.6 * 0.1 + 200_000 / bytes_s,
            "d raw": 0.9 * 0.8 + 0.1 * 0.1 + 20_000 / bytes_s,
        }
        choice = policy.choose(at(rate, rtt=5.0))  # the paper knows no round trip
        assert choice.option.name == min(expected, key=lambda name: expected[name])
        assert choice.expected_s == pytest.approx(min(expected.values()))


def test_as_the_rate_falls_the_cut_moves_to_the_end(options: list[Option]) -> None:
    order = names_of(make("dynamic", options), [1e9, 2e6, 1e3])
    assert order[0] == "input int8"
    assert order[-1] == "local"
    seen = list(dict.fromkeys(names_of(make("joint", options, {"dwell_s": 0.0}), RATES[::-1])))
    assert seen[0].startswith("input")
    assert seen[-1] == "local"


def test_neurosurgeon_weighs_every_cut_with_raw_tensors_and_the_hosts_load(options: list[Option]) -> None:
    policy = make("neurosurgeon", options)
    assert {one.name for one in policy.table.options} == {"local", "input raw", "a raw", "b raw", "c raw", "d raw"}
    assert policy.choose(at(1e9)).option.name == "input raw"
    assert policy.choose(at(1e9, load=Load((1.0, 50.0, 1.0)))).option.name == "local"
    assert make("neurosurgeon", options, {"objective": "energy"}).choose(at(1e9)).option.name == "input raw"


@pytest.mark.parametrize("name", ["neurosurgeon", "dynamic", "joint"])
@pytest.mark.parametrize("rate", [0.0, -5.0, math.nan, math.inf])
def test_no_rate_means_local(options: list[Option], name: str, rate: float) -> None:
    assert make(name, options).choose(at(rate)).option.name == "local"
    unknown = LinkEstimate(LinkState.UNKNOWN, None, 0.0, 0.0, math.inf, math.inf)
    choice = make(name, options).choose(Situation(0.0, (unknown,)))
    assert choice.option.name == "local"


def test_a_device_that_can_not_do_it_alone_sends_the_least_bytes(options: list[Option]) -> None:
    rest = [one for one in options if one.cuts]
    for name in ("dynamic", "joint"):
        choice = make(name, rest).choose(at(0.0))
        assert choice.option.name == {"dynamic": "d raw", "joint": "d int8"}[name]
        assert choice.deadline_s is None


def test_a_model_without_any_bottleneck_is_local_or_remote(make_profile: Make) -> None:
    profile = make_profile()
    plain = make_profile(cuts=profile.cuts[:2])  # the input, and a cut that is larger
    few = enumerate_options([plain.scaled(8.0), plain], 1)
    assert set(names_of(make("dynamic", few), RATES)) == {"local", "input int8"}
    only = make_profile(cuts=profile.cuts[:1])
    none = enumerate_options([only.scaled(8.0), only], 1)
    for name in ("neurosurgeon", "dynamic", "joint"):
        assert {n.split()[0] for n in names_of(make(name, none, {}), RATES)} == {"local", "input"}


def test_joint_is_the_arg_min_of_everything_that_the_budget_allows(options: list[Option]) -> None:
    for budget, codecs in ((0.01, {"raw", "int8"}), (0.1, {"raw", "int8", "jpeg-input"})):
        allowed = [one for one in options if one.accuracy_drop <= budget]
        table = Table(allowed)
        for rate in RATES:
            choice = make("joint", options, {"accuracy_budget": budget}).choose(at(rate, rtt=0.03))
            least = min(table.latency_s([LinkEstimate.stated(rate, 0.03)], Load()))
            assert choice.expected_s == pytest.approx(least)
            assert set(choice.option.codecs) <= codecs
    assert make("joint", options, {"accuracy_budget": 0.1}).choose(at(1e6)).option.name == "input jpeg-input"


def test_joint_stays_where_little_is_gained_and_longer_just_after_a_change(options: list[Option]) -> None:
    policy = make("joint", options, {"min_gain": 0.05, "dwell_s": 1.0, "accuracy_budget": 1.0})
    rate = policy.worth_bit_s(Load(), 0.0)
    assert rate is not None

    def name(factor: float, now: float) -> str:
        return policy.choose(at(factor * rate, now)).option.name

    start = name(0.5, 0.0)
    assert start == "local"
    assert name(1.01, 10.0) == "local"  # cheaper by less than 5 %
    assert name(1.5, 11.0) != "local"
    assert name(0.93, 11.5) != "local"  # a gain of 7 %, within the dwell time
    assert name(0.93, 13.0) == "local"
    assert name(100.0, 13.1) != "local"  # a large gain does not wait


def test_joint_waits_only_as_long_as_its_patience(options: list[Option]) -> None:
    choice: Choice = make("joint", options, {"patience": 2.0}).choose(at(1e8))
    assert choice.option.cuts
    assert choice.expected_s is not None
    assert choice.deadline_s == pytest.approx(2 * (choice.expected_s - choice.option.hosts_s[0]))
    assert make("joint", options).choose(at(0.0)).deadline_s is None


def test_joint_forms_batches_of_what_waits(make_profile: Make) -> None:
    host = make_profile(0.1)
    # On this host a batch costs little more than one sample.
    cheap = make_profile(0.1, whole_s={1: 0.1, 4: 0.12, 8: 0.15})
    both = [one for batch in (1, 4, 8) for one in enumerate_options([host.scaled(8.0), cheap], batch)]
    policy = make("joint", both, {"min_gain": 0.0})
    assert policy.choose(at(1e9, pending=1)).option.batch == 1
    assert policy.choose(at(1e9, pending=5)).option.batch == 4
    assert policy.choose(at(1e9, pending=100)).option.batch == 8


def test_energy_prefers_to_compute_elsewhere(options: list[Option]) -> None:
    assert make("joint", options, {"objective": "energy"}).choose(at(2e6)).option.cuts
    with pytest.raises(ConfigError, match="objective 'money'"):
        make("joint", options, {"objective": "money"})


@pytest.mark.parametrize(
    "params",
    [{"min_gain": -0.1}, {"min_gain": 0.3}, {"patience": 0.5}, {"dwell_s": math.nan}, {"accuracy_budget": math.inf}],
)
def test_joint_refuses_parameters_out_of_range(options: list[Option], params: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"policy joint: {next(iter(params))}"):
        make("joint", options, params)


def test_joint_says_when_the_budget_leaves_nothing(options: list[Option]) -> None:
    lossy = [one for one in options if "jpeg-input" in one.codecs]
    with pytest.raises(ConfigError, match=r"accuracy budget of 0\.01"):
        make("joint", lossy)


def test_the_rate_in_question_is_where_the_device_and_the_best_offload_cost_the_same(options: list[Option]) -> None:
    policy = make("joint", options)
    rate = policy.worth_bit_s(Load(), 0.02)
    assert rate is not None
    latency = policy.table.latency_s([LinkEstimate.stated(rate, 0.02)], Load())
    assert min(latency[1:]) == pytest.approx(latency[0])
    assert policy.worth_bit_s(Load((1.0, 100.0, 1.0)), 0.02) is None
    assert make("local", options).worth_bit_s(Load(), 0.0) is None


def test_joint_sends_what_the_device_computes_only_where_that_clearly_ends_first(options: list[Option]) -> None:
    policy = make("joint", options)
    quick = policy.second_thought(at(1e9), 0.8)
    assert quick is not None
    assert quick.option.cuts == ("input",)
    assert policy.second_thought(at(1e9), 0.11) is None  # the device is nearly done
    assert policy.second_thought(at(0.0), 0.8) is None
    assert make("dynamic", options).second_thought(at(1e9), 0.8) is None
    assert make("joint", options, {"objective": "energy"}).second_thought(at(1e9), 0.8) is None
