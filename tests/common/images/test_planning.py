"""What the codec planner promises, whatever the figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fogline.common.images.communication import Place, communication_of
from fogline.common.images.planning import (
    DEFAULT_RATE_BIT_S,
    MARGIN,
    SLACK_DB,
    Choice,
    Decision,
    Dropped,
    Figures,
    Goal,
    Link,
    cost_of,
    decide,
)

NAMES = ("jpeg2", "avif2", "siren", "latent")


def figures(codec: str, **changed: Any) -> Figures:
    values: dict[str, Any] = {
        "params": {}, "frames": 3, "record_bytes": 2000.0, "encode_s": 0.02, "background_db": 29.0, "object_db": 36.0,
        "decode_s": 0.003,
    }  # fmt: skip
    return Figures(codec=codec, **{**values, **changed})


sizes = st.floats(50, 50_000)
seconds = st.floats(1e-4, 10)
decibels = st.none() | st.floats(20, 45)


@st.composite
def field(draw: st.DrawFn, good: bool = False) -> list[Figures]:
    """Figures of one to four codecs; `good`: all reach the default goal."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    db = st.just(50.0) if good else decibels
    return [
        Figures(
            codec=name,
            params={},
            frames=3,
            record_bytes=draw(sizes),
            encode_s=draw(seconds),
            background_db=draw(db),
            object_db=draw(db),
            decode_s=draw(st.none() | seconds),
            shared_bytes=draw(st.floats(0, 1e6)),
            shared_frames=draw(st.floats(1, 10_000)),
        )
        for name in names
    ]


goals = st.builds(Goal, st.sampled_from(["time", "bytes"]), st.floats(20, 45), st.floats(20, 45))
links = st.builds(Link, st.integers(0, 1000), st.none() | st.floats(1e4, 1e10))


def choose(goal: Goal, link: Link, candidates: list[Figures], incumbent: str | None = None) -> Decision:
    decision = decide(goal, link, candidates, incumbent=incumbent)
    assert decision is not None
    return decision


@given(goals, links, field())
def test_the_cheapest_of_those_good_enough_wins(goal: Goal, link: Link, candidates: list[Figures]) -> None:
    decision = choose(goal, link, candidates)
    won = next(one for one in candidates if one.codec == decision.codec)
    good = [one for one in candidates if one.shortfall_db(goal) == 0]
    if good:
        assert won in good
        assert all(cost_of(won, link).value(goal.objective) <= cost_of(o, link).value(goal.objective) for o in good)
    else:
        assert won.shortfall_db(goal) == min(one.shortfall_db(goal) for one in candidates)
    assert {one.figures.codec for one in decision.weighed} == {one.codec for one in candidates}
    assert [one.figures.codec for one in decision.weighed if one.chosen] == [decision.codec]
    assert all(one.reason for one in decision.weighed)


@given(goals, links, field(), st.data())
def test_being_better_never_loses(goal: Goal, link: Link, candidates: list[Figures], data: st.DataObject) -> None:
    """Whoever is chosen stays so when it gets cheaper or better and all else is as it was."""
    decision = choose(goal, link, candidates)
    factor = data.draw(st.floats(0.1, 1))
    more = data.draw(st.floats(0, 10))

    def improved(one: Figures) -> Figures:
        return dataclasses.replace(
            one,
            record_bytes=one.record_bytes * factor,
            encode_s=one.encode_s * factor,
            background_db=None if one.background_db is None else one.background_db + more,
            object_db=None if one.object_db is None else one.object_db + more,
        )

    assume(any(one.shortfall_db(goal) == 0 for one in candidates) or more == 0)
    changed = [improved(one) if one.codec == decision.codec else one for one in candidates]
    assert choose(goal, link, changed).codec == decision.codec


def bytes_of(codec: str, candidates: list[Figures]) -> float:
    return next(one.delivered_bytes for one in candidates if one.codec == codec)


@given(field(good=True), st.integers(1, 500), st.integers(1, 500), st.floats(1e4, 1e9))
def test_more_receivers_never_mean_larger_records(candidates: list[Figures], a: int, b: int, rate: float) -> None:
    few, many = sorted((a, b))
    before = choose(Goal("time"), Link(few, rate), candidates).codec
    after = choose(Goal("time"), Link(many, rate), candidates).codec
    assert bytes_of(after, candidates) <= bytes_of(before, candidates) * (1 + 1e-9)


@given(field(good=True), st.integers(1, 500), st.floats(1e4, 1e9), st.floats(1e4, 1e9))
def test_a_faster_link_never_means_smaller_records(candidates: list[Figures], n: int, a: float, b: float) -> None:
    slow, fast = sorted((a, b))
    before = choose(Goal("time"), Link(n, slow), candidates).codec
    after = choose(Goal("time"), Link(n, fast), candidates).codec
    assert bytes_of(after, candidates) >= bytes_of(before, candidates) * (1 - 1e-9)


@given(field(good=True), links, links)
def test_least_bytes_does_not_depend_on_receivers_or_rates(candidates: list[Figures], a: Link, b: Link) -> None:
    one, other = choose(Goal("bytes"), a, candidates), choose(Goal("bytes"), b, candidates)
    assert bytes_of(one.codec, candidates) == pytest.approx(bytes_of(other.codec, candidates))


@given(goals, links, field(), st.sampled_from(NAMES))
def test_a_choice_made_again_is_the_same(goal: Goal, link: Link, candidates: list[Figures], incumbent: str) -> None:
    """With itself in use the planner never changes its mind on the same figures: no flapping."""
    first = choose(goal, link, candidates, incumbent)
    assert choose(goal, link, candidates, first.codec).codec == first.codec


@given(goals, links, st.floats(-0.04, 0.04), st.sampled_from(["avif2", "jpeg2"]))
def test_noise_within_the_margin_changes_nothing(goal: Goal, link: Link, noise: float, incumbent: str) -> None:
    noisy = figures("avif2", record_bytes=2000 * (1 + noise), encode_s=0.02 * (1 + noise), decode_s=0.003 * (1 + noise))
    candidates = [
        figures("jpeg2", background_db=50.0, object_db=50.0),
        dataclasses.replace(noisy, background_db=50.0, object_db=50.0),
    ]
    assert choose(goal, link, candidates, incumbent).codec == incumbent


def test_the_margin_and_the_slack_are_what_they_say() -> None:
    link, goal = Link(9), Goal()
    held = figures("jpeg2", record_bytes=1000.0)
    just = figures("avif2", record_bytes=1000.0 * (1 - MARGIN) + 1)
    more = figures("avif2", record_bytes=1000.0 * (1 - MARGIN) - 1)
    assert choose(goal, link, [held, just], "jpeg2").codec == "jpeg2"
    assert choose(goal, link, [held, just]).codec == "avif2"
    assert choose(goal, link, [held, more], "jpeg2").codec == "avif2"
    short = dataclasses.replace(held, object_db=35 - SLACK_DB + 0.01)
    dear = figures("avif2", record_bytes=9000.0)
    assert choose(goal, link, [short, dear], "jpeg2").codec == "jpeg2"
    assert choose(goal, link, [short, dear]).codec == "avif2"
    too_short = dataclasses.replace(held, object_db=35 - SLACK_DB - 0.01)
    assert choose(goal, link, [too_short, dear], "jpeg2").codec == "avif2"


def test_reasons_name_what_decided() -> None:
    link = Link(9, 1e6)
    decision = decide(
        Goal("time"),
        link,
        [figures("jpeg2", record_bytes=4000.0), figures("avif2"), figures("siren", object_db=33.0)],
        [Dropped("latent", "too slow: 3 s an image")],
    )
    assert decision is not None
    assert decision.codec == "avif2"
    assert decision.reason == "least time, 167.0 ms an image to 9 receivers at 1 Mbit/s"
    reasons = {one.figures.codec: one.reason for one in decision.weighed}
    assert reasons["jpeg2"] == "1.86 times the time of avif2"
    assert reasons["siren"] == "misses the stated quality: objects 33.0 of 35 dB"
    assert decision.dropped[0].reason == "too slow: 3 s an image"
    assert "(assumed)" in choose(Goal("time"), Link(1), [figures("jpeg2")]).reason
    alone = choose(Goal(), Link(0), [figures("jpeg2", background_db=20.0)])
    assert alone.reason == "none reaches the stated quality; this one misses it least, by 8.0 dB"
    assert decide(Goal(), link, []) is None


def test_shared_state_is_charged_by_the_image() -> None:
    one = figures("latent", record_bytes=1000.0, shared_bytes=40_000.0, shared_frames=400.0)
    assert one.delivered_bytes == 1100
    cost = cost_of(one, Link(9))
    assert cost.downlink_bytes == 9900
    assert cost.downlink_s == pytest.approx(9900 * 8 / DEFAULT_RATE_BIT_S)
    assert cost.delivery_s == pytest.approx(0.023 + cost.downlink_s)


@given(goals, links, field())
def test_a_choice_survives_json(goal: Goal, link: Link, candidates: list[Figures]) -> None:
    choice = Choice("cam", 320, 180, choose(goal, link, candidates), True)
    assert msgspec.json.decode(msgspec.json.encode(choice), type=Choice) == choice


def test_the_communication_model_gives_the_published_figures() -> None:
    paper = communication_of(9, 12_100.0, 1000.0)
    assert paper.gain == pytest.approx(5.161, abs=0.001)
    assert paper.serverless_bytes / paper.fog_bytes == pytest.approx(paper.gain)
    assert communication_of(9, 1000.0, 12.5, beta=0.15).gain == pytest.approx(34.3, abs=0.1)
    assert communication_of(1, 1000.0, 100.0).gain < 1
    assert communication_of(9, 1000.0, 0.0).gain == 9
    assert communication_of(9, 1000.0, 50.0, beta=0.1).gain_as_captured == pytest.approx(9 / 1.45)


def test_training_belongs_at_the_edges_below_the_break_even() -> None:
    place = Place(6.4e6, 10_000.0)
    assert place.break_even_images == 640
    assert place.cheaper is None
    assert Place(6.4e6, 10_000.0, 639).cheaper == "edges"
    assert Place(6.4e6, 10_000.0, 640).cheaper == "fog"
