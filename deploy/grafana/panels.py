"""What dashboards are made of, as Grafana's JSON. Every panel has a title, a unit, legends and a description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Json = dict[str, Any]

SCHEMA_VERSION = 39  # Grafana 10.4; newer ones migrate it
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24  # columns of Grafana's grid

GREEN, YELLOW, RED = "green", "orange", "red"
IMAGES_S = "suffix: images/s"


@dataclass(frozen=True)
class Query:
    """An expression and what its lines are called; `instant`: the newest value alone, for tables and figures."""

    expr: str
    legend: str = ""
    instant: bool = False
    form: str = "time_series"  # table, heatmap

    def json(self, number: int) -> Json:
        """For a panel's `targets`."""
        return {
            "refId": chr(ord("A") + number),
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": self.expr,
            "legendFormat": self.legend or "__auto",
            "range": not self.instant,
            "instant": self.instant,
            "format": self.form,
        }


@dataclass(frozen=True)
class Panel:
    """One panel before it has its place."""

    title: str
    description: str
    queries: tuple[Query, ...]
    kind: str
    unit: str
    options: Json
    custom: Json
    steps: tuple[tuple[str, float | None], ...] = ((GREEN, None),)
    width: int = 8
    height: int = 8
    limits: tuple[float | None, float | None] = (0, None)
    decimals: int | None = None
    mappings: tuple[Json, ...] = ()
    overrides: tuple[Json, ...] = ()
    transformations: tuple[Json, ...] = ()

    def json(self, number: int, x: int, y: int) -> Json:
        """At a place of the grid."""
        least, most = self.limits
        defaults: Json = {
            "unit": self.unit,
            "color": {"mode": "thresholds" if self.kind in ("stat", "table", "gauge") else "palette-classic"},
            "thresholds": {"mode": "absolute", "steps": [{"color": c, "value": v} for c, v in self.steps]},
            "mappings": list(self.mappings),
            "custom": self.custom,
        }
        for key, value in (("min", least), ("max", most), ("decimals", self.decimals)):
            if value is not None:
                defaults[key] = value
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [query.json(n) for n, query in enumerate(self.queries)],
            "fieldConfig": {"defaults": defaults, "overrides": list(self.overrides)},
            "options": self.options,
            "transformations": list(self.transformations),
        }


def lines(
    title: str,
    description: str,
    *queries: tuple[str, str],
    unit: str,
    stack: bool = False,
    limit: float | None = None,
    at_least: bool = False,
    **more: Any,
) -> Panel:
    """Lines over time. `limit` draws the line at which it becomes worrying: above it, or below it with `at_least`."""
    custom: Json = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 30 if stack else 8,
        "gradientMode": "none",
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
        "thresholdsStyle": {"mode": "off" if limit is None else "dashed"},
        "axisPlacement": "auto",
        "axisLabel": "",
        "scaleDistribution": {"type": "linear"},
    }
    steps: tuple[tuple[str, float | None], ...] = ((GREEN, None),)
    if limit is not None:
        steps = ((RED, None), (GREEN, limit)) if at_least else ((GREEN, None), (RED, limit))
    options: Json = {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return Panel(
        title, description, tuple(Query(*q) for q in queries), "timeseries", unit, options, custom, steps, **more
    )


def figure(
    title: str,
    description: str,
    expr: str,
    *,
    unit: str,
    steps: Sequence[tuple[str, float | None]] = ((GREEN, None),),
    **more: Any,
) -> Panel:
    """One number, with how it came there."""
    options: Json = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "textMode": "auto",
        "justifyMode": "auto",
        "orientation": "auto",
        "wideLayout": True,
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
    }
    return Panel(title, description, (Query(expr, title),), "stat", unit, options, {}, tuple(steps), 4, 4, **more)


def states(
    title: str, description: str, expr: str, legend: str, texts: Sequence[tuple[str, str]], **more: Any
) -> Panel:
    """Bars that change colour; `texts` are text and colour of the values 0, 1, …"""
    custom: Json = {"lineWidth": 0, "fillOpacity": 70}
    options: Json = {
        "mergeValues": True,
        "showValue": "never",
        "alignValue": "left",
        "rowHeight": 0.8,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    mapping = {str(n): {"text": text, "color": colour, "index": n} for n, (text, colour) in enumerate(texts)}
    return Panel(
        title, description, (Query(expr, legend),), "state-timeline", "none", options, custom,
        mappings=({"type": "value", "options": mapping},), **more,
    )  # fmt: skip


def heatmap(title: str, description: str, expr: str, *, unit: str, **more: Any) -> Panel:
    """A histogram over time; `expr` is a sum of buckets by `le`."""
    options: Json = {
        "calculate": False,
        "cellGap": 1,
        "showValue": "never",
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "", "reverse": False},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
    }
    custom: Json = {
        "scaleDistribution": {"type": "linear"},
        "hideFrom": {"legend": False, "tooltip": False, "viz": False},
    }
    return Panel(title, description, (Query(expr, "{{le}}", form="heatmap"),), "heatmap", unit, options, custom, **more)


@dataclass(frozen=True)
class Column:
    """A column of a table: its query must give one value for each instance."""

    title: str
    expr: str
    unit: str = "none"
    steps: tuple[tuple[str, float | None], ...] = ()


def table(title: str, description: str, columns: Sequence[Column], labels: Sequence[str], **more: Any) -> Panel:
    """One row for each instance: its labels, then the columns."""
    queries = tuple(Query(column.expr, column.title, instant=True, form="table") for column in columns)
    overrides: list[Json] = []
    for column in columns:
        properties: list[Json] = [{"id": "unit", "value": column.unit}]
        if column.steps:
            steps = [{"color": c, "value": v} for c, v in column.steps]
            properties.append({"id": "thresholds", "value": {"mode": "absolute", "steps": steps}})
            properties.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
        overrides.append({"matcher": {"id": "byName", "options": column.title}, "properties": properties})
    names = {f"Value #{query['refId']}": c.title for query, c in zip(map_json(queries), columns, strict=True)}
    keep = [*labels, *names]
    transformations: tuple[Json, ...] = (
        {"id": "merge", "options": {}},
        {"id": "filterFieldsByName", "options": {"include": {"names": keep}}},
        {"id": "organize", "options": {"indexByName": {n: i for i, n in enumerate(keep)}, "renameByName": names}},
    )
    options: Json = {"showHeader": True, "cellHeight": "sm", "frameIndex": 0}
    custom: Json = {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False, "filterable": True}
    return Panel(
        title, description, queries, "table", "none", options, custom, overrides=tuple(overrides),
        transformations=transformations, limits=(None, None), width=WIDTH, **more,
    )  # fmt: skip


def map_json(queries: Sequence[Query]) -> list[Json]:
    """Queries with the letters that they have in a panel."""
    return [query.json(number) for number, query in enumerate(queries)]


@dataclass(frozen=True)
class Row:
    """A heading and what is under it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A drop-down: the values of a label, all of them at first."""

    name: str
    label: str
    values: str  # label_values(…)

    def json(self) -> Json:
        """For `templating`."""
        return {
            "type": "query",
            "name": self.name,
            "label": self.label,
            "datasource": DATASOURCE,
            "definition": self.values,
            "query": {"qryType": 1, "query": self.values, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            "options": [],
            "hide": 0,
        }


@dataclass(frozen=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    def json(self) -> Json:
        """As Grafana provisions it."""
        source: Json = {
            "type": "datasource",
            "name": "datasource",
            "label": "Prometheus",
            "query": "prometheus",
            "regex": "",
            "refresh": 1,
            "multi": False,
            "includeAll": False,
            "options": [],
            "hide": 0,
            "current": {"text": "default", "value": "default"},
        }
        firing: Json = {
            "name": "Alerts", "datasource": DATASOURCE, "enable": True, "hide": False, "iconColor": RED,
            "expr": 'ALERTS{alertstate="firing", alertname=~"Fogline.*"}', "titleFormat": "{{alertname}}",
            "textFormat": "{{instance}}", "step": "30s",
        }  # fmt: skip
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["fogline"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "graphTooltip": 1,
            "timezone": "browser",
            "refresh": "15s",
            "time": {"from": "now-1h", "to": "now"},
            "annotations": {"list": [firing]},
            "links": [
                {
                    "type": "dashboards", "title": "Fogline", "tags": ["fogline"], "asDropdown": False, "icon": "",
                    "includeVars": False, "keepTime": True, "targetBlank": False, "tooltip": "", "url": "",
                }
            ],
            "templating": {"list": [source, *(variable.json() for variable in self.variables)]},
            "panels": list(self._panels()),
        }  # fmt: skip

    def _panels(self) -> list[Json]:
        made: list[Json] = []
        y = 0
        for row in self.rows:
            made.append(
                {
                    "id": len(made) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": [],
                    "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                }
            )  # fmt: skip
            x, y, height = 0, y + 1, 0
            for panel in row.panels:
                if x + panel.width > WIDTH:
                    x, y, height = 0, y + height, 0
                made.append(panel.json(len(made) + 1, x, y))
                x, height = x + panel.width, max(height, panel.height)
            y += height
        return made


def wide(panel: Panel, width: int) -> Panel:
    """The same panel at another width."""
    return replace(panel, width=width)
