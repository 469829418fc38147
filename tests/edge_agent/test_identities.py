"""Agents whose identity is in doubt: real processes, and what each side says."""

from __future__ import annotations

import os
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from edge_processes import Node, nodes, tls

YEAR = timedelta(days=365)


def agent(folder: Path, files: dict[str, str], **settings: Any) -> Node:
    values = {"data_dir": str(folder / "data"), "name": "cam", "tls": files, "train": {"enabled": "false"}}
    values |= {"fog": "127.0.0.1:9", **settings}
    return Node(folder, "fogline.edge_agent", {"capture": {"source": "none"}, **values})


def test_two_agents_with_one_identity(tmp_path: Path, certificates: Any, wait_until: Any) -> None:
    """The first goes on and is told; the second waits, is told, and has its turn once the first has gone."""
    files = tls(certificates.tls("cam", "edge"))
    with nodes() as made:
        values = {"data_dir": str(tmp_path / "cloud-data"), "listen": "127.0.0.1:0", "heartbeat_ms": 500}
        values["tls"] = tls(certificates.tls("cloud", "cloud"))  # type: ignore[assignment]
        cloud = Node(tmp_path / "cloud", "fogline.cloud_server", values)
        fog = Node(
            tmp_path / "fog", "fogline.fog_node",
            {"data_dir": str(tmp_path / "fog-data"), "listen": "127.0.0.1:0", "encoder": {"codec": "jpeg2"},
             "tls": tls(certificates.tls("gate", "fog"))},
        )  # fmt: skip
        made += [cloud, fog]
        cloud.start()
        fog.start()
        peers = {"fog": f"127.0.0.1:{fog.ports['port']}", "cloud": f"127.0.0.1:{cloud.ports['port']}"}
        first, second = (agent(tmp_path / name, files, **peers) for name in ("first", "second"))
        made += [first, second]
        first.start()
        wait_until(lambda: first.health()["ok"] and first.health()["cloud"] == "connected", 20, "the first to be well")
        second.start()
        wait_until(lambda: "another agent" in second.health()["troubles"].get("fog", ""), 20, "the second to be told")
        wait_until(lambda: "another agent" in second.health()["cloud"], 20, "the second to be told by the cloud")
        wait_until(lambda: "identity" in first.health()["troubles"], 20, "the first to be told")
        troubles = first.health()["troubles"]
        assert list(troubles) == ["identity"]  # and it goes on
        assert "127.0.0.1 uses the identity cam too" in troubles["identity"]
        assert "ERROR" in (tmp_path / "fog" / "log").read_text().upper()
        assert "two agents have the identity cam" in (tmp_path / "fog" / "log").read_text()
        first.kill()
        wait_until(lambda: "fog" not in second.health()["troubles"], 40, "the second's turn at the fog node")
        wait_until(lambda: second.health()["cloud"] == "connected", 40, "the second's turn at the cloud server")


@pytest.mark.parametrize(
    ("clock", "words"), [(-YEAR, "expired on"), (YEAR, "valid only from")], ids=["a year ahead", "a year behind"]
)
def test_a_clock_that_is_off_by_a_year(
    tmp_path: Path, certificates: Any, free_port: int, clock: timedelta, words: str
) -> None:
    """Seen from such a clock, a certificate of a week is of another year."""
    now = datetime.now(timezone.utc)
    dates = {"not_before": now + clock, "not_after": now + clock + timedelta(days=7)}
    files = tls(certificates.tls("cam", "edge", **dates))
    for authority in ("", f"127.0.0.1:{free_port}"):  # nobody is there to renew it
        node = agent(tmp_path / f"cam{len(authority)}", {**files, "authority": authority})
        code, log = node.run()
        assert code == 7, log
        assert words in log
        assert "clock" in log
        assert "Traceback" not in log


def test_a_key_that_can_not_be_read(tmp_path: Path, certificates: Any) -> None:
    files = tls(certificates.tls("cam", "edge"))
    key = tmp_path / "cam.key"
    cases = {"Is a directory": key.mkdir, "No such file": key.rmdir}
    if os.getuid():
        cases["Permission denied"] = lambda: (shutil.copy(files["key"], key), key.chmod(0))[0]
    for words, prepare in cases.items():
        prepare()
        code, log = agent(tmp_path / "cam", {**files, "key": str(key)}).run()
        assert code == 2, log
        assert f"tls.key {key}: {words}" in log
        assert "Traceback" not in log


def test_no_process_tells_a_key(tmp_path: Path, certificates: Any) -> None:
    """Not at the most talkative level, not with a key in the wrong place, not in an error."""
    files = tls(certificates.tls("cam", "edge"))
    secret = [line for line in Path(files["key"]).read_text().splitlines() if not line.startswith("-")]
    folder = tmp_path / "swapped"
    swapped = {**files, "cert": files["key"], "key": files["cert"]}
    logs = [agent(folder, swapped, log={"level": "debug"}).run()[1]]
    with nodes() as made:
        fog = Node(
            tmp_path / "fog", "fogline.fog_node",
            {"data_dir": str(tmp_path / "fog-data"), "listen": "127.0.0.1:0", "encoder": {"codec": "jpeg2"},
             "tls": tls(certificates.tls("gate", "fog")), "log": {"level": "debug"}},
        )  # fmt: skip
        made.append(fog)
        fog.start()
        node = agent(tmp_path / "cam", files, fog=f"127.0.0.1:{fog.ports['port']}", log={"level": "debug"})
        made.append(node)
        node.start()
        logs.append(str(node.health()))
        assert node.stop() == 0
        logs += [(one.folder / "log").read_text() for one in (fog, node)]
    for text in logs:
        assert not any(line in text for line in secret)
        assert "PRIVATE KEY" not in text
