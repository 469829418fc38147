"""A cluster on this host: certificates, one YAML per process, and real processes that talk mTLS over loopback.

OUT/pki/          the authority and everybody's certificate
OUT/config/       one YAML per process, as on separate hosts
OUT/state/NAME/   each process's data_dir
OUT/logs/         one log file per process
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fogline.common import pki
from fogline.common.data.sequence import AnnotatedSequence
from fogline.deploy.local.plan import EdgePlan, Plan
from fogline.deploy.local.scrape import Counters, scrape
from fogline.deploy.local.supervisor import Child, ProcessSpec, Supervisor

HOST = "127.0.0.1"
_MODULES = {"cloud": "fogline.cloud_server", "fog": "fogline.fog_node", "edge": "fogline.edge_agent"}
_READY_S = 60.0
_QUIET_S = 3.0  # a batch of the slower codecs takes longer, but nobody wants to wait at the end


@dataclass(frozen=True)
class Settings:
    """What the user chose about the cluster."""

    out: Path
    codec: str
    codec_params: Mapping[str, Any] = field(default_factory=dict)
    uplink: str = "original"  # what the fog node advises edges to send
    width: int = 320  # coded and training width, pixels
    height: int = 192  # training height, pixels
    fps: float = 0.0  # of every camera; 0: as fast as its outbox takes them
    train_steps: int = 0  # 0: no training on edges
    train_edges: int = 0  # how many of the edges train
    evaluate_every: int = 20
    seed: int = 0


class Cluster:
    """One cloud server, one fog node and the edges of a plan."""

    def __init__(self, plan: Plan, settings: Settings, environment: Mapping[str, str] | None = None) -> None:
        self.plan = plan
        self.settings = settings
        self.supervisor = Supervisor(environment)
        self.counters: dict[str, Counters] = {}
        self._certificates = settings.out / "pki"
        self._authority = pki.Authority.create()
        self._authority.save(self._certificates)

    def start(self) -> None:
        """Start everything; servers first. Raises ConfigError or InternalError when something doesn't come up."""
        cloud = self._start("cloud", "cloud", {"listen": f"{HOST}:0"})
        fog = self._start("fog", "fog", self._fog(cloud))
        for number, edge in enumerate(self.plan.edges):
            self._start("edge", edge.name, self._edge(edge, cloud, fog, trains=number < self.trainers), wait=False)
        self.supervisor.wait_ready([edge.name for edge in self.plan.edges], _READY_S)

    @property
    def trainers(self) -> int:
        """How many edges train."""
        train = self.settings.train_steps and self.plan.trainable
        return min(self.settings.train_edges, len(self.plan.edges)) if train else 0

    def data_dir(self, name: str) -> Path:
        """Where a process keeps its state."""
        return self.settings.out / "state" / name

    def config(self, name: str) -> Path:
        """A process's YAML."""
        return self.settings.out / "config" / f"{name}.yaml"

    def _start(self, tier: pki.Role, name: str, values: dict[str, Any], *, wait: bool = True) -> str:
        """Start a process; return the address it serves on, which is then fixed in its YAML for restarts."""
        made = self._authority.enrol(name, tier, (HOST, "localhost"))
        pki.save_enrolment(made, self._authority.certificate_pem, name, self._certificates)
        values |= {
            "data_dir": f"../state/{name}",
            "tls": {"ca": "../pki/ca.pem", "cert": f"../pki/{name}.pem", "key": f"../pki/{name}.key"},
        }
        self._write(name, values)
        log = self.settings.out / "logs" / f"{name}.log"
        self.counters[name] = Counters()
        child = self.supervisor.start(ProcessSpec(name, tier, _MODULES[tier], self.config(name), log))
        if not wait:
            return ""
        self.supervisor.wait_ready([name], _READY_S)
        address = f"{HOST}:{child.ready.port if child.ready else 0}"
        self._write(name, {**values, "listen": address})
        return address

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        path = self.config(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")
        partial.replace(path)

    def _fog(self, cloud: str) -> dict[str, Any]:
        return {
            "listen": f"{HOST}:0",
            "cloud": cloud,
            "width": self.settings.width,
            "uplink": {"advise": self.settings.uplink},
            "encoder": {"codec": self.settings.codec, "params": dict(self.settings.codec_params)},
        }

    def _edge(self, edge: EdgePlan, cloud: str, fog: str, *, trains: bool) -> dict[str, Any]:
        chosen = self.settings
        training: dict[str, Any] = {"enabled": "false"}
        if trains:
            training = {
                "enabled": "true",
                "width": chosen.width,
                "height": chosen.height,
                "steps": chosen.train_steps,
                "labels": list(self.plan.labels),
                "metric": self.plan.metric,
                "quiet_s": _QUIET_S,
                "seed": chosen.seed,
                "evaluate": _frames(self.plan.held_out),
                "evaluate_every": chosen.evaluate_every,
                "checkpoint_every": chosen.evaluate_every,
            }
        return {
            "name": edge.name,
            "fog": fog,
            "cloud": cloud,
            "capture": {"source": "sequence", "runs": _frames(edge.runs), "fps": chosen.fps},
            "train": training,
        }

    def poll(self) -> None:
        """Keep the processes running and read what they count."""
        self.supervisor.tick()
        for name, child in self.supervisor.children.items():
            self._scrape(name, child)

    def _scrape(self, name: str, child: Child) -> None:
        if child.popen is None or child.ready is None or child.ready.metrics_port is None:
            return
        samples = scrape(child.ready.metrics_port)
        if samples is not None:
            self.counters[name].update(child.popen.pid, samples)
            child.cpu_live_s = self.counters[name].last("fogline_cpu_seconds_total") or child.cpu_live_s

    def stop(self) -> None:
        """Stop everything in order."""
        self.supervisor.stop()


def _frames(sequences: Sequence[AnnotatedSequence]) -> list[dict[str, Any]]:
    """Runs as an edge's configuration names them. Refused frames within a run are refused again by the edge."""
    return [
        {
            "path": str(_folder(sequence)),
            "start": sequence.frames[0].index,
            "stop": sequence.frames[-1].index + 1,
            "camera": sequence.name,
        }
        for sequence in sequences
    ]


def _folder(sequence: AnnotatedSequence) -> Path:
    """The annotated folder: images lie in one folder below it, in OTB (`img`) as in VOC (`images`)."""
    return sequence.frames[0].path.absolute().parent.parent
