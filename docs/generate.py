"""Bring the generated parts of the reference pages up to date; `--check` fails when they are stale.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry

from fogline.cloud_server.config import CloudConfig
from fogline.common.codecs import stages
from fogline.common.config import describe
from fogline.common.metrics import CloudMetrics, EdgeMetrics, Exporter, FogMetrics, Metrics, SplitMetrics, TailMetrics
from fogline.common.tails.config import TailHostConfig
from fogline.deploy.grafana.__main__ import DASHBOARDS
from fogline.deploy.grafana.panels import Dashboard
from fogline.edge_agent.config import EdgeConfig
from fogline.fog_node.config import FogConfig

DOCS = Path(__file__).resolve().parent
CONFIGS = {
    "edge-agent": EdgeConfig,
    "fog-node": FogConfig,
    "cloud-server": CloudConfig,
    "split serve": TailHostConfig,
}


def parts() -> dict[str, str]:
    """Return every generated part by its name."""
    made = {f"config {name}": f"```yaml\n{describe(config)}```" for name, config in CONFIGS.items()}
    seen: set[str] = set()
    for title, kind in (
        ("every process", Metrics),
        ("edge", EdgeMetrics),
        ("fog", FogMetrics),
        ("cloud", CloudMetrics),
        ("tail host", TailMetrics),
    ):
        made[f"metrics {title}"] = _table(kind(), seen)
    made["metrics split"] = _table(SplitMetrics(CollectorRegistry()), seen)
    made["tensor codecs"] = _codecs()
    made["errors"] = _errors()
    for name, dashboard in DASHBOARDS.items():
        made[f"panels {name}"] = _panels(dashboard)
    return made


def _panels(dashboard: Dashboard) -> str:
    rows = ["| panel | tells |", "|---|---|"]
    for row in dashboard.rows:
        rows += [f"| {panel.title} | {panel.description} |" for panel in row.panels]
    return "\n".join(rows)


def _codecs() -> str:
    rows = [
        "| codec | number | does | ratio for float32 | error | training | adjoint |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, stage in stages().items():
        safe = "within a point" if stage.training_safe else "costs accuracy"
        cells = (f"`{name}`", str(stage.number), stage.summary, stage.ratio, stage.error, safe, stage.adjoint)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _errors() -> str:
    rows = ["| number | cause |", "|---|---|"]
    for page in sorted((DOCS / "errors").glob("FL*.md")):
        title = page.read_text(encoding="utf-8").partition("\n")[0].partition(": ")[2]
        rows.append(f"| [{page.stem}](errors/{page.name}) | {title} |")
    return "\n".join(rows)


def _table(metrics: Exporter, seen: set[str]) -> str:
    rows = ["| metric | type | meaning |", "|---|---|---|"]
    for family in metrics.registry.collect():
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        if name not in seen:
            seen.add(name)
            rows.append(f"| `{name}` | {family.type} | {family.documentation} |")
    return "\n".join(rows)


def updated(text: str, made: dict[str, str]) -> str:
    """Return a page with its generated parts replaced."""

    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}\n{made[match[2]]}\n<!-- end -->"

    return re.sub(r"(<!-- generated: ([a-z -]+) -->)\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when a page is stale")
    check = parser.parse_args().check
    made = parts()
    stale = 0
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        fresh = updated(text, made)
        if fresh != text and check:
            sys.stderr.write(f"{page.name} is stale; run `make docs`\n")
            stale = 1
        elif fresh != text:
            page.write_text(fresh, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
