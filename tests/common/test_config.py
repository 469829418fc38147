"""Configuration: three sources, one frozen object, and errors that say where, what and what instead."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from fogline.common.config import Config, LogConfig, Meta, MetricsConfig, TlsConfig, describe, from_command_line, load
from fogline.common.errors import ConfigError


class Source(Config, frozen=True):
    """A camera."""

    path: Path
    rate: Annotated[float, Meta(gt=0, description="Frames per second")] = 2.0


class Example(Config, frozen=True):
    """An example process."""

    name: Annotated[str, Meta(description="Name of this device")]
    sources: Annotated[tuple[Source, ...], Meta(description="Cameras")] = ()
    policy: Annotated[Literal["block", "drop"], Meta(description="When full")] = "block"
    password: Annotated[str, Meta(description="For the camera", extra={"secret": True})] = ""
    limit: Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description="At most")] = None
    weights: dict[str, float] = msgspec.field(default_factory=dict)
    tls: TlsConfig = TlsConfig()
    metrics: MetricsConfig = MetricsConfig()
    log: LogConfig = LogConfig()


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "example.yaml"
    path.write_text(text)
    return path


def test_file_environment_and_flags_in_that_order(tmp_path: Path) -> None:
    path = written(
        tmp_path, "name: a\npolicy: drop\nmetrics: {port: 1, host: h1}\nsources: [{path: img, rate: 1e-3}]\n"
    )
    env = {"FOGLINE_METRICS__PORT": "2", "FOGLINE_METRICS__HOST": "h2", "FOGLINE_UNRELATED": "x", "HOME": "/"}
    got = load(Example, path, env, {"metrics.port": "3", "limit": "7"})
    assert got.metrics == MetricsConfig(host="h2", port=3)
    assert (got.name, got.policy, got.limit) == ("a", "drop", 7)
    assert got.sources == (Source(path=tmp_path / "img", rate=0.001),)


def test_text_from_a_flag_becomes_the_type_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = {"name": "007", "limit": "null", "tls.insecure": "true", "weights": "{a: 1}", "sources": "[{path: x}]"}
    got = load(Example, None, {"FOGLINE_NAME": "other"}, flags)
    assert (got.name, got.limit, got.tls.insecure, got.weights) == ("007", None, True, {"a": 1.0})
    assert got.sources[0].path == tmp_path / "x"


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("name: a\npolcy: drop", {}, ["example.yaml", "`polcy`", "did you mean `policy`?"]),
        ("name: a\nmetrics: {prot: 1}", {}, ["`metrics.prot`", "`metrics.port`"]),
        ("name: a\nmetrics: {port: high}", {}, ["example.yaml", "`metrics.port` is 'high'", "int"]),
        ("name: a\nmetrics: {port: 70000}", {}, ["`metrics.port` is 70000", "<= 65535"]),
        ("name: a\nsources: [{path: p, rate: 0}]", {}, ["`sources.rate` is 0", "> 0"]),
        ("name: a\nsources: [{path: p}, {pth: p}]", {}, ["`sources[1].pth`", "did you mean `sources[1].path`?"]),
        ("name: a\npolicy: wait", {}, ["`policy` is 'wait'", "block", "drop"]),
        ("name: a\nname: b", {}, ["example.yaml", "'name' is given twice"]),
        ("name: [", {}, ["example.yaml", "not valid YAML"]),
        ("- a", {}, ["example.yaml", "list"]),
        ("policy: drop", {}, ["`name` is missing", "--print-config"]),
        ("name: 5", {}, ["`name` is 5", "str"]),
        ("name: a", {"metrics.prot": "1"}, ["--set metrics.prot", "did you mean `metrics.port`?"]),
        ("name: a", {"metrics.port": "x"}, ["--set metrics.port", "'x'"]),
        ("name: a", {"name.x": "1"}, ["--set name.x", "unknown key `name.x`"]),
        ("name: a", {"tls.ca": "ca.pem"}, ["`tls`", "cert, key", "together"]),
        ("name: a\ntls: {insecure: true, ca: c}", {}, ["`insecure` and `ca` exclude each other"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, flags: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Example, written(tmp_path, text), {}, flags)
    for word in words:
        assert word in str(caught.value)


def test_a_mistyped_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"FOGLINE_METRICS__PROT: unknown key `metrics.prot`; did you mean"):
        load(Example, None, {"FOGLINE_METRICS__PROT": "1"}, {"name": "a"})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml can't be read"):
        load(Example, tmp_path / "nothing.yaml", {}, {})


def test_it_is_frozen_and_hides_secrets() -> None:
    got = load(Example, None, {}, {"name": "a", "password": "hunter2"})
    assert "hunter2" not in repr(got)
    assert "password=***" in repr(got)
    with pytest.raises((AttributeError, dataclasses.FrozenInstanceError)):
        got.name = "b"  # type: ignore[misc]


def test_the_description_is_itself_a_valid_configuration_of_the_defaults(tmp_path: Path) -> None:
    text = describe(Example)
    assert "policy: block # When full; block | drop" in text
    assert "name: # REQUIRED; Name of this device" in text
    assert load(Example, written(tmp_path, text.replace("name: #", "name: a #")), {}, {}) == Example(name="a")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "name: a")
    got = from_command_line(
        Example, "example", ["--config", str(path), "--set", "metrics.port=5", "--set", "policy=drop"]
    )
    assert (got.metrics.port, got.policy) == (5, "drop")
    with pytest.raises(ConfigError, match="not KEY=VALUE"):
        from_command_line(Example, "example", ["--set", "metrics.port"])
    with pytest.raises(SystemExit) as ended:
        from_command_line(Example, "example", ["--print-config"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == describe(Example)


def test_certificates_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="fogline ca init"):
        TlsConfig().files()
