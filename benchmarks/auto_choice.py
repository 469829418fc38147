"""What `auto` chooses on real sequences, for some numbers of receivers and downlink rates.

    python -m fogline.benchmarks.auto_choice --data DIR [--candidates jpeg2,avif2,…] [--width 320] [--json FILE]

Every candidate is measured once on frames of each sequence, at its cheapest parameters that reach the stated quality;
the planner then decides for every combination. Output, schema 1: `sequences.<name>` has `figures` (what was measured of
each candidate), `dropped`, `bytes` (the choice for least bytes, which depends on neither receivers nor rate), `time`
(the choice for least time, by receivers and bit/s) and `even_bit_s` (for 1 receiver: the downlink at which the two best
by bytes take equal time; below it the one with fewer bytes is faster; n times as high for n receivers).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from fogline.benchmarks.hardware import describe
from fogline.common.data.load import load_sequence
from fogline.common.images.forms import Form
from fogline.common.images.planning import Figures, Goal, Link, decide
from fogline.explain.folder import measure
from fogline.fog_node.encoders.candidates import chosen

SCHEMA = 1
SEQUENCES = ("OTB_Car1", "OTB_Crossing", "OTB_Human7", "UAV123_boat1", "VOT15_bag")
RECEIVERS = (1, 3, 9)
RATES_BIT_S = (1e6, 16e6, 100e6)


def sequence(path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one sequence and plan for every combination."""
    found = measure(
        load_sequence(path),
        chosen(tuple(options.candidates.split(","))),
        Goal("bytes", options.background_db, options.object_db),
        width=options.width,
        frames=options.frames,
        form=Form.ORIGINAL,
        max_encode_s=options.max_encode_s,
        device=options.device,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )

    def choice(objective: Any, link: Link) -> dict[str, str]:
        decision = decide(Goal(objective, options.background_db, options.object_db), link, found.figures, found.dropped)
        assert decision is not None
        return {"codec": decision.codec, "reason": decision.reason}

    return {
        "coded": found.size,
        "frames": found.frames,
        "source_bytes": found.source_bytes,
        "figures": {one.codec: dataclasses.asdict(one) for one in found.figures},
        "dropped": {one.codec: one.reason for one in found.dropped},
        "bytes": choice("bytes", Link()),
        "time": {str(n): {f"{rate:.0f}": choice("time", Link(n, rate)) for rate in RATES_BIT_S} for n in RECEIVERS},
        "even_bit_s": even_bit_s(found.figures, Goal("bytes", options.background_db, options.object_db)),
    }


def even_bit_s(figures: tuple[Figures, ...], goal: Goal) -> float | None:
    """Where the smallest and the next smallest records reach one receiver at the same time; None where never."""
    good = sorted((one for one in figures if one.shortfall_db(goal) == 0), key=lambda one: one.delivered_bytes)
    if len(good) < 2:
        return None
    small, large = good[:2]
    seconds = [one.encode_s + (one.decode_s or 0.0) for one in (small, large)]
    if seconds[0] <= seconds[1]:
        return None
    return 8 * (large.delivered_bytes - small.delivered_bytes) / (seconds[0] - seconds[1])


def main() -> None:
    """Parse the command line, measure, print two tables, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sequences' folders")
    parser.add_argument("--candidates", default="jpeg2,avif2,latent")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--background-db", type=float, default=28.0)
    parser.add_argument("--object-db", type=float, default=35.0)
    parser.add_argument("--max-encode-s", type=float, default=60.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name in SEQUENCES:
        results[name] = sequence(options.data / name, options)
        if options.json:
            settings = {key: value for key, value in vars(options).items() if key not in ("data", "json")}
            text = {"schema": SCHEMA, "benchmark": "auto_choice", "hardware": describe(), "settings": settings}
            options.json.write_text(json.dumps({**text, "sequences": results}, indent=1) + "\n")
    print("| sequence | codec | parameters | record B | background dB | objects dB | encode ms | decode ms |")
    print("|---|---|---|---|---|---|---|---|")
    for name, result in results.items():
        for codec, one in result["figures"].items():
            params = ", ".join(f"{key} {value}" for key, value in one["params"].items())
            print(
                f"| {name} | {codec} | {params} | {one['record_bytes']:,.0f} | {decibel(one['background_db'])} | "
                f"{decibel(one['object_db'])} | {1000 * one['encode_s']:.1f} | {1000 * (one['decode_s'] or 0):.1f} |"
            )
        for codec, reason in result["dropped"].items():
            print(f"| {name} | {codec} | {reason} | | | | | |")
    print("\n| sequence | least bytes | " + " | ".join(f"n={n}, {r / 1e6:g}" for n in RECEIVERS for r in RATES_BIT_S))
    print("|---" * (2 + len(RECEIVERS) * len(RATES_BIT_S)) + "|")
    for name, result in results.items():
        cells = [result["time"][str(n)][f"{rate:.0f}"]["codec"] for n in RECEIVERS for rate in RATES_BIT_S]
        print(f"| {name} | {result['bytes']['codec']} | " + " | ".join(cells) + " |")


def decibel(value: float | None) -> str:
    """One decimal, or a dash."""
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
