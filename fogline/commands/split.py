"""`fogline split`: what cutting a model between a device and a host would cost, and what policies make of a link.

profile   measure a model's cuts and codecs on this host, into a file for planners
explain   every cut and codec at one rate, with its cost terms, and the choice
bench     policies over recorded links, against an oracle that knows them
serve     a host that runs parts of models for others
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fogline.commands import split_serve
from fogline.common.errors import ConfigError
from fogline.common.split.bandwidth import Bandwidth
from fogline.common.split.link import LinkEstimate
from fogline.common.split.options import Load, Table, enumerate_options
from fogline.common.split.planner import Explanation
from fogline.common.split.policies.base import Objective, Situation, find, make
from fogline.common.split.profile import save
from fogline.common.split.simulate import Setting
from fogline.explain import quantities
from fogline.splitting import bench, explained, plot
from fogline.splitting.profiles import add_measuring, add_planning, beyond, build, gathered, measured, power, sizes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    profile = commands.add_parser("profile", help="measure a model's cuts and codecs on this host")
    add_measuring(profile)
    profile.add_argument("--batches", default="1", metavar="1,4", help="batch sizes (default: 1)")
    profile.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the profile, as JSON")
    explain = commands.add_parser("explain", help="every cut and codec at one rate, and the choice")
    add_measuring(explain)
    add_planning(explain)
    explain.add_argument("--rate", required=True, metavar="R", help="of the link: 2MB/s, 16Mbit/s; 0 for none")
    explain.add_argument("--policy", default="joint", metavar="P", help="whose choice (default: joint)")
    explain.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    against = commands.add_parser("bench", help="policies over recorded links, against an oracle")
    add_measuring(against)
    add_planning(against)
    against.add_argument("--traces", type=Path, nargs="+", required=True, metavar="DIR", help="CSV files: t_s,bps")
    against.add_argument("--batches", metavar="1,4", help="sizes to choose from (default: that of --batch)")
    against.add_argument(
        "--at-once",
        type=int,
        default=1,
        metavar="N",
        help="samples that come at once, for batches to choose (default: 1)",
    )
    against.add_argument(
        "--every", type=float, default=0.0, metavar="MS", help="from one request to the next, at least (default: 0)"
    )
    against.add_argument("--policies", default=",".join(bench.POLICIES), metavar="A,B", help="(default: %(default)s)")
    against.add_argument("--duration", type=float, default=300.0, metavar="S", help="of each trace (default: 300)")
    against.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    against.add_argument("--plots", type=Path, metavar="DIR", help="write regret.png and a latency-NAME.png per folder")
    split_serve.add_arguments(commands.add_parser("serve", help="run parts of models for edges and fog nodes"))


def run(arguments: argparse.Namespace) -> int:
    """Run one of them."""
    commands = {"profile": _profile, "explain": _explain, "bench": _bench, "serve": split_serve.run}
    commands[arguments.what](arguments)
    return 0


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def _profile(arguments: argparse.Namespace) -> None:
    made = measured(arguments, build(arguments), sizes(arguments), _tell)
    save(made, arguments.output)
    sys.stdout.write(f"{len(made.cuts) - 1} cuts of {made.model} on {made.hardware}: {arguments.output}\n")


def _explain(arguments: argparse.Namespace) -> None:
    find(arguments.policy)
    rate = 0.0 if arguments.rate.strip() == "0" else quantities.rate("--rate", arguments.rate)
    second = beyond(arguments)
    links = (LinkEstimate.stated(rate, _rtt(arguments)), *(() if second is None else (second,)))
    params = _params(arguments.policy, arguments)
    profiles = gathered(arguments, _tell)
    options = enumerate_options(profiles, arguments.batch)
    choice = make(arguments.policy, options, params).choose(Situation(0.0, links))
    # Everything that was measured is shown, also what the policy does not consider.
    table, watts = Table(options), power(arguments)
    weighed = [table.terms(index, links, Load(), watts) for index in range(len(options))]
    found = Explanation(choice, links, tuple(sorted(weighed, key=lambda one: one.latency_s)))
    sys.stdout.write("\n".join(explained.lines(profiles, arguments.policy, arguments.batch, found)) + "\n")
    _write(arguments.json, explained.document(profiles, arguments.policy, arguments.batch, found))


def _bench(arguments: argparse.Namespace) -> None:
    names = tuple(dict.fromkeys(arguments.policies.split(",")))
    for name in names:
        find(name)
    if arguments.at_once < 1:
        raise ConfigError(f"--at-once {arguments.at_once}: give 1 or more")
    setting = Setting(
        rtt_s=_rtt(arguments),
        duration_s=arguments.duration,
        objective=Objective(arguments.objective, power(arguments)),
        samples=arguments.at_once,
        beyond=beyond(arguments),
        every_s=arguments.every / 1e3,
    )
    batches = sizes(arguments)
    paths = bench.traces(arguments.traces)
    for path in paths:
        Bandwidth.read(path)  # first: a wrong file costs no time
    if arguments.plots is not None:
        plot.check(arguments.plots)
    profiles = gathered(arguments, _tell)
    options = [one for size in batches for one in enumerate_options(profiles, size)]
    policies = {name: _params(name, arguments) for name in names}
    outcomes = bench.run(options, paths, setting, policies, arguments.accuracy_budget, _tell)
    sys.stdout.write("\n".join(bench.lines(outcomes, names)) + "\n")
    _write(arguments.json, bench.document(profiles, options, setting, policies, arguments.accuracy_budget, outcomes))
    if arguments.plots is not None:
        _plots(arguments.plots, outcomes, names, paths, setting)


def _plots(
    folder: Path, outcomes: Sequence[bench.Outcome], names: Sequence[str], paths: Sequence[Path], setting: Setting
) -> None:
    """Regret over all traces, and of each folder the trace on which adapting gains most."""
    plot.regret(outcomes, ["best fixed", *names], folder / "regret.png")
    for group in dict.fromkeys(one.group for one in outcomes):
        pairs = [(one, path) for one, path in zip(outcomes, paths, strict=True) if one.group == group]
        outcome, path = max(pairs, key=lambda pair: pair[0].oracle_gain)
        plot.latency(outcome, Bandwidth.read(path).cut(setting.duration_s), folder / f"latency-{group}.png")


def _params(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line says to policies that have such a parameter."""
    if name == "joint":
        budget = arguments.accuracy_budget
        return {"objective": arguments.objective, "accuracy_budget": budget, "power": power(arguments)}
    return {"objective": arguments.objective} if name == "neurosurgeon" else {}


def _rtt(arguments: argparse.Namespace) -> float:
    if not 0 <= arguments.rtt < math.inf:
        raise ConfigError(f"--rtt {arguments.rtt}: give milliseconds, 0 or more")
    return float(arguments.rtt) / 1e3


def _write(path: Path | None, document: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {path} can't be written: {error.strerror}; choose another") from error
