"""An edge agent that has nothing to do: its memory, its share of a core, and how long it takes from start to connected.

python -m fogline.benchmarks.idle_agent [--seconds 60] [--starts 7] [--agent COMMAND] [--json FILE]

A cloud server, a fog node and one agent as real processes over mTLS on loopback; the agent captures nothing, has no
trainer, has received `--records` images and sends its heartbeats. `--agent` starts it in another way, such as on an
emulated board: the configuration's path is appended.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from fogline.benchmarks import hardware
from fogline.common import pki
from fogline.common.data.clip import write_clip

SCHEMA = 1
CONNECTED = "connected to the fog node"
JOINED = "joined the fleet"
_START_S = 300.0
_SETTLE_S = 10.0


class Process:
    """One of the product's processes; tells when it logged a line for the first time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._said = threading.Condition()
        self._times: dict[str, float] = {}
        self._lines: list[str] = []
        self.ports: dict[str, int] = {}
        self.started = time.monotonic()
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            now = time.monotonic()
            with self._said:
                self._lines.append(line)
                if line.startswith("ready "):
                    self.ports = json.loads(line[6:])
                    self._times.setdefault("ready", now)
                elif line.startswith("{"):
                    self._times.setdefault(str(json.loads(line).get("msg")), now)
                self._said.notify_all()
        with self._said:
            self._times["end"] = time.monotonic()
            self._said.notify_all()

    def seconds_to(self, message: str) -> float:
        """From the start of the process to the first log line with this message."""
        with self._said:
            self._said.wait_for(lambda: message in self._times or "end" in self._times, _START_S)
            if message not in self._times:
                raise SystemExit(f"no {message!r} in {''.join(self._lines[-20:])}")
            return self._times[message] - self.started

    def end(self) -> None:
        """SIGTERM, and wait."""
        self.popen.terminate()
        self.popen.wait(30)
        self._reader.join()
        assert self.popen.stdout is not None
        self.popen.stdout.close()


class Fleet:
    """Certificates and configurations in a folder, a cloud server and a fog node that run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._authority = pki.Authority.create()
        self._authority.save(folder / "ca")
        self.processes: list[Process] = []
        cloud = self.start("fogline.cloud_server", "cloud", "cloud", listen="127.0.0.1:0")
        self.cloud = f"127.0.0.1:{cloud.ports['port']}"
        fog = self.start("fogline.fog_node", "fog", "fog", listen="127.0.0.1:0", cloud=self.cloud,
                         encoder={"codec": "jpeg2"})  # fmt: skip
        self.fog = f"127.0.0.1:{fog.ports['port']}"

    def start(self, module: str, name: str, role: pki.Role, **settings: Any) -> Process:
        """A process with its certificate, ready."""
        config = self.configure(name, role, **settings)
        process = Process([sys.executable, "-m", module, "--config", str(config)])
        self.processes.append(process)
        process.seconds_to("ready")
        return process

    def configure(self, device: str, role: pki.Role, **settings: Any) -> Path:
        """Write certificate and configuration; the configuration's path."""
        folder = self.folder / device
        made = self._authority.enrol(device, role, ("127.0.0.1",))
        pki.save_enrolment(made, self._authority.certificate_pem, device, folder)
        tls = {"ca": "ca.pem", "cert": f"{device}.pem", "key": f"{device}.key"}
        path = folder / "config.json"
        path.write_text(json.dumps({"data_dir": "data", "tls": tls} | settings))
        return path

    def edge(self, name: str, **settings: Any) -> Path:
        """The configuration of an agent without a trainer."""
        common = {"name": name, "fog": self.fog, "cloud": self.cloud, "train": {"enabled": False}}
        return self.configure(name, "edge", **common, **settings)


@contextmanager
def fleet(folder: Path) -> Iterator[Fleet]:
    """A running fleet, ended at the end."""
    made = Fleet(folder)
    try:
        yield made
    finally:
        for process in reversed(made.processes):
            process.end()


def idle(pid: int, seconds: float) -> dict[str, float]:
    """Watch a process that does nothing. Memory in MB of 10^6 bytes, the largest that was seen."""
    process = psutil.Process(pid)
    before, started = process.cpu_times(), time.monotonic()
    largest: dict[str, float] = {}
    while time.monotonic() - started < seconds:
        memory = process.memory_full_info()
        for key in ("rss", "pss", "uss"):
            largest[key] = max(largest.get(key, 0.0), getattr(memory, key) / 1e6)
        time.sleep(1.0)
    lasted, after = time.monotonic() - started, process.cpu_times()
    busy = after.user + after.system - before.user - before.system
    return {
        "seconds": round(lasted, 1),
        "rss_mb": round(largest["rss"], 1),
        "pss_mb": round(largest["pss"], 1),
        "uss_mb": round(largest["uss"], 1),
        "cpu_percent_of_a_core": round(100 * busy / lasted, 2),
        "threads": process.num_threads(),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; the result as JSON-able values."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, fleet(Path(folder)) as made:
        agent = shlex.split(options.agent) if options.agent else [sys.executable, "-m", "fogline.edge_agent"]
        command = [*agent, "--config", str(made.edge("idle"))]
        (clip,) = write_clip(Path(folder) / "clip", cameras=1, frames=options.records, width=320, height=240)
        capture = {"source": "sequence", "fps": 0, "runs": [{"path": str(clip)}]}
        other = Process(
            [sys.executable, "-m", "fogline.edge_agent", "--config", str(made.edge("cam", capture=capture))]
        )
        made.processes.append(other)
        starts, joins = [], []
        for number in range(options.starts):
            process = Process(command)
            try:
                starts.append(process.seconds_to(CONNECTED))
                joins.append(process.seconds_to(JOINED))
                if number == options.starts - 1:
                    time.sleep(_SETTLE_S)
                    found = idle(process.popen.pid, options.seconds)
            finally:
                process.end()
    return {
        "schema": SCHEMA,
        "agent": options.agent or "this Python",
        "note": options.note,
        "idle": found,
        "start_to_connected_s": {"median": round(statistics.median(starts), 2), "all": [round(s, 2) for s in starts]},
        "start_to_joined_s": {"median": round(statistics.median(joins), 2), "all": [round(s, 2) for s in joins]},
        "records_held": options.records,
        "machine": hardware.describe(),
    }


def main() -> None:
    """Parse the command line, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the idle agent is watched")
    parser.add_argument("--starts", type=int, default=7, help="how often it is started")
    parser.add_argument("--records", type=int, default=24, help="images that it receives before")
    parser.add_argument("--agent", default="", help="how the agent is started, without --config")
    parser.add_argument("--note", default="", help="kept in the result, such as: emulated")
    parser.add_argument("--folder", type=Path, help="where configurations and data are put (default: a temporary one)")
    parser.add_argument("--data", type=Path, help="not used: the clip is made here")
    parser.add_argument("--json", type=Path, help="file for the result")
    options = parser.parse_args()
    result = measure(options)
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
