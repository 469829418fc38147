"""A model that is answered by device or host: the same bits either way, and an answer whatever happens to the link."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tail_parts import EXAMPLE, HostProcess, fresh
from torch import nn

from fogline import AdaptiveModel
from fogline.common.errors import ConfigError, IdentityError, InputError, UnavailableError
from fogline.common.split.measure import Calibration, Effort, measure
from fogline.common.split.profile import Profile, hardware_id, save

CUTS = ("first", "early", "second")
SLOW = 1e5  # a device on which the host is worth asking, whatever else this machine does
DEADLINE_S = 2.0


@pytest.fixture(scope="module")
def host_profile() -> Profile:
    """Of the host, which is this machine."""
    torch.set_num_threads(1)
    calibration = Calibration(torch.randn(4, 3, 8, 8))
    effort = Effort(rounds=2, repeats=2, samples=2)
    return measure(
        fresh().eval(), calibration, name="tail_models:net", batches=(1, 4), codecs=("raw", "int8"),
        cut_names=CUTS, effort=effort,
    )  # fmt: skip


@pytest.fixture
def adaptive(host_profile: Profile) -> Any:
    """Makes adaptive models whose device is called slow."""
    made: list[AdaptiveModel] = []

    def make(model: nn.Module, host: HostProcess, **options: Any) -> AdaptiveModel:
        device = host_profile.scaled(options.pop("slow", SLOW), hardware_id(1))
        options = {"profile": device, "host_profile": host_profile, "example": EXAMPLE, **options}
        if "policy" not in options:  # a host on a busy machine is waited for, so that it is known who answers
            options["params"] = {"min_wait_s": 10.0}
        made.append(AdaptiveModel(model, host.address, **{"deadline_s": DEADLINE_S, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


Make = Callable[..., AdaptiveModel]


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def test_the_policy_asks_the_host_where_that_is_faster(host: HostProcess, adaptive: Make) -> None:
    model = fresh().eval()
    split = adaptive(model, host)
    split.wait_ready()
    for size in (1, 4, 3):
        x = torch.randn(size, 3, 8, 8)
        assert torch.equal(split(x), model(x))
        assert split.last is not None
        assert (split.last.by, split.last.cut) == ("host", "input")
        assert split.last.predicted_s is not None
        assert split.last.measured_s > 0
    assert split.link.usable
    # A device as fast as its host has no reason to ask.
    quick = adaptive(model, host, slow=0.001)
    quick.wait_ready()
    assert torch.equal(quick(x), model(x))
    assert quick.last is not None
    assert (quick.last.by, quick.last.cut, quick.last.reason) == ("device", "local", "least latency")


@pytest.mark.parametrize("cut", ["input", *CUTS])
def test_every_cut_has_the_same_bits(host: HostProcess, adaptive: Make, cut: str) -> None:
    model = fresh().eval()
    split = adaptive(model, host, policy="fixed", params={"cut": cut})
    x = torch.randn(2, 3, 8, 8)
    before = split(x)  # whether or not the host is there yet
    split.wait_ready()
    after = split(x)
    assert split.last is not None
    assert (split.last.by, split.last.cut) == ("host", cut)
    assert torch.equal(before, model(x))
    assert torch.equal(after, model(x))


@pytest.mark.parametrize("policy", ["local", "remote", "dynamic", "neurosurgeon"])
def test_other_policies_take_the_codec_of_the_session(host: HostProcess, adaptive: Make, policy: str) -> None:
    model = fresh().eval()
    split = adaptive(model, host, policy=policy)
    split.wait_ready()
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(split(x), model(x))
    assert split.last is not None
    assert split.last.by == ("device" if policy == "local" else "host")


def test_a_host_that_is_killed_and_comes_back(hosts: Any, adaptive: Make) -> None:
    host, model = hosts(), fresh().eval()
    split = adaptive(model, host)
    split.wait_ready()
    for round_ in range(2):
        by = set()
        for number in range(30):
            if number == 10:
                host.kill()
            x = torch.randn(2, 3, 8, 8)
            began = time.monotonic()
            assert torch.equal(split(x), model(x))
            assert time.monotonic() - began < DEADLINE_S
            assert split.last is not None
            by.add(split.last.by)
            assert number >= 10 or split.last.by == "host", (round_, split.last)
        assert split.last.by == "device"
        assert by == {"host", "device"}
        host._start()
        split.wait_ready()
        assert torch.equal(split(x), model(x))
        assert split.last.by == "host", split.last


def test_a_host_that_lost_its_state_gets_the_weights_again(hosts: Any, adaptive: Make) -> None:
    host, model = hosts(), fresh().eval()
    split = adaptive(model, host)
    split.wait_ready()
    host.kill()
    for path in sorted(host.config.data_dir.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    until(lambda: not split.connected)
    host._start()
    x = torch.randn(2, 3, 8, 8)

    def answered_there() -> bool:
        assert torch.equal(split(x), model(x))
        return split.last is not None and split.last.by == "host"

    until(answered_there)


def test_no_answer_in_time(hosts: Any, adaptive: Make) -> None:
    """A host that hangs, on a connection that stays: the device computes the rest, and later all of it at once."""
    host, model = hosts(), fresh().eval()
    split = adaptive(model, host, policy="fixed", params={"cut": "first"}, deadline_s=0.3)
    split.wait_ready()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    host.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert torch.equal(split(x), expected)
        assert 0.3 <= time.monotonic() - began < 1.5
        assert split.last is not None
        assert (split.last.by, split.last.cut) == ("device", "first")
        assert "no answer" in split.last.reason
        with ThreadPoolExecutor(8) as pool:
            assert all(torch.equal(found, expected) for found in pool.map(split, [x] * 12))
        x.zero_()  # the caller's own again
        assert torch.equal(split(x), model(x))
        assert "under way" in split.last.reason
    finally:
        host.process.send_signal(signal.SIGCONT)

    def answered_there() -> bool:
        assert torch.equal(split(x), model(x))
        return split.last is not None and split.last.by == "host"

    until(answered_there)


def test_nobody_there_at_first(hosts: Any, adaptive: Make) -> None:
    host, model = hosts(), fresh().eval()
    host.kill()
    split = adaptive(model, host, connect_s=1.0, give_up_s=1.0)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(split(x), model(x))
    assert split.last is not None
    assert split.last.by == "device"
    with pytest.raises(UnavailableError):
        split.wait_ready(0.2)
    host._start()
    split.wait_ready()
    assert torch.equal(split(x), model(x))
    assert split.last.by == "host"


def test_a_host_that_refuses_is_told_to_who_waits(hosts: Any, adaptive: Make) -> None:
    model = fresh().eval()
    split = adaptive(model, hosts(models=("tail_models:dicts",)))
    x = torch.randn(2, 3, 8, 8)
    until(lambda: split._host.trouble is not None)
    assert torch.equal(split(x), model(x))
    with pytest.raises(IdentityError, match="tail_models:net"):
        split.wait_ready(0.1)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_of_nothing_is_no_link(host: HostProcess, adaptive: Make, rate: float) -> None:
    model = fresh().eval()
    split = adaptive(model, host)
    split.wait_ready()
    x = torch.randn(1, 3, 8, 8)
    split.tell_rate(rate)
    assert torch.equal(split(x), model(x))
    assert split.last is not None
    assert (split.last.by, split.last.cut) == ("device", "local")
    assert "was told" in split.last.reason
    split.tell_rate(1e9)
    assert torch.equal(split(x), model(x))
    assert split.last.by == "host"
    split.tell_rate(8.0)  # a byte a second
    split(x)
    assert split.last.cut == "local"
    split.tell_rate(None)
    split(x)
    assert split.last.by == "host"


def test_what_was_not_measured_is_computed_here(host: HostProcess, adaptive: Make) -> None:
    model = fresh().eval()
    split = adaptive(model, host, policy="fixed", params={"cut": "first"})
    split.wait_ready()
    for x, why in ((torch.randn(9, 3, 8, 8), "a batch of 9"), (torch.randn(2, 3, 6, 6), "first was chosen")):
        assert torch.equal(split(x), model(x))
        assert split.last is not None
        assert (split.last.by, split.last.cut) == ("device", "local")
        assert why in split.last.reason
    with pytest.raises(RuntimeError, match="channels"):  # the model's own error
        split(torch.randn(2, 4, 8, 8))


def test_after_the_end_everything_is_computed_here(host: HostProcess, adaptive: Make) -> None:
    model = fresh().eval()
    x = torch.randn(1, 3, 8, 8)
    with adaptive(model, host) as split:
        split.wait_ready()
        split(x)
    assert torch.equal(split(x), model(x))
    assert split.last is not None
    assert split.last.by == "device"
    assert set(split.state_dict()) == {f"model.{name}" for name in model.state_dict()}


def test_refused_before_anybody_is_called(host: HostProcess, host_profile: Profile, tmp_path: Path) -> None:
    mine = msgspec.structs.replace(host_profile, hardware=hardware_id(1))
    save(mine, tmp_path / "mine.json")
    save(host_profile, tmp_path / "host.json")
    right: dict[str, Any] = {"profile": tmp_path / "mine.json", "host_profile": str(tmp_path / "host.json")}
    AdaptiveModel(fresh().eval(), host.address, example=EXAMPLE, **right).close()
    for wrong, error, match in (
        ({"profile": msgspec.structs.replace(mine, architecture="0")}, ConfigError, "stale: its architecture"),
        ({"profile": msgspec.structs.replace(mine, hardware="other")}, ConfigError, "stale: its hardware"),
        ({"profile": msgspec.structs.replace(mine, torch="1.0")}, ConfigError, "stale: its torch"),
        ({"host_profile": msgspec.structs.replace(mine, architecture="0")}, ConfigError, "stale: its architecture"),
        ({"profile": tmp_path / "none.json"}, ConfigError, "can't be read"),
        ({"cuts": ["frist"]}, ConfigError, "'frist' is not in the profile"),
        ({"cuts": []}, ConfigError, "none is given"),
        ({"policy": "jiont"}, ConfigError, "did you mean 'joint'"),
        ({"params": {"patients": 1}}, ConfigError, "no parameter 'patients'"),
        ({"codec": "zstd"}, ConfigError, "codec 'zstd' is not in the profile"),
        ({"deadline_s": 0.0}, ConfigError, "deadline_s"),
        ({"example": None}, InputError, "not traced"),
    ):
        with pytest.raises(error, match=match):
            AdaptiveModel(fresh().eval(), host.address, **{"example": EXAMPLE, **right, **wrong})
    with pytest.raises(InputError, match=r"model\.eval\(\)"):
        AdaptiveModel(fresh(), host.address, example=EXAMPLE, **right)
