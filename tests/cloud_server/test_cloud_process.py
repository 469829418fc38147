"""The cloud server as it runs: a real process, mTLS, kill -9 and restart."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError, IdentityError, InputError, ProtocolError, UnavailableError
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import control_pb2 as pb
from fogline.common.rpc.gen import transfer_pb2
from fogline.common.rpc.gen.control_pb2_grpc import FleetServiceStub, ModelServiceStub
from fogline.common.rpc.status import translate

from .models_for_tests import file_of, model


class Cloud:
    """A cloud server process that can be killed and started again on the same port and folder."""

    def __init__(self, folder: Path, tls: TlsConfig) -> None:
        self.config = folder / "cloud.yaml"
        files = {"ca": str(tls.ca), "cert": str(tls.cert), "key": str(tls.key)}
        self.settings: dict[str, Any] = {
            "data_dir": str(folder / "data"), "listen": "127.0.0.1:0", "tls": files, "heartbeat_ms": 200,
            "models": {"max_bytes": 4 << 20},
        }  # fmt: skip
        self.log = folder / "cloud.log"
        self.process: subprocess.Popen[str] | None = None
        self.port = self.metrics_port = 0

    def start(self) -> None:
        self.config.write_text(json.dumps(self.settings))
        command = [sys.executable, "-m", "fogline.cloud_server", "--config", str(self.config)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready "), self.log.read_text()
        ports = json.loads(line.removeprefix("ready "))
        self.port, self.metrics_port = ports["port"], ports["metrics_port"]
        self.settings["listen"] = f"127.0.0.1:{self.port}"

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(15)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
        return code


@pytest.fixture
def cloud(tmp_path: Path, certificates: Any) -> Iterator[Cloud]:
    made = Cloud(tmp_path, certificates.tls("cloud", "cloud"))
    made.start()
    yield made
    if made.process is not None:
        made.end(signal.SIGKILL)


class Device:
    """A connection of one device."""

    def __init__(self, cloud: Cloud, tls: TlsConfig) -> None:
        self.channel = connect(f"127.0.0.1:{cloud.port}", tls, meter=LinkMeter("edge-cloud"), deadline_s=10)
        self.fleet, self.models = FleetServiceStub(self.channel), ModelServiceStub(self.channel)
        self.streams: list[Any] = []

    def join(self, role: int = pb.ROLE_EDGE, address: str = "") -> pb.JoinResponse:
        return self.fleet.Join(pb.JoinRequest(role=role, version="0.1.0", address=address))  # type: ignore[arg-type]

    def publish(self, name: str, data: bytes, *, piece: int = 1000, stop_after: int | None = None) -> Any:
        """Publish a model; with `stop_after`, break off once that many bytes are sent. Returns (offset, stored)."""
        digest = hashlib.sha256(data).digest()
        outgoing: queue.SimpleQueue[pb.PublishModelRequest | None] = queue.SimpleQueue()
        outgoing.put(pb.PublishModelRequest(offer=pb.ModelOffer(name=name, digest=digest, size=len(data))))
        answers = self.models.PublishModel(iter(outgoing.get, None))
        self.streams.append(answers)  # gRPC cancels a stream that nobody holds
        try:
            first = next(answers)
            if first.HasField("stored"):
                return None, first.stored
            begin = first.accepted.offset
            for at in range(begin, len(data) if stop_after is None else stop_after, piece):
                part = data[at : at + piece]
                chunk = transfer_pb2.Chunk(offset=at, data=part, crc32=zlib.crc32(part))
                outgoing.put(pb.PublishModelRequest(chunk=chunk))
            if stop_after is not None:
                return begin, None
            return begin, next(answers).stored
        finally:
            outgoing.put(None)
            if stop_after is None:
                answers.cancel()

    def fetch(self, digest: bytes, offset: int = 0) -> bytes:
        data = b""
        for answer in self.models.FetchModel(pb.FetchModelRequest(digest=digest, offset=offset)):
            assert answer.chunk.offset == offset + len(data)
            assert zlib.crc32(answer.chunk.data) == answer.chunk.crc32
            data += answer.chunk.data
        return data


@pytest.fixture
def device(cloud: Cloud, certificates: Any) -> Iterator[Callable[..., Device]]:
    opened: list[Device] = []

    def make(name: str, role: Any = "edge", tls: TlsConfig | None = None) -> Device:
        opened.append(Device(cloud, tls or certificates.tls(name, role)))
        return opened[-1]

    yield make
    for made in opened:
        made.channel.close()


def test_a_fleet_and_its_models_survive_kill_nine(
    cloud: Cloud, device: Callable[..., Device], wait_until: Callable[..., None]
) -> None:
    cam, gate = device("cam"), device("gate", "fog")
    assert cam.join().heartbeat_ms == 200
    gate.join(pb.ROLE_FOG, "10.0.0.1:7400")
    assert [(fog.name, fog.address) for fog in cam.fleet.FindFogs(pb.FindFogsRequest()).fogs] == [
        ("gate", "10.0.0.1:7400")
    ]
    first, second = model(1, 300_000), model(2, 1_000_000)
    assert cam.publish("detector", first, piece=250_000)[1].version == 1
    gate.publish("detector", second, piece=100_000, stop_after=500_000)
    partial = Path(cloud.settings["data_dir"]) / "models" / "blobs" / "partial" / hashlib.sha256(second).hexdigest()
    wait_until(lambda: partial.exists() and partial.stat().st_size == 500_000, what="half a model at the server")

    assert cloud.end(signal.SIGKILL) == -signal.SIGKILL
    cloud.start()

    cam, gate = device("cam"), device("gate", "fog")
    status = {d.name: d for d in cam.fleet.FleetStatus(pb.FleetStatusRequest()).devices}
    assert set(status) == {"cam", "gate"}
    assert (status["cam"].role, status["gate"].address) == (pb.ROLE_EDGE, "10.0.0.1:7400")
    beat = cam.fleet.Heartbeat(pb.HeartbeatRequest(gauges={"loss": 0.5}, models={"detector": 0}))
    assert [(new.name, new.version, new.device) for new in beat.newer] == [("detector", 1, "cam")]
    begin, stored = gate.publish("detector", second, piece=100_000)
    assert (begin, stored.version, stored.size) == (500_000, 2, len(second))
    assert gate.publish("detector", second)[1] == stored
    latest = cam.models.LatestModel(pb.LatestModelRequest(name="detector")).model
    assert latest == stored
    assert cam.fetch(latest.digest) == second
    assert cam.fetch(latest.digest, 700_001) == second[700_001:]
    assert not cam.models.LatestModel(pb.LatestModelRequest(name="unknown")).HasField("model")

    status = {d.name: d for d in cam.fleet.FleetStatus(pb.FleetStatusRequest()).devices}
    assert dict(status["cam"].gauges) == {"loss": 0.5}
    wait_until(lambda: not cam.fleet.FindFogs(pb.FindFogsRequest()).fogs, what="the silent fog node to be given up")
    text = urllib.request.urlopen(f"http://127.0.0.1:{cloud.metrics_port}/metrics", timeout=5).read().decode()
    assert 'fogline_devices_known{role="edge"} 1.0' in text
    assert 'fogline_devices_known{role="fog"} 1.0' in text
    assert "fogline_model_versions 2.0" in text
    assert cloud.end(signal.SIGTERM) == 0


def test_who_may_do_what(cloud: Cloud, device: Callable[..., Device], other_certificates: Any) -> None:
    cam = device("cam")
    with translate(), pytest.raises(ConfigError, match="must Join"), translate():
        cam.fleet.Heartbeat(pb.HeartbeatRequest())
    with pytest.raises(IdentityError, match="certificate says edge"), translate():
        cam.join(pb.ROLE_FOG, "10.0.0.1:7400")
    with pytest.raises(InputError, match="must be ROLE_EDGE or ROLE_FOG"), translate():
        cam.join(0)
    with pytest.raises(IdentityError, match="role 'cloud'"), translate():
        device("other-cloud", "cloud").join()
    with pytest.raises(IdentityError):
        device("stranger", tls=other_certificates.tls("stranger", "edge"))
    gate = device("gate", "fog")
    with pytest.raises(InputError, match="can't be found by edges"), translate():
        gate.join(pb.ROLE_FOG, "nowhere")


def test_models_that_are_refused(cloud: Cloud, device: Callable[..., Device]) -> None:
    cam = device("cam")

    def send(*requests: pb.PublishModelRequest) -> list[pb.PublishModelResponse]:
        with translate():
            return list(cam.models.PublishModel(iter(requests)))

    def offer(data: bytes, size: int | None = None) -> pb.PublishModelRequest:
        digest = hashlib.sha256(data).digest()
        return pb.PublishModelRequest(offer=pb.ModelOffer(name="m", digest=digest, size=size or len(data)))

    def chunk(at: int, data: bytes, crc: int | None = None) -> pb.PublishModelRequest:
        crc = zlib.crc32(data) if crc is None else crc
        return pb.PublishModelRequest(chunk=transfer_pb2.Chunk(offset=at, data=data, crc32=crc))

    good = model(1)
    with pytest.raises(InputError, match=r"models\.max_bytes"):
        send(offer(good, 5 << 20))
    with pytest.raises(ProtocolError, match="without an offer"):
        send(chunk(0, good))
    with pytest.raises(ProtocolError, match="empty"):
        send(pb.PublishModelRequest())
    with pytest.raises(ProtocolError, match="damaged on its way"):
        send(offer(good), chunk(0, good[:50], crc=1))
    with pytest.raises(ProtocolError, match="0 are held"):
        send(offer(good), chunk(50, good[50:]))
    with pytest.raises(ProtocolError, match="were announced"):
        send(offer(good), chunk(0, good + b"x"))
    with pytest.raises(ProtocolError, match="another offer"):
        send(offer(good), offer(good))
    with pytest.raises(ProtocolError, match="don't match"):
        send(offer(good), chunk(0, model(2)))
    junk = file_of({"a": 1}, b"")
    with pytest.raises(InputError, match="must have dtype"):
        send(offer(junk), chunk(0, junk))
    with pytest.raises(InputError, match="no model has the digest"), translate():
        cam.fetch(b"nothing")
    answers = send(offer(good), chunk(0, good), offer(good), offer(model(2)), chunk(0, model(2)))
    assert [a.stored.version for a in answers if a.HasField("stored")] == [1, 1, 2]
    with pytest.raises(InputError, match="past its end"), translate():
        cam.fetch(hashlib.sha256(good).digest(), len(good) + 1)


def test_the_newest_stream_takes_over(cloud: Cloud, device: Callable[..., Device]) -> None:
    """A publisher that lost its connection does not wait until the server notices."""
    data = model(5, 100_000)
    old, new = device("cam"), device("cam")
    held_back: queue.SimpleQueue[pb.PublishModelRequest | None] = queue.SimpleQueue()
    digest = hashlib.sha256(data).digest()
    held_back.put(pb.PublishModelRequest(offer=pb.ModelOffer(name="m", digest=digest, size=len(data))))
    answers = old.models.PublishModel(iter(held_back.get, None))
    assert next(answers).accepted.offset == 0
    assert new.publish("m", data, stop_after=50_000, piece=50_000) == (0, None)
    held_back.put(pb.PublishModelRequest(chunk=transfer_pb2.Chunk(offset=0, data=b"x", crc32=zlib.crc32(b"x"))))
    with pytest.raises(UnavailableError, match="newer stream"), translate():
        next(answers)
    held_back.put(None)


def test_a_port_in_use_and_a_bad_setting_end_with_their_codes(cloud: Cloud, tmp_path: Path) -> None:
    def run(*flags: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "fogline.cloud_server", "--config", str(cloud.config), *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=dict(os.environ))
        return done.returncode, done.stderr

    code, text = run("--set", f"listen=127.0.0.1:{cloud.port}", "--set", f"data_dir={tmp_path / 'other'}")
    assert code == ConfigError.exit_code
    assert f"port {cloud.port} of 127.0.0.1 is in use" in text
    code, text = run("--set", "listen=127.0.0.1:0")
    assert code == ConfigError.exit_code
    assert "in use by another cloud server" in text
    code, text = run("--set", "heartbeat_s=5")
    assert code == ConfigError.exit_code
    assert "did you mean `heartbeat_ms`?" in text


def test_it_starts_without_torch(cloud: Cloud) -> None:
    code = "import sys, fogline.cloud_server.__main__, fogline.cloud_server.server; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_two_publishers_of_the_same_bytes_at_once(cloud: Cloud, device: Callable[..., Device]) -> None:
    data = model(7, 400_000)
    versions: list[int] = []

    def publish(name: str) -> None:
        made = device(name)
        while True:
            try:
                with translate():
                    versions.append(made.publish("m", data, piece=20_000)[1].version)
                    return
            except (UnavailableError, ProtocolError):
                continue

    threads = [threading.Thread(target=publish, args=(f"cam-{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert versions == [1, 1, 1]
