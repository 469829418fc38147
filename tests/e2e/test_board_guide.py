"""docs/running-on-boards.md is followed word for word; only addresses and folders are this host's."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from fogline.common.data.clip import write_clip
from fogline.deploy.local.logtail import LogTail, Ready, parse_ready
from fogline.deploy.local.scrape import Sample, scrape
from tests.conftest import ROOT

GUIDE = (ROOT / "docs" / "running-on-boards.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
WaitUntil = Callable[..., None]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE, re.DOTALL)


class Host:
    """A program with its /etc/fogline."""

    def __init__(self, etc: Path, program: str, file: str) -> None:
        self.log = etc / "log"
        self._tail = LogTail(self.log)
        self._ready: Ready | None = None
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([str(BIN / program), "--config", str(etc / file)], stdout=log, stderr=log)

    @property
    def ready(self) -> Ready | None:
        for line in self._tail.new_lines():
            self._ready = self._ready or parse_ready(line)
        return self._ready

    def metrics(self) -> dict[Sample, float]:
        ready = self.ready
        return {} if ready is None or ready.metrics_port is None else scrape(ready.metrics_port) or {}


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder per host with what step 2 made."""
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("fogline ca")]
    assert len(commands) == 5
    for command in commands:
        # Everything is loopback here, so the names of the guide get its address as well.
        words = [*shlex.split(command)[1:], *(["--host", "127.0.0.1"] if "--role" in command else [])]
        subprocess.run([str(BIN / "fogline"), *words], check=True, stdout=subprocess.DEVNULL)
    return tmp_path


@pytest.fixture
def started() -> Iterator[list[Host]]:
    hosts: list[Host] = []
    yield hosts
    for host in reversed(hosts):
        host.process.send_signal(signal.SIGTERM)
    for host in reversed(hosts):
        assert host.process.wait(20) == 0, host.log.read_text()[-2000:]


@pytest.mark.timeout(240)
def test_following_the_guide_shares_images(
    etc: Path, started: list[Host], wait_until: WaitUntil, tmp_path: Path
) -> None:
    texts = {text.splitlines()[0].removeprefix("# "): text for text in blocks("yaml")}
    address: dict[str, str] = {}

    def start(program: str, folder: str, file: str, **changes: str) -> Host:
        values = yaml.safe_load(texts[program])
        values |= {"data_dir": str(tmp_path / "lib" / folder), "metrics": {"port": 0}}
        if "listen" in values:
            values["listen"] = "127.0.0.1:0"
        values.pop("advertise", None)
        for key in ("cloud", "fog"):
            if key in values:
                values[key] = address[key]
        if program == "edge-agent":
            values |= {"name": folder, "train": {"enabled": "false"}}
            values["tls"] |= {"cert": f"{folder}.pem", "key": f"{folder}.key"}
            values["capture"] |= {"camera": folder, "runs": [{"path": str(clip[folder])}]}
        (etc / folder / file).write_text(yaml.safe_dump(values))
        host = Host(etc / folder, program, file)
        started.append(host)
        wait_until(lambda: host.ready or host.process.poll() is not None, 30, f"{program} to be ready")
        assert host.ready is not None, host.log.read_text()[-2000:]
        return host

    clips = write_clip(tmp_path / "clip", cameras=2, frames=4, width=96, height=64)
    clip = dict(zip(("cam-1", "cam-2"), clips, strict=True))
    cloud = start("cloud-server", "cloud", "cloud.yaml")
    assert cloud.ready is not None
    address["cloud"] = f"127.0.0.1:{cloud.ready.port}"
    fog = start("fog-node", "gateway", "fog.yaml")
    assert fog.ready is not None
    address["fog"] = f"127.0.0.1:{fog.ready.port}"
    edges = [start("edge-agent", name, "edge.yaml") for name in clip]
    held = ("fogline_library_records", ())
    wait_until(
        lambda: all(edge.metrics().get(held) == 4 for edge in edges), 60, "both edges to hold the other's images"
    )
    wait_until(lambda: _alive(cloud.metrics()) == 3, 20, "all three to have joined")


def _alive(samples: dict[Sample, float]) -> float:
    return sum(value for (name, _), value in samples.items() if name == "fogline_devices_alive")
