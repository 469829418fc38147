"""A container engine of this host, whichever it has, and stand-ins for images where no registry is reached.

Docker with compose is taken where its daemon answers, else podman with podman-compose. Images are kept
between runs as the cache that they are; nothing else is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose"
BASE = "python:3.11-slim"
PULL_S = 180
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

# Of hosts whose root may not raise limits, or whose control groups crun does not take.
_MODEST = """[containers]
default_ulimits = ["nofile=4096:4096", "nproc=8192:8192"]
[engine]
runtime = "runc"
"""


class Unable(Exception):
    """This host can't; the message says why and what would help."""


class Engine:
    """`docker` or `podman`, and the compose of it. Raises Unable."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.environment: dict[str, str] = {**os.environ, "BUILDAH_FORMAT": "docker"}
        self.wheels = _wheels()
        if self._answers("docker", "info"):
            for command in (["docker", "compose"], ["docker-compose", "--compatibility"]):
                if self._answers(*command, "version"):
                    self.cli, self.compose_command = "docker", command
                    return
        if shutil.which("podman") is None:
            raise Unable("no Docker daemon with compose answers, and podman is not installed")
        beside = shutil.which("podman-compose", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if beside is None:
            raise Unable("podman-compose is not installed; pip install podman-compose")
        self.cli, self.compose_command = "podman", [beside]

    @property
    def podman(self) -> bool:
        """Whether it is podman."""
        return self.cli == "podman"

    def prepare(self) -> None:
        """Have the base image, pulled or made, and see that a container runs at all."""
        if not self._have(BASE):
            self._make_base()
        trial = ["run", "--rm", BASE, "true"]
        done = self.run(*trial, check=False)
        if done.returncode and self.podman:
            settings = self._folder / "containers.conf"
            settings.write_text(_MODEST)
            self.environment["CONTAINERS_CONF"] = str(settings)
            done = self.run(*trial, check=False)
        if done.returncode:
            raise Unable(f"{self.cli} can't run a container here: {done.stderr.strip()[-400:]}")

    def have_prometheus(self, image: str) -> None:
        """Have Prometheus, pulled or Debian's in its place."""
        if self._have(image):
            return
        file = Path(__file__).parent / "standins" / "prometheus.Dockerfile"
        self.run("build", "-t", _local(self.cli, image), "-f", str(file), str(file.parent), timeout=900)

    def build(self, *services: str, environment: Mapping[str, str]) -> None:
        """Build the images of services."""
        mounts = [f"-v={folder}:{folder}:ro" for folder in self.wheels] if self.podman else []
        extra = ["--podman-build-args", " ".join(["--pull=never", *mounts])] if self.podman else []
        self.compose(*extra, "build", *services, environment=environment, timeout=3000)

    def compose(
        self, *arguments: str, environment: Mapping[str, str], timeout: float = 600, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run compose in its folder."""
        command = [*self.compose_command, *arguments]
        done = subprocess.run(
            command, cwd=COMPOSE, env={**self.environment, **environment}, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    def run(self, *arguments: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run the engine's command."""
        command = [self.cli, *arguments]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    def inspect(self, *containers: str) -> list[dict[str, Any]]:
        """What the engine knows of containers."""
        found: list[dict[str, Any]] = json.loads(self.run("inspect", *containers).stdout)
        return found

    def _answers(self, *command: str) -> bool:
        if shutil.which(command[0]) is None:
            return False
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0

    def _have(self, image: str) -> bool:
        if self.run("image", "inspect", image, check=False).returncode == 0:
            return True
        source = f"docker.io/{image if '/' in image else f'library/{image}'}"
        try:
            pulled = self.run("pull", source, check=False, timeout=PULL_S).returncode == 0
        except subprocess.TimeoutExpired:
            return False
        if pulled and self.podman:
            self.run("tag", source, f"localhost/{image}")
        return pulled

    def _make_base(self) -> None:
        """Debian's Python in the shape of the official image: for tests alone, never pushed."""
        if os.geteuid() != 0 or shutil.which("debootstrap") is None:
            raise Unable(f"{BASE} can't be pulled, and making a stand-in needs root and debootstrap")
        mirror = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Codename: bookworm"],
            capture_output=True, text=True, check=False,
        ).stdout.split()  # fmt: skip
        if not mirror:
            raise Unable(f"{BASE} can't be pulled, and apt names no mirror of Debian bookworm to make a stand-in from")
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "root"
            packages = "python3,python3-pip,python3-venv,ca-certificates"
            made = subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", str(root), mirror[0]],
                capture_output=True, text=True, timeout=1200, check=False,
            )  # fmt: skip
            if made.returncode:
                raise Unable(f"{BASE} can't be pulled, and debootstrap failed: {made.stdout[-400:]}")
            self._finish_base(root)
            with subprocess.Popen(
                ["tar", "-C", root, "--exclude=./proc/*", "--exclude=./sys/*", "--exclude=./dev/*", "-c", "."],
                stdout=subprocess.PIPE,
            ) as tar:
                path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
                command = [self.cli, "import", "--change", path, "--change", 'CMD ["python3"]', "-"]
                subprocess.run(
                    [*command, _local(self.cli, BASE)], env=self.environment, stdin=tar.stdout, check=True, timeout=600,
                    capture_output=True,
                )  # fmt: skip

    def _finish_base(self, root: Path) -> None:
        for old in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            old.unlink()
        (root / "usr/bin/python").symlink_to("python3")
        for folder in ("var/cache/apt", "var/lib/apt/lists"):
            shutil.rmtree(root / folder)
            (root / folder).mkdir()
        # Where this host trusts more authorities than Debian does, and has wheels, builds inside do too.
        if Path(BUNDLE).is_file():
            shutil.copyfile(BUNDLE, root / BUNDLE.lstrip("/"))
        links = f"find-links = {' '.join(self.wheels)}\n" if self.wheels else ""
        (root / "etc/pip.conf").write_text(f"[global]\ncert = {BUNDLE}\n{links}")


def torch_index(wheels: Sequence[str]) -> str | None:
    """`TORCH_INDEX` for a build: "" where a folder of wheels has torch; None: as the Dockerfile says."""
    return "" if any(list(Path(folder).glob("torch-*")) for folder in wheels) else None


def _wheels() -> list[str]:
    return [folder for folder in os.environ.get("PIP_FIND_LINKS", "").split() if Path(folder).is_dir()]


def _local(cli: str, image: str) -> str:
    return f"localhost/{image}" if cli == "podman" else image
