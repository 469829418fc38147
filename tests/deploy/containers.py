"""Containers for tests that need a machine of their own; made from Debian's packages, since no registry is asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BASE = "localhost/python:3.11-slim"
SYSTEMD = "localhost/fogline-test-systemd:1"
# crun and higher limits need rights that a machine for tests may not have.
_CONF = '[containers]\ndefault_ulimits = ["nofile=4096:4096","nproc=8192:8192"]\n[engine]\nruntime = "runc"\n'
_DOCKERFILE = f"""FROM {BASE}
RUN apt-get update && apt-get install -y --no-install-recommends systemd systemd-sysv dbus procps \\
 && systemctl mask systemd-binfmt.service proc-sys-fs-binfmt_misc.automount
CMD ["/sbin/init"]
"""


class Podman:
    """podman with settings of ours."""

    def __init__(self, folder: Path) -> None:
        conf = folder / "containers.conf"
        conf.write_text(_CONF)
        self._env = {**os.environ, "CONTAINERS_CONF": str(conf), "BUILDAH_FORMAT": "docker"}

    def __call__(self, *arguments: str, check: bool = True, timeout: float = 600, input: str = "") -> str:
        """Run it; the output. Fails with the output where `check`."""
        done = subprocess.run(
            ["podman", *arguments], env=self._env, text=True, timeout=timeout, check=False, input=input,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if check and done.returncode:
            pytest.fail(f"podman {' '.join(arguments)[:300]}: code {done.returncode}\n{done.stdout[-6000:]}")
        return done.stdout

    def has(self, image: str) -> bool:
        """Whether this image is there."""
        return subprocess.run(["podman", "image", "exists", image], env=self._env, check=False).returncode == 0


def podman(folder: Path) -> Podman:
    """podman, or skip."""
    if os.geteuid() != 0:
        pytest.skip("containers with systemd need root")
    if missing := [name for name in ("podman", "runc") if shutil.which(name) is None]:
        pytest.skip(f"{' and '.join(missing)} not installed; Debian: apt install podman runc netavark aardvark-dns")
    return Podman(folder)


def systemd_image(run: Podman) -> str:
    """An image with systemd and Python; made where it is missing."""
    if not run.has(SYSTEMD):
        if not run.has(BASE):
            _make_base(run)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "Dockerfile").write_text(_DOCKERFILE)
            run("build", "-q", "-t", SYSTEMD, folder)
    return SYSTEMD


@contextmanager
def machine(run: Podman, *options: str) -> Iterator[str]:
    """A container whose first process is systemd; its id."""
    # SYS_PTRACE: tests look into the sandbox of a service.
    flags = ["--systemd=always", "--cap-add", "SYS_ADMIN,SYS_PTRACE", "--security-opt", "seccomp=unconfined"]
    name = run("run", "-d", *flags, "--tmpfs", "/run", "--tmpfs", "/tmp", *options, systemd_image(run)).split()[-1]
    try:
        yield name
    finally:
        run("rm", "-f", "-t", "0", name, check=False)


def debian_mirror() -> str:
    """The archive that this host installs from, or skip."""
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed")
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Codename: bookworm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        pytest.skip("this host knows no archive of Debian bookworm")
    return done.stdout.split()[0]


def _make_base(run: Podman) -> None:
    mirror = debian_mirror()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        include = "python3,python3-pip,python3-venv,ca-certificates"
        command = ["debootstrap", "--variant=minbase", f"--include={include}", "bookworm", str(root), mirror]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        if done.returncode:
            pytest.skip(f"debootstrap failed: {done.stdout[-300:]}")
        for mark in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            mark.unlink()
        authorities = Path("/etc/ssl/certs/ca-certificates.crt")
        shutil.copy(authorities.resolve(), root / "etc/ssl/certs/ca-certificates.crt")
        (root / "etc/pip.conf").write_text(f"[global]\ncert = {authorities}\n")
        archive = Path(folder) / "root.tar"
        without = ("--exclude=./proc/*", "--exclude=./sys/*")
        subprocess.run(["tar", "-C", str(root), *without, "-cf", str(archive), "."], check=True)
        run("import", "--change", 'CMD ["python3"]', str(archive), BASE)
