"""Split policies over recorded links in the simulator, for three models, against an oracle and the best fixed choice.

    python -m fogline.benchmarks.split_policies --data DIR [--plots DIR] [--json FILE]

Profiles are measured here, on photographs; the device is the same host at a stated factor (`--edge-factor`, default 8).
Each model is run with all codecs and, since an image's own codec is the baseline that decides most, without
`jpeg-input`, as for inputs that are no pictures. Output, schema 1: `models.<name>` has the `profile` and, by set of
codecs, what `fogline split bench --json` writes, its figures by trace rounded.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch

from fogline.benchmarks import split_models
from fogline.benchmarks.hardware import describe
from fogline.common.split.measure import Calibration, Effort, measure
from fogline.common.split.options import enumerate_options
from fogline.common.split.profile import Profile, load
from fogline.common.split.simulate import Setting
from fogline.splitting import bench, plot
from fogline.splitting.inputs import folder

SCHEMA = 1
MODELS = ("mobilenet_v2", "resnet18", "resnet50")
SETS = {"all codecs": None, "without jpeg-input": ("raw", "fp16", "int8", "int8+zstd")}


def profiled(name: str, options: argparse.Namespace) -> Profile:
    """Measured now, or read from `--profiles`."""
    if options.profiles is not None:
        return load(options.profiles / f"{name}.json")
    images = folder(options.data / "kodak", split_models.SIZE)
    return measure(
        getattr(split_models, name)(),
        Calibration(images, name="kodak, 224x224"),
        name=f"fogline.benchmarks.split_models:{name}",
        effort=Effort(rounds=options.rounds),
        tell=lambda line: print(f"{name}: {line}", file=sys.stderr, flush=True),
    )


def compared(name: str, profile: Profile, options: argparse.Namespace) -> dict[str, Any]:
    """Both sets of codecs over all traces."""
    device = profile.scaled(options.edge_factor)
    setting = Setting(rtt_s=options.rtt / 1e3, duration_s=options.duration)
    paths = bench.traces([options.data / "traces"])
    found: dict[str, Any] = {}
    measured = {one.codec for cut in profile.cuts for one in cut.codecs}
    for label, codecs in SETS.items():
        if codecs is not None and "jpeg-input" not in measured:
            continue
        choices = enumerate_options([device, profile], 1, codecs=codecs)
        policies: dict[str, dict[str, Any]] = {policy: {} for policy in bench.POLICIES}
        policies["joint"] = {"accuracy_budget": options.accuracy_budget}
        outcomes = bench.run(choices, paths, setting, policies, options.accuracy_budget)
        print(f"\n{name}, {label}")
        print("\n".join(bench.lines(outcomes, list(policies))), flush=True)
        made = bench.document([device, profile], choices, setting, policies, options.accuracy_budget, outcomes)
        found[label] = rounded(made)
        if options.plots is not None:
            plot.check(options.plots)
            plot.regret(
                outcomes, ["best fixed", *policies], options.plots / f"regret-{name}-{label.replace(' ', '-')}.png"
            )
    return found


def rounded(value: Any) -> Any:
    """Floats to five digits, so that the file stays small."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return value


def main() -> None:
    """Parse the command line, measure, simulate, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds traces/ and kodak/")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--profiles", type=Path, help="folder with MODEL.json of `fogline split profile`")
    parser.add_argument("--edge-factor", type=float, default=8.0)
    parser.add_argument("--rtt", type=float, default=20.0, help="milliseconds")
    parser.add_argument("--duration", type=float, default=300.0, help="seconds of each trace, at most")
    parser.add_argument("--accuracy-budget", type=float, default=1.0, help="1: of untrained weights it says nothing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plots", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models: dict[str, Any] = {}
    for name in options.models.split(","):
        profile = profiled(name, options)
        models[name] = {
            "profile": rounded(msgspec.to_builtins(profile, str_keys=True)),
            **compared(name, profile, options),
        }
        if options.json:
            settings = {key: value for key, value in vars(options).items() if not isinstance(value, Path | None)}
            text = {"schema": SCHEMA, "benchmark": "split_policies", "hardware": describe(), "settings": settings}
            options.json.write_text(json.dumps({**text, "models": models}) + "\n")


if __name__ == "__main__":
    main()
