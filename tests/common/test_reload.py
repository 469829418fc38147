"""Reading a configuration again: what is applied, what waits, and what a mistake does; then real processes."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fogline.common.config import Config, LogConfig, load
from fogline.common.errors import ConfigError
from fogline.common.reload import Reload


class Inner(Config, frozen=True):
    """A section."""

    a: int = 1
    b: tuple[int, ...] = ()


class Outer(Config, frozen=True):
    """A configuration."""

    inner: Inner = Inner()
    name: str = "x"
    log: LogConfig = LogConfig()


def test_what_changed_is_applied_once_and_the_rest_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    states = [
        Outer(inner=Inner(a=2)),
        Outer(inner=Inner(a=2, b=(1,)), name="y"),
        Outer(inner=Inner(a=2, b=(1,)), name="y"),
    ]
    reload = Reload(lambda: states.pop(0), Outer())
    seen: list[Outer] = []
    reload.on("inner", seen.append)
    reload.now()
    assert [new.inner.a for new in seen] == [2]
    reload.now()
    assert seen[1].inner.b == (1,)
    assert "these settings take effect with a restart: name" in caplog.text
    reload.now()
    assert len(seen) == 2
    assert "nothing taken over" in caplog.text


def test_a_mistake_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: x")
    reload = Reload(lambda: load(Outer, file, {}, {}), load(Outer, file, {}, {}))
    reload.on("inner", lambda new: pytest.fail("not applied"))
    file.write_text("inner: {a: 2, c: 3}")
    reload.now()
    assert "the old one stays in force" in caplog.text
    assert "unknown key `inner.c`" in caplog.text
    with pytest.raises(ConfigError):
        load(Outer, file, {}, {})


def healthz(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
        return dict(json.loads(answer.read()))


def test_a_process_at_sighup_and_a_log_that_is_moved(
    tmp_path: Path, certificates: Any, wait_until: Callable[..., None]
) -> None:
    tls = certificates.tls("cloud", "cloud")
    log = tmp_path / "log"
    settings: dict[str, Any] = {
        "data_dir": str(tmp_path / "data"),
        "listen": "127.0.0.1:0",
        "tls": {"ca": str(tls.ca), "cert": str(tls.cert), "key": str(tls.key)},
        "log": {"level": "info", "file": str(log)},
    }
    config = tmp_path / "cloud.yaml"
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "fogline.cloud_server", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = json.loads(process.stdout.readline().removeprefix("ready "))["metrics_port"]
            wait_until(lambda: log.exists() and "serving" in log.read_text(), 20)
            moved = log.rename(tmp_path / "log.1")
            settings["log"]["level"] = "warning"
            settings["heartbeat_ms"] = 9000
            config.write_text(json.dumps(settings))
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: log.exists() and "restart: heartbeat_ms" in log.read_text(), 20)
            assert "configuration read again" not in log.read_text(), "the new level counts"
            assert '"msg": "serving"' in moved.read_text()
            config.write_text("listen: [")
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: "the old one stays in force" in log.read_text(), 20)
            assert healthz(port)["ok"]
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert errors == ""
