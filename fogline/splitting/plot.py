"""Pictures of a comparison of split policies: latency over a trace, and how regret is spread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fogline.common.errors import ConfigError
from fogline.common.split.bandwidth import Bandwidth
from fogline.drawing import INK, MUTED, check_matplotlib, drawing, write
from fogline.splitting.bench import Outcome

_COLOURS = {
    "oracle": INK,
    "best fixed": MUTED,
    "local": "#e0a030",
    "remote": "#b3589a",
    "neurosurgeon": "#8a63d2",
    "dynamic": "#d1495b",
    "joint": "#2f6fdb",
}


def check(folder: Path) -> None:
    """Say before the work that there can be no plots. Raises ConfigError."""
    check_matplotlib("--plots")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--plots {folder}: {error.strerror}; name another folder") from error


def latency(outcome: Outcome, bandwidth: Bandwidth, path: Path) -> None:
    """The link's rate, and below it each policy's latency over time. Raises ConfigError where it can't be written."""
    with drawing((10, 6), 2, sharex=True, height_ratios=[1, 2.4]) as (figure, panels):
        above, below = panels[0][0], panels[1][0]
        end = max(one.begun + one.latency_s for run in outcome.runs.values() for one in run.requests)
        rates = [rate * 8 / 1e6 for rate in bandwidth.rates]
        above.step(bandwidth.times, [*rates, rates[-1]], where="post", color="#16a394", linewidth=1.0)
        above.fill_between(bandwidth.times, [*rates, rates[-1]], step="post", color="#16a394", alpha=0.15)
        above.set_ylabel("link, Mbit/s")
        above.set_title(f"{outcome.group}, {outcome.trace}", loc="left", fontsize=10)
        for name, run in outcome.runs.items():
            times, values = [], []
            for one in run.requests:
                times += [one.begun, one.begun + one.latency_s]
                values += [1e3 * one.latency_s] * 2
            width = {"joint": 1.8, "oracle": 1.4}.get(name, 0.9)
            label = f"{name} ({outcome.fixed})" if name == "best fixed" else name
            below.plot(times, values, color=_colour(name), linewidth=width, label=label, alpha=0.9)
        below.set_yscale("log")
        below.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        below.yaxis.set_minor_formatter(lambda value, _: f"{value:,.0f}" if f"{value:.0e}"[0] in "25" else "")
        below.set_ylabel("latency of the request under way, ms")
        below.set_xlabel("seconds of the trace")
        below.set_xlim(0, min(end, bandwidth.duration_s))
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        write(figure, path, "--plots")


def regret(outcomes: Sequence[Outcome], policies: Sequence[str], path: Path) -> None:
    """For each policy the share of traces whose regret is at most x. Raises ConfigError where it can't be written."""
    with drawing((8, 4.6)) as (figure, panels):
        axes = panels[0][0]
        for name in policies:
            values = sorted(max(100 * one.regret(name), 0.01) for one in outcomes)
            shares = [100 * (index + 1) / len(values) for index in range(len(values))]
            width = 2.2 if name == "joint" else 1.3
            axes.step(
                [values[0], *values], [0, *shares], where="post", color=_colour(name), label=name, linewidth=width
            )
        axes.axvline(10, color=MUTED, linewidth=0.8, linestyle=":")
        axes.axhline(95, color=MUTED, linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_xlabel(f"regret: mean {outcomes[0].objective.kind} above the oracle's, %")
        axes.set_ylabel("traces, %")
        axes.set_ylim(0, 101)
        axes.set_title(f"{len(outcomes)} traces; dotted: 10 % at the 95th percentile", loc="left", fontsize=10)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        write(figure, path, "--plots")


def _colour(name: str) -> str:
    return _COLOURS.get(name, "#7a9a01")
