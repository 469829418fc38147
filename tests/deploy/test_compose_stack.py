"""The images are built and the compose file is run as it is: images flow, everything is watched and shut in, what is
killed comes back, and nothing is left. FOGLINE_IMAGES_ARE_BUILT=1 takes the images of the last build, FOGLINE_EDGES=3
fewer edges than ten.

Without a registry Debian's Prometheus stands in for the official image, and Grafana is left out.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from fogline.common.data.clip import write_clip
from tests.deploy.compose_engine import COMPOSE, Engine, Unable, torch_index

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

FRAMES = 16
EDGES = int(os.environ.get("FOGLINE_EDGES", "10"))
MB_EDGE, MB_REST = 150, 4000  # of memory, generously
SERVICES = ("authority", "cloud", "fog", "trainer", "tail", "split", "cam-own", "prometheus")
CAPTURING = {"edge", "cam-own"}
# Without Python, which takes a second of half a core.
HEALTH = "exec 3<>/dev/tcp/127.0.0.1/9100; printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"


@dataclass
class Stack:
    """A running project."""

    engine: Engine
    project: str
    edges: int
    prometheus_port: int
    environment: dict[str, str]
    override: Path
    volumes: set[str] = field(default_factory=set)

    def compose(self, *arguments: str, **options: Any) -> str:
        files = ["-f", str(COMPOSE / "compose.yaml"), "-f", str(self.override)]
        done = self.engine.compose("-p", self.project, *files, *arguments, environment=self.environment, **options)
        return str(done.stdout)

    def containers(self, *services: str) -> dict[str, str]:
        """Names of the containers of services (default: all), and their service."""
        label = "com.docker.compose.service"
        shown = self.engine.run(
            "ps", "-a", "--filter", f"label=com.docker.compose.project={self.project}", "--format",
            '{{.Names}} {{index .Labels "' + label + '"}}' if self.engine.podman
            else '{{.Names}} {{.Label "' + label + '"}}',
        ).stdout  # fmt: skip
        found = dict(line.split() for line in shown.splitlines() if line.strip())
        return {name: service for name, service in found.items() if not services or service in services}

    def health(self, container: str) -> dict[str, Any]:
        """What /healthz says; {} while it is not there."""
        answer = self.engine.run("exec", container, "bash", "-c", HEALTH, check=False).stdout
        try:
            return dict(json.loads(answer.partition("\n\n")[2]))  # line ends are those of text by now
        except ValueError:
            return {}

    def restarts(self, container: str) -> int:
        return int(self.engine.inspect(container)[0]["RestartCount"])

    def sweep(self) -> None:
        """Remove what a test that failed half-way may have left."""
        if left := list(self.containers()):
            self.engine.run("rm", "-f", "-v", *left, check=False)
        for kind in ("volume", "network"):
            listed = self.engine.run(kind, "ls", "--format", "{{.Name}}").stdout.split()
            if left := [name for name in listed if name.startswith(self.project)]:
                self.engine.run(kind, "rm", *left, check=False)

    def logs(self) -> str:
        return "\n".join(
            f"== {name}\n{self.engine.run('logs', '--tail', '15', name, check=False).stderr[-3000:]}"
            for name in self.containers()
        )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("compose")
    try:
        engine = Engine(folder)
        engine.prepare()
    except Unable as reason:
        pytest.skip(f"no stack of containers here: {reason}")
    memory = psutil.virtual_memory().available >> 20
    edges = min(EDGES, (memory - MB_REST) // MB_EDGE)
    if edges < 2:
        pytest.skip(f"no stack of containers here: {memory} MB of memory are free, and two edges need a little more")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"CLIP_FRAMES": str(FRAMES), "PROMETHEUS_PORT": str(port)}
    index = torch_index(engine.wheels)
    environment |= {} if index is None else {"TORCH_INDEX": index}
    engine.have_prometheus(yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]["prometheus"]["image"])
    made = Stack(engine, f"fltest{secrets.token_hex(3)}", edges, port, environment, _own_camera(folder))
    if not os.environ.get("FOGLINE_IMAGES_ARE_BUILT"):
        engine.build("authority", "cloud", environment=environment)
    try:
        made.compose("up", "-d", "--no-build", "--scale", f"edge={edges}", *SERVICES, "edge", timeout=900)
        yield made
    finally:
        made.compose("down", "-v", "--remove-orphans", check=False)
        made.sweep()


def _own_camera(folder: Path) -> Path:
    """A camera with images of its own, as compose.cameras.yaml shows it."""
    example = yaml.safe_load((COMPOSE / "compose.cameras.yaml").read_text())
    (images,) = write_clip(folder / "own", cameras=1, frames=FRAMES, width=96, height=64, seed=9)
    images.chmod(0o755)
    service = example["services"]["cam-1"]
    service["extends"]["file"] = str(COMPOSE / "compose.yaml")
    service["environment"] = {"FOGLINE_NAME": "cam-own"}
    service["volumes"] = ["cam-own:/var/lib/fogline", f"{images}:/srv/images:ro"]
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({"services": {"cam-own": service}, "volumes": {"cam-own": {}}}))
    return path


def wait(stack: Stack, condition: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}\n{stack.logs()}"
        time.sleep(1)


def test_everything_becomes_healthy(stack: Stack) -> None:
    containers = stack.containers()
    assert sorted(containers.values()) == sorted([*SERVICES, *["edge"] * stack.edges])
    for name, service in containers.items():
        if service not in ("prometheus", "split"):
            wait(stack, lambda name=name: stack.health(name).get("ok"), 300, f"{service} to be well")


def test_a_fog_node_and_an_edge_that_are_killed_come_back(stack: Stack) -> None:
    (fog,) = stack.containers("fog")
    edge = min(stack.containers("edge"))
    wait(stack, lambda: stack.health(fog).get("head", 0) >= stack.edges, 300, "images to flow")
    before = {name: stack.restarts(name) for name in (fog, edge)}
    # Every process but init, which then ends: as a crash, so that the restart policy is what brings it back.
    for name in before:
        stack.engine.run("exec", name, "sh", "-c", "kill -9 -1", check=False)
    for name in before:
        wait(stack, lambda name=name: stack.restarts(name) > before[name], 60, f"{name} to be started again")
        wait(stack, lambda name=name: stack.health(name).get("ok"), 300, f"{name} to be well again")


def test_every_image_reaches_every_receiver_once(stack: Stack) -> None:
    receivers = stack.containers(*CAPTURING, "trainer")
    total = FRAMES * (stack.edges + 1)
    for name, service in receivers.items():
        expected = total - (FRAMES if service in CAPTURING else 0)

        def complete(name: str = name, expected: int = expected) -> bool:
            said = stack.health(name)
            return bool(said) and said["library"]["records"] >= expected and not said["outbox"]["images"]

        wait(stack, complete, 600, f"{name} to hold {expected} records")
        assert stack.health(name)["library"]["records"] == expected
    (fog,) = stack.containers("fog")
    assert stack.health(fog)["images"] == {"published": total}


def test_prometheus_scrapes_everything(stack: Stack) -> None:
    def targets() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        address = f"http://127.0.0.1:{stack.prometheus_port}/api/v1/targets?state=active"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                listed = json.load(answer)["data"]["activeTargets"]
        except OSError:
            return {}
        for target in listed:
            found.setdefault(target["scrapePool"], []).append(target["health"])
        return found

    expected = {"cloud": 1, "fog": 1, "edge": stack.edges + 2, "tail": 1, "split": 1}
    wanted = {f"fogline-{job}": ["up"] * count for job, count in expected.items()}
    wait(stack, lambda: targets() == wanted, 300, f"every target to be up: {targets()}")


def test_nothing_is_root_or_can_write_its_root_file_system(stack: Stack) -> None:
    script = "id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/1/status; touch /probe /usr/probe || echo refused"
    for name, service in stack.containers().items():
        words = stack.engine.run("exec", name, "sh", "-c", script).stdout.split()
        assert words[0] != "0", service
        facts = dict(zip(words[1:-1:2], words[2:-1:2], strict=True))
        assert facts == {"CapEff:": "0" * 16, "CapBnd:": "0" * 16, "NoNewPrivs:": "1"}, service
        assert words[-1] == "refused", service


def test_limits_are_in_force(stack: Stack) -> None:
    edge = min(stack.containers("edge"))
    limits = stack.engine.inspect(edge)[0]["HostConfig"]
    assert limits["Memory"] == 512 << 20
    cores = limits["NanoCpus"] / 1e9 or limits["CpuQuota"] / limits["CpuPeriod"]
    assert cores == 0.5


def test_replicas_have_names_and_volumes_of_their_own(stack: Stack) -> None:
    names, volumes = set(), set()
    for edge in stack.containers("edge"):
        names.add(stack.engine.run("exec", edge, "cat", "/var/lib/fogline/name").stdout)
        (mount,) = (m for m in stack.engine.inspect(edge)[0]["Mounts"] if m["Destination"] == "/var/lib/fogline")
        volumes.add(mount["Name"])
    assert len(names) == len(volumes) == stack.edges
    stack.volumes = volumes


def test_nothing_is_left(stack: Stack) -> None:
    for _ in range(2 if stack.engine.podman else 1):
        # podman-compose can't remove what a replica depends on before the replica, and goes on.
        stack.compose("down", "-v", "--remove-orphans", check=not stack.engine.podman)
    if stack.engine.podman and stack.volumes:
        # podman-compose leaves the volumes that images declare; docs/compose.md says so.
        stack.engine.run("volume", "rm", *stack.volumes)
    assert not stack.containers()
    for kind in ("volume", "network"):
        listed = stack.engine.run(kind, "ls", "--format", "{{.Name}}").stdout.split()
        assert not [name for name in listed if name.startswith(stack.project) or name in stack.volumes], kind
