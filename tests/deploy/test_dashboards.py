"""Dashboards and rules speak of metrics that exist, and every panel says what it shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from fogline.common.metrics import CloudMetrics, EdgeMetrics, FogMetrics, SplitMetrics, TailMetrics
from fogline.deploy.grafana.__main__ import DASHBOARDS as MADE

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS, GRAFANA = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
SUFFIXES = {"counter": ("_total",), "info": ("_info",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
JOBS = ("fogline-cloud", "fogline-fog", "fogline-edge", "fogline-tail", "fogline-split")


def exported() -> dict[str, set[str]]:
    """Every sample that a process exports, with the labels that it has."""
    made: dict[str, set[str]] = {}
    exporters = [EdgeMetrics(), FogMetrics(), CloudMetrics(), TailMetrics(), SplitMetrics(CollectorRegistry())]
    for exporter in exporters:
        for metric in vars(exporter).values():
            if hasattr(metric, "_labelnames"):
                (family,) = metric.describe()
                for suffix in SUFFIXES[family.type]:
                    made.setdefault(family.name + suffix, set()).update(metric._labelnames)
        for family in exporter.registry.collect():
            for suffix in SUFFIXES[family.type]:
                labels = {label for sample in family.samples for label in sample.labels}
                made.setdefault(family.name + suffix, set()).update(labels)
    for name in made:
        if name.startswith("fogline_certificate"):
            made[name].add("of")
    return made


EXPORTED = exported()


def rules(kind: str) -> list[dict[str, Any]]:
    """Recording (`record`) or alerting (`alert`) rules."""
    files = [yaml.safe_load(path.read_text()) for path in sorted((PROMETHEUS / "rules").glob("*.yml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"] if kind in rule]


RECORDED = {rule["record"] for rule in rules("record")}
ALERTS = {rule["alert"]: rule for rule in rules("alert")}


def panels(path: Path) -> list[dict[str, Any]]:
    """The panels of a dashboard, without rows."""
    return [panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Where it stands, and each expression of the dashboards, their drop-downs and the rules."""
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        for panel in panels(path):
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                yield f"{path.stem}: ${variable['name']}", variable["definition"]
        yield f"{path.stem}: annotations", board["annotations"]["list"][0]["expr"]
    for rule in (*rules("record"), *ALERTS.values()):
        yield rule.get("record") or rule["alert"], rule["expr"]


def check(where: str, expr: str) -> None:
    """Fail where an expression names what no process exports, or a label that a metric does not have."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    names = re.findall(r"(?<![\w:-])fogline[\w:]*", bare)
    for name in names:
        assert name in EXPORTED or name in RECORDED, f"{where}: {name} is exported by nothing"
    for name, matchers in re.findall(r"(fogline_\w+)\{([^}]*)\}", bare):
        asked = set(re.findall(r"(\w+)\s*[=!]~?", matchers))
        assert asked <= EXPORTED[name] | {"job", "instance", "cluster"}, f"{where}: {name} has {EXPORTED[name]}"
    for job in re.findall(r'job(?:=|!=)"([^"]*)"', expr):
        assert job in JOBS, where


def test_every_metric_exists_and_has_the_labels_that_are_asked_for() -> None:
    found = list(expressions())
    assert len(found) > 150
    for where, expr in found:
        check(where, expr)


def test_a_name_that_nobody_exports_is_found() -> None:
    with pytest.raises(AssertionError, match="fogline_outbox_imagez is exported by nothing"):
        check("x", "rate(fogline_outbox_imagez[5m])")
    with pytest.raises(AssertionError, match="fogline_outbox_images has"):
        check("x", 'fogline_outbox_images{link="x"}')


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_are_complete_and_do_not_overlap(path: Path) -> None:
    board = json.loads(path.read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not taken & cells, panel["title"]
        taken |= cells
    for panel in panels(path):
        assert panel["title"], panel
        assert len(panel["description"]) > 15, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None
        for target in panel["targets"]:
            assert target["legendFormat"] != "__auto", panel["title"]
            unknown = set(re.findall(r"\$(\w+)", target["expr"])) - {v["name"] for v in board["templating"]["list"]}
            assert unknown <= {"__rate_interval"}, panel["title"]
    titles = [panel["title"] for panel in panels(path)]
    assert len(set(titles)) == len(titles)


def test_dashboards_are_fresh() -> None:
    assert {path.stem: json.loads(path.read_text()) for path in DASHBOARDS} == {
        name: dashboard.json() for name, dashboard in MADE.items()
    }, "run `make docs`"
    assert len(DASHBOARDS) == 3


def test_configurations_name_the_jobs_that_rules_count_on() -> None:
    for name in ("prometheus.yml", "compose.yml"):
        config = yaml.safe_load((PROMETHEUS / name).read_text())
        assert tuple(job["job_name"] for job in config["scrape_configs"]) == JOBS
        for file in config["rule_files"]:
            assert (PROMETHEUS / file).is_file()
    for targets in (PROMETHEUS / "targets").glob("*.yml"):
        assert yaml.safe_load(targets.read_text()) == []
        example = [line.removeprefix("# ") for line in targets.read_text().splitlines() if line.startswith("# ")]
        (entry,) = yaml.safe_load("\n".join(example[1:]))
        assert entry["targets"]


def test_every_alert_is_tried_for_both_and_explained() -> None:
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    page = (ROOT / "docs" / "monitoring.md").read_text()
    tried = set()
    for test in tests:
        (case,) = test["alert_rule_test"]
        tried.add(case["alertname"])
        series = " ".join(one["series"] for one in test["input_series"])
        assert all(instance in series for instance in ("bad:9100", "good:9100")), test["name"]
        assert len(case["exp_alerts"]) == 1, test["name"]
    assert tried == set(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert f"\n### {name}\n" in page
        assert rule["annotations"]["runbook_url"] == f"docs/monitoring.md#{name.lower()}"


@pytest.mark.slow
def test_rules_pass_promtool() -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    for arguments in (
        ["check", "config", "prometheus.yml"],
        ["check", "config", "compose.yml"],
        ["test", "rules", "rules_test.yml"],
    ):
        done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
