"""Processes are started, found ready, restarted when they die, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fogline.common.errors import ConfigError, InternalError
from fogline.deploy.local.logtail import LogTail, Ready, last_lines, parse_ready
from fogline.deploy.local.scrape import Counters, scrape
from fogline.deploy.local.supervisor import ProcessSpec, Supervisor

WaitUntil = Callable[..., None]


def cloud(folder: Path, text: str = "listen: 127.0.0.1:0\ntls: {insecure: true}\n") -> ProcessSpec:
    config = folder / "cloud.yaml"
    config.write_text(f"data_dir: {folder / 'data'}\n{text}")
    return ProcessSpec("cloud", "cloud", "fogline.cloud_server", config, folder / "cloud.log")


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    made = Supervisor()
    yield made
    made.stop()


def test_a_killed_process_is_restarted_and_its_cpu_time_kept(
    supervisor: Supervisor, tmp_path: Path, wait_until: WaitUntil
) -> None:
    child = supervisor.start(cloud(tmp_path))
    supervisor.wait_ready(["cloud"], 30)
    assert child.ready is not None
    assert child.popen is not None
    assert child.ready.metrics_port is not None
    samples = scrape(child.ready.metrics_port)
    assert samples is not None
    assert ("fogline_cpu_seconds_total", ()) in samples
    first = child.popen.pid
    child.popen.kill()
    wait_until(lambda: supervisor.tick() or child.restarts == 1, what="the death to be noticed")
    used = child.cpu_seconds
    assert used > 0
    supervisor.wait_ready(["cloud"], 30)
    assert child.popen is not None
    assert child.popen.pid != first
    assert child.exit_codes == [-signal.SIGKILL]
    supervisor.stop()
    assert child.exit_codes == [-signal.SIGKILL, 0]
    assert child.cpu_seconds > used


def test_a_wrong_configuration_is_told_at_once_with_the_end_of_the_log(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(cloud(tmp_path, "lisen: 127.0.0.1:0\n"))
    with pytest.raises(ConfigError, match=r"cloud ended with exit code 2(?s:.*)did you mean `listen`"):
        supervisor.wait_ready(["cloud"], 30)


def test_a_process_that_never_gets_ready_is_given_up(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fogline.deploy.local.supervisor._BACKOFF_FIRST_S", 0.001)
    monkeypatch.setattr("fogline.deploy.local.supervisor._MAX_FAILURES", 2)
    spec = ProcessSpec("nothing", "edge", "fogline.no_such_module", tmp_path / "none.yaml", tmp_path / "nothing.log")
    supervisor.start(spec)
    with pytest.raises(InternalError, match=r"died 3 times in a row(?s:.*)No module named"):
        supervisor.wait_ready(["nothing"], 30)


def test_not_ready_in_time_names_the_process(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(cloud(tmp_path))
    with pytest.raises(InternalError, match=r"not ready after 0 s: cloud"):
        supervisor.wait_ready(["cloud"], 0)


def test_nothing_survives_a_killed_launcher(tmp_path: Path, wait_until: WaitUntil) -> None:
    spec = cloud(tmp_path)
    script = (
        "import sys, time; from pathlib import Path\n"
        "from fogline.deploy.local.supervisor import ProcessSpec, Supervisor\n"
        f"s = Supervisor(); c = s.start(ProcessSpec('cloud', 'cloud', {spec.module!r}, Path({str(spec.config)!r}), "
        f"Path({str(spec.log)!r})))\n"
        "s.wait_ready(['cloud'], 30); print(c.popen.pid, flush=True); time.sleep(60)\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    launcher.stdout.close()
    wait_until(lambda: not psutil.pid_exists(pid), what="the child to die with its launcher")


def test_ready_lines() -> None:
    assert parse_ready('ready {"port": 7300, "metrics_port": 41000}') == Ready(7300, 41000)
    assert parse_ready('ready {"metrics_port": 41000}') == Ready(None, 41000)
    assert parse_ready('ready {"port": "x", "metrics_port": -1}') == Ready(None, None)
    assert parse_ready('{"msg": "ready"}') is None
    assert parse_ready("ready {broken") is None


def test_a_log_is_followed_from_where_it_stood(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("old\n")
    tail = LogTail(path)
    with path.open("a") as file:
        file.write("one\ntw")
        file.flush()
        assert tail.new_lines() == ["one"]
        file.write("o\n")
        file.flush()
        assert tail.new_lines() == ["two"]
    assert "two" in last_lines(path)
    assert last_lines(tmp_path / "none.log") == "(no log was written)"


def test_counters_go_on_over_restarts_and_gauges_do_not() -> None:
    up = ("fogline_link_bytes_total", (("direction", "sent"), ("kind", "image")))
    held = ("fogline_library_records", ())
    counters = Counters()
    counters.update(1, {up: 100.0, held: 5.0})
    counters.update(1, {up: 150.0, held: 7.0})
    counters.update(2, {up: 10.0, held: 6.0})
    assert counters.total("fogline_link_bytes_total", direction="sent") == 160
    assert counters.total("fogline_link_bytes_total", direction="received") == 0
    assert counters.labelled("fogline_link_bytes_total") == {up[1]: 160}
    assert counters.last("fogline_library_records") == 6
    assert counters.last("fogline_cursor") is None
