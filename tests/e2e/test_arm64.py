"""An edge agent on aarch64, emulated as the cores of a Raspberry Pi 4: from wheels to images shared and decoded.

A Debian of that architecture runs under qemu's user mode; the fog node is this host's own. Emulated times say nothing
of a board's speed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fogline.common.data.clip import write_clip
from tests.conftest import Certificates
from tests.deploy.containers import debian_mirror
from tests.deploy.wheelhouse import AARCH64, wheelhouse

pytestmark = pytest.mark.slow
WaitUntil = Callable[..., None]
CPU = "cortex-a72"
_FORMATS = Path("/proc/sys/fs/binfmt_misc")
_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"


class Board:
    """A root file system of another architecture, and what runs in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "QEMU_CPU": CPU, "HOME": "/root", "LANG": "C.UTF-8"}
        self.env |= {name: value for name, value in os.environ.items() if name == "FOGLINE_TEST_RUN"}

    def command(self, *words: str) -> list[str]:
        """To run in it."""
        return [shutil.which("chroot", path="/usr/sbin:/usr/bin:/sbin:/bin") or "chroot", str(self.root), *words]

    def run(self, *words: str, timeout: float = 900) -> str:
        """Run to the end; the output."""
        done = subprocess.run(
            self.command(*words), env=self.env, text=True, timeout=timeout, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A Debian for aarch64 with Fogline in it, and /proc and /dev/urandom of this host."""
    if os.geteuid() != 0:
        pytest.skip("chroot needs root")
    root = _file_system(tmp_path_factory)
    made = Board(root)
    mounts = [root / "proc", root / "dev" / "shm"]
    try:
        for folder, kind in zip(mounts, ("proc", "tmpfs"), strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-t", kind, kind, str(folder)], check=True)
        wheels = wheelhouse(tmp_path_factory.mktemp("wheels"), AARCH64)
        shutil.copytree(wheels, root / "wheels")
        made.run("python3", "-m", "venv", "/opt/fogline")
        made.run("/opt/fogline/bin/pip", "install", "-q", "--no-index", "--find-links", "/wheels", "fogline[camera]")
        yield made
    finally:
        for folder in reversed(mounts):
            subprocess.run(["umount", "-l", str(folder)], check=False)


def _file_system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh Debian. Its making takes minutes: FOGLINE_ARM64_ROOT may name one, which is copied."""
    if shutil.which("qemu-aarch64-static") is None:
        pytest.skip("qemu-aarch64-static is not installed; Debian: apt install qemu-user-static")
    _register()
    root = tmp_path_factory.mktemp("arm64") / "root"
    if kept := os.environ.get("FOGLINE_ARM64_ROOT"):
        subprocess.run(["cp", "-a", kept, str(root)], check=True)
        return root
    command = ["debootstrap", "--arch=arm64", "--variant=minbase", f"--include={_PACKAGES}", "bookworm"]
    done = subprocess.run([*command, str(root), debian_mirror()], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"debootstrap failed: {done.stdout[-300:]}")
    return root


def _register() -> None:
    """Have the kernel run programs for aarch64."""
    if not (_FORMATS / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_FORMATS)], check=False)
    if (_FORMATS / "qemu-aarch64").exists():
        return
    config = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
    if not config.exists() or not (_FORMATS / "register").exists():
        pytest.skip("this kernel can't be told to run programs for aarch64 (binfmt_misc)")
    (line,) = (line for line in config.read_bytes().splitlines() if line.startswith(b":"))
    (_FORMATS / "register").write_bytes(line)


class Program:
    """One of the product's processes, its log in a file."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=env)

    def ready(self) -> dict[str, int]:
        """The ports that it announced; empty before."""
        assert self.process.poll() is None, self.text()[-3000:]
        line = next((line for line in self.text().splitlines() if line.startswith("ready ")), "")
        return dict(json.loads(line[6:])) if line else {}

    def text(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")

    def end(self) -> int:
        """SIGTERM; its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)


def _tls(certificates: Certificates, name: str, role: Any, folder: Path, seen_as: str) -> dict[str, str]:
    made = certificates.tls(name, role)
    folder.mkdir(parents=True, exist_ok=True)
    for path in made.files():
        shutil.copy(path, folder / path.name)
    return {kind: f"{seen_as}/{path.name}" for kind, path in zip(("ca", "cert", "key"), made.files(), strict=True)}


def test_it_is_the_other_architecture_and_the_agent_needs_no_torch(board: Board) -> None:
    assert board.run("/opt/fogline/bin/python", "-c", "import platform; print(platform.machine())") == "aarch64\n"
    found = board.run("/opt/fogline/bin/python", "-c", "import importlib.util as u; print(u.find_spec('torch'))")
    assert found == "None\n"
    assert "data_dir:" in board.run("/opt/fogline/bin/edge-agent", "--print-config")


@pytest.mark.timeout(1500)
def test_it_uploads_receives_and_decodes(
    board: Board, certificates: Certificates, tmp_path: Path, wait_until: WaitUntil
) -> None:
    here, there = write_clip(tmp_path / "clip", cameras=2, frames=4, width=96, height=64)
    shutil.copytree(there, board.root / "srv" / "camera")
    programs: list[Program] = []

    def start(module: str, name: str, settings: dict[str, Any]) -> Program:
        config = tmp_path / f"{name}.json"
        config.write_text(json.dumps({"data_dir": str(tmp_path / name)} | settings))
        programs.append(Program([sys.executable, "-m", module, "--config", str(config)], tmp_path / f"{name}.log"))
        return programs[-1]

    try:
        tls = _tls(certificates, "fog", "fog", tmp_path / "tls", str(tmp_path / "tls"))
        fog = start("fogline.fog_node", "fog", {"listen": "127.0.0.1:0", "tls": tls, "encoder": {"codec": "avif2"}})
        wait_until(fog.ready, 120, "the fog node")
        address = f"127.0.0.1:{fog.ready()['port']}"
        tls = _tls(certificates, "x86", "edge", tmp_path / "tls", str(tmp_path / "tls"))
        common: dict[str, Any] = {"fog": address, "train": {"enabled": False}}
        capture = {"source": "sequence", "fps": 0, "runs": [{"path": str(here)}]}
        start("fogline.edge_agent", "x86", common | {"name": "x86", "tls": tls, "capture": capture})
        tls = _tls(certificates, "pi", "edge", board.root / "etc" / "fogline", "/etc/fogline")
        capture = {"source": "sequence", "fps": 0, "runs": [{"path": "/srv/camera"}]}
        settings = common | {"name": "pi", "tls": tls, "capture": capture, "data_dir": "/var/lib/fogline"}
        (board.root / "etc/fogline/edge.yaml").write_text(json.dumps(settings))
        command = board.command("/opt/fogline/bin/edge-agent", "--config", "/etc/fogline/edge.yaml")
        pi = Program(command, tmp_path / "pi.log", board.env)
        programs.append(pi)
        wait_until(pi.ready, 300, "the emulated agent")
        health = f"http://127.0.0.1:{pi.ready()['metrics_port']}/healthz"

        def state() -> dict[str, Any]:
            done = subprocess.run(["curl", "-s", "-m", "20", health], capture_output=True, text=True, check=False)
            return dict(json.loads(done.stdout)) if done.stdout.startswith("{") else {}

        wait_until(lambda: state().get("outbox", {}).get("stored") == 4, 300, "four images to go up")
        wait_until(lambda: state()["library"]["records"] == 4, 300, "four images to come")
        assert state()["ok"], state()
        assert pi.end() == 0
        pixels = board.run("/opt/fogline/bin/python", "-c", DECODE)
        found = json.loads(pixels.splitlines()[-1])
        assert (found["records"], found["background"], found["size"]) == (4, 4, [96, 64])
        assert found["object"] >= 4
        assert found["colours"]
    finally:
        for program in reversed(programs):
            program.end()


# Without torch: records are parsed and checked, and each layer of theirs decoded to pixels, as `BatchDecoder` does it.
DECODE = """
import json
from pathlib import Path
from fogline.common.images.avif2 import Avif2
from fogline.common.images.container import from_bytes
from fogline.edge_agent.library import Library
library, codec = Library(Path("/var/lib/fogline/library"), 1 << 30), Avif2()
records = [from_bytes(library.blobs.get(entry.digest)) for entry in library.entries()]
pictures = [codec.picture(codec.prepare(layer, {})) for record in records for layer in record.layers]
kinds = [layer.kind.name.lower() for record in records for layer in record.layers]
print(json.dumps({
    "records": len(records), "background": kinds.count("background"), "object": kinds.count("object"),
    "size": list(pictures[0].size), "colours": min(len(picture.getcolors(1 << 20)) for picture in pictures) > 1,
}))
"""
