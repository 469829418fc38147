"""`fogline status`: rates from reports, what a person sees, and a real cloud server."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from rich.console import Console

from fogline.cli import main
from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError, UnavailableError
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import control_pb2 as pb
from fogline.common.rpc.gen.control_pb2_grpc import FleetServiceStub
from fogline.fleet.document import document
from fogline.fleet.sample import Device, Rate, Rates, Sample
from fogline.fleet.table import render

S = 1_000_000  # µs


def device(seen_s: float, sent: float, received: float = 0.0, *, alive: bool = True, **gauges: float) -> Device:
    moved = {"edge_fog_sent_bytes": sent, "edge_fog_received_bytes": received}
    return Device("cam", "edge", "0.1.0", "", alive, int(seen_s * S), moved | gauges, {})


def sample(at_s: float, *devices: Device) -> Sample:
    return Sample(int(at_s * S), devices)


def test_rates_are_of_the_last_two_reports_however_often_one_looks() -> None:
    rates = Rates()
    first, second = device(10, 1000), device(15, 6000, 2500)
    rates.add(sample(10, first))
    assert rates.of(first) == {"edge-fog": Rate(None, None)}
    assert not rates.known(sample(10, first))
    for at in (15, 16, 17):
        rates.add(sample(at, second))
        assert rates.of(second) == {"edge-fog": Rate(8000.0, 4000.0)}
        assert rates.known(sample(at, second))
    restarted = device(20, 100, 3000)
    rates.add(sample(20, restarted))
    assert rates.of(restarted) == {"edge-fog": Rate(None, 800.0)}
    gone = device(20, 100, 3000, alive=False)
    rates.add(sample(60, gone))
    assert rates.of(gone) == {}


def test_a_person_sees_the_silent_first_and_a_hostile_name_is_text() -> None:
    rates, out = Rates(), io.StringIO()
    silent = Device("[red]b", "edge", "0.1.0", "", False, 0, {}, {})
    for seen, sent in ((1, 0), (2, 125_000)):
        now = sample(90, device(seen, sent, outbox_images=1234, train_score=0.5), silent)
        rates.add(now)
    Console(file=out, width=140, highlight=False).print(render("cloud:7300", now, rates))
    text = out.getvalue()
    assert "cloud:7300: 1 of 2 devices alive" in text
    assert "edge-fog: up 1 Mbit/s, down 0 bit/s" in text
    assert "1,234 to upload, score 0.500" in text
    assert text.index("[red]b") < text.index("cam ")
    assert "silent for 2 min" in text
    made = json.loads(json.dumps(document("cloud:7300", now, rates)))
    assert made["schema"] == 1
    assert made["devices"][0]["rates_bit_s"] == {"edge-fog": {"up": 1e6, "down": 0.0}}


@pytest.fixture
def cloud(tmp_path: Path, certificates: Any) -> Iterator[tuple[Path, str]]:
    """A real cloud server: its configuration and address."""
    tls: TlsConfig = certificates.tls("cloud", "cloud")
    files = {"ca": str(tls.ca), "cert": str(tls.cert), "key": str(tls.key)}
    settings = {"data_dir": str(tmp_path / "data"), "listen": "127.0.0.1:0", "tls": files, "heartbeat_ms": 200}
    path = tmp_path / "cloud.yaml"
    path.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "fogline.cloud_server", "--config", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline().removeprefix("ready "))["port"]
        path.write_text(json.dumps(settings | {"listen": f"0.0.0.0:{port}"}))  # as install.sh writes it
        yield path, f"127.0.0.1:{port}"
        process.kill()


@pytest.fixture
def reporting(cloud: tuple[Path, str], certificates: Any) -> Iterator[None]:
    """An edge that moves 1,000 bytes with each report."""
    running = True

    def report(stub: FleetServiceStub) -> None:
        sent = 0
        while running:
            sent += 1000
            gauges = {"edge_fog_sent_bytes": float(sent), "edge_fog_received_bytes": 0.0, "outbox_images": 7.0}
            stub.Heartbeat(pb.HeartbeatRequest(gauges=gauges))
            time.sleep(0.05)

    tls = certificates.tls("cam-1", "edge")
    with connect(cloud[1], tls, meter=LinkMeter("edge-cloud")) as channel:
        stub = FleetServiceStub(channel)
        stub.Join(pb.JoinRequest(role=pb.ROLE_EDGE, version="0.1.0"))
        with futures.ThreadPoolExecutor(1) as pool:
            work = pool.submit(report, stub)
            yield
            running = False
            work.result()


@pytest.mark.usefixtures("reporting")
def test_once_and_as_json(cloud: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["status", "--config", str(cloud[0]), "--role", "cloud", "--interval", "0.1"]
    assert main([*words, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["devices"]
    assert (found["name"], found["alive"], found["gauges"]["outbox_images"]) == ("cam-1", True, 7)
    assert found["rates_bit_s"]["edge-fog"]["up"] > 0
    assert main(words) == 0  # nobody watches: once
    assert "7 to upload" in capsys.readouterr().out


@pytest.mark.usefixtures("reporting")
def test_live_on_a_terminal_until_ctrl_c(cloud: tuple[Path, str], wait_until: Callable[..., None]) -> None:
    leader, follower = pty.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(leader, 4096)
            except OSError:  # the terminal is closed
                return
            shown.extend(data)

    Thread(target=read, daemon=True).start()
    command = [sys.executable, "-m", "fogline", "status", "--config", str(cloud[0]), "--role", "cloud"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
    with subprocess.Popen(
        [*command, "--interval", "0.1"], stdout=follower, stderr=follower, env=environment
    ) as process:
        os.close(follower)
        try:
            wait_until(lambda: b"kbit/s" in shown and b"7 to upload" in shown, 30)
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        finally:
            process.kill()
    os.close(leader)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no cloud server"),
        (["--config", "x.yaml"], "belong together"),
        (["--cloud", "h:1", "--ca", "ca.pem"], "missing"),
        (["--cloud", "127.0.0.1:1", "--insecure", "--interval", "0"], "--interval"),
        (["--cloud", "no port", "--insecure"], "no port"),
    ],
)
def test_what_is_missing_is_named(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", *words]) == ConfigError.exit_code
    assert says in capsys.readouterr().err


def test_a_server_that_is_down(free_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["status", "--cloud", f"127.0.0.1:{free_port}", "--insecure", "--once"]
    assert main(words) == UnavailableError.exit_code
    assert f"127.0.0.1:{free_port}" in capsys.readouterr().err
