"""Live cameras: what is opened, what is said when it fails, and frames from real streams through the real process.

No camera is at hand: FFmpeg's own test device (lavfi) and GStreamer's test source go the way of one; the network camera
is a real RTSP server.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
import yaml
from edge_helpers import until
from PIL import Image

from fogline.common.config import LogConfig, load
from fogline.common.errors import ConfigError, UnavailableError
from fogline.edge_agent import camera_open
from fogline.edge_agent.annotate import Annotator
from fogline.edge_agent.camera_open import Opening, camera_name, explained, openings, redacted
from fogline.edge_agent.camera_process import Head, Pacer, Reader, whole
from fogline.edge_agent.capture import Capture
from fogline.edge_agent.clock import FogClock
from fogline.edge_agent.config import CaptureConfig, EdgeConfig
from fogline.edge_agent.live import LiveCamera, LiveFrame
from fogline.edge_agent.outbox import Outbox
from fogline.edge_agent.workers import Stop

pytest.importorskip("av", reason="PyAV is not installed (fogline[camera])")
SECRET = "rtsp://board:s3cret@cam.local:8554/stream?token=t0ken"
HOOK = """
import sys
print("a user's function may print")
def find(frame):
    height, width, channels = frame.shape
    assert channels == 3 and frame.dtype == "uint8"
    return [(1, 2, width / 2, height / 2, "car"), (0, 0, 4, 4)]
def wrong(frame):
    return [(0, 0, 1e9, 1)]
def fails(frame):
    raise RuntimeError("no model")
value = 5
"""


@pytest.fixture
def hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of a user's functions."""
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "their_hook.py").write_text(HOOK)
    monkeypatch.syspath_prepend(str(tmp_path / "hooks"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "hooks"), os.environ.get("PYTHONPATH", "")]))
    return "their_hook"


class Enough(Exception):
    """A sink has what it wanted."""


class Sink(io.BytesIO):
    """What the process writes, until `count` frames are there."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def flush(self) -> None:
        self._count -= 1
        if self._count == 0:
            raise Enough


def frames(written: bytes) -> list[tuple[Head, bytes]]:
    found, rest = [], written
    while rest:
        line, _, rest = rest.partition(b"\n")
        head = msgspec.json.decode(line, type=Head)
        found.append((head, rest[: head.size]))
        rest = rest[head.size :]
    return found


def lavfi(config: CaptureConfig, count: int, annotator: Annotator | None = None) -> list[tuple[Head, bytes]]:
    sink = Sink(count)
    with pytest.raises(Enough):
        Reader(config, annotator).write(Opening("test", "testsrc=size=64x48:rate=1", "lavfi"), sink)
    return frames(sink.getvalue())


def gst(*arguments: str) -> Opening:
    program = shutil.which("gst-launch-1.0")
    if program is None:
        pytest.skip("gst-launch-1.0 is not installed")
    return Opening("csi:0", "", "mjpeg", {}, (program, "-q", *arguments))


def test_frames_become_jpegs_of_their_own_size() -> None:
    found = lavfi(CaptureConfig(fps=0), 3)
    for head, data in found:
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.size, head.boxes) == ("JPEG", (64, 48), ())
        assert 0 <= head.age_us < 60_000_000
    assert len({data for _, data in found}) == 3


def test_frames_are_scaled_where_a_size_is_wanted_and_quality_counts() -> None:
    small, large = (lavfi(CaptureConfig(fps=0, width=32, height=16, quality=q), 1)[0][1] for q in (10, 95))
    with Image.open(io.BytesIO(large)) as image:
        assert image.size == (32, 16)
    assert len(small) < len(large)


def test_boxes_come_from_the_users_function(hook: str) -> None:
    ((head, _),) = lavfi(CaptureConfig(fps=0), 1, Annotator(f"{hook}:find", "thing"))
    assert head.boxes == ((1.0, 2.0, 32.0, 24.0, "car"), (0.0, 0.0, 4.0, 4.0, "thing"))


@pytest.mark.parametrize(
    ("function", "told"), [("wrong", "outside the 64x48 frame"), ("fails", "RuntimeError: no model")]
)
def test_a_function_that_fails_costs_the_boxes_and_is_told_once(
    hook: str, function: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert [head.boxes for head, _ in lavfi(CaptureConfig(fps=0), 3, Annotator(f"{hook}:{function}", "x"))] == [()] * 3
    assert [told in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere_at_all:f", "no module 'nowhere_at_all'"),
        ("json:nothing", "has no 'nothing'"),
        ("their_hook:value", "is a int"),
    ],
)
def test_a_function_that_is_not_there_is_a_wrong_setting(hook: str, name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Annotator(name, "x")


def test_motion_jpeg_of_a_program_passes_as_it_is() -> None:
    caps = "video/x-raw,width=64,height=48"
    opening = gst("videotestsrc", "num-buffers=3", "!", caps, "!", "jpegenc", "!", "fdsink", "fd=1")
    sink = io.BytesIO()
    with pytest.raises(UnavailableError, match=r"csi:0: gst-launch-1.0 gives no frames and ended with code 0.*FL806"):
        Reader(CaptureConfig(fps=0), None).write(opening, sink)
    found = frames(sink.getvalue())
    assert len(found) == 3
    for _, data in found:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.size == (64, 48)


def test_a_program_that_fails_is_named() -> None:
    with pytest.raises(Exception, match=r"gst-launch-1.0 gives no frames and ended with code 1; .* check the cable"):
        Reader(CaptureConfig(), None).write(gst("nosuchelement", "!", "fdsink"), io.BytesIO())


def test_jpegs_without_tables_are_told_from_whole_ones() -> None:
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG")
    data = out.getvalue()
    assert whole(data)
    table = data.index(b"\xff\xc4")
    assert not whole(data[:table] + data[data.index(b"\xff\xda") :])
    assert not whole(b"")


def test_the_rate_is_even_and_what_was_late_is_not_made_up_for() -> None:
    pacer = Pacer(5)
    taken = [n for n in range(60) if pacer.due(100 + n / 30 + (0.01 if n % 2 else 0))]
    assert len(taken) == 11
    assert all(5 <= b - a <= 7 for a, b in pairwise(taken[1:]))
    assert [pacer.due(200.0) for _ in range(3)] == [True, False, False]
    assert all(Pacer(0).due(1.0) for _ in range(3))


def test_what_is_opened_for_a_usb_camera() -> None:
    jpeg, raw, any_rate = openings(CaptureConfig(source="camera", width=640, height=480, fps=15))
    assert jpeg.file == "/dev/video0"
    assert jpeg.options == {"video_size": "640x480", "framerate": "15", "input_format": "mjpeg"}
    assert raw.options == {"video_size": "640x480", "framerate": "15"}
    assert any_rate.options == {"video_size": "640x480"}


@pytest.mark.parametrize("program", ["rpicam-vid", "libcamera-vid", "gst-launch-1.0"])
def test_what_is_run_for_a_csi_camera(program: str) -> None:
    config = CaptureConfig(source="camera", device="csi:1", fps=10, quality=70)
    (opening,) = openings(config, lambda name: f"/usr/bin/{name}" if name == program else None)
    command = " ".join(opening.command)
    assert command.startswith(f"/usr/bin/{program} ")
    for part in ("1280", "720", "10", "70", "sensor-id=1" if program == "gst-launch-1.0" else "--camera 1"):
        assert part in command
    with pytest.raises(ConfigError, match="install rpicam-apps"):
        openings(config, lambda name: None)


def test_no_message_holds_a_password(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert redacted(SECRET) == "rtsp://cam.local:8554/stream"
    config = CaptureConfig(source="rtsp", url=SECRET)
    (opening,) = openings(config)
    file = tmp_path / "edge.yaml"
    file.write_text(f"name: a\ndata_dir: d\nfog: h:1\ncapture: {{source: rtsp, url: 'http{SECRET[4:]}'}}\n")
    with pytest.raises(ConfigError) as wrong:
        load(EdgeConfig, file, {}, {})
    texts = [opening.name, repr(config), str(wrong.value), camera_name(config)]
    texts += [str(explained(OSError(n, f"failed: {SECRET}", SECRET), opening)) for n in (5, 13, 22, 99, 110, 111, 113)]
    for text in texts:
        assert "s3cret" not in text
        assert "t0ken" not in text
    assert "capture" in str(wrong.value)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (2, "no such camera.*there are: /dev/video7"), (13, "group video"), (16, "another program"),
        (22, "v4l2-ctl"), (25, "metadata"), (5, "Input/output error"),
    ],
)  # fmt: skip
def test_a_usb_camera_that_can_not_be_opened_is_explained(
    number: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera_open, "_video_devices", lambda: ["/dev/video7"])
    opening = openings(CaptureConfig(source="camera"))[0]
    text = str(explained(OSError(number, os.strerror(number)), opening))
    assert text.startswith("/dev/video0: ")
    assert text.endswith("[FL806]")
    assert re.search(told, text), text


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"source": "camera", "device": "0"}, "is no camera"),
        ({"source": "rtsp"}, "is no address"),
        ({"source": "rtsp", "url": "file:///etc/passwd"}, "is no address"),
        ({"width": 5}, "give both"),
        ({"annotate": "x"}, "package.module:function"),
        ({"source": "folder"}, "needs `runs`"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=told):
        msgspec.convert(settings, CaptureConfig)


class Filming:
    """A live camera that is read on a thread of its own."""

    def __init__(self, config: CaptureConfig) -> None:
        self.stop = Stop()
        self.camera = LiveCamera(config, LogConfig(), self.stop)
        self.frames: list[LiveFrame] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for frame in self.camera.frames():
            self.frames.append(frame)

    def end(self) -> None:
        self.stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def film() -> Iterator[Callable[[CaptureConfig], Filming]]:
    """Start filming; ended at the end."""
    made: list[Filming] = []

    def start(config: CaptureConfig) -> Filming:
        made.append(Filming(config))
        return made[-1]

    yield start
    for filming in made:
        filming.end()


def test_the_process_says_why_there_are_no_frames_and_ends_when_told(film: Callable[[CaptureConfig], Filming]) -> None:
    filming = film(CaptureConfig(source="camera", device="/dev/video93"))
    until(lambda: "no such camera" in filming.camera.error, 60)
    assert filming.frames == []


def test_a_wrong_function_ends_capture_with_the_reason(film: Callable[[CaptureConfig], Filming]) -> None:
    filming = film(CaptureConfig(source="camera", annotate="nowhere_at_all:f"))
    until(lambda: "no module 'nowhere_at_all'" in filming.camera.error, 60)
    filming._thread.join(20)
    assert not filming._thread.is_alive()


@pytest.fixture
def rtsp() -> Iterator[Callable[..., tuple[int, subprocess.Popen[str]]]]:
    """Start a real RTSP server: its port and process. Needs GStreamer's server and its Python binding."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode:
        pytest.skip(
            "no GstRtspServer here; Debian: gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-{good,ugly}"
        )
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[int, subprocess.Popen[str]]:
        script = str(Path(__file__).with_name("rtsp_server.py"))
        server = subprocess.Popen([python, script, *arguments], stdout=subprocess.PIPE, text=True)
        running.append(server)
        assert server.stdout is not None
        return int(server.stdout.readline()), server

    yield start
    for server in running:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize(("path", "transport"), [("h264", "tcp"), ("h264", "udp"), ("mjpeg", "tcp")])
def test_frames_and_boxes_come_from_a_network_camera_with_a_password(
    film: Callable[[CaptureConfig], Filming], rtsp: Callable[..., tuple[int, subprocess.Popen[str]]], hook: str,
    path: str, transport: str, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    port, _ = rtsp("board", "s3cret")
    url = f"rtsp://board:s3cret@127.0.0.1:{port}/{path}"
    settings = {"source": "rtsp", "url": url, "transport": transport, "fps": 5, "annotate": f"{hook}:find"}
    filming = film(msgspec.convert(settings | {"stall_s": 30}, CaptureConfig))
    until(lambda: len(filming.frames) >= 8, 90)
    assert filming.camera.error == ""
    for frame in filming.frames:
        with Image.open(io.BytesIO(frame.data)) as image:
            assert image.size == (320, 240)
        assert [box.label for box in frame.boxes] == ["car", "object"]
    filming.end()
    assert "s3cret" not in "".join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("userinfo", "path", "told"),
    [("board:wrong@", "h264", "refuses the user or the password"), ("board:s3cret@", "nope", "has no such stream"),
     ("board:s3cret@", "sound", "has no video")],
)  # fmt: skip
def test_a_network_camera_that_refuses_is_explained(
    film: Callable[[CaptureConfig], Filming], rtsp: Callable[..., tuple[int, subprocess.Popen[str]]],
    userinfo: str, path: str, told: str,
) -> None:  # fmt: skip
    port, _ = rtsp("board", "s3cret")
    filming = film(CaptureConfig(source="rtsp", url=f"rtsp://{userinfo}127.0.0.1:{port}/{path}"))
    until(lambda: told in filming.camera.error, 60)


@pytest.mark.slow
def test_a_camera_that_falls_silent_or_goes_away_is_opened_again(
    film: Callable[[CaptureConfig], Filming], rtsp: Callable[..., tuple[int, subprocess.Popen[str]]]
) -> None:
    port, server = rtsp()
    filming = film(CaptureConfig(source="rtsp", url=f"rtsp://127.0.0.1:{port}/h264", fps=5, stall_s=5))
    until(lambda: len(filming.frames) >= 2, 90)
    server.send_signal(19)  # SIGSTOP: it answers nothing, as behind a cable that was pulled
    until(lambda: filming.camera.error, 60)
    server.send_signal(18)
    before = len(filming.frames)
    until(lambda: len(filming.frames) >= before + 2 and not filming.camera.error, 120)
    server.kill()
    until(lambda: filming.camera.error, 60)


@pytest.mark.slow
def test_live_frames_go_to_the_outbox_and_those_without_room_are_counted(
    rtsp: Callable[..., tuple[int, subprocess.Popen[str]]], tmp_path: Path
) -> None:
    port, _ = rtsp()
    outbox, stop = Outbox(tmp_path / "outbox", 1 << 16, "block"), Stop()
    config = CaptureConfig(source="rtsp", url=f"rtsp://127.0.0.1:{port}/h264", fps=0, camera="door", quality=95)
    capture = Capture(config, outbox, FogClock(), stop)
    thread = threading.Thread(target=capture.run)
    thread.start()
    until(lambda: capture.missed >= 3, 90)
    assert capture.waiting
    assert capture.trouble == ""
    stop.set()
    thread.join(20)
    items = outbox.take(3)
    assert [item.camera for item in items] == ["door"] * 3
    now = time.time_ns() // 1000
    assert all(0 <= now - item.captured.wall_us < 120_000_000 for item in items)
    assert outbox.captured("rtsp:door") == set()
    assert capture.refused == 0
    outbox.close()


def test_the_guide_shows_settings_that_are_valid() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "boards.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    lines = [yaml.safe_load(line)["capture"] for line in block.splitlines() if line.startswith("capture:")]
    assert [msgspec.convert(line, CaptureConfig).source for line in lines] == ["camera", "camera", "rtsp"]
