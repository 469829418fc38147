"""kill -9 of any one process at a random moment: nothing lost, nothing doubled, nobody has to help."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fogline.common.errors import UnavailableError
from fogline.common.images.forms import Form
from fogline.deploy.local import job
from fogline.deploy.local.cluster import Cluster, Settings
from fogline.deploy.local.plan import Plan
from fogline.fog_node.stats import read_images
from tests.faults.conftest import Kill, random_kills, run_with_kills


@pytest.mark.timeout(420)
def test_one_of_each_dies_in_one_job(plan: Plan, tmp_path: Path) -> None:
    kills = [
        Kill("edge-02", 0.05),
        Kill("encoder", 0.15),
        Kill("cloud", 0.25),
        Kill("fog", 0.35),
        Kill("edge-03", 0.5),
        Kill("trainer", 0.8),
    ]
    cluster = run_with_kills(plan, tmp_path / "out", kills, train_steps=40)
    restarts = {name: child.restarts for name, child in cluster.supervisor.children.items()}
    assert restarts == {"cloud": 1, "fog": 1, "edge-01": 0, "edge-02": 1, "edge-03": 1}


@pytest.mark.timeout(240)  # a whole job, ten seconds of it capture
def test_edges_that_make_uplink_forms_die_too(plan: Plan, tmp_path: Path) -> None:
    kills = [Kill("edge-02", 0.1), Kill("fog", 0.3), Kill("edge-03", 0.5), Kill("encoder", 0.7)]
    cluster = run_with_kills(plan, tmp_path / "out", kills, train_steps=0, uplink="roi")
    assert {image.form for image in read_images(cluster.data_dir("fog"))} == {Form.ROI}


@pytest.mark.timeout(240)
def test_a_stall_names_who_is_stuck_and_shows_the_log(plan: Plan, tmp_path: Path) -> None:
    cluster = Cluster(plan, Settings(out=tmp_path / "out", codec="jpeg2", width=96, height=64))
    try:
        cluster.start()
        fog = cluster.supervisor.children["fog"].popen
        assert fog is not None
        fog.send_signal(signal.SIGSTOP)
        with pytest.raises(UnavailableError, match=r"nothing has moved(?s:.*)fog holds(?s:.*)the end of \S+fog\.log"):
            job.run(cluster, lambda progress: None, stall_s=3)
        fog.send_signal(signal.SIGCONT)
    finally:
        cluster.stop()


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize("seed", range(20))
def test_one_random_kill(plan: Plan, tmp_path: Path, seed: int) -> None:
    run_with_kills(plan, tmp_path / "out", random_kills(seed, 1), train_steps=20)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("uplink", ["original", "roi"])
def test_many_random_kills_in_one_job(plan: Plan, tmp_path: Path, uplink: str) -> None:
    run_with_kills(plan, tmp_path / "out", random_kills(2024, 12), train_steps=40, uplink=uplink)
