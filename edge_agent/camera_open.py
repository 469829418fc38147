"""What is opened for a live camera, and what is said when that fails. No message ever holds a password."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from fogline.common.errors import ConfigError, FoglineError, UnavailableError
from fogline.edge_agent.config import CaptureConfig

_CSI_SIZE = (1280, 720)  # where none is asked for: sensors' full sizes are more than a fog node takes
_CSI_FPS = 30
# An RTSP server says where its streams are; it must not send us to files or to other programs.
_PROTOCOLS = "rtsp,rtp,srtp,rtcp,udp,tcp,tls,crypto"


@dataclass(frozen=True)
class Opening:
    """One way to open a camera with FFmpeg."""

    name: str  # in messages
    file: str = field(repr=False)
    format: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()  # the program whose output is read instead of `file`


def openings(config: CaptureConfig, which: Callable[[str], str | None] = shutil.which) -> list[Opening]:
    """The ways to try, best first. Raises ConfigError where this host has no program for a CSI camera."""
    if config.source == "rtsp":
        options = {
            "rtsp_transport": config.transport,
            "protocol_whitelist": _PROTOCOLS,
            "timeout": str(int(config.stall_s * 1e6)),
            "analyzeduration": "1000000",  # the server has said what it sends; five seconds is for files
        }
        return [Opening(redacted(config.url), config.url, None, options)]
    if config.device.startswith("csi:"):
        return [Opening(config.device, "", "mjpeg", {}, _csi(config, which))]
    options = {}
    if config.width:
        options["video_size"] = f"{config.width}x{config.height}"
    if config.fps >= 1:
        options["framerate"] = f"{config.fps:g}"
    # Raw frames of more than VGA do not fit USB 2 at any useful rate; not every camera has a JPEG encoder.
    ways = [options | {"input_format": "mjpeg"}, options, {key: options[key] for key in options if key != "framerate"}]
    return [Opening(config.device, config.device, "v4l2", way) for way in ways]


def redacted(url: str) -> str:
    """The address of a camera without user, password and parameters."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def camera_name(config: CaptureConfig) -> str:
    """The name that images carry where none is configured."""
    if config.camera:
        return config.camera
    if config.source == "rtsp":
        return urlsplit(config.url).hostname or "rtsp"
    return config.device.rpartition("/")[2].replace(":", "")


def explained(error: BaseException, opening: Opening) -> FoglineError:
    """An error of FFmpeg or the system, as one that names the camera and the way out. Its own text holds the URL."""
    number, name = getattr(error, "errno", None), opening.name
    reason = str(getattr(error, "strerror", None) or type(error).__name__).replace(opening.file or "\0", name)
    reason = " ".join(reason.split())[:200]
    if opening.format is not None:
        return UnavailableError(f"{name}: {_at_this_board(number) or reason}", number=806)
    return UnavailableError(f"{name}: {_in_the_network(number, type(error).__name__) or reason}", number=807)


def _at_this_board(number: int | None) -> str:
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        there = ", ".join(_video_devices()) or "none"
        return f"no such camera; plug it in, or set capture.device (there are: {there})"
    if number in (errno.EACCES, errno.EPERM):
        return "may not be opened; add the agent's user to group video and start it again"
    if number == errno.EBUSY:
        return "is used by another program; end that one"
    if number in (errno.ENOTTY, errno.EINVAL):
        return (
            "gives no video in this size and rate, or is no camera (many have a second device for metadata); "
            "`v4l2-ctl --list-formats-ext` tells what it has"
        )
    return ""


def _in_the_network(number: int | None, kind: str) -> str:
    if kind in ("HTTPUnauthorizedError", "HTTPForbiddenError"):
        return "refuses the user or the password; correct capture.url"
    if kind == "HTTPNotFoundError":
        return "has no such stream; correct the path in capture.url"
    if number == errno.ECONNREFUSED:
        return "nothing serves there; check address and port in capture.url"
    if kind in ("ExitError", "TimeoutError") or number == errno.ETIMEDOUT:
        return "no answer in time; is it on, and reachable from here?"
    if number in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return "can't be reached from here; check network and capture.url"
    if number == errno.EIO:  # FFmpeg's word for a name that does not resolve
        return "can't be opened; check that its host name resolves, and capture.url"
    return ""


def _csi(config: CaptureConfig, which: Callable[[str], str | None]) -> tuple[str, ...]:
    """The board's own program for its camera connector, writing JPEGs one after the other."""
    number = config.device.partition(":")[2]
    width, height = (config.width, config.height) if config.width else _CSI_SIZE
    fps = f"{config.fps:g}" if config.fps >= 1 else str(_CSI_FPS)
    for program in ("rpicam-vid", "libcamera-vid"):
        if found := which(program):
            return (
                found, "--camera", number, "--codec", "mjpeg", "--quality", str(config.quality), "--nopreview",
                "--timeout", "0", "--width", str(width), "--height", str(height), "--framerate", fps, "--flush",
                "--output", "-",
            )  # fmt: skip
    if found := which("gst-launch-1.0"):
        # Whole rates only: sensors have no others.
        caps = f"video/x-raw(memory:NVMM),width={width},height={height},framerate={max(1, round(float(fps)))}/1"
        source, encoder = ("nvarguscamerasrc", f"sensor-id={number}"), ("nvjpegenc", f"quality={config.quality}")
        return (found, "-q", *source, "!", caps, "!", *encoder, "!", "fdsink", "fd=1")
    raise ConfigError(
        f"{config.device}: no program here reads a CSI camera; on Raspberry Pi OS install rpicam-apps, on JetPack "
        "gstreamer1.0-tools"
    )


def _video_devices() -> list[str]:
    return sorted(str(path) for path in Path("/dev").glob("video*"))
