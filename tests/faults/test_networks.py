"""Cameras behind bad links: every image arrives once on both sides, whatever the link does meanwhile.

One agent here, a fog node and another agent beyond the link; each captures 12 frames and receives those of the other.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fogline.edge_agent.library import Library
from tests.edge_agent.edge_helpers import until
from tests.edge_agent.edge_processes import Node, nodes, tls
from tests.faults.slow_link import THERE, Conditions, Link, slow_link

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip, of the package iproute2"),
    pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun"),
]
FRAMES = 12


@pytest.fixture
def link() -> Iterator[Link]:
    with slow_link() as made:
        yield made


def frames(folder: Path, seed: int) -> set[bytes]:
    """An OTB folder of frames of some 50 kB each, and their content ids."""
    generator = np.random.default_rng(seed)
    (folder / "img").mkdir(parents=True)
    ids = set()
    for index in range(FRAMES):
        noise = generator.integers(0, 256, (60, 80, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC).save(out, "JPEG", quality=95)
        (folder / "img" / f"{index:03d}.jpg").write_bytes(out.getvalue())
        ids.add(hashlib.sha256(out.getvalue()).digest())
    (folder / "groundtruth_rect.txt").write_text("9,9,60,40\n" * FRAMES)
    return ids


class Deployment:
    """Started, with the link as it was when the agents began."""

    def __init__(self, tmp_path: Path, certificates: Any, port: int, link: Link) -> None:
        address = f"{THERE}:{port}"
        servers = certificates.tls("fog-1", "fog", hosts=(THERE,))
        settings = {
            "data_dir": tmp_path / "fog" / "data",
            "listen": address,
            "tls": tls(servers),
            "encoder": {"codec": "jpeg2", "max_wait_s": 0.05, "threads": 1},
        }
        far = link.command(sys.executable, "-m")
        self.fog = Node(tmp_path / "fog", "", settings, [*far, "fogline.fog_node"])
        self.ids: dict[str, set[bytes]] = {}
        self.agents: dict[str, Node] = {}
        for seed, (name, prefix) in enumerate(
            {"near": [sys.executable, "-m"], "far": link.command(sys.executable, "-m")}.items()
        ):
            self.ids[name] = frames(tmp_path / f"seq-{name}", seed)
            agent = {
                "name": name,
                "data_dir": tmp_path / name / "data",
                "fog": address,
                "tls": tls(certificates.tls(name, "edge")),
                "train": {"enabled": False},
                "capture": {"source": "sequence", "runs": [{"path": tmp_path / f"seq-{name}"}], "fps": 4},
            }
            self.agents[name] = Node(tmp_path / name, "", agent, [*prefix, "fogline.edge_agent"])

    def start(self, made: list[Node]) -> None:
        """Start all three."""
        made += [self.fog, *self.agents.values()]
        for node in (self.fog, self.agents["far"], self.agents["near"]):
            node.start()

    def received(self, name: str) -> int:
        """Records in an agent's library; it may be in another namespace, so its file is read."""
        file = self.agents[name].folder / "data" / "library" / "library.sqlite"
        if not file.exists():
            return 0
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as db:
            return int(db.execute("SELECT count(*) FROM records").fetchone()[0])

    def check(self, seconds: float) -> None:
        """Everything arrives, once, and everybody ends well."""
        until(lambda: self.received("near") == self.received("far") == FRAMES, seconds, "all images on both sides")
        assert self.agents["near"].health()["outbox"]["images"] == 0
        for name in ("near", "far"):
            assert self.agents[name].stop() == 0
        for name, other in (("near", "far"), ("far", "near")):
            library = Library(self.agents[name].folder / "data" / "library", 1 << 30)
            assert sorted(entry.content_id for entry in library.entries()) == sorted(self.ids[other])
            library.close()


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(rate_bit_s=1e6),
        Conditions(rate_bit_s=10e6),
        Conditions(delay_s=0.1),  # a round trip of 200 ms
        Conditions(loss=0.05),
        Conditions(rate_bit_s=1e6, delay_s=0.1, loss=0.05),
    ],
    ids=["1 Mbit/s", "10 Mbit/s", "200 ms", "5 % loss", "all at once"],
)
def test_nothing_is_lost(conditions: Conditions, link: Link, tmp_path: Path, certificates: Any, free_port: int) -> None:
    link.conditions = conditions
    deployment = Deployment(tmp_path, certificates, free_port, link)
    with nodes() as made:
        deployment.start(made)
        deployment.check(200)
    assert link.carried > 12 * 20_000, "images went over the link"


def _flaps(link: Link, progress: Callable[[], int]) -> None:
    for _ in range(4):
        before, until_s = progress(), time.monotonic() + 15
        while progress() == before and time.monotonic() < until_s:
            time.sleep(0.05)
        link.conditions.up = False
        time.sleep(2.0)  # the fault itself: a cable that is out so long
        link.conditions.up = True


def test_an_interface_that_flaps(link: Link, tmp_path: Path, certificates: Any, free_port: int) -> None:
    link.conditions = Conditions(rate_bit_s=1e6)
    deployment = Deployment(tmp_path, certificates, free_port, link)
    with nodes() as made:
        deployment.start(made)
        _flaps(link, lambda: deployment.received("far"))
        deployment.check(200)


def test_a_path_that_swallows_large_packets(link: Link, tmp_path: Path, certificates: Any, free_port: int) -> None:
    """Handshakes hang, as on a path whose MTU is smaller than it says; the agent says so, and gets on once mended."""
    link.conditions = Conditions(largest=700)
    deployment = Deployment(tmp_path, certificates, free_port, link)
    near = deployment.agents["near"]
    with nodes() as made:
        deployment.start(made)
        until(lambda: "full-sized packets" in (near.folder / "log").read_text(), 120, "the reason in the log")
        assert near.health()["ok"] is False
        link.conditions = Conditions()
        deployment.check(200)
