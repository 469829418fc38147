"""A cluster of real processes that are killed while they work."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fogline.common.data.clip import write_clip
from fogline.common.data.load import load_sequence
from fogline.deploy.local import job
from fogline.deploy.local.cluster import Cluster, Settings
from fogline.deploy.local.plan import Plan, make_plan
from fogline.deploy.local.progress import Progress
from fogline.fog_node.stats import read_images
from fogline.report.holdings import check, read_holdings

VICTIMS = ("cloud", "fog", "edge-01", "edge-02", "edge-03", "encoder", "trainer")
_CHILD_OF = {"encoder": ("fog", "encode_worker"), "trainer": ("edge-01", "train_process")}


@dataclass(frozen=True)
class Kill:
    """kill -9 of `victim` once this share of the whole job is done."""

    victim: str
    at: float


class Executioner:
    """Watches the job's progress and kills what is due."""

    def __init__(self, cluster: Cluster, kills: Sequence[Kill]) -> None:
        self._cluster = cluster
        self._waiting = sorted(kills, key=lambda kill: kill.at)
        self.done: list[Kill] = []

    def __call__(self, progress: Progress) -> None:
        while self._waiting and _share(progress) >= self._waiting[0].at:
            victim = self._find(self._waiting[0].victim)
            if victim is None:
                return  # it is just being restarted: the next look will find it
            victim.kill()
            self.done.append(self._waiting.pop(0))

    def _find(self, name: str) -> psutil.Process | None:
        parent, marker = _CHILD_OF.get(name, (name, ""))
        popen = self._cluster.supervisor.children[parent].popen
        if popen is None:
            return None
        try:
            process = psutil.Process(popen.pid)
            if not marker:
                return process
            return next((c for c in process.children(recursive=True) if marker in " ".join(c.cmdline())), None)
        except psutil.Error:
            return None


def _share(progress: Progress) -> float:
    edges = progress.edges
    done = progress.fog.stored + progress.fog.published + sum(e.captured + e.held + e.step for e in edges)
    total = 2 * progress.fog.images + sum(e.to_capture + e.to_hold + e.to_train for e in edges)
    return done / total


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Three edges with ten images each."""
    folder = tmp_path_factory.mktemp("clip") / "clip"
    clip = write_clip(folder, cameras=3, frames=14, width=160, height=96)
    return make_plan([load_sequence(path) for path in clip], 3, 0.7)


def run_with_kills(
    plan: Plan, out: Path, kills: Sequence[Kill], *, train_steps: int, uplink: str = "original"
) -> Cluster:
    """Do the job to its end while processes die; afterwards everything must be as if nothing had happened."""
    settings = Settings(
        out=out,
        codec="jpeg2",
        uplink=uplink,
        width=96,
        height=64,
        fps=8,
        train_steps=train_steps,
        train_edges=1,
        evaluate_every=5,
    )
    cluster = Cluster(plan, settings)
    try:
        cluster.start()
        executioner = Executioner(cluster, kills)
        progress, _ = job.run(cluster, executioner, stall_s=45)
    finally:
        cluster.stop()
    assert executioner.done == sorted(kills, key=lambda kill: kill.at)
    assert progress.missing == {}
    assert_as_undisturbed(cluster)
    return cluster


def assert_as_undisturbed(cluster: Cluster) -> None:
    """Every edge holds exactly the others' images, each once; the fog node published each image once."""
    plan = cluster.plan
    for edge in plan.edges:
        found = check(read_holdings(edge.name, cluster.data_dir(edge.name) / "library"), plan.expected(edge.name))
        assert (found.held, found.lost, found.duplicated, found.unexpected) == (found.expected, 0, 0, 0)
        counters = cluster.counters[edge.name]
        left = [counters.last("fogline_uploaded_images_total", outcome=o) or 0 for o in ("stored", "duplicate")]
        assert (sum(left), counters.last("fogline_captured_images_total")) == (len(edge.images), len(edge.images))
    images = read_images(cluster.data_dir("fog"))
    assert {image.content_id for image in images} == plan.images.keys()
    assert [image.state for image in images] == ["published"] * len(images)
    cursors = [image.cursor for image in images]
    assert len(set(cursors)) == len(cursors)
    owners = {content_id: (edge.name,) for edge in plan.edges for content_id in edge.content_ids}
    assert {image.content_id: image.sources for image in images} == owners


def random_kills(seed: int, count: int, victims: Sequence[str] = VICTIMS) -> list[Kill]:
    """Reproducible bad luck."""
    luck = random.Random(seed)
    return [Kill(luck.choice(victims), luck.uniform(0.0, 0.95)) for _ in range(count)]
