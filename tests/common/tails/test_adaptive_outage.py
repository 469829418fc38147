"""A cable that is pulled and put back between a model and its host: answers in time, and the host again after.

Needs root and `ip`, for a network namespace of the host's own. `pytest -rP --log-level=INFO` tells the times.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tail_parts import EXAMPLE, HostProcess, fresh

from fogline import AdaptiveModel
from fogline.common import pki
from fogline.common.config import TlsConfig
from fogline.common.split.measure import Calibration, Effort, measure
from fogline.common.split.profile import hardware_id

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip, of the package iproute2"),
]

log = logging.getLogger(__name__)

HERE, THERE = "10.99.8.1", "10.99.8.2"
DEADLINE_S = 0.5
SLOW = 1e4  # a device on which the host is worth asking
DEVICE_S = 0.25  # what this machine, busy as it may be, takes for the model itself, at most


@dataclass
class Cable:
    """Between this namespace and another one."""

    namespace: str
    device: str

    def set(self, state: str) -> None:
        """`up` or `down`."""
        _run("ip", "link", "set", self.device, state)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    made = Cable("fgl" + secrets.token_hex(3), "fgl" + secrets.token_hex(3))
    _run("ip", "netns", "add", made.namespace)
    try:
        _run("ip", "link", "add", made.device, "type", "veth", "peer", "name", "eth0", "netns", made.namespace)
        _run("ip", "addr", "add", f"{HERE}/24", "dev", made.device)
        _run("ip", "-n", made.namespace, "addr", "add", f"{THERE}/24", "dev", "eth0")
        for words in (("lo",), ("eth0",)):
            _run("ip", "-n", made.namespace, "link", "set", *words, "up")
        made.set("up")
        yield made
    finally:
        _run("ip", "netns", "del", made.namespace)  # takes the cable with it


@pytest.fixture
def far(cable: Cable, tmp_path: Path) -> Iterator[tuple[HostProcess, TlsConfig]]:
    """A host at the other end, and what a device needs to talk to it."""
    authority = pki.Authority.create()
    authority.save(tmp_path)
    for name, role, names in (("edge", "edge", ()), ("fog", "fog", (THERE,))):
        made = authority.enrol(name, role, names)  # type: ignore[arg-type]
        pki.save_enrolment(made, authority.certificate_pem, name, tmp_path)

    def tls(name: str) -> TlsConfig:
        return TlsConfig(ca=tmp_path / "ca.pem", cert=tmp_path / f"{name}.pem", key=tmp_path / f"{name}.key")

    inside = ("nsenter", f"--net=/run/netns/{cable.namespace}")
    host = HostProcess(tmp_path / "host", tls("fog"), inside=inside, listen=f"{THERE}:0")
    yield host, tls("edge")
    host.stop()


@pytest.mark.parametrize("seconds", [3.0, 20.0], ids=["shorter than a stall", "longer than a stall"])
def test_answers_in_time_and_the_host_again(cable: Cable, far: tuple[HostProcess, TlsConfig], seconds: float) -> None:
    host, tls = far
    model = fresh().eval()
    profile = measure(
        model, Calibration(torch.randn(4, 3, 8, 8)), name="tail_models:net", codecs=("raw",),
        effort=Effort(rounds=2, repeats=2, samples=2),
    )  # fmt: skip
    device = profile.scaled(SLOW, hardware_id(1))
    x = torch.randn(1, 3, 8, 8)
    expected = model(x)
    with AdaptiveModel(
        model,
        f"{THERE}:{host.port}",
        profile=device,
        host_profile=profile,
        example=EXAMPLE,
        deadline_s=DEADLINE_S,
        tls=tls,
    ) as split:
        split.wait_ready()
        took: list[tuple[float, float, str]] = []  # begun, latency, by

        def ask(until: float, ended: Callable[[], bool] = lambda: False) -> None:
            while time.monotonic() < until and not ended():
                began = time.monotonic()
                assert torch.equal(split(x), expected)
                assert split.last is not None
                took.append((began, time.monotonic() - began, split.last.by))

        ask(time.monotonic() + 2.0)
        assert {by for _, _, by in took[-5:]} == {"host"}
        cable.set("down")
        down = time.monotonic()
        ask(down + seconds)
        cable.set("up")
        up = time.monotonic()
        ask(up + 60.0, lambda: took[-1][0] > up and took[-1][2] == "host")
    before = [one for one in took if one[0] < down]
    away = [one for one in took if down <= one[0] < up]
    told = {
        "median_before_s": statistics.median(one[1] for one in before),
        "first_by_device_s": next(one[0] + one[1] for one in away if one[2] == "device") - down,
        "longest_s": max(one[1] for one in took if one[0] >= down - 1.0),
        "median_away_s": statistics.median(one[1] for one in away),
        "back_s": took[-1][0] + took[-1][1] - up,
        "asked_in_vain": sum(one[1] > 0.1 for one in away),
    }
    for name, value in told.items():
        log.info("%g s without a link: %s %.3g", seconds, name, value)
    assert took[-1][2] == "host"
    assert told["longest_s"] < DEADLINE_S + DEVICE_S
    assert {one[2] for one in away if one[0] > down + 1.0} == {"device"}
    assert told["back_s"] < 30.0
