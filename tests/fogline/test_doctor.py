"""`fogline doctor`: what it finds on a healthy and on a broken host."""

from __future__ import annotations

import json
import os
import socket
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from fogline.checks import host, network
from fogline.checks.certificates import certificates as check_certificates
from fogline.checks.finding import Finding, Fix
from fogline.cli import main
from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError


def written(tmp_path: Path, certificates: Any, **more: object) -> Path:
    tls: TlsConfig = certificates.tls("cam", "edge")
    files = {"ca": str(tls.ca), "cert": str(tls.cert), "key": str(tls.key)}
    path = tmp_path / "edge.yaml"
    config = {"name": "cam", "data_dir": str(tmp_path / "data"), "fog": "127.0.0.1:9", "tls": files}
    path.write_text(json.dumps(config | more))
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting torch takes seconds; it has a test of its own."""
    monkeypatch.setattr(host, "torch", lambda required: [])
    monkeypatch.setattr(network, "_DEADLINE_S", 1.0)


def statuses(text: str) -> dict[str, set[str]]:
    report = json.loads(text)
    assert report["schema"] == 1
    found: dict[str, set[str]] = {}
    for finding in report["findings"]:
        found.setdefault(finding["check"], set()).add(finding["status"])
        assert finding["status"] == "ok" or finding["advice"], finding
    return found


@pytest.mark.usefixtures("quick")
def test_a_host_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = statuses(capsys.readouterr().out)
    assert found["versions"] == found["packages"] == {"ok"}
    assert main(["doctor"]) == 0
    assert "ok    versions" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_an_edge_whose_fog_node_is_down(tmp_path: Path, certificates: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, certificates)
    assert main(["doctor", "--config", str(path), "--role", "edge", "--json"]) == 1
    found = statuses(capsys.readouterr().out)
    assert found["configuration"] == found["certificates"] == {"ok"}
    assert found["fog"] == {"fail"}
    assert "fail" not in found["disk"]


@pytest.mark.usefixtures("quick")
def test_a_wrong_configuration(tmp_path: Path, certificates: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, certificates, fgo="127.0.0.1:9")
    assert main(["doctor", "--config", str(path), "--role", "edge"]) == 1
    assert "did you mean `fog`?" in capsys.readouterr().out
    assert main(["doctor", "--config", str(path)]) == ConfigError.exit_code


def test_certificates(tmp_path: Path, certificates: Any, other_certificates: Any) -> None:
    now = datetime.now(timezone.utc)

    def look(tls: TlsConfig, role: Any = "edge", served: tuple[str, ...] = ()) -> list[str]:
        return [f"{f.status}: {f.text} {f.advice}" for f in check_certificates(tls, role, served)]

    assert look(certificates.tls("cam", "edge"))[0].startswith("ok")
    assert "is of a edge, this is a fog" in look(certificates.tls("cam", "edge"), "fog")[1]
    assert "expires on" in look(certificates.tls("cam", "edge", not_after=now + timedelta(days=3)))[1]
    expired = certificates.tls("cam", "edge", not_before=now - timedelta(days=9), not_after=now - timedelta(days=1))
    assert "fail" in look(expired)[0]
    assert "expired on" in look(expired)[0]
    assert "this host's clock says" in look(expired)[0], "a clock that is a year off looks like this"
    foreign = TlsConfig(ca=certificates.folder / "ca.pem", **_pair(other_certificates.tls("cam", "edge")))
    assert "not of the authority" in look(foreign)[0]
    loose = certificates.tls("cam", "edge")
    os.chmod(loose.key, 0o644)
    assert "can be read by others" in look(loose)[1]
    short = certificates.tls("cam", "edge", not_after=now + timedelta(days=3))
    renewing = TlsConfig(ca=short.ca, cert=short.cert, key=short.key, authority="127.0.0.1:9")
    assert len(look(renewing)) == 1, "short-lived certificates are the rule where they are renewed"
    fog = certificates.tls("gate", "fog", hosts=("gate.local",))
    assert len(look(fog, "fog", ("gate.local:7400",))) == 1
    assert "enrol again with --host 10.0.0.9" in look(fog, "fog", ("10.0.0.9:7400",))[1]
    assert "warn: insecure" in look(TlsConfig(insecure=True))[0]
    assert "fail" in look(TlsConfig())[0]


def _pair(tls: TlsConfig) -> dict[str, Any]:
    return {"cert": tls.cert, "key": tls.key}


def test_ports() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        (finding,) = network.port("gRPC", "127.0.0.1", number)
        assert (finding.status, str(number) in finding.text) == ("fail", True)
        assert f"(pid {os.getpid()})" in finding.text
    assert network.port("gRPC", "127.0.0.1", number)[0].status == "ok"
    assert network.port("gRPC", "192.0.2.1", number)[0].status == "fail"
    assert network.port("metrics", "127.0.0.1", 0) == network.port("metrics", "127.0.0.1", -1) == []


def test_disk(tmp_path: Path) -> None:
    assert [found.status for found in host.disk(tmp_path / "to" / "be" / "made", 1000)] == ["warn", "ok"]
    assert host.disk(tmp_path, 1 << 60)[0].status == "warn"
    (tmp_path / "file").write_text("")
    assert host.disk(tmp_path / "file" / "below", 0)[0].status == "fail"


def test_torch_is_tried_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    assert host.torch(required=True)[0].status == "ok"
    monkeypatch.setattr(host, "_TORCH_PROBE", "import os; os.kill(os.getpid(), 4)")
    (finding,) = host.torch(required=False)
    assert (finding.status, "SIGILL" in finding.text) == ("fail", True)
    monkeypatch.setattr(host, "_TORCH_PROBE", "raise ModuleNotFoundError(\"No module named 'torch'\")")
    assert [host.torch(required=required)[0].status for required in (False, True)] == ["warn", "fail"]


@pytest.mark.usefixtures("quick")
def test_fix_mends_what_it_names_and_nothing_else(
    tmp_path: Path, certificates: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, certificates)
    key = Path(json.loads(path.read_text())["tls"]["key"])
    key.chmod(0o644)
    words = ["doctor", "--config", str(path), "--role", "edge"]
    main(words)
    shown = capsys.readouterr().out
    assert f"fix: chmod 600 {key}" in shown
    assert f"fix: mkdir -p -m 700 {tmp_path / 'data'}" in shown
    assert not (tmp_path / "data").exists()
    assert key.stat().st_mode & 0o777 == 0o644
    main([*words, "--fix"])
    assert f"mended with `chmod 600 {key}`" in capsys.readouterr().out
    assert key.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    main([*words, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert {found["check"] for found in report["findings"] if found["fix"]} <= {"clock"}


def test_a_fix_that_fails_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(1, "Operation not permitted")

    broken = Finding("disk", "warn", "too loose", "tighten it", Fix("chmod 600 x", refuse))
    monkeypatch.setattr("fogline.doctor._examine", lambda path, role: iter([broken]))
    assert main(["doctor", "--fix"]) == 0
    assert "too loose; `chmod 600 x` failed: [Errno 1] Operation not permitted" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_a_tail_host(tmp_path: Path, certificates: Any, free_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    tls: TlsConfig = certificates.tls("gate", "fog")
    files = {"ca": str(tls.ca), "cert": str(tls.cert), "key": str(tls.key), "authority": f"127.0.0.1:{free_port}"}
    tensors = {"listen": "127.0.0.1:0", "models": ["fogline.common:build", "nowhere.models:build"]}
    path = tmp_path / "tail.yaml"
    path.write_text(json.dumps({"data_dir": str(tmp_path), "tls": files, "tensors": tensors}))
    assert main(["doctor", "--config", str(path), "--role", "tail", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    told = {(found["check"], found["status"]): found["text"] for found in findings}
    assert told["models", "ok"] == "fogline.common:build: fogline is installed"
    assert told["models", "fail"] == "nowhere.models:build: no package nowhere here"
    assert f"127.0.0.1:{free_port}: Connection refused" in told["authority", "fail"]
    assert ("certificates", "ok") in told


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes folders where others then can't write")
def test_root_is_not_offered_to_make_the_folder_of_another_user(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    found = host.disk(tmp_path / "data")
    assert found[0].status == "warn"
    assert found[0].fix is None
