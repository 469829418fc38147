"""The report's charts as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fogline.common.images.communication import Communication
from fogline.deploy.local.view import human_seconds
from fogline.drawing import INK, MUTED, STYLE, drawing
from fogline.report.traffic import Traffic

COLOURS = {
    "uplink": "#2f6fdb",
    "downlink": "#16a394",
    "shared_state": "#8a63d2",
    "control": "#e0a030",
    "baseline": "#b9c3cf",
    "source": MUTED,
    "decoded": "#16a394",
    "untrained": "#e0a030",
}
_CODED_BETA = 0.9  # below it, edges sent something else than JPEGs as captured
_STYLE: Any = {
    **STYLE,
    "svg.fonttype": "none",  # text stays text: small, selectable, in the page's own font
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Curve:
    """A measured quantity over training steps, one value per seed where there are several."""

    steps: tuple[int, ...]
    runs: tuple[tuple[float, ...], ...]  # a row per seed

    def mean(self) -> list[float]:
        """The mean over seeds."""
        return [sum(values) / len(values) for values in zip(*self.runs, strict=True)]


def bytes_chart(traffic: Traffic, codec: str) -> str:
    """Bytes on the wire against both baselines, stacked by kind."""
    bars = [
        ("JPEGs as captured,\nevery device to every other", [("baseline", traffic.serverless)]),
        ("JPEGs resized first (q75),\nevery device to every other", [("baseline", traffic.serverless_resized)]),
        (
            f"through the fog node\n({codec})",
            [(k, getattr(traffic, k)) for k in ("uplink", "downlink", "shared_state", "control")],
        ),
    ]
    names = {"uplink": "images up", "downlink": "records down", "shared_state": "shared state", "control": "control"}
    scale, unit = _unit(max(traffic.serverless, traffic.serverless_resized, traffic.total))
    figure, axes = _figure(9.6, 2.7)
    seen = set()
    for row, (_, parts) in enumerate(bars):
        left = 0.0
        for kind, value in parts:
            label = names.get(kind) if value and kind not in seen else None
            seen.add(kind)
            axes.barh(row, value / scale, left=left / scale, height=0.62, color=COLOURS[kind], label=label)
            left += value
        axes.annotate(
            f"{left / scale:.3g} {unit}",
            (left / scale, row),
            (5, 0),
            textcoords="offset points",
            va="center",
            color=INK,
        )
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], color=INK)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{unit} on the wire, headers and control included")
    axes.margins(x=0.1)
    _legend(axes, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4)
    return _svg(figure)


def gain_chart(traffic: Traffic, model: Communication) -> str:
    """n / (beta + alpha n) over the receivers, with what was measured, and the paper's beta of 1 beside it."""
    figure, axes = _figure(4.6, 2.7)
    most = max(12, round(model.receivers * 1.5))
    receivers = range(1, most + 1)
    free = [replace(model, receivers=n, alpha=0.0).gain for n in receivers]
    axes.plot(receivers, free, color=COLOURS["baseline"], linestyle=":", label="alpha = 0: free records")
    axes.plot(
        receivers,
        [replace(model, receivers=n).gain for n in receivers],
        color=COLOURS["uplink"],
        label=f"n/(beta+alpha n), alpha = {model.alpha:.3f}, beta = {model.beta:.2f}",
    )
    if model.beta < _CODED_BETA:
        as_captured = [replace(model, receivers=n).gain_as_captured for n in receivers]
        axes.plot(receivers, as_captured, color=COLOURS["source"], linestyle="--", label="n/(1+alpha n): JPEGs go up")
    axes.plot([model.receivers], [traffic.gain_vs_source], "o", color=COLOURS["control"], label="measured, all bytes")
    axes.set_xlabel("receivers of each image, n")
    axes.set_ylabel("gain over JPEGs as captured")
    axes.set_ylim(0, replace(model, receivers=most).gain * 1.6 + 1)
    _legend(axes, loc="upper left")
    return _svg(figure)


def curves_chart(curves: Mapping[str, Curve], ylabel: str, levels: Mapping[str, float] | None = None) -> str:
    """One line per name (mean over seeds, band from lowest to highest), dashed lines at `levels`."""
    figure, axes = _figure(4.6, 2.7)
    for name, curve in curves.items():
        colour = COLOURS.get(name, INK)
        axes.plot(curve.steps, curve.mean(), color=colour, label=f"trained on {name} images", linewidth=1.8)
        if len(curve.runs) > 1:
            low = [min(values) for values in zip(*curve.runs, strict=True)]
            high = [max(values) for values in zip(*curve.runs, strict=True)]
            axes.fill_between(curve.steps, low, high, color=colour, alpha=0.15, linewidth=0)
    for name, level in (levels or {}).items():
        axes.axhline(level, color=COLOURS["control"], linestyle="--", linewidth=1.2, label=name)
    axes.set_ylim(0, max(0.05, axes.get_ylim()[1]))
    axes.set_xlabel("training steps")
    axes.set_ylabel(ylabel)
    _legend(axes)
    return _svg(figure)


def fleet_chart(curves: Mapping[str, Curve], ylabel: str) -> str:
    """One thin line per device."""
    figure, axes = _figure(6.4, 2.7)
    palette = ("#2f6fdb", "#16a394", "#8a63d2", "#e0a030", "#c2557d", MUTED)
    for index, (name, curve) in enumerate(curves.items()):
        colour = palette[index % len(palette)]
        axes.plot(curve.steps, curve.runs[0], color=colour, linewidth=1.4, marker="o", markersize=2.5, label=name)
    axes.set_xlabel("training steps")
    axes.set_ylabel(ylabel)
    axes.set_ylim(0, max(0.05, axes.get_ylim()[1]))
    _legend(axes, ncols=2, fontsize=8)
    return _svg(figure)


def delay_chart(delays_s: Sequence[float], p50: float, p95: float) -> str:
    """The share of (image, receiver) pairs that were usable within so many seconds of capture."""
    figure, axes = _figure(4.6, 2.7)
    ordered = sorted(delays_s)
    share = [(index + 1) / len(ordered) for index in range(len(ordered))]
    axes.plot(ordered, share, color=COLOURS["uplink"], linewidth=1.8, drawstyle="steps-post")
    for value, name in ((p50, "p50"), (p95, "p95")):
        axes.axvline(value, color=COLOURS["control"], linestyle="--", linewidth=1.2)
        axes.annotate(f"{name} {human_seconds(value)}", (value, 0.04), (4, 0), textcoords="offset points", color=MUTED)
    axes.set_xlabel("seconds from capture to usable at a receiver")
    axes.set_ylabel("share of deliveries")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    return _svg(figure)


def _unit(largest: float) -> tuple[float, str]:
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= scale:
            return scale, unit
    return 1.0, "B"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    with drawing((width, height), style=_STYLE) as (figure, panels):
        return figure, panels[0][0]


def _legend(axes: Any, **where: Any) -> None:
    axes.legend(frameon=False, labelcolor=INK, **where)


def _svg(figure: Any) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
