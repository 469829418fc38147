"""The agent as a process, against a real fog node and a real cloud server over mTLS."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import socket
import sqlite3
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest
from edge_helpers import jpeg, otb_folder, until
from edge_processes import Node, get, nodes, tls

from fogline.common.images.container import from_bytes
from fogline.edge_agent.library import Library

NO_TORCH = "import sys; sys.modules['torch'] = None; from fogline.edge_agent.__main__ import main; sys.exit(main())"


def fog_node(folder: Path, certificates: Any, port: int, **more: Any) -> Node:
    settings = {
        "data_dir": folder / "data", "listen": f"127.0.0.1:{port}", "tls": tls(certificates.tls("fog-1", "fog")),
        "encoder": {"codec": "jpeg2", "max_wait_s": 0.05, "threads": 1},
    }  # fmt: skip
    return Node(folder, "fogline.fog_node", settings | more)


def edge(folder: Path, certificates: Any, fog: str, *, run: Path | None = None, **more: Any) -> Node:
    name = folder.name
    settings: dict[str, Any] = {
        "name": name, "data_dir": folder / "data", "fog": fog, "tls": tls(certificates.tls(name, "edge")),
        "train": {"enabled": False},
    }  # fmt: skip
    if run is not None:
        settings["capture"] = {"source": "sequence", "runs": [{"path": run}], "fps": 0}
    prefix = more.pop("prefix", None)
    return Node(folder, "fogline.edge_agent", settings | more, prefix)


def ids(first: int, count: int) -> set[bytes]:
    return {hashlib.sha256(jpeg(n)).digest() for n in range(first, first + count)}


def held(node: Node) -> list[bytes]:
    """Content ids in a stopped agent's library, each record verified."""
    library = Library(node.folder / "data" / "library", 1 << 30)
    found = []
    for entry in library.entries():
        record = from_bytes(library.blobs.get(entry.digest))
        assert record.content_id == entry.content_id
        assert 0 < entry.received_us - entry.capture_us < 600_000_000
        found.append(entry.content_id)
    library.close()
    return found


def test_two_edges_share_over_mtls_without_torch_and_stop_in_time(
    tmp_path: Path, certificates: Any, free_port: int
) -> None:
    with nodes() as made:
        fog = fog_node(tmp_path / "fog", certificates, free_port)
        one, two = (
            edge(
                tmp_path / f"edge-{n}", certificates, f"127.0.0.1:{free_port}",
                run=otb_folder(tmp_path / f"seq{n}", 12, n * 100), train={"enabled": "auto"},
                prefix=[sys.executable, "-c", NO_TORCH],
            )
            for n in (1, 2)
        )  # fmt: skip
        made += [fog, one, two]
        for node in made:
            node.start()
        until(lambda: all(n.health()["library"]["records"] == 12 for n in (one, two)), 60)
        health = one.health()
        assert health["ok"], health
        assert health["train"] == {"state": "off"}
        assert "fogline[torch]" in (one.folder / "log").read_text()
        metrics = get(one.ports["metrics_port"], "/metrics")
        assert "fogline_captured_images_total 12.0" in metrics
        assert 'fogline_uploaded_images_total{outcome="stored"} 12.0' in metrics
        assert "fogline_capture_done 1.0" in metrics
        assert 'fogline_link_bytes_total{direction="sent",kind="image",link="edge-fog"}' in metrics
        sent = sum(path.stat().st_size for path in (tmp_path / "seq1").rglob("*.jpg"))
        assert f"fogline_captured_bytes_total {float(sent)}" in metrics
        assert f'fogline_uploaded_bytes_total{{outcome="stored"}} {float(sent)}' in metrics
        assert "fogline_received_images_total 12.0" in metrics
        assert "fogline_delay_seconds_count 12.0" in metrics
        coded = re.findall(r'fogline_received_bytes_total{codec="jpeg2",layer="(\w+)"} ([0-9.e+]+)', metrics)
        assert sorted(layer for layer, _ in coded) == ["background", "header", "object"]
        assert sum(float(count) for _, count in coded) == health["library"]["bytes"]
        assert 'fogline_connected{link="edge-fog"} 1.0' in metrics
        assert "fogline_healthy 1.0" in metrics
        published = get(fog.ports["metrics_port"], "/metrics")
        assert 'fogline_quality_db_count{area="object"}' in published
        both = sum(path.stat().st_size for seq in ("seq1", "seq2") for path in (tmp_path / seq).rglob("*.jpg"))
        assert f'fogline_taken_bytes_total{{form="original"}} {float(both)}' in published
        records = re.findall(r'fogline_record_bytes_total{codec="jpeg2",layer="\w+"} ([0-9.e+]+)', published)
        assert sum(map(float, records)) == sum(n.health()["library"]["bytes"] for n in (one, two))
        assert re.search(r"fogline_resized_bytes_total [1-9]", published)
        done = "fogline_encode_queue_age_seconds 0.0"
        until(lambda: done in get(fog.ports["metrics_port"], "/metrics"), 10)
        for node in (one, two):
            started = time.monotonic()
            assert node.stop() == 0
            assert time.monotonic() - started < 5
        assert sorted(held(one)) == sorted(ids(200, 12))
        assert sorted(held(two)) == sorted(ids(100, 12))


def survive(tmp_path: Path, certificates: Any, port: int, kills: int, seed: int) -> None:
    """Kill a random process `kills` times while two edges share; nothing is lost and nothing doubles."""
    rng, count = random.Random(seed), 60
    with nodes() as made:
        fog = fog_node(tmp_path / "fog", certificates, port)
        edges = []
        for n in (1, 2):
            sequence = otb_folder(tmp_path / f"seq{n}", count, n * 1000)
            capture = {"source": "sequence", "runs": [{"path": sequence}], "fps": count / kills}
            address = f"127.0.0.1:{port}"
            edges.append(edge(tmp_path / f"edge-{n}", certificates, address, capture=capture))
        made += [fog, *edges]
        for node in made:
            node.start()
        for _ in range(kills):
            time.sleep(rng.uniform(0.0, 0.6))
            victim = rng.choice(made)
            victim.kill()
            time.sleep(rng.uniform(0.0, 0.2))
            victim.start()
        until(lambda: all(n.health()["library"]["records"] == count for n in edges), 90, "all records")
        for node in edges:
            health = node.health()
            assert health["library"]["given_up"] == health["library"]["gone"] == 0
            assert health["outbox"]["captured"] == count
            assert health["outbox"].get("rejected", 0) == 0
            assert node.stop() == 0
        assert sorted(held(edges[0])) == sorted(ids(2000, count))
        assert sorted(held(edges[1])) == sorted(ids(1000, count))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
def test_twenty_kills(tmp_path: Path, certificates: Any, free_port: int, seed: int) -> None:
    survive(tmp_path, certificates, free_port, kills=20, seed=seed)


def test_what_only_an_operator_can_mend_ends_the_start_with_its_exit_code(
    tmp_path: Path, certificates: Any, other_certificates: Any, free_port: int
) -> None:
    address = f"127.0.0.1:{free_port}"
    now = datetime.now(timezone.utc)
    expired = certificates.tls("old", "edge", not_before=now - timedelta(days=9), not_after=now - timedelta(days=1))
    with nodes() as made:
        fog = fog_node(tmp_path / "fog", certificates, free_port)
        made.append(fog)
        fog.start()
        locked = edge(tmp_path / "locked", certificates, address)
        made.append(locked)
        locked.start()
        shared, taken = locked.folder / "data", locked.ports["metrics_port"]
        cases = {
            "foreign": (edge(tmp_path / "foreign", other_certificates, address), 7, "authority"),
            "old": (edge(tmp_path / "old", certificates, address, tls=tls(expired)), 7, "this host's clock says"),
            "other-name": (edge(tmp_path / "other-name", certificates, address, name="somebody"), 7, "somebody"),
            "in-use": (edge(tmp_path / "in-use", certificates, address, data_dir=shared), 2, "another agent"),
            "port": (edge(tmp_path / "port", certificates, address, metrics={"port": taken}), 2, "metrics"),
        }  # fmt: skip
        for name, (node, code, text) in cases.items():
            found, log = node.run()
            assert (found, text in log) == (code, True), f"{name}: {found}\n{log}"
            assert "Traceback" not in log


def test_it_starts_without_a_fog_node_and_uploads_when_one_appears(
    tmp_path: Path, certificates: Any, free_port: int
) -> None:
    with nodes() as made:
        sequence = otb_folder(tmp_path / "seq", 5)
        one = edge(tmp_path / "edge-1", certificates, f"127.0.0.1:{free_port}", run=sequence)
        made.append(one)
        one.start()
        until(lambda: one.health()["outbox"]["images"] == 5)
        health = one.health()
        assert not health["ok"]
        assert "is it running" in health["troubles"]["fog"]
        fog = fog_node(tmp_path / "fog", certificates, free_port)
        made.append(fog)
        fog.start()
        until(lambda: one.health()["outbox"]["images"] == 0, 40)
        assert one.health()["ok"]


@pytest.fixture
def training(tmp_path: Path) -> dict[str, Any]:
    evaluate = [{"path": otb_folder(tmp_path / "held-out", 4, 500)}]
    return {
        "enabled": True, "width": 64, "height": 48, "view": [32, 32], "batch": 4, "quiet_s": 0.5,
        "evaluate": evaluate, "evaluate_every": 5, "checkpoint_every": 5,
    }  # fmt: skip


@pytest.mark.timeout(240)
def test_learning_while_images_arrive_models_and_discovery(
    tmp_path: Path, certificates: Any, free_port: int, training: dict[str, Any]
) -> None:
    with nodes() as made:
        cloud = Node(tmp_path / "cloud", "fogline.cloud_server", {
            "data_dir": tmp_path / "cloud/data", "listen": "127.0.0.1:0", "heartbeat_ms": 200,
            "tls": tls(certificates.tls("cloud", "cloud")),
        })  # fmt: skip
        made.append(cloud)
        cloud.start()
        at = f"127.0.0.1:{cloud.ports['port']}"
        fog = fog_node(tmp_path / "fog", certificates, free_port, cloud=at, advertise=f"127.0.0.1:{free_port}")
        sequence = otb_folder(tmp_path / "seq", 10)
        source = edge(tmp_path / "edge-1", certificates, "discover", run=sequence, cloud=at)
        finite = training | {"steps": 20, "publish_every": 10}
        learner = edge(tmp_path / "edge-2", certificates, "discover", cloud=at, train=finite)
        made += [fog, source, learner]
        fog.start()
        source.start()
        learner.start()
        until(lambda: learner.health()["train"]["state"] == "done", 120, "training done")
        found = learner.health()["train"]
        assert (found["step"], found["pool"]) == (20, 10)
        assert 0 <= found["score"] <= 1
        assert "fogline_train_step 20.0" in get(learner.ports["metrics_port"], "/metrics")
        until(lambda: (source.folder / "data/models/held.json").exists(), 30, "the model is pushed to the other edge")
        until(lambda: newest(source) == newest(learner) and newest(source)["version"] >= 1, 30, "the same version")
        # A third device starts from what was published.
        third = edge(tmp_path / "edge-3", certificates, "discover", cloud=at)
        made.append(third)
        third.start()
        until(lambda: (third.folder / "data/models/held.json").exists(), 30)
        third.stop()
        # The cloud goes away: the last known fog nodes are used.
        cloud.kill()
        source.kill()
        source.start()
        until(lambda: source.health()["ok"], 30)
        assert source.health()["cloud"] != "connected"


def newest(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((node.folder / "data/models/held.json").read_text())["detector"]
    return found


def trainer_of(node: Node) -> psutil.Process | None:
    return next((p for p in psutil.Process(node.pid).children() if "train_process" in " ".join(p.cmdline())), None)


@pytest.mark.timeout(240)
def test_a_trainer_that_dies_goes_on_from_its_checkpoint_and_stops_with_its_agent(
    tmp_path: Path, certificates: Any, free_port: int, training: dict[str, Any]
) -> None:
    with nodes() as made:
        fog = fog_node(tmp_path / "fog", certificates, free_port)
        source = edge(tmp_path / "edge-1", certificates, f"127.0.0.1:{free_port}", run=otb_folder(tmp_path / "seq", 6))
        learner = edge(tmp_path / "edge-2", certificates, f"127.0.0.1:{free_port}", train=training)
        made += [fog, source, learner]
        for node in made:
            node.start()
        checkpoint = learner.folder / "data/train/checkpoint.safetensors"
        until(checkpoint.exists, 90, "a checkpoint")
        child = trainer_of(learner)
        assert child is not None
        child.send_signal(signal.SIGKILL)
        until(lambda: learner.health()["train"]["restarts"] == 1, 30)
        until(lambda: learner.health()["train"]["state"] == "running", 60)
        assert learner.health()["train"]["step"] >= 5
        again = trainer_of(learner)
        assert again is not None
        started = time.monotonic()
        assert learner.stop() == 0
        assert time.monotonic() - started < 5
        # The kernel kills it with its agent, which may take a moment.
        until(lambda: not again.is_running() or again.status() == psutil.STATUS_ZOMBIE, 5, "the trainer is gone")


@pytest.mark.slow
def test_the_trainer_dies_with_an_agent_that_is_killed(
    tmp_path: Path, certificates: Any, free_port: int, training: dict[str, Any]
) -> None:
    with nodes() as made:
        learner = edge(tmp_path / "edge-2", certificates, f"127.0.0.1:{free_port}", train=training)
        made.append(learner)
        learner.start()
        until(lambda: trainer_of(learner) is not None, 30)
        child = trainer_of(learner)
        assert child is not None
        learner.kill()
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 5, "the child is gone")


def test_the_library_can_be_read_by_others_while_the_agent_runs(tmp_path: Path) -> None:
    library = Library(tmp_path, 1 << 20)
    reader = sqlite3.connect(f"file:{tmp_path / 'library.sqlite'}?mode=ro", uri=True)
    assert reader.execute("SELECT COUNT(*) FROM records").fetchone() == (0,)
    reader.close()
    library.close()


@pytest.mark.slow
def test_a_training_that_can_not_work_is_reported_and_the_rest_goes_on(
    tmp_path: Path, certificates: Any, free_port: int, training: dict[str, Any]
) -> None:
    with nodes() as made:
        wrong = training | {"evaluate": [{"path": tmp_path / "no-such-folder"}]}
        learner = edge(tmp_path / "edge-1", certificates, f"127.0.0.1:{free_port}", train=wrong)
        made.append(learner)
        learner.start()
        until(lambda: "refused" in learner.health()["troubles"].get("train", ""), 60)
        assert "no-such-folder" in (learner.folder / "log").read_text()
        assert learner.stop() == 0


def test_an_agent_that_can_not_reach_anything_still_stops_in_time(tmp_path: Path, certificates: Any) -> None:
    # Listens and never answers: the worst that a network does.
    with nodes() as made, socket.create_server(("127.0.0.1", 0)) as deaf:
        alone = edge(tmp_path / "edge-1", certificates, f"127.0.0.1:{deaf.getsockname()[1]}")
        made.append(alone)
        alone.start()
        started = time.monotonic()
        assert alone.stop() == 0
        assert time.monotonic() - started < 5


def test_another_filter_without_a_restart(tmp_path: Path, certificates: Any, free_port: int) -> None:
    """At SIGHUP: what the old filter left out stays out, what comes now is received."""
    with nodes() as made:
        fog = fog_node(tmp_path / "fog", certificates, free_port)
        address = f"127.0.0.1:{free_port}"
        first = edge(tmp_path / "edge-1", certificates, address, run=otb_folder(tmp_path / "seq1", 3, 100))
        second = edge(tmp_path / "edge-2", certificates, address, run=otb_folder(tmp_path / "seq2", 2, 200))
        reader = edge(tmp_path / "edge-3", certificates, address, filter={"cameras": ["none"]})
        made += [fog, first, second, reader]
        for node in (fog, first, reader):
            node.start()
        until(lambda: reader.health()["library"]["cursor"] == 3, 60)
        settings = json.loads((reader.folder / "config.json").read_text())
        settings["filter"]["cameras"] = ["seq2"]
        (reader.folder / "config.json").write_text(json.dumps(settings))
        os.kill(reader.pid, signal.SIGHUP)
        until(lambda: "filter.cameras taken over" in (reader.folder / "log").read_text(), 20)
        second.start()
        until(lambda: reader.health()["library"]["records"] == 2, 60)
        assert reader.stop() == 0
        assert sorted(held(reader)) == sorted(ids(200, 2))


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this host has no IPv6")
def test_ipv6_alone(tmp_path: Path, certificates: Any) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        port = probe.getsockname()[1]
    with nodes() as made:
        own = tls(certificates.tls("fog-1", "fog", hosts=("::1",)))
        fog = fog_node(tmp_path / "fog", certificates, port, listen=f"[::1]:{port}", tls=own)
        camera = edge(tmp_path / "edge-1", certificates, f"[::1]:{port}", run=otb_folder(tmp_path / "seq1", 2, 100))
        reader = edge(tmp_path / "edge-2", certificates, f"[::1]:{port}")
        made += [fog, camera, reader]
        for node in made:
            node.start()
        until(lambda: reader.health()["library"]["records"] == 2, 60)
        assert [node.stop() for node in made] == [0, 0, 0]


def test_a_name_that_no_server_knows(tmp_path: Path, certificates: Any) -> None:
    with nodes() as made:
        agent = edge(tmp_path / "edge-1", certificates, "no-such-gateway.invalid:7400")
        made += [agent]
        agent.start()
        until(lambda: "can't be resolved" in agent.health()["troubles"]["fog"], 30)
        assert agent.health()["troubles"]["fog"].endswith("[FL803]")
        assert agent.stop() == 0
