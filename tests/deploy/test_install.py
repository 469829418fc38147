"""deploy/install.sh and the units, on a machine with a real systemd: from certificate service to images."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fogline.common.data.clip import write_clip
from tests.conftest import ROOT
from tests.deploy.containers import Podman, machine, podman
from tests.deploy.wheelhouse import X86_64, wheelhouse

SCRIPT = ROOT / "deploy" / "install.sh"
WHEEL = "/wheels/fogline-0.1.0-py3-none-any.whl"
WaitUntil = Callable[..., None]


def test_the_script_is_plain_posix_and_without_findings() -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([program, "--shell=sh", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--role is missing"),
        (("--role", "boss"), "none of edge, fog, cloud, authority"),
        (("--role",), "--role needs a value"),
        (("--role", "edge", "--tokn", "x"), "unknown option --tokn"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_is_done(arguments: tuple[str, ...], told: str) -> None:
    done = subprocess.run(["sh", str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert told in done.stderr


def test_every_option_is_in_the_help() -> None:
    done = subprocess.run(["sh", str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    options = re.findall(r"^    (--[a-z-]+)\)", SCRIPT.read_text(), re.MULTILINE)
    assert len(options) > 15
    assert [option for option in options if option not in done.stdout] == []


class Machine:
    """A host with systemd, this checkout and the wheels."""

    def __init__(self, run: Podman, name: str) -> None:
        self._run, self._name = run, name

    def sh(self, script: str, *, token: str = "", check: bool = True) -> str:
        """Run a script as root."""
        offline = ["-e", "PIP_NO_INDEX=1", "-e", "PIP_FIND_LINKS=/wheels", "-e", f"FOGLINE_JOIN_TOKEN={token}"]
        return self._run("exec", *offline, self._name, "sh", "-ec", script, check=check)

    def install(self, role: str, options: str = "", *, token: str = "") -> str:
        """Run the script under test."""
        source = f"--source {WHEEL} --torch none"
        return self.sh(f"sh /src/deploy/install.sh --role {role} {source} {options}", token=token)

    def token(self, role: str, name: str, options: str = "") -> str:
        """What the certificate service lets a device in with."""
        ca = "/opt/fogline/bin/fogline ca token --dir /var/lib/fogline-authority --at localhost:7200"
        account = "setpriv --reuid fogline-authority --regid fogline-authority --init-groups"
        return self.sh(f"{account} {ca} --role {role} --name {name} {options}").split()[-1]

    def show(self, unit: str, key: str) -> str:
        """One property of a unit."""
        return self.sh(f"systemctl show fogline-{unit} -p {key} --value").strip()

    def health(self, port: int) -> dict[str, object]:
        """What /healthz says; empty while nobody answers."""
        code = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/healthz').read().decode())"
        out = self.sh(f'python3 -c "{code}"', check=False)
        return dict(json.loads(out)) if out.startswith("{") else {}


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A host on which the certificate service and one of each role were installed, in this order."""
    run = podman(tmp_path_factory.mktemp("podman"))
    wheels = wheelhouse(tmp_path_factory.mktemp("wheels"), X86_64)
    (clip,) = write_clip(tmp_path_factory.mktemp("data") / "clip", cameras=1, frames=6, width=96, height=64)
    broken_torch(wheels)
    volumes = [f"{ROOT}:/src:ro", f"{wheels}:/wheels:ro", f"{clip}:/srv/camera:ro"]
    options = [word for volume in volumes for word in ("-v", volume)]
    with machine(run, "--hostname", "board.local", *options) as name:
        made = Machine(run, name)
        made.sh("for i in $(seq 60); do systemctl is-system-running && break; sleep 1; done", check=False)
        assert "fogline-authority.service runs" in made.install("authority")
        token = made.token("cloud", "cloud", "--host localhost")
        made.install("cloud", "--name cloud --host localhost --metrics-port 9102", token=token)
        token = made.token("fog", "gateway", "--host localhost")
        options = ["--name gateway --host localhost --cloud localhost:7300 --metrics-port 9101"]
        made.install("fog", options[0], token=token)
        token = made.token("edge", "cam-1")
        made.install("edge", "--name cam-1 --fog discover --cloud localhost:7300 --folder /srv/camera", token=token)
        yield made


def broken_torch(wheels: Path) -> None:
    """A wheel of torch for another processor: importing it ends by an illegal instruction."""
    name, info = "torch-9.9-py3-none-any.whl", "torch-9.9.dist-info"
    with zipfile.ZipFile(wheels / name, "w") as wheel:
        wheel.writestr("torch/__init__.py", "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
def test_what_was_installed_runs_and_images_flow(board: Machine, wait_until: WaitUntil) -> None:
    for role in ("authority", "cloud", "fog", "edge"):
        assert board.show(role, "ActiveState") == "active", role
    wait_until(lambda: board.health(9100).get("ok"), 60, "the edge to be well")
    stored = lambda: dict(board.health(9100)["outbox"]).get("stored")  # type: ignore[call-overload]  # noqa: E731
    wait_until(lambda: stored() == 6, 60, "every image to be stored at the fog node")
    assert board.show("edge", "StatusText") == "connected to the fog node"
    assert board.show("fog", "StatusText") == "encoder ready"
    modes = "stat -c '%a %U' /var/lib/fogline/edge/tls/cam-1.key /var/lib/fogline/edge /etc/fogline/edge.yaml"
    assert board.sh(modes).splitlines() == ["600 fogline", "700 fogline", "640 root"]


@pytest.mark.slow
def test_again_it_changes_nothing(board: Machine) -> None:
    before = board.sh("sha256sum /etc/fogline/* /var/lib/fogline/edge/tls/*")
    told = board.install("edge", "--name cam-1 --fog elsewhere:1", token=board.token("edge", "cam-1"))
    assert "joined already" in told
    assert "/etc/fogline/edge.yaml is there already" in told
    assert board.sh("sha256sum /etc/fogline/* /var/lib/fogline/edge/tls/*") == before
    assert board.show("edge", "ActiveState") == "active"


@pytest.mark.slow
def test_a_torch_that_dies_is_taken_off_again(board: Machine) -> None:
    told = board.sh(f"sh /src/deploy/install.sh --role edge --name cam-1 --source {WHEEL} --torch 9.9")
    assert "torch dies by signal 4 on this processor; going on without" in told
    assert board.show("edge", "ActiveState") == "active"
    assert "no" in board.sh("/opt/fogline/bin/python -c 'import torch' 2>/dev/null && echo yes || echo no")


@pytest.mark.slow
def test_limits_and_sandbox_are_in_force(board: Machine) -> None:
    pid = board.show("edge", "MainPID")
    limits = board.sh(f"cat /proc/{pid}/limits")
    # The container itself may have no more than 4096.
    assert re.search(r"Max open files\s+(8192|4096)", limits)
    assert board.show("edge", "LimitNOFILE") == "8192"
    assert re.search(r"Max core file size\s+0", limits)
    status = board.sh(f"cat /proc/{pid}/status")
    assert re.search(r"CapEff:\s+0+\b", status)
    assert re.search(r"CapBnd:\s+0+\b", status)
    assert re.search(r"NoNewPrivs:\s+1", status)
    assert re.search(r"Seccomp:\s+2", status)
    enter = f"nsenter -t {pid} -m -S $(id -u fogline) -G $(id -g fogline)"
    assert "Read-only" in board.sh(f"{enter} touch /opt/fogline/x 2>&1 || true")
    assert "denied" in board.sh(f"{enter} ls /var/lib/fogline-authority 2>&1 || true")
    assert board.show("edge", "TasksMax") == "256"
    assert int(board.show("edge", "MemoryMax")) > 0
    assert board.show("edge", "OOMPolicy") == "continue"


@pytest.mark.slow
def test_killed_it_is_started_again(board: Machine, wait_until: WaitUntil) -> None:
    before, pid = int(board.show("edge", "NRestarts")), board.show("edge", "MainPID")
    board.sh(f"kill -9 {pid}")
    wait_until(lambda: int(board.show("edge", "NRestarts")) == before + 1, 60, "a restart")
    wait_until(lambda: board.health(9100).get("ok"), 60, "the edge to be well")
    assert board.show("edge", "MainPID") != pid


@pytest.mark.slow
@pytest.mark.parametrize("role", ["edge", "fog", "cloud", "authority"])
def test_hanging_it_is_noticed_and_started_again(board: Machine, role: str, wait_until: WaitUntil) -> None:
    # Ten seconds instead of a minute; the process takes its pace from what systemd tells it.
    folder = f"/run/systemd/system/fogline-{role}.service.d"
    board.sh(
        f"mkdir -p {folder}; printf '[Service]\\nWatchdogSec=10\\n' > {folder}/quick.conf; systemctl daemon-reload"
    )
    board.sh(f"systemctl restart fogline-{role}")
    began = board.show(role, "ActiveEnterTimestampMonotonic")
    board.sh("sleep 15")
    assert board.show(role, "NRestarts") == "0"
    assert board.show(role, "ActiveEnterTimestampMonotonic") == began
    board.sh(f"kill -STOP {board.show(role, 'MainPID')}")
    wait_until(lambda: board.show(role, "NRestarts") == "1", 60, "the watchdog")
    assert "Watchdog timeout" in board.sh(f"journalctl -u fogline-{role} --no-pager")
    wait_until(lambda: board.show(role, "ActiveState") == "active", 60, "a fresh start")


@pytest.mark.slow
def test_removed_nothing_is_left(board: Machine) -> None:
    for role in ("edge", "fog", "cloud", "authority"):
        told = board.sh(f"sh /src/deploy/install.sh --role {role} --uninstall")
        assert "--purge removes settings, keys and data" in told
    assert board.sh("ls -d /opt/fogline 2>/dev/null || echo none").strip() == "none"
    assert "cam-1.key" in board.sh("ls /var/lib/fogline/edge/tls")
    for role in ("edge", "fog", "cloud", "authority"):
        board.sh(f"sh /src/deploy/install.sh --role {role} --uninstall --purge")
    left = (
        "ls -d /etc/fogline /var/lib/fogline* /etc/systemd/system/*fogline* 2>/dev/null; getent passwd | grep fogline"
    )
    assert board.sh(f"({left}) || true").strip() == ""
    assert board.sh("pgrep -a -u fogline 2>/dev/null || true").strip() == ""
