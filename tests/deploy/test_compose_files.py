"""The compose file keeps its promises on paper: every container is shut in, and every configuration is valid.

That the containers run is shown by `test_compose_stack.py`.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fogline.cloud_server.config import CloudConfig
from fogline.common.config import Config, MetricsConfig, load
from fogline.common.metrics import Metrics
from fogline.common.tails.config import TailHostConfig
from fogline.edge_agent.config import EdgeConfig
from fogline.fog_node.config import FogConfig

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COMPOSE = DEPLOY / "compose"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
OURS = {name: service for name, service in SERVICES.items() if str(service["image"]).startswith("fogline-")}
KINDS: dict[str, type[Config]] = {
    "cloud": CloudConfig, "fog": FogConfig, "edge": EdgeConfig, "trainer": EdgeConfig, "tail": TailHostConfig
}  # fmt: skip


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_shut_in(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not {"privileged", "cap_add", "user", "pid", "ipc", "network_mode", "devices"} & service.keys()
    assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys()
    assert service["pids_limit"] > 0


def test_only_what_is_watched_is_published_and_on_a_chosen_address() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"prometheus", "grafana"}
    assert all(port.startswith("${BIND}:") for ports in published.values() for port in ports)
    assert "BIND=127.0.0.1\n" in (COMPOSE / ".env").read_text()


def test_a_role_sees_no_token_but_its_own() -> None:
    for name in OURS.keys() - {"authority"}:
        tokens = [volume for volume in SERVICES[name]["volumes"] if volume.startswith("join-")]
        role = SERVICES[name]["command"][1].replace("device", "edge")
        assert tokens == [f"join-{role}:/run/fogline/join:ro"]


def test_replicas_of_the_edge_share_no_state() -> None:
    assert not [volume for volume in SERVICES["edge"]["volumes"] if ":/var/lib/fogline" in volume]
    assert "VOLUME /var/lib/fogline\n" in (DEPLOY / "docker" / "Dockerfile").read_text()


@pytest.mark.parametrize("name", KINDS)
def test_a_configuration_is_valid_with_what_the_start_adds(name: str) -> None:
    added = {
        "FOGLINE_NAME": "somebody",
        "FOGLINE_TLS__CA": "/id/ca.pem",
        "FOGLINE_TLS__CERT": "/id/somebody.pem",
        "FOGLINE_TLS__KEY": "/id/somebody.key",
        "FOGLINE_TLS__AUTHORITY": "authority:7200",
    }
    if name in ("edge", "trainer"):
        added["FOGLINE_CAPTURE__SOURCE"] = "sequence"
        added["FOGLINE_CAPTURE__RUNS"] = "[{path: /srv/images, camera: somebody}]"
    environment = dict(SERVICES[name].get("environment", {}))
    assert not environment.keys() & (added.keys() - {"FOGLINE_NAME"})
    found = load(KINDS[name], COMPOSE / "config" / f"{name}.yaml", {**environment, **added}, {})
    served = found.tensors.metrics if isinstance(found, TailHostConfig) else getattr(found, "metrics", None)
    assert served == MetricsConfig(host="0.0.0.0", port=9100)


@pytest.mark.parametrize("script", ["fogline-start", "fogline-authority", "healthz"])
def test_a_script_has_no_syntax_error(script: str) -> None:
    path = DEPLOY / "docker" / script
    shell = path.read_text().partition("\n")[0].removeprefix("#!/bin/")
    assert subprocess.run([shell, "-n", str(path)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def port_that_says() -> Iterator[dict[str, Any]]:
    state: dict[str, Any] = {"ok": True}
    server, port = Metrics().serve(MetricsConfig(), lambda: state)
    state["port"] = port
    yield state
    server.close()


@pytest.mark.skipif(shutil.which("bash") is None, reason="the probe is a bash script, as the images have bash")
def test_the_probe_tells_well_from_unwell_from_absent(port_that_says: dict[str, Any]) -> None:
    def probe(port: int) -> int:
        return subprocess.run(["bash", str(DEPLOY / "docker" / "healthz"), str(port)], capture_output=True).returncode

    assert probe(port_that_says["port"]) == 0
    port_that_says["ok"] = False
    assert probe(port_that_says["port"]) != 0
    assert probe(1) != 0  # nobody listens there
