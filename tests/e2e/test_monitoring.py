"""A real Prometheus with the shipped rules scrapes a real deployment: every panel and every rule has data."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, start_http_server

from fogline.common.board import BoardCollector
from fogline.common.data.clip import write_clip
from fogline.common.data.load import load_sequence
from fogline.deploy.local.cluster import Cluster, Settings
from fogline.deploy.local.plan import make_plan

pytest.importorskip("torch")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]

from prometheus_server import SHIPPED, Prometheus, all_at_last  # noqa: E402

DASHBOARDS = HERE.parents[1] / "deploy" / "grafana" / "dashboards"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PATIENCE_S = 240.0


@dataclass
class Deployment:
    """What runs."""

    cluster: Cluster
    prometheus: Prometheus


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A cloud server, a fog node, three edges of which one trains, a tail host, and a program that uses it."""
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed (Debian: apt install prometheus)")
    folder = tmp_path_factory.mktemp("monitored")
    clip = [load_sequence(path) for path in write_clip(folder / "clip", cameras=3, frames=400, width=160, height=96)]
    settings = Settings(
        folder / "cluster", "avif2", width=160, height=96, fps=2, train_steps=100_000, train_edges=1, evaluate_every=10
    )
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with ExitStack() as stack:
        # What takes long to start comes first: cameras do not wait for whoever watches them.
        tail = stack.enter_context(_Program(folder, environment, *_tail_host(folder)))
        announced = json.loads(tail.line().removeprefix("ready "))
        address = f"127.0.0.1:{announced['port']}"
        program = stack.enter_context(_Program(folder, environment, str(HERE / "split_program.py"), address))
        prometheus = Prometheus(folder, _free_port())
        stack.callback(prometheus.stop)
        prometheus.watch("tail", [announced["metrics_port"]])
        prometheus.watch("split", [int(program.line())])
        _wait(prometheus.ready)
        cluster = Cluster(make_plan(clip, 3, 0.7), settings, environment)
        stack.callback(cluster.stop)
        cluster.start()
        children = cluster.supervisor.children
        ports = {name: child.ready.metrics_port for name, child in children.items() if child.ready}
        assert all(ports.values())
        for name in ("cloud", "fog"):
            prometheus.watch(name, [ports[name] or 0])
        edges = [port or 0 for name, port in ports.items() if name.startswith("edge")]
        prometheus.watch("edge", [*edges, stack.enter_context(_board(folder / "board"))])
        yield Deployment(cluster, prometheus)


@contextmanager
def _board(root: Path) -> Iterator[int]:
    """Where a board's sensors are told, from a file tree as a Jetson's kernel lays it out: no board is at hand."""
    for path, text in {
        "class/thermal/thermal_zone0/type": "cpu-thermal",
        "class/thermal/thermal_zone0/temp": "48250",
        "class/thermal/cooling_device3/type": "cpufreq-cpu0",
        "class/thermal/cooling_device3/cur_state": "0",
        "class/hwmon/hwmon3/name": "ina3221",
        "class/hwmon/hwmon3/in1_label": "VDD_IN",
        "class/hwmon/hwmon3/in1_input": "5072",
        "class/hwmon/hwmon3/curr1_input": "1200",
    }.items():
        (root / "sys" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys" / path).write_text(text)
    registry = CollectorRegistry()
    registry.register(BoardCollector(root))
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _tail_host(folder: Path) -> tuple[str, ...]:
    config = {
        "data_dir": str(folder / "tail"),
        "tls": {"insecure": True},
        "tensors": {"enabled": True, "listen": "127.0.0.1:0", "models": ["split_model:net"], "threads": 1},
    }
    path = folder / "tail.yaml"
    path.write_text(yaml.safe_dump(config))
    return "-m", "fogline", "split", "serve", "--config", str(path)


class _Program:
    """A Python process with our package and the tests' own on its path; its stdin ends with the context."""

    def __init__(self, folder: Path, environment: dict[str, str], *arguments: str) -> None:
        path = os.pathsep.join([str(HERE), *sys.path])
        self.log = (folder / f"{Path(arguments[0]).stem}.log").open("wb")
        self.popen = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
            env={**os.environ, **environment, "PYTHONPATH": path}, text=True,
        )  # fmt: skip

    def line(self) -> str:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        assert line, Path(self.log.name).read_text()[-3000:]
        return line

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *error: object) -> None:
        self.popen.stdin.close()  # type: ignore[union-attr]
        if self.popen.args[1] == "-m":  # type: ignore[index]
            self.popen.terminate()
        try:
            self.popen.wait(30)
        finally:
            self.popen.kill()
            self.popen.wait()
            self.popen.stdout.close()  # type: ignore[union-attr]
            self.log.close()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Until it holds, or for so long."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)


def panel_queries() -> dict[str, str]:
    """Every query of every panel, with drop-downs at All."""
    found = {}
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                expr = target["expr"].replace("$__rate_interval", "1m")
                found[f"{path.stem}: {panel['title']} {target['refId']}"] = re.sub(r"\$\w+", ".*", expr)
    return found


def rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load(path.read_text()) for path in sorted((SHIPPED / "rules").glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def test_every_panel_has_data(deployment: Deployment) -> None:
    queries = panel_queries()
    assert len(queries) > 80
    nothing = {"absent": "fogline_absent_total", "no number": "0 * up / 0"}
    assert deployment.prometheus.without_data(nothing) == nothing
    assert all_at_last(deployment.prometheus, queries, _wait) == {}


def test_every_rule_has_data(deployment: Deployment) -> None:
    recorded = {rule["record"]: rule["record"] for rule in rules() if "record" in rule}
    assert all_at_last(deployment.prometheus, recorded, _wait) == {}
    # An alert that stays quiet gives nothing; but all that it looks at must be there.
    looked_at = {
        f"{rule['alert']}: {name}{matchers}": f"{name}{matchers}"
        for rule in rules()
        if "alert" in rule
        for name, matchers in re.findall(r"((?<![\w:])(?:up|fogline[\w:]*))({[^}]*})?", rule["expr"])
    }
    assert len(looked_at) > 30
    assert all_at_last(deployment.prometheus, looked_at, _wait) == {}
    for group in deployment.prometheus.get("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", (rule["name"], rule.get("lastError"))


def test_figures_are_what_they_are_called(deployment: Deployment) -> None:
    value = deployment.prometheus.values

    def figures() -> list[float]:
        return [x for name in ("gain_vs_source", "alpha", "beta") for x in value(f"fogline:{name}:ratio5m")]

    def plausible() -> bool:
        found = figures()
        if len(found) != 3:
            return False
        gain, alpha, beta = found
        # Three edges: two receivers of each image, and JPEGs as captured go up. Control takes its share of the rest.
        ideal = 2 / (beta + 2 * alpha)
        return 0 < alpha < 0.6 and 0.9 < beta < 1.3 and 0.5 * ideal < gain < 1.1 * ideal

    _wait(plausible)  # not at once: what goes up is counted before what comes down
    assert plausible(), figures()
    (quality,) = value('fogline:quality_db:mean5m{area="object"}')
    assert 20 < quality < 60
    (background,) = value('fogline:quality_db:mean5m{area="background"}')
    assert background < quality


def test_a_deployment_that_is_well_raises_no_alarm_and_a_dead_edge_does(deployment: Deployment) -> None:
    prometheus = deployment.prometheus
    assert prometheus.get("query", query='ALERTS{alertstate="firing"}')["result"] == []
    victim = deployment.cluster.supervisor.children["edge-03"]
    assert victim.popen is not None
    victim.popen.kill()
    pending = 'ALERTS{alertname="FoglineEdgeDown", alertstate="pending"}'
    _wait(lambda: prometheus.values(pending), 60)
    (alert,) = prometheus.get("query", query=pending)["result"]
    assert victim.ready is not None
    assert alert["metric"]["instance"] == f"127.0.0.1:{victim.ready.metrics_port}"
