"""The search for the lowest rung that is good enough."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fogline.fog_node.encoders.candidates import CANDIDATES
from fogline.fog_node.encoders.ladder import LadderSearch


@given(st.integers(1, 40), st.integers(0, 45), st.none() | st.integers(-3, 50))
def test_it_finds_the_lowest_rung_that_passes(rungs: int, first_good: int, start: int | None) -> None:
    search = LadderSearch(rungs, start)
    tries = 0
    while not search.settled:
        assert 0 <= search.rung < rungs
        search.tell(search.rung >= first_good)
        tries += 1
    assert search.rung == min(first_good, rungs - 1)
    assert tries <= 2 * rungs.bit_length() + 1


@given(st.integers(2, 40), st.data())
def test_starting_where_it_ended_takes_two_tries(rungs: int, data: st.DataObject) -> None:
    answer = data.draw(st.integers(0, rungs - 1))
    search = LadderSearch(rungs, answer)
    tries = 0
    while not search.settled:
        search.tell(search.rung >= answer)
        tries += 1
    assert search.rung == answer
    assert tries <= 2


def test_settling_ends_it() -> None:
    search = LadderSearch(9)
    search.settle(5)
    search.tell(True)
    assert search.settled
    assert search.rung == 5


def test_every_candidate_has_valid_defaults() -> None:
    from fogline.common.images.avif2 import DEFAULTS as AVIF
    from fogline.common.images.jpeg2 import DEFAULTS as JPEG
    from fogline.fog_node.encoders.latent_params import LatentParams

    LATENT = {name: getattr(LatentParams(), name) for name in ("background_quality", "object_quality")}

    for one in CANDIDATES.values():
        params = one.params(one.default)
        for name, value in {"jpeg2": JPEG, "avif2": AVIF, "latent": LATENT}.get(one.codec, {}).items():
            assert abs(params[name] - value) <= 1
