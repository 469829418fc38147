"""Profiles: saved and read, refused when stale or damaged, and what they say between and beyond measured batches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.common.errors import ConfigError, FormatError, InputError
from fogline.common.split.profile import Profile, hardware_id, load, parse, save

Make = Callable[..., Profile]


def test_what_was_saved_is_read_again(make_profile: Make, tmp_path: Path) -> None:
    profile = make_profile()
    save(profile, tmp_path / "p.json")
    assert load(tmp_path / "p.json") == profile


@pytest.mark.parametrize("what", ["architecture", "hardware", "torch"])
def test_a_stale_profile_is_refused_with_the_command_that_renews_it(make_profile: Make, what: str) -> None:
    profile = make_profile()
    same = {"architecture": profile.architecture, "hardware": profile.hardware, "torch": profile.torch}
    profile.check(**same)
    with pytest.raises(ConfigError) as refused:
        profile.check(**{**same, what: "another"})
    assert f"its {what} is" in str(refused.value)
    assert "fogline split profile --model models:halving --batches 1,4,8" in str(refused.value)


def test_between_batches_it_interpolates_and_beyond_twice_it_refuses(make_profile: Make) -> None:
    profile = make_profile(batches=(2, 4, 8))
    table = {2: 1.0, 4: 3.0, 8: 5.0}
    assert profile.at(table, 4) == 3.0
    assert profile.at(table, 3) == pytest.approx(2.0)
    assert profile.at(table, 7) == pytest.approx(4.5)
    assert profile.at(table, 1) == pytest.approx(0.5)
    assert profile.at(table, 16) == pytest.approx(10.0)
    with pytest.raises(InputError, match=r"--batches 2,4,8,17"):
        profile.at(table, 17)
    with pytest.raises(InputError, match="give 1 or more"):
        profile.at(table, 0)
    with pytest.raises(InputError, match=r"batch of 1;.*--batches 1,4"):
        make_profile(batches=(4,)).at({4: 1.0}, 1)


def test_a_stated_factor_slows_times_and_nothing_else(make_profile: Make) -> None:
    profile = make_profile()
    slow = profile.scaled(8.0)
    assert slow.whole_s[1] == pytest.approx(8 * profile.whole_s[1])
    assert slow.cuts[2].codecs[1].encode_s[4] == pytest.approx(8 * profile.cuts[2].codecs[1].encode_s[4])
    assert slow.cuts[2].codecs[1].coded_bytes == profile.cuts[2].codecs[1].coded_bytes
    assert slow.hardware != profile.hardware
    for factor in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="factor above 0"):
            profile.scaled(factor)


def damaged(profile: Profile, tmp_path: Path, change: Callable[[dict], object]) -> bytes:
    save(profile, tmp_path / "p.json")
    document = json.loads((tmp_path / "p.json").read_text())
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(schema=2),
        lambda d: d.update(surplus=1),
        lambda d: d.pop("whole_s"),
        lambda d: d.update(whole_s={}),
        lambda d: d["whole_s"].update({"4": -1.0}),
        lambda d: d["whole_s"].update({"2": 1.0}),
        lambda d: d["whole_s"].update({"x": 1.0}),
        lambda d: d.update(cuts=[]),
        lambda d: d["cuts"].pop(0),
        lambda d: d["cuts"].append(d["cuts"][1]),
        lambda d: d["cuts"][1]["head_s"].pop("4"),
        lambda d: d["cuts"][1]["codecs"][0]["coded_bytes"].pop("4"),
        lambda d: d["cuts"][1]["codecs"][0].update(accuracy_drop="much"),
        lambda d: d.update(threads=0),
    ],
)
def test_damage_is_refused(make_profile: Make, tmp_path: Path, change: Callable[[dict], object]) -> None:
    with pytest.raises(FormatError, match=r"^here: "):
        parse(damaged(make_profile(), tmp_path, change), "here")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_profile_or_a_typed_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse(data, "here")


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fogline split profile"):
        load(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match="can't be written"):
        save(Profile(1, "m", "a", "h", "t", 1, 1, {1: 1.0}, ()), tmp_path / "no" / "p.json")


def test_the_hardware_says_how_many_threads_compute() -> None:
    assert hardware_id(1) != hardware_id(2)
    assert "1 threads" in hardware_id(1)
