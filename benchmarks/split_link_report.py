"""What `split_link` measured, against a simulation of devices and hosts as slow, late and uneven as they were there.

    python -m fogline.benchmarks.split_link_report FILE --data DIR [--json FILE]

FILE is what `split_link --json` wrote. From its requests come how much slower than profiled device and host were, by
how much computing scattered, and what sending took beyond the link; each policy is then simulated with these, the
oracle and the fixed choice too. `--json` writes a smaller file: the same, and of each request the columns named there,
with the option as a place in `options`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from fogline.benchmarks.split_link import OVERHEAD, stretch
from fogline.common.split import simulate
from fogline.common.split.bandwidth import Bandwidth
from fogline.common.split.options import Option, enumerate_options
from fogline.common.split.policies.base import make
from fogline.common.split.profile import Profile
from fogline.common.split.simulate import Setting

SCHEMA = 2
SEEDS = 5
PROBE_S = 0.005  # of the device's time: 0.6 ms of its processor at an eighth
COLUMNS = ("begun_s", "latency_s", "option", "fell_back", "expected_s", "rate_bit_s", "decision_s", "decision_cpu_s")
BUSY_S = 0.01  # a device that computed for so long has used up its share when it comes to sending


def links(result: dict[str, Any], data: Path) -> dict[str, Bandwidth]:
    """The rates that were set, by the stretch's name."""
    found = {}
    for row in result["stretches"]:
        stem, start = row["trace"].removesuffix(" s").split(" from ")
        (path,) = (data / "traces" / row["group"]).glob(f"{stem}.csv")
        found[row["trace"]] = stretch(Bandwidth.read(path), path.stem, int(start), result["seconds"])
    return found


def requests(result: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Stretch, policy and record of each, once where a policy stands for two."""
    for row in result["stretches"]:
        for policy, told in row["policies"].items():
            if policy == "best fixed" and row["best_fixed"] == "local":
                continue
            for run in told["requests"]:
                for one in run:
                    yield row["trace"], policy, one


def observed(result: dict[str, Any], by_name: dict[str, Option], rates: dict[str, Bandwidth]) -> dict[str, float]:
    """How device, host and sending differ from profiles and link."""
    local, hosts, late = [], [], []
    for trace, _, one in requests(result):
        option = by_name[one["option"]]
        if not option.cuts:
            if "second_thought" not in one:
                local.append(one["latency_s"] / option.hosts_s[0])
            continue
        if "compute_s" in one:
            hosts.append(one["compute_s"] / option.hosts_s[1])
        if one.get("head_s", 0.0) >= BUSY_S and "answered_s" in one and not one["backlog_bytes"]:
            carried = rates[trace].finish(one["ready_s"], OVERHEAD * one["bytes"]) - one["ready_s"]
            if carried < 0.2:  # beyond, a rate that was set some milliseconds late weighs more than what is looked for
                took = one["answered_s"] - one["ready_s"] - one["compute_s"] - one["queued_s"]
                late.append(took - carried - result["rtt_s"])
    return {
        "device_factor": statistics.fmean(local),
        "scatter": statistics.pstdev(local) / statistics.fmean(local),
        "host_factor": statistics.median(hosts),
        "send_s": max(0.0, statistics.fmean(late)),
    }


def main() -> None:
    """Parse the command line, simulate, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds traces/")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = json.loads(options.file.read_text())
    rates = links(result, options.data)
    device, host = (msgspec.convert(result["profiles"][name], Profile, strict=False) for name in ("device", "host"))
    by_name = {one.name: one for one in enumerate_options([device, host], 1)}
    seen = observed(result, by_name, rates)
    choices = enumerate_options([device.scaled(seen["device_factor"]), host.scaled(seen["host_factor"])], 1)
    setting = Setting(
        rtt_s=result["rtt_s"], duration_s=result["seconds"], overhead=OVERHEAD,
        send_s=seen["send_s"], scatter=seen["scatter"], probe_s=PROBE_S,
    )  # fmt: skip
    rows = [
        compared(row, rates[row["trace"]], choices, setting, result["accuracy_budget"]) for row in result["stretches"]
    ]
    sys.stdout.write("\n".join(lines(rows, result["policies"], seen)) + "\n")
    if options.json:
        kept = {key: value for key, value in result.items() if key not in ("stretches", "schema")}
        made = {"schema": SCHEMA, **kept, "observed": seen, "columns": COLUMNS}
        made |= {"options": [one.name for one in choices], "stretches": rows}
        options.json.write_text(json.dumps(made) + "\n")


def compared(
    row: dict[str, Any], link: Bandwidth, choices: list[Option], setting: Setting, budget: float
) -> dict[str, Any]:
    """One stretch, with what simulation says of the host and the device that were there."""
    fixed = next(one for one in choices if one.name == row["best_fixed"])

    def simulated(policy: str, seed: int) -> float:
        here = replace(setting, seed=seed)
        if policy == "oracle":
            return simulate.oracle(choices, link, here).mean_s
        if policy == "best fixed":
            return simulate.fixed(fixed, link, here).mean_s
        params = {"accuracy_budget": budget} if policy == "joint" else {}
        return simulate.planned(make(policy, choices, params), link, here).mean_s

    places = {one.name: place for place, one in enumerate(choices)}
    policies = {}
    for policy, told in row["policies"].items():
        policies[policy] = {
            "real": told["real"],
            "simulated_as_profiled_s": told["simulated"]["mean_s"],
            "simulated_as_observed_s": statistics.fmean(simulated(policy, seed) for seed in range(SEEDS)),
            "requests": [[_columns(one, places) for one in run] for run in told["requests"]],
        }
    return {**{key: row[key] for key in ("trace", "group", "best_fixed")}, "policies": policies}


def _columns(record: dict[str, Any], places: dict[str, int]) -> list[Any]:
    values = [record.get(key) for key in COLUMNS]
    values[COLUMNS.index("option")] = places[record["option"]]
    return values


def lines(rows: list[dict[str, Any]], names: list[str], seen: dict[str, float]) -> list[str]:
    """Markdown."""
    text = [", ".join(f"{key} {value:.3g}" for key, value in seen.items()), ""]
    text.append(f"| stretch | {' | '.join(names)} | joint ÷ oracle | joint ÷ best of local and fixed | deciding |")
    text.append("|" + "---|" * (len(names) + 4))
    ratios: dict[str, list[float]] = {"oracle": [], "fixed": [], "sim oracle": [], "sim fixed": [], "deciding": []}
    agreement: list[float] = []
    for row in rows:
        real = {name: row["policies"][name]["real"]["mean_s"] for name in names}
        fake = {name: row["policies"][name]["simulated_as_observed_s"] for name in names}
        agreement += [real[name] / fake[name] for name in names]
        for prefix, means in (("", real), ("sim ", fake)):
            ratios[f"{prefix}oracle"].append(means["joint"] / means["oracle"])
            ratios[f"{prefix}fixed"].append(means["joint"] / min(means["local"], means["best fixed"]))
        told = row["policies"]["joint"]["real"]
        ratios["deciding"].append(told["decision_s"] / told["mean_s"])
        cells = [f"{1e3 * real[name]:.0f}, {1e3 * fake[name]:.0f}" for name in names]
        cells += [f"{ratios['oracle'][-1]:.2f}, {ratios['sim oracle'][-1]:.2f}"]
        cells += [f"{ratios['fixed'][-1]:.2f}, {ratios['sim fixed'][-1]:.2f}", f"{100 * ratios['deciding'][-1]:.2f} %"]
        text.append(f"| {row['trace']} ({row['best_fixed']}) | {' | '.join(cells)} |")
    for key, values in ratios.items():
        scale = 100 if key == "deciding" else 1
        text.append(f"{key}: median {scale * statistics.median(values):.3g}, worst {scale * max(values):.3g}")
    least, most = min(agreement), max(agreement)
    text.append(f"measured ÷ simulated: median {statistics.median(agreement):.2f} ({least:.2f} to {most:.2f})")
    return text


if __name__ == "__main__":
    main()
