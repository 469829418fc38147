"""A real fog node process, and real devices that talk to it over mTLS."""

from __future__ import annotations

import hashlib
import io
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fogline.common.clock import now_us
from fogline.common.config import TlsConfig
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.rpc.gen import transfer_pb2
from fogline.common.rpc.gen.images_pb2_grpc import ImageServiceStub
from fogline.common.rpc.status import translate
from fogline.common.wire.transfer import Collector, Piece
from fogline.common.wire.upload import Drop, MarkStored, Offer, Reason, RetryLater, SendOffer, UploadSender

Outcome = MarkStored | Drop | RetryLater


def picture(seed: int, width: int = 160, height: int = 120, quality: int = 85) -> bytes:
    """A JPEG that no other seed gives."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    image.putpixel((0, 0), (seed % 256, seed // 256 % 256, 0))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, comment=str(seed).encode())
    return buffer.getvalue()


@dataclass(frozen=True)
class Shot:
    """An image with its annotation, as an edge has it."""

    data: bytes
    boxes: tuple[tuple[float, float, float, float, str], ...] = ((10.0, 10.0, 40.0, 30.0, "cat"),)
    camera: str = "cam"
    capture_us: int = field(default_factory=now_us)
    of: bytes = b""  # the content id, where `data` is a coded form of that image
    form: int = 0

    @property
    def content_id(self) -> bytes:
        return self.of or hashlib.sha256(self.data).digest()

    def offer(self, size: int | None = None) -> pb.ImageOffer:
        return pb.ImageOffer(
            content_id=self.content_id,
            size=len(self.data) if size is None else size,
            camera=self.camera,
            capture_time_us=self.capture_us,
            boxes=[pb.BoundingBox(x=x, y=y, width=w, height=h, label=label) for x, y, w, h, label in self.boxes],
            form=pb.UplinkForm.ValueType(self.form),
            digest=hashlib.sha256(self.data).digest() if self.of else b"",
        )


def shots(count: int, first: int = 0, **settings: Any) -> list[Shot]:
    return [Shot(picture(seed), **settings) for seed in range(first, first + count)]


class Fog:
    """One fog node process, which may be killed and started again on its folder."""

    def __init__(self, folder: Path, tls: TlsConfig, settings: dict[str, object]) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.data_dir, self.log = folder, folder / "store", folder / "fog.log"
        self._process: subprocess.Popen[str] | None = None
        values: dict[str, object] = {
            "data_dir": str(self.data_dir),
            "listen": "127.0.0.1:0",
            "tls": {"ca": str(tls.ca), "cert": str(tls.cert), "key": str(tls.key)},
            "encoder": {"codec": "jpeg2", "max_wait_s": 0.02, "batch": 8},
        }
        for key, value in settings.items():
            *sections, last = key.split("__")
            at: Any = values
            for section in sections:
                at = at.setdefault(section, {})
            at[last] = value
        self._config = folder / "fog.yaml"
        self._config.write_text(json.dumps(values))
        self.port = self.metrics_port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def spawn(self) -> subprocess.Popen[str]:
        with self.log.open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "fogline.fog_node", "--config", str(self._config)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def start(self, deadline_s: float = 30.0) -> None:
        self._process = self.spawn()
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], deadline_s)
        line = self._process.stdout.readline() if readable else ""
        if not line.startswith("ready "):
            self.kill()
            raise AssertionError(f"the fog node did not start: {self.log.read_text()[-3000:]}")
        ports = json.loads(line.removeprefix("ready "))
        self.port, self.metrics_port = ports["port"], ports["metrics_port"]

    def kill(self) -> None:
        """kill -9"""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        code = process.wait(20)
        assert process.stdout is not None
        process.stdout.close()
        return code

    def health(self) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/healthz", timeout=5) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.split()[1])
        raise AssertionError(f"no metric {name}")

    def logged(self, text: str) -> bool:
        return text in self.log.read_text()


class Device:
    """A device with its own certificate, speaking to a fog node through the real client code."""

    def __init__(self, address: str, name: str, tls: TlsConfig) -> None:
        self.name = name
        self.meter = LinkMeter("edge-fog")
        self.channel = connect(address, tls, meter=self.meter, deadline_s=10)
        self.stub = ImageServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()

    def hello(self) -> pb.HelloResponse:
        with translate():
            return self.stub.Hello(pb.HelloRequest(protocol=1, client_time_us=now_us()))

    def upload(self, images: Sequence[Shot], chunk_bytes: int = 256 << 10) -> dict[bytes, Outcome]:
        """Upload images on one stream, as an edge does; raises when the stream breaks."""
        return dict(self.uploading(images, chunk_bytes))

    def uploading(self, images: Sequence[Shot], chunk_bytes: int = 256 << 10) -> Iterator[tuple[bytes, Outcome]]:
        sender = UploadSender(chunk_bytes=chunk_bytes, max_images=64)
        by_id = {shot.content_id: shot for shot in images}
        waiting = [Offer(i, len(s.data)) for i, s in by_id.items()]
        outbox: queue.SimpleQueue[pb.UploadRequest | None] = queue.SimpleQueue()

        def pump() -> None:
            while waiting and sender.room(waiting[0].size):
                sender.offer(waiting.pop(0))
            while (step := sender.pull()) is not None:
                shot = by_id[step.content_id]
                if isinstance(step, SendOffer):
                    outbox.put(pb.UploadRequest(offer=shot.offer()))
                else:
                    outbox.put(chunk(shot, step.offset, step.length))

        pump()
        if not by_id:
            return
        left = len(by_id)
        with translate():
            call = self.stub.Upload(iter(outbox.get, None), timeout=90)
            try:
                for answer in call:
                    step: Any = None
                    kind = answer.WhichOneof("message")
                    if kind == "accepted":
                        sender.accepted(answer.accepted.content_id, answer.accepted.offset)
                    elif kind == "stored":
                        step = sender.stored(answer.stored.content_id, answer.stored.duplicate)
                    else:
                        rejected = answer.rejected
                        step = sender.rejected(rejected.content_id, Reason(rejected.reason), rejected.detail)
                    pump()
                    if isinstance(step, (MarkStored, Drop, RetryLater)):
                        left -= 1
                        yield step.content_id, step
                        if not left:
                            outbox.put(None)
            finally:
                outbox.put(None)
                call.cancel()

    def raw_upload(self, requests: Sequence[pb.UploadRequest]) -> list[pb.UploadResponse]:
        """Send just these requests, then end the stream; raises when it breaks."""
        with translate():
            return list(self.stub.Upload(iter(requests), timeout=20))

    def notices(
        self,
        upto: int,
        cursor: int = 0,
        *,
        labels: Sequence[str] = (),
        cameras: Sequence[str] = (),
        limit_s: float = 30,
    ) -> list[pb.Published]:
        """Subscribe, and read until everything up to the cursor `upto` has been told."""
        request = pb.SubscribeRequest(
            cursor=cursor, filter=pb.Filter(labels=labels, cameras=cameras), store_id=self.hello().store_id
        )
        found: list[pb.Published] = []
        with translate():
            call = self.stub.Subscribe(request, timeout=limit_s)
            for answer in call:
                found += answer.published
                if answer.head >= upto:
                    break
            call.cancel()
        return found

    def subscribe(self, *, cameras: Sequence[str] = ()) -> Any:
        """Subscribe and stay; the call, to be cancelled."""
        request = pb.SubscribeRequest(filter=pb.Filter(cameras=cameras), store_id=self.hello().store_id)
        return self.stub.Subscribe(request, timeout=60)

    def fetch(self, items: Sequence[pb.FetchItem]) -> list[pb.FetchResponse]:
        with translate():
            return list(self.stub.Fetch(iter([pb.FetchRequest(items=items)]), timeout=20))

    def records(self, notices: Sequence[pb.Published]) -> dict[int, bytes]:
        """Fetch whole records, checked against their digests; what is gone is left out."""
        parts = {n.cursor: Collector(n.size, max_size=16 << 20) for n in notices}
        gone = set()
        for answer in self.fetch([pb.FetchItem(cursor=n.cursor) for n in notices]):
            for part in answer.chunks:
                if part.gone:
                    gone.add(part.cursor)
                    continue
                parts[part.cursor].accept(Piece(part.chunk.offset, part.chunk.data, part.chunk.crc32))
        return {n.cursor: parts[n.cursor].finish(n.digest) for n in notices if n.cursor not in gone}


def chunk(shot: Shot, offset: int, length: int) -> pb.UploadRequest:
    piece = Piece.of(offset, shot.data[offset : offset + length])
    part = transfer_pb2.Chunk(offset=piece.offset, data=piece.data, crc32=piece.crc32)
    return pb.UploadRequest(chunk=pb.UploadChunk(content_id=shot.content_id, chunk=part))


def until(condition: Any, deadline_s: float = 20.0, what: str = "the condition") -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline_s} s for {what}")
        time.sleep(0.01)


def stored(shot: Shot, *, duplicate: bool = False) -> MarkStored:
    return MarkStored(shot.content_id, duplicate)


def interactive(a: Any, offer: pb.UploadRequest, after: list[pb.UploadRequest]) -> list[pb.UploadResponse]:
    """Offer, wait for the answer, then send the rest."""
    accepted = threading.Event()

    def requests() -> Any:
        yield offer
        assert accepted.wait(10)
        yield from after

    answers = []
    with translate():
        for answer in a.stub.Upload(requests(), timeout=20):
            answers.append(answer)
            accepted.set()
    return answers
