"""Dashboards against the types of Grafana's own schema: a wrong type or a key that Grafana does not know is found."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
DASHBOARDS = sorted((Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards").glob("*.json"))
PACKAGES = ("@grafana/schema@13.2.3", "typescript@5")
OPTIONS = "@grafana/schema/dist/esm/raw/composable"
KINDS = {
    "stat": "Stat",
    "timeseries": "TimeSeries",
    "state-timeline": "StateTimeline",
    "heatmap": "Heatmap",
    "table": "Table",
}
# Enums of strings become the strings that they stand for, which is what JSON has.
LOOSE = (
    "type Loose<T> = T extends string ? `${T}` : T extends (infer U)[] ? Loose<U>[] : "
    "T extends object ? { [K in keyof T]: Loose<T[K]> } : T;"
)
Check = Callable[[list[dict[str, Any]]], str]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """What the TypeScript compiler says to dashboards; empty where they are right."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed (Debian: apt install npm)")
    folder = tmp_path_factory.mktemp("schema")
    (folder / "package.json").write_text("{}")
    install = [npm, "install", "--no-audit", "--no-fund", *PACKAGES]
    installed = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"npm can't install {' '.join(PACKAGES)}: {installed.stderr[-300:]}")

    def compile_them(dashboards: list[dict[str, Any]]) -> str:
        (folder / "check.ts").write_text(typescript(dashboards))
        command = "--noEmit --strict --target es2022 --module esnext --moduleResolution bundler --skipLibCheck check.ts"
        tsc = folder / "node_modules" / ".bin" / "tsc"
        done = subprocess.run([tsc, *command.split()], cwd=folder, capture_output=True, text=True, check=False)
        assert bool(done.returncode) == bool(done.stdout), done.stderr
        return done.stdout

    return compile_them


def typescript(dashboards: list[dict[str, Any]]) -> str:
    """A program in which every dashboard, and what is particular to each panel, has the type that Grafana gives it."""
    lines = ["import type {Dashboard} from '@grafana/schema';", LOOSE]
    for kind, name in KINDS.items():
        path = f"{OPTIONS}/{kind.replace('-', '')}/panelcfg/x/{name}PanelCfg_types.gen"
        lines.append(f"import type * as {name} from '{path}';")
    for board in map(deepcopy, dashboards):
        # What a data source adds to the schema: Prometheus's own fields of annotations and variables.
        for annotation in board["annotations"]["list"]:
            for key in ("expr", "step", "titleFormat", "textFormat"):
                del annotation[key]
        for variable in board["templating"]["list"]:
            variable.pop("definition", None)
        lines.append(f"export const d{len(lines)}: Loose<Dashboard> = {json.dumps(board)};")
        for panel in board["panels"]:
            if panel["type"] == "row":
                continue
            name = KINDS[panel["type"]]
            lines.append(f"export const o{len(lines)}: Loose<{name}.Options> = {json.dumps(panel['options'])};")
            custom = panel["fieldConfig"]["defaults"]["custom"]
            if panel["type"] != "stat":
                lines.append(f"export const c{len(lines)}: Loose<{name}.FieldConfig> = {json.dumps(custom)};")
    return "\n".join(lines)


def boards() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in DASHBOARDS]


def test_dashboards_are_of_grafanas_types(check: Check) -> None:
    assert len(boards()) == 3
    assert check(boards()) == ""


def test_what_is_wrong_is_found(check: Check) -> None:
    wrong = boards()
    wrong[0]["schemaVersion"] = "39"
    wrong[0]["panels"][1]["options"]["colourMode"] = "value"
    panel = next(p for p in wrong[1]["panels"] if p["type"] == "timeseries")
    panel["fieldConfig"]["defaults"]["custom"]["drawStyle"] = "curve"
    wrong[2]["panels"][1]["gridPos"]["width"] = 4
    said = check(wrong)
    assert said.count("error TS") == 4, said
    for word in ("colourMode", "curve", "width"):
        assert word in said
