"""Tail hosts as operators run them, beside nodes and alone: mTLS, three tiers, a killed child."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tail_parts import EXAMPLE, HERE, OPTIMIZERS, Split, Unsplit, batches, fresh

from fogline import split
from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError, IdentityError
from fogline.common.tails.remote import RemoteTail

FILES = ("ca", "cert", "key")


class Node:
    """A command with a configuration in YAML."""

    def __init__(self, folder: Path, command: list[str], tls: TlsConfig, **settings: Any) -> None:
        folder.mkdir()
        self.log = folder / "log"
        values = {"data_dir": str(folder / "data"), "tls": {f: str(getattr(tls, f)) for f in FILES}, **settings}
        (folder / "config.yaml").write_text(json.dumps(values))
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", ""), *sys.path])
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command, "--config", str(folder / "config.yaml")],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready "), self.log.read_text()[-3000:]
        ports = json.loads(line.removeprefix("ready "))
        self.port = ports.get("tensors_port", ports["port"])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def tail_host(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        return next(c for c in children if "fogline.common.tails.host" in c.cmdline())

    def stop(self) -> int:
        assert self.process.stdout is not None
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(90)
        self.process.stdout.close()
        return code


def tensors(**settings: Any) -> dict[str, Any]:
    models = ["tail_models:net"]
    return {"enabled": True, "listen": "127.0.0.1:0", "models": models, "threads": 1, "device": "cpu", **settings}


@pytest.fixture
def nodes(tmp_path: Path, certificates: Any) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def start(kind: str, **settings: Any) -> Node:
        role = "cloud" if kind == "cloud" else "fog"
        command = {
            "fog": ["fogline.fog_node"],
            "cloud": ["fogline.cloud_server"],
            "alone": ["fogline", "split", "serve"],
        }[kind]
        own = {"fog": {"encoder": {"codec": "jpeg2"}}, "cloud": {}, "alone": {}}[kind]
        if kind != "alone":
            own |= {"listen": "127.0.0.1:0"}
        made.append(Node(tmp_path / f"{kind}-{len(made)}", command, certificates.tls(kind, role), **own, **settings))
        return made[-1]

    yield start
    for node in made:
        node.stop()


def test_three_tiers_over_mtls_with_killed_tails(nodes: Any, certificates: Any, wait_until: Any) -> None:
    spec = OPTIMIZERS["adam"]
    cloud = nodes("cloud", tensors=tensors())
    fog = nodes("fog", tensors=tensors(upstream=cloud.address))
    model = fresh()
    whole = Unsplit(model, spec, 30)
    head, middle, tail = split(model, at=("first", "second"), example=EXAMPLE)
    edge = certificates.tls("cam-1", "edge")
    connected = RemoteTail.connect(
        fog.address, model="tail_models:net", at=("first", "second"), weights=(middle, tail), optimizer=spec, tls=edge
    )
    with connected as remote:
        script = Split(head, remote, spec)

        def before(number: int) -> None:
            if number in (9, 14):
                remote.checkpoint()
            if number == 12:
                cloud.tail_host.kill()
            if number == 21:
                fog.tail_host.kill()

        torch.manual_seed(5)
        script.run(enumerate(batches(30)), before)
        script.agrees(whole)
    children = [node.tail_host for node in (fog, cloud)]
    assert [node.stop() for node in (fog, cloud)] == [0, 0]
    wait_until(lambda: not any(child.is_running() for child in children), what="the tail hosts to end")


def test_three_tiers_of_which_one_is_empty(nodes: Any, certificates: Any) -> None:
    spec = OPTIMIZERS["sgd"]
    cloud = nodes("alone", tensors=tensors())
    fog = nodes("alone", tensors=tensors(upstream=cloud.address))
    edge = certificates.tls("cam-1", "edge")
    cases = ((("first", "first"), False), (("first", None), False), ((None, "first"), True))
    for at, labels in cases:  # on the same hosts, whose starts are what takes the time
        model = fresh()
        whole = Unsplit(model, spec, 12)
        head, middle, tail = split(model, at=at, example=EXAMPLE)
        connected = RemoteTail.connect(
            fog.address, model="tail_models:net", at=at, weights=(middle, tail), optimizer=spec, tls=edge
        )
        with connected as remote:
            script = Split(head, remote, spec, labels)
            torch.manual_seed(5)
            script.run(enumerate(batches(12)))
            script.agrees(whole)


def test_a_session_is_of_its_peer(nodes: Any, certificates: Any) -> None:
    spec = OPTIMIZERS["sgd"]
    alone = nodes("alone", tensors=tensors())
    head, tail = split(fresh(), at="first", example=EXAMPLE)
    own, other = certificates.tls("cam-1", "edge"), certificates.tls("cam-2", "edge")
    settings: dict[str, Any] = {"model": "tail_models:net", "weights": tail, "optimizer": spec}
    remote = RemoteTail.connect(alone.address, tls=own, **settings)
    script = Split(head, remote, spec)
    script.run(enumerate(batches(2)))
    token = copy.deepcopy(remote.checkpoint())
    remote.abandon()
    with pytest.raises(IdentityError, match="not of cam-2"):
        RemoteTail.connect(alone.address, tls=other, resume=token, **settings)
    assert alone.stop() == 0
    with pytest.raises(ConfigError, match="loopback"):
        RemoteTail.connect("fog.example:7443", **settings)
