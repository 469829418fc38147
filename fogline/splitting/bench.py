"""`fogline split bench`: policies over recorded links, each against an oracle and the best fixed choice."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fogline.common.errors import ConfigError, InputError
from fogline.common.split import simulate
from fogline.common.split.bandwidth import Bandwidth
from fogline.common.split.options import Option, Power
from fogline.common.split.policies.base import Objective, make
from fogline.common.split.profile import Profile
from fogline.common.split.simulate import Run, Setting

SCHEMA = 1
POLICIES = ("local", "remote", "neurosurgeon", "dynamic", "joint")
WORTH = 0.15  # a trace is worth adapting to where the oracle gains so much over the best fixed choice


@dataclass(frozen=True)
class Outcome:
    """All policies over one trace. `runs` has `oracle` and `best fixed` as well; `fixed` names the latter's option.

    Gains and regrets are of what the objective asks for: mean latency, or mean joules of the device.
    """

    trace: str
    group: str  # the trace's folder
    fixed: str
    runs: Mapping[str, Run]
    objective: Objective = field(default_factory=Objective)

    @property
    def oracle_gain(self) -> float:
        """What knowing the trace would gain over the best fixed choice, as a share of the latter's mean."""
        return 1.0 - self._mean("oracle") / self._mean("best fixed")

    def regret(self, policy: str) -> float:
        """Mean over the oracle's, less one."""
        return self._mean(policy) / self._mean("oracle") - 1.0

    def over_fixed(self, policy: str) -> float:
        """Mean over the best fixed choice's, less one; negative where the policy is better."""
        return self._mean(policy) / self._mean("best fixed") - 1.0

    def _mean(self, policy: str) -> float:
        return self.runs[policy].mean(self.objective)


def traces(folders: Sequence[Path]) -> list[Path]:
    """The CSV files in folders, or files themselves. Raises InputError where there are none."""
    found: list[Path] = []
    for folder in folders:
        inside = sorted(folder.rglob("*.csv")) if folder.is_dir() else [folder]
        if not inside:
            raise InputError(f"--traces {folder}: holds no .csv; name a folder with traces of the columns t_s,bps")
        found += inside
    return found


def allowed(options: Sequence[Option], accuracy_budget: float) -> list[Option]:
    """What the oracle and the best fixed choice may take: the same as `joint`."""
    found = [one for one in options if one.accuracy_drop <= accuracy_budget]
    if not found:
        raise ConfigError(f"every option loses more than the accuracy budget of {accuracy_budget}; raise it")
    return found


def run(
    options: Sequence[Option],
    paths: Sequence[Path],
    setting: Setting,
    policies: Mapping[str, Mapping[str, Any]],
    accuracy_budget: float,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Simulate every policy (name: parameters) over every trace. Raises ConfigError and InputError."""
    within = allowed(options, accuracy_budget)
    found = []
    for index, path in enumerate(paths, 1):
        link = Bandwidth.read(path).cut(setting.duration_s)
        best, fixed = simulate.best_fixed(within, link, setting)
        runs = {"oracle": simulate.oracle(within, link, setting), "best fixed": fixed}
        for name, params in policies.items():
            runs[name] = simulate.planned(make(name, options, params), link, setting)
        found.append(Outcome(path.stem, path.parent.name, best.name, runs, setting.objective))
        tell(f"{index} of {len(paths)}: {path.name}")
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def summary(outcomes: Sequence[Outcome], policies: Sequence[str]) -> dict[str, Any]:
    """Over all traces, and apart over those where adapting can gain and where it can't."""
    groups = {
        "all": list(outcomes),
        "oracle_gains_15_percent": [one for one in outcomes if one.oracle_gain >= WORTH],
        "oracle_gains_less": [one for one in outcomes if one.oracle_gain < WORTH],
    }
    return {
        name: {"traces": len(some), "policies": {policy: _figures(some, policy) for policy in policies} if some else {}}
        for name, some in groups.items()
    }


def _figures(outcomes: Sequence[Outcome], policy: str) -> dict[str, float | None]:
    regrets = [one.regret(policy) for one in outcomes]
    over = [one.over_fixed(policy) for one in outcomes]
    shares = [
        statistics.median(one.runs[policy].decision_s) / one.runs[policy].mean_s
        for one in outcomes
        if one.runs[policy].decision_s
    ]
    return {
        "regret_mean": statistics.fmean(regrets),
        "regret_p50": percentile(regrets, 0.5),
        "regret_p95": percentile(regrets, 0.95),
        "regret_max": max(regrets),
        "over_best_fixed_mean": statistics.fmean(over),
        "over_best_fixed_max": max(over),
        "mean_s": statistics.fmean(one.runs[policy].mean_s for one in outcomes),
        "mean_j": statistics.fmean(one.runs[policy].mean_j for one in outcomes),
        "p99_s_median": statistics.median(one.runs[policy].percentile_s(0.99) for one in outcomes),
        "decision_share_max": max(shares) if shares else None,
    }


def document(
    profiles: Sequence[Profile],
    options: Sequence[Option],
    setting: Setting,
    policies: Mapping[str, Mapping[str, Any]],
    accuracy_budget: float,
    outcomes: Sequence[Outcome],
) -> dict[str, Any]:
    """Schema 1. `_s` are seconds, `_j` joules of the device; regrets and gains are shares, of what the objective asks
    for; `decision_share` is the median time to decide ÷ mean latency."""
    names = ["oracle", "best fixed", *policies]
    return {
        "schema": SCHEMA,
        "model": profiles[0].model,
        "device": profiles[0].hardware,
        "host": profiles[1].hardware,
        "cloud": profiles[2].hardware if len(profiles) > 2 else None,
        "calibration": profiles[0].calibration,
        "accuracy_budget": accuracy_budget,
        "setting": {
            "rtt_s": setting.rtt_s,
            "duration_s": setting.duration_s,
            "overhead": setting.overhead,
            "objective": setting.objective.kind,
            "samples": setting.samples,
            "every_s": setting.every_s,
            "beyond": None
            if setting.beyond is None
            else {"rate_bit_s": setting.beyond.rate_bit_s, "rtt_s": setting.beyond.rtt_s},
        },
        "policies": {
            name: {key: asdict(value) if isinstance(value, Power) else value for key, value in params.items()}
            for name, params in policies.items()
        },
        "options": [
            {
                "option": one.name,
                "batch": one.batch,
                "device_s": one.hosts_s[0],
                "host_s": sum(one.hosts_s[1:]),
                "bytes": sum(one.coded_bytes),
                "accuracy_drop": one.accuracy_drop,
            }
            for one in options
        ],
        "summary": summary(outcomes, names),
        "traces": [
            {
                "trace": one.trace,
                "group": one.group,
                "best_fixed": one.fixed,
                "oracle_gain": one.oracle_gain,
                "policies": {
                    name: {
                        "requests": len(run.requests),
                        "mean_s": run.mean_s,
                        "p99_s": run.percentile_s(0.99),
                        "mean_j": run.mean_j,
                        "regret": one.regret(name),
                        "over_best_fixed": one.over_fixed(name),
                        "switches": run.switches,
                        "fallbacks": run.fallbacks,
                        "probe_bytes": run.probe_bytes,
                    }
                    for name, run in one.runs.items()
                },
            }
            for one in outcomes
        ],
    }


def lines(outcomes: Sequence[Outcome], policies: Sequence[str]) -> list[str]:
    """The summary as a table."""
    text = []
    titles = {
        "all": "all traces",
        "oracle_gains_15_percent": "traces on which the oracle gains 15 % or more over the best fixed choice",
        "oracle_gains_less": "traces on which it gains less",
    }
    for group, found in summary(outcomes, ["oracle", "best fixed", *policies]).items():
        text.append(f"{titles[group]}: {found['traces']}")
        if not found["policies"]:
            continue
        rows = [("policy", "mean ms", "p99 ms", "mean J", "regret p50", "p95", "max", "over fixed max", "decision")]
        for name, figures in found["policies"].items():
            share = figures["decision_share_max"]
            rows.append(
                (
                    name,
                    f"{1e3 * figures['mean_s']:.1f}",
                    f"{1e3 * figures['p99_s_median']:.1f}",
                    f"{figures['mean_j']:.3f}",
                    *(f"{100 * figures[key]:.1f} %" for key in ("regret_p50", "regret_p95", "regret_max")),
                    f"{100 * figures['over_best_fixed_max']:+.1f} %",
                    "-" if share is None else f"{100 * share:.3f} %",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        text += [
            "  " + "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
    return text
